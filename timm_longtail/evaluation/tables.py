"""Tables of what was evaluated: figures of models in Markdown, and a CSV row a class.

Shapes: C classes.
"""
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.longtail import shot_groups
from ..utils.files import create_text

__all__ = ['GROUPS', 'format_table', 'interval_words', 'write_per_class']

GROUPS = ('many', 'medium', 'few')

_NOT_DEFINED = 'n/a'
_CELL_WIDTH = 6  # of `100.00`


def format_table(
        rows: Mapping[str, Mapping[str, Any]],
        columns: Sequence[str] = ('all', *GROUPS),
) -> str:
    """Format metrics as a Markdown table, one row a name.

    Args:
        rows: Metrics as `LongTailEvaluator.compute` returns them, by row name.
        columns: Metrics to show; what is missing, None or NaN is printed as `n/a`.
    """
    width = max(map(len, rows))
    sizes = [max(_CELL_WIDTH, len(column)) for column in columns]

    titles = [column.replace('_', ' ').capitalize() for column in columns]
    rules = ['-' * (size + 1) + ':' for size in sizes]
    lines = [
        _line(' ' * width, titles, sizes),
        f'|:{"-" * width}-|{"|".join(rules)}|',
    ]

    for name, metrics in rows.items():
        cells = [_cell(metrics.get(column)) for column in columns]
        lines.append(_line(name.ljust(width), cells, sizes))
    return '\n'.join(lines)


def _line(name: str, cells: Sequence[str], sizes: Sequence[int]) -> str:
    padded = [cell.rjust(size) for cell, size in zip(cells, sizes)]
    return f'| {name} | {" | ".join(padded)} |'


def _cell(value: float | None) -> str:
    if value is None or value != value:  # NaN is not equal to itself
        return _NOT_DEFINED
    return f'{value:.2f}'


def interval_words(intervals: Mapping[str, Sequence[float]]) -> str:
    """Return bootstrap intervals in words: `95 % intervals over test images: All 86.2-92.4, Many …`.

    Args:
        intervals: Lower and upper end by the name of a figure; one that is missing is left out.
    """
    parts = []
    for name in ('all', *GROUPS):
        if intervals.get(name) is not None:
            low, high = intervals[name]
            parts.append(f'{name.capitalize()} {low:.1f}-{high:.1f}')
    return f'95 % intervals over test images: {", ".join(parts)}'


def write_per_class(
        path: Path,
        class_names: Sequence[str],
        class_counts: Sequence[int],
        shot_counts: Sequence[int],
        metrics: Mapping[str, Any],
):
    """Write one row a class: name, training images, group, correct, total, accuracy.

    Args:
        path: CSV file.
        class_names: Name of each class [C].
        class_counts: Images of each class that were trained on [C].
        shot_counts: Images of each class that define the groups [C].
        metrics: What `LongTailEvaluator.compute` returned.

    Raises:
        UserError: The disk refuses.
    """
    group_of = {}
    for group, classes in shot_groups(shot_counts).items():
        group_of.update({int(c): group for c in classes})

    with create_text(path) as f:
        writer = csv.writer(f)
        writer.writerow(['class', 'name', 'train_images', 'group', 'correct', 'total', 'accuracy'])

        columns = class_names, class_counts, metrics['class_correct'], metrics['class_total']
        for c, (name, count, correct, total) in enumerate(zip(*columns, strict=True)):
            accuracy = metrics['class_accuracy'][c]
            writer.writerow([c, name, count, group_of[c], correct, total, accuracy])
