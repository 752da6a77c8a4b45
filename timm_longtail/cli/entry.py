"""How an entry point runs: log lines, errors as one line, exit status."""
import atexit
import logging
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable, Iterator

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from ..utils.errors import UserError
from ..utils.files import last_state
from ..utils.output_lock import held_folder, release_folder
from ..utils.program import program_name
from ..utils.signals import Interrupted, Stopped, on_stop_signal, stop_signals
from ..utils.streams import lasting_streams

__all__ = ['log_to_stderr', 'run_main']

# gloo and the store raise bare RuntimeErrors, most often with the line of their source in front
_LOST = (
    '/gloo/', 'pair closure', 'closed by peer', 'reset by peer', 'Connection refused', 'Broken pipe',
    'Timed out waiting', 'failed to recv', 'failed to send', 'recvVector', 'recvBytes', 'sendBytes', 'NCCL error',
)
_STORE_SECONDS = 5.0
_CONTINUE = 'continue with the same command and --resume auto'


def run_main(main: Callable[[], None]):
    """Run an entry point and say how it ended, once a host; what one process alone finds wrong, it says itself.

    A `UserError` becomes one line and exit status 2, a signal one line and 128 plus its number, the loss of another
    process of the run one line and status 1. A reader of the output that leaves, as `head` does, ends nothing.
    """
    is_main = os.environ.get('RANK', '0') == '0'
    atexit.register(_let_signals_end_it)
    release_folder()  # of a run that this process made before
    with lasting_streams():
        logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format='%(message)s', stream=sys.stdout)
        for library in ('timm', 'matplotlib'):
            logging.getLogger(library).setLevel(logging.WARNING)
        # logs of a file what it then raises
        logging.getLogger('datasets.packaged_modules').setLevel(logging.CRITICAL)
        logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # a line for each attempt without a network

        with on_stop_signal(_stop_at_once):
            try:
                main()
            except BaseException as e:
                _ignore_stop_signals()  # the launcher stops what is left of a run; the line is said first
                _end(e, is_main)
            finally:
                release_folder()


def log_to_stderr():
    """Let log lines go to stderr, for a command whose stdout is read by programs."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
            handler.setStream(sys.stderr)


def _stop_at_once(signum: int, frame: object):
    raise Stopped(signum)


def _ignore_stop_signals():
    if threading.current_thread() is threading.main_thread():
        for signum in stop_signals():
            signal.signal(signum, signal.SIG_IGN)


def _let_signals_end_it():
    # all is written: a Ctrl-C while the interpreter takes itself apart is no error to be traced
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(error: BaseException, is_main: bool):
    """Say in one line why an entry point ends, and exit; an error that nobody foresaw goes on."""
    program = program_name()
    reason = _why_lost(error)
    if reason is None and isinstance(error, RuntimeError):
        reason = _why_starved(error)

    if isinstance(error, UserError):
        line = f'{program}: error: {error}'
        _stop(2, line, _is_first(line, ends=True))
    elif reason is not None:
        _stop(1, f'{program}: error: {reason}{_how_to_continue()}', _is_first('the end'))
    elif isinstance(error, Interrupted):
        _stop(128 + error.signum, f'{error}; {_CONTINUE}', is_main)
    elif isinstance(error, KeyboardInterrupt):
        signum = getattr(error, 'signum', signal.SIGINT)
        _stop(128 + signum, f'stopped by {signal.Signals(signum).name}{_how_to_continue()}', _is_first('the end'))
    else:
        raise error


def _how_to_continue() -> str:
    """Return where the last good state of the run is and how to go on from it; '' where there is none."""
    kept = last_state(held_folder())
    return f'{kept}: {_CONTINUE}' if kept else ''


def _stop(status: int, line: str, speaks: bool):
    if speaks:
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def _is_first(line: str, ends: bool = False) -> bool:
    """Return whether this process is the one of its host that says a line.

    Args:
        line: The line, or a name for all lines of which a host says one.
        ends: The line says why the run ends: no other process need say that it was lost.
    """
    if not dist.is_initialized():  # not yet one group: the first process of the host speaks
        return os.environ.get('LOCAL_RANK', '0') == '0'

    host = f'timm_longtail/said/{os.environ.get("GROUP_RANK", 0)}'
    keys = [f'{host}/{zlib.crc32(line.encode("utf-8", "backslashreplace"))}']
    if ends:
        keys.append(f'{host}/{zlib.crc32(b"the end")}')
    return _count_in_store(keys) in (1, None)


def _count_in_store(keys: list[str]) -> int | None:
    """Add 1 to numbers in the store of the run; returns the first, or None where the store does not answer.

    The store goes with the process that holds it, and a process that hangs answers nothing.
    """
    counts = []

    def count():
        try:
            store = _get_default_store()
            counts.extend(store.add(key, 1) for key in keys)
        except (OSError, RuntimeError):
            pass

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    thread.join(_STORE_SECONDS)
    return counts[0] if counts else None


def _why_starved(error: RuntimeError) -> str | None:
    """Return what the loss of a loader's worker means; None for any other error."""
    words = ' '.join(str(error).split())
    if not words.startswith('DataLoader worker'):
        return None
    return f'a decoding process was killed ({words}); where memory is short, lower --workers'


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those during whose handling it was raised, as a signal is by a launcher that cleans up."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _why_lost(error: BaseException) -> str | None:
    """Return what an error of a collective or of the store means; None for any other error, and in one process."""
    if int(os.environ.get('WORLD_SIZE', 1)) == 1 or isinstance(error, UserError):
        return None

    for cause in _causes(error):
        words = ' '.join(str(cause).split())
        is_lost = isinstance(cause, (dist.DistError, ConnectionError))
        if isinstance(cause, RuntimeError) and any(part in words for part in _LOST):
            is_lost = True
        if is_lost:
            return _loss_in_words(words)
    return None


def _loss_in_words(words: str) -> str:
    words = words.rpartition('] ')[2].partition('. ')[0]  # without the line of the library's source, without advice
    if 'timed out' in words.lower() or 'timeout' in words.lower():
        return f'another process of this run did not answer within --dist-timeout ({words})'
    return f'another process of this run has died or lost its connection ({words})'
