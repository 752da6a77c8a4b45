"""Data sets that `datasets` reads: Parquet on the Hub or in a local copy.

N images, C classes.
"""
import hashlib
import os
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ..errors import UserError
from .encoded import EncodedImages
from .sources import Source, SourceOptions, refuse_options, register_dataset

__all__ = ['DATA_VARIABLE', 'TableImages', 'find_copy', 'load_table', 'open_table', 'read_labels', 'require_columns']

DATA_VARIABLE = 'TIMM_LONGTAIL_DATA'

# seconds to wait for the Hub's first answer
_PATIENCE = 10

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
        try:
            return Path(image['path']).read_bytes() if image['path'] else None
        except OSError:  # one file that is gone must not cost its whole block; it is named when it is decoded
            return None

    def _names(self, rows: np.ndarray) -> list[str]:
        def read(structs, first):
            paths = structs.field('path').to_pylist()
            return [Path(path or f'row {row}').name for row, path in enumerate(paths, first)]
        return self._collect(rows, read, object).tolist()

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        import pyarrow.compute as pc

        def read(structs, first):
            sizes = pc.binary_length(structs.field('bytes')).to_pylist()
            if None not in sizes:
                return sizes
            paths = structs.field('path').to_pylist()
            return [(Path(path).stat().st_size if path else 0) if size is None else size
                    for size, path in zip(sizes, paths)]
        return self._collect(rows, read, np.int64)

    def _collect(self, rows: np.ndarray, read: Callable, dtype) -> np.ndarray:
        """Return `read(structs, first row)` of some rows; neighbours are read as one slice, which copies no image."""
        found = np.empty(len(rows), dtype)
        order = np.argsort(rows, kind='stable')
        ordered = rows[order]
        for start in range(0, len(self.table), self.block_size):
            low, high = np.searchsorted(ordered, (start, start + self.block_size))
            if low < high:
                values = []
                for structs in self.table[start:start + self.block_size][self.column].chunks:
                    values += read(structs, start + len(values))
                found[order[low:high]] = np.array(values, dtype)[ordered[low:high] - start]
        return found


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


def _why_unreachable(datasets, repository: str) -> str:
    """Return why the Hub does not answer at all, '' where it does: the library asks six times, for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(repository, timeout=_PATIENCE)
    except (HfHubHTTPError, ValueError):
        return ''  # an answer, or a name that the library refuses: it says so better
    except Exception as error:  # each version of the library has its own HTTP client, with its own kinds
        return (str(error).strip() or repr(error)).splitlines()[0]
    return ''


@contextmanager
def _cache_only(datasets, wanted: bool):
    """Have the library look into its cache alone for a while."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _cache_of(datasets, folder: Path) -> str:
    """Return a cache for a folder as it is: by itself the library may serve what files of that name once held."""
    files = sorted((str(path.relative_to(folder)), path.stat()) for path in folder.rglob('*') if path.is_file())
    state = [str(folder.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)]
    return str(Path(datasets.config.HF_DATASETS_CACHE, 'local', hashlib.sha256(repr(state).encode()).hexdigest()[:16]))


def load_table(place: str, what: str = 'the splits'):
    """Open a folder or a Hub repository with `datasets`.

    Args:
        place: Path of the folder, or `USER/NAME`.
        what: What of it is wanted, for an error; the library reads all splits in any case.

    Returns:
        A `datasets.DatasetDict`.

    Raises:
        UserError: The library cannot read it, or the Hub cannot be reached.
    """
    import datasets
    local = Path(place).is_dir()
    unreachable = '' if local else _why_unreachable(datasets, place)
    try:
        with _quiet(datasets), _cache_only(datasets, bool(unreachable)):
            return datasets.load_dataset(place, cache_dir=_cache_of(datasets, Path(place)) if local else None)
    except Exception as error:  # the library, the network and Arrow each raise their own kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if unreachable and isinstance(error, ConnectionError):
            reason = f'it is not in the cache, and the Hub cannot be reached ({unreachable})'
        hint = '' if local else f'; name a local copy with --data-dir or ${DATA_VARIABLE}'
        raise UserError(f'cannot load {what} of {place}: {reason}{hint}') from error


