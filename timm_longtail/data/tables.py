"""Data sets that `datasets` reads: Parquet on the Hub or in a local copy.

N images, C classes.
"""
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import UserError
from .encoded import EncodedImages
from .sources import Source, SourceOptions, register_dataset

__all__ = ['DATA_VARIABLE', 'TableImages', 'open_table', 'read_labels']

DATA_VARIABLE = 'TIMM_LONGTAIL_DATA'

# first labels of the original releases (Krizhevsky, 2009): ten labels tell a shuffled copy from the original order
_ORIGINAL_LABELS = {
    ('cifar10', 'train'): [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
    ('cifar10', 'test'): [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    ('cifar100', 'train'): [19, 29, 0, 11, 1, 86, 90, 28, 23, 31],
    ('cifar100', 'test'): [49, 33, 72, 51, 71, 92, 15, 14, 23, 0],
}


class TableImages(EncodedImages):
    """The image column of a table, left encoded.

    Args:
        table: A `datasets.Dataset`.
        column: Name of the column.
        place: What the table is called in an error.
    """

    block_size = 512

    def __init__(self, table, column: str, place: str):
        import datasets
        super().__init__(place, len(table))
        self.column = column
        self.table = table.select_columns(column).cast_column(column, datasets.Image(decode=False)).with_format('arrow')

    def _structs(self, rows: np.ndarray):
        return self.table[rows.tolist()][self.column].combine_chunks()

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        images = self._structs(rows).to_pylist() if len(rows) else []
        return [self._bytes(image) for image in images]

    def _bytes(self, image: dict | None) -> bytes | None:
        if image is None or image['bytes'] is not None:
            return image and image['bytes']
        return Path(image['path']).read_bytes() if image['path'] else None

    def _names(self, rows: np.ndarray) -> list[str]:
        if not len(rows):
            return []
        paths = self._structs(rows).field('path').to_pylist()
        return [Path(path or f'row {row}').name for row, path in zip(rows, paths, strict=True)]


@contextmanager
def _quiet(datasets):
    """Keep the library's progress bars off a log for a while."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def open_table(repository: str, split: str, data_dir: Path | None, pattern: str | None = None):
    """Open one split of a Hub repository or of its local copy.

    Args:
        repository: `USER/NAME`.
        split: What the repository calls the split.
        data_dir: Local copy; None looks for `$TIMM_LONGTAIL_DATA/<repository>`, then asks the Hub.
        pattern: Files that a local copy must hold; None is Parquet with the split in its name.

    Returns:
        The `datasets.Dataset`, and what to call it.

    Raises:
        UserError: Files are missing, or the library cannot read them.
    """
    import datasets
    root = os.environ.get(DATA_VARIABLE)
    if data_dir is None and root and (Path(root) / repository).is_dir():
        data_dir = Path(root) / repository
    pattern = pattern or f'**/*{split}*.parquet'
    if data_dir is not None and not any(data_dir.glob(pattern)):
        what = f'holds no {split} split' if data_dir.is_dir() else 'is not a folder'
        raise UserError(
            f'{data_dir} {what}: looked for {pattern}, as in a copy of the Hub repository {repository}')
    place = repository if data_dir is None else str(data_dir)
    try:
        with _quiet(datasets):
            return datasets.load_dataset(place, split=split), place
    except Exception as error:  # the library, the network and Arrow each raise their own kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        hint = '' if data_dir else f'; name a local copy with --data-dir or ${DATA_VARIABLE}'
        raise UserError(f'cannot load {split} of {place}: {reason}{hint}') from error


def read_labels(table, column: str, place: str, num_classes: int | None = None) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [N] (without decoding an image), and class names.

    Args:
        table: A `datasets.Dataset`.
        column: Name of the label column.
        place: What the table is called in an error.
        num_classes: C, for a column of integers that names no class; None takes the largest label.

    Raises:
        UserError: A column that holds no integers.
    """
    targets = table.with_format('numpy')[column][:]
    if not np.issubdtype(targets.dtype, np.integer):
        raise UserError(f'{place}: column {column} holds {targets.dtype}, not integer labels')
    names = getattr(table.features[column], 'names', None)
    count = int(targets.max(initial=0)) + 1 if num_classes is None else num_classes
    return targets.astype(np.int64), list(names or map(str, range(count)))


def require_columns(table, columns: tuple[str, ...], place: str):
    """Raise a `UserError` that lists the columns, where one is missing."""
    for column in columns:
        if column not in table.column_names:
            raise UserError(f'{place} has no column {column!r}; its columns are {", ".join(table.column_names)}')


def _load_cifar(repository: str, split: str, options: SourceOptions, label: str, num_classes: int, **constants):
    """Open a repository with columns `img` and `label`."""
    table, place = open_table(repository, split, options.data_dir)
    require_columns(table, ('img', label), place)
    targets, class_names = read_labels(table, label, place, num_classes)
    first = _ORIGINAL_LABELS[repository.split('/')[1], split]
    return Source(
        targets, class_names, TableImages(table, 'img', place),
        original_order=targets[:len(first)].tolist() == first, published=True, hub_id=repository, **constants)


@register_dataset('cifar10')
@register_dataset('cifar10_lt', imbalance_factor=100)
def _cifar10(split: str, options: SourceOptions) -> Source:
    """CIFAR-10, 10 classes, 32x32; the Hub repository `uoft-cs/cifar10` or a local copy."""
    return _load_cifar(
        'uoft-cs/cifar10', split, options, label='label', num_classes=10,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    )


@register_dataset('cifar100')
@register_dataset('cifar100_lt', imbalance_factor=100)
def _cifar100(split: str, options: SourceOptions) -> Source:
    """CIFAR-100, 100 classes, 32x32; the Hub repository `uoft-cs/cifar100` or a local copy."""
    return _load_cifar(
        'uoft-cs/cifar100', split, options, label='fine_label', num_classes=100,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    )
