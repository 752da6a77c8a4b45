"""Signals that ask a process to stop: Ctrl-C, SIGTERM, the SIGHUP of a closed terminal."""
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ['Interrupted', 'Stopped', 'on_stop_signal', 'stop_signals']


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved. `signum` is the signal."""

    def __init__(self, signum: int):
        super().__init__(f'stopped by {signal.Signals(signum).name}')
        self.signum = signum


class Stopped(KeyboardInterrupt):
    """A signal stopped this process at once, with nothing saved. `signum` is the signal."""

    def __init__(self, signum: int):
        super().__init__(f'stopped by {signal.Signals(signum).name}')
        self.signum = signum


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a run: SIGINT, SIGTERM, and SIGHUP but under `nohup`."""
    signals = signal.SIGINT, signal.SIGTERM
    hangup = getattr(signal, 'SIGHUP', None)  # Windows has none
    if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN:
        return signals

    return *signals, hangup


@contextmanager
def on_stop_signal(handle: Callable[[int, object], None]) -> Iterator[None]:
    """Let a function answer the signals that end a run, for the length of the block.

    Outside the main thread, where Python allows no handlers, nothing changes.

    Args:
        handle: Called with the number of the signal and the frame that it interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    previous = {signum: signal.signal(signum, handle) for signum in stop_signals()}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            # None: whoever put it there was not Python, and cannot be put back by it
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
