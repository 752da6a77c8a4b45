"""Several runs that differ in their seed: the command of each, and the table of mean and spread."""
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ..evaluation.tables import GROUPS, format_table

__all__ = ['command_of_seed', 'seeds_table']

_COLUMNS = ('all', *GROUPS, 'balanced')


@contextmanager
def command_of_seed(seed: int | None) -> Iterator[None]:
    """Let the command line that a run records be that of one seed, for the length of the block.

    Args:
        seed: Training seed, which takes the place of `--seeds`; None leaves the command as it is.
    """
    before = sys.argv
    if seed is not None:
        sys.argv = [before[0], *_without_seeds(before[1:]), '--seed', str(seed)]
    try:
        yield
    finally:
        sys.argv = before


def _without_seeds(argv: Sequence[str]) -> list[str]:
    """Return arguments without `--seeds` and the numbers behind it."""
    kept = []
    is_seeds = False
    for word in argv:
        if word.startswith('-'):
            is_seeds = word.partition('=')[0] == '--seeds'
        if not is_seeds:
            kept.append(word)
    return kept


def seeds_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of runs, and below them the mean and the standard deviation of each figure.

    Args:
        rows: Figures of the last epoch by the name of the run.
    """
    mean: dict[str, float | None] = {}
    spread: dict[str, float | None] = {}
    for name in _COLUMNS:
        values = [figures[name] for figures in rows.values() if figures.get(name) is not None]
        mean[name] = statistics.mean(values) if values else None
        spread[name] = statistics.stdev(values) if len(values) > 1 else None

    table = format_table({**rows, 'mean': mean, 'standard deviation': spread}, _COLUMNS)
    return f'last epoch of {len(rows)} seeds, test set:\n{table}'
