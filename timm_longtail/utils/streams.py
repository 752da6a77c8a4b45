"""Standard output and standard error that never end a run: a reader may leave, a name need not be printable."""
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ['lasting_streams']


class _LastingStream:
    """A text stream that goes on in silence once it cannot be written: `train.py … | head`, a closed terminal.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._go_silent()
            return len(text)

    def flush(self):
        try:
            self._stream.flush()
        except OSError:
            self._go_silent()

    def _go_silent(self):
        """Lead the file descriptor to nowhere: what is buffered, and what child processes write, goes there too."""
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # a stream without a file
            return
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _lasting(stream):
    if stream is None:  # the process was started with the descriptor closed
        return open(os.devnull, 'w', encoding='utf-8')

    if hasattr(stream, 'reconfigure'):
        with suppress(OSError):  # a pipe that took the place of a file cannot tell its position
            stream.reconfigure(errors='backslashreplace')  # names of files and classes, under any locale
    return _LastingStream(stream)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Keep `print` from raising for the length of the block, whatever becomes of the streams and whatever is printed.

    The streams stay usable behind it: Python flushes them once more at its exit.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lasting, streams)
    try:
        yield
    finally:
        used = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = streams
        for stream, former in zip(used, streams):
            stream.flush()
            if former is None:
                stream.close()
