"""Progress on a terminal: whatever takes more than two seconds shows a bar, with the time that is left."""
import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

__all__ = ['progress', 'shows_progress']

_SECONDS = 2.0


def shows_progress() -> bool:
    """Return whether a person is watching: stderr is a terminal, and this is the main process."""
    return sys.stderr.isatty() and os.environ.get('RANK', '0') == '0'


def progress(
        items: Iterable | None = None,
        title: str = '',
        total: int | None = None,
        unit: str = 'image',
        **options: Any,
) -> Any:
    """Return a tqdm bar over some items; one that shows nothing where nobody is watching.

    It appears after two seconds, on stderr, and goes again at the end.

    Args:
        items: What is iterated over; None for a bar that is moved on by `update`.
        title: What is done, such as `features`.
        total: Number of items, where they have no length.
        unit: What an item is.
        **options: Further options of `tqdm`.
    """
    return tqdm(
        items,
        desc=title or None,
        total=total,
        unit=f' {unit}s',
        delay=_SECONDS,
        leave=False,
        dynamic_ncols=True,
        disable=not shows_progress(),
        **options,
    )