def find_copy(repository: str, data_dir: Path | None) -> Path | None:
    """Return the local copy of a Hub repository: `--data-dir`, else `$TIMM_LONGTAIL_DATA/<repository>`, else None.

    Raises:
        UserError: `data_dir` is not a folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f'{data_dir} is not a folder: --data-dir is a copy of the Hub repository {repository}')
    root = os.environ.get(DATA_VARIABLE)
    if data_dir is None and root and (Path(root) / repository).is_dir():
        return Path(root) / repository
    return data_dir


def open_table(repository: str, split: str, data_dir: Path | None):
    """Open one split of a Hub repository or of its local copy.

    Args:
        repository: `USER/NAME`.
        split: What the repository calls the split.
        data_dir: Local copy, Parquet with the split in its name; None looks for `$TIMM_LONGTAIL_DATA/<repository>`,
            then asks the Hub.

    Returns:
        The `datasets.Dataset`, and what to call it.

    Raises:
        UserError: Files are missing, or the library cannot read them.
    """
    copy, pattern = find_copy(repository, data_dir), f'**/*{split}*.parquet'
    if copy is not None and not any(copy.glob(pattern)):
        raise UserError(
            f'{copy} holds no {split} split: looked for {pattern}, as in a copy of the Hub repository {repository}')
    place = str(copy or repository)
    splits = load_table(place, split)
    # files called valid-* are the split `validation`, unless the card of the repository says otherwise
    name = 'validation' if split == 'valid' and split not in splits else split
    if name not in splits:
        raise UserError(f'{place} has no {split} split; it has {", ".join(splits)}')
    return splits[name], place


def read_labels(table, column: str, place: str, num_classes: int | None = None) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [N] (without decoding an image), and class names.

    Args:
        table: A `datasets.Dataset`.
        column: Name of the label column.
        place: What the table is called in an error.
        num_classes: C, for a column of integers that names no class; None takes the largest label.

    Raises:
        UserError: A column that does not hold one integer in each row.
    """
    missing = table.data.column(column).null_count
    if missing:
        raise UserError(f'{place}: {missing} of {len(table)} rows have no label (column {column})')
    targets = table.with_format('numpy')[column][:]
    if not np.issubdtype(targets.dtype, np.integer) or targets.ndim != 1:
        kind = f'{targets.ndim - 1} dimensions of ' * (targets.ndim > 1) + str(targets.dtype)
        raise UserError(f'{place}: column {column} holds {kind}, not one integer label a row')
    names = getattr(table.features[column], 'names', None)
    count = int(targets.max(initial=0)) + 1 if num_classes is None else num_classes
    return targets.astype(np.int64), list(names or map(str, range(count)))


def require_columns(table, columns: tuple[str, ...], place: str):
    """Raise a `UserError` that lists the columns, where one is missing."""
    for column in columns:
        if column not in table.column_names:
            raise UserError(f'{place} has no column {column!r}; its columns are {", ".join(table.column_names)}')


def _load_published(
        repository: str,
        split: str,
        options: SourceOptions,
        image: str,
        label: str,
        num_classes: int,
        **constants: tuple[float, ...],
) -> Source:
    """Open a split of a benchmark that lies on the Hub."""
    refuse_options(repository, options, ('train_split', 'test_split', 'input_key', 'target_key'))
    table, place = open_table(repository, split, options.data_dir)
    require_columns(table, (image, label), place)
    targets, class_names = read_labels(table, label, place, num_classes)
    first = _ORIGINAL_LABELS.get((repository.split('/')[1], split))
    return Source(
        targets, class_names, TableImages(table, image, place),
        original_order=first is not None and targets[:len(first)].tolist() == first,
        published=True, hub_id=repository, **constants)


@register_dataset('cifar10')
@register_dataset('cifar10_lt', imbalance_factor=100)
def _cifar10(split: str, options: SourceOptions) -> Source:
    """CIFAR-10, 10 classes, 32x32; the Hub repository `uoft-cs/cifar10` or a local copy."""
    return _load_published(
        'uoft-cs/cifar10', split, options, image='img', label='label', num_classes=10,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    )


@register_dataset('cifar100')
@register_dataset('cifar100_lt', imbalance_factor=100)
def _cifar100(split: str, options: SourceOptions) -> Source:
    """CIFAR-100, 100 classes, 32x32; the Hub repository `uoft-cs/cifar100` or a local copy."""
    return _load_published(
        'uoft-cs/cifar100', split, options, image='img', label='fine_label', num_classes=100,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    )


@register_dataset('tiny_imagenet')
@register_dataset('tiny_imagenet_lt', imbalance_factor=100)
def _tiny_imagenet(split: str, options: SourceOptions) -> Source:
    """Tiny ImageNet, 200 classes, 64x64; the Hub repository `zh-plus/tiny-imagenet` or a local copy."""
    # the labels of the original test split were never released: `valid` is what everybody reports; the constants are
    # those in wide use, not measured here
    return _load_published(
        'zh-plus/tiny-imagenet', 'valid' if split == 'test' else split, options,
        image='image', label='label', num_classes=200,
        mean=(0.4802, 0.4481, 0.3975), std=(0.2770, 0.2691, 0.2821),
    )
