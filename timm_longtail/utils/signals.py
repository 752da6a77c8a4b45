"""Signals that ask a process to stop: Ctrl-C, SIGTERM, and the SIGHUP of a terminal that was closed."""
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
    """A signal stopped this process at once, wherever it was; nothing was saved for it. `signum` is the signal."""

    def __init__(self, signum: int):
        super().__init__(f'stopped by {signal.Signals(signum).name}')
        self.signum = signum


def stop_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that end a run: SIGINT, SIGTERM, and SIGHUP unless it is ignored, as under `nohup`."""
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
            signal.signal(signum, handler if handler is not None else signal.SIG_DFL)
