"""How an entry point runs: log lines, errors as one line, exit status."""
import io
import logging
import os
import signal
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store

from .engine import Interrupted
from .errors import UserError
from .files import last_state
from .folder import held_folder, release_folder

__all__ = ['run_main']

# gloo raises a bare RuntimeError, most often with the line of its source in front
_GLOO = ('/gloo/', 'pair closure', 'closed by peer', 'reset by peer', 'Broken pipe')


def run_main(main: Callable[[], None]):
    """Run an entry point and say how it ended, once a host; what one process alone finds wrong, it says itself.

    A `UserError` becomes one line and exit status 2, a signal 128 plus its number, the loss of another process of the
    run one line and status 1.
    """
    is_main = os.environ.get('RANK', '0') == '0'
    speaks = os.environ.get('LOCAL_RANK', '0') == '0'  # what goes wrong on one host only is said there
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors='backslashreplace')  # names that the locale has no letters for
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format='%(message)s', stream=sys.stdout)
    logging.getLogger('timm').setLevel(logging.WARNING)
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)  # a line for each attempt without a network
    try:
        main()
    except UserError as e:
        line = f'{Path(sys.argv[0]).name}: error: {e}'
        _stop(2, line, _is_first(line, speaks))
    except (Interrupted, KeyboardInterrupt) as e:
        signum = getattr(e, 'signum', signal.SIGINT)
        saved = isinstance(e, Interrupted)
        _stop(128 + signum, f'{e}; continue with the same command and --resume auto' if saved else 'stopped', is_main)
    except RuntimeError as e:
        reason = _why_lost(e) or _why_starved(e)
        if reason is None:
            raise
        kept = last_state(held_folder())
        ending = kept and f'{kept}: continue with the same command and --resume auto'
        line = f'{Path(sys.argv[0]).name}: error: {reason}{ending}'
        _stop(1, line, speaks)
    finally:
        release_folder()


def _stop(status: int, line: str, speaks: bool):
    if speaks:
        print(line, file=sys.stderr, flush=True)
    sys.exit(status)


def _is_first(line: str, speaks: bool) -> bool:
    """Whether no other process of this host has said this line; before they are one group, the first of them does."""
    if not dist.is_initialized():
        return speaks
    key = f'timm_longtail/said/{os.environ.get("GROUP_RANK", 0)}/{zlib.crc32(line.encode())}'
    try:
        return _get_default_store().add(key, 1) == 1
    except RuntimeError:  # the store went with the main process
        return True


def _why_starved(error: RuntimeError) -> str | None:
    """Return what the loss of a loader's worker means; None for any other error."""
    words = ' '.join(str(error).split())
    if not words.startswith('DataLoader worker'):
        return None
    return f'a decoding process was killed ({words}); where memory is short, lower --workers'


def _why_lost(error: RuntimeError) -> str | None:
    """Return what an error of a collective means; None for any other error."""
    words = ' '.join(str(error).split())
    is_collective = isinstance(error, dist.DistError) or any(part in words for part in _GLOO)
    if int(os.environ.get('WORLD_SIZE', 1)) == 1 or not is_collective:
        return None
    words = words.rpartition('] ')[2].partition('. ')[0]  # without the line of the library's source, without advice
    if 'timed out' in words.lower() or 'timeout' in words.lower():
        return f'another process of this run did not answer within --dist-timeout ({words})'
    return f'another process of this run has died or lost its connection ({words})'
