"""Standard streams that never end a run: a reader may leave, a name need not be printable."""
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

__all__ = ['lasting_streams']


class _LastingStream:
    """A text stream that goes on in silence once it cannot be written.

    As behind `train.py … | head`, or in a terminal that was closed.

    Args:
        stream: The stream to write to.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
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
        """Lead the file descriptor to nowhere."""
        # and not only this object: what is buffered, and what child processes write, goes there too
        try:
            descriptor = self._stream.fileno()
        except (OSError, ValueError):  # a stream without a file
            return

        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _lasting(stream: TextIO | None) -> Any:
    """Return a stream that lasts, in the place of one of the standard streams."""
    if stream is None:  # the process was started with the descriptor closed
        return open(os.devnull, 'w', encoding='utf-8')

    if hasattr(stream, 'reconfigure'):
        with suppress(OSError):  # a pipe that took the place of a file cannot tell its position
            # names of files and classes must print under any locale
            stream.reconfigure(errors='backslashreplace')
    return _LastingStream(stream)


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Keep `print` from raising for the length of the block.

    Neither a stream that was closed nor a text that its encoding lacks does any harm. The streams
    stay usable behind it: Python flushes them once more at its exit.
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
                stream.close()  # opened by `_lasting`
