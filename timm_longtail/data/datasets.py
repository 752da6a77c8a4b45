"""Data sets by name, resident in memory: one uint8 tensor of images, labels, and what a report must say about them.

N images, C classes.
"""
from pathlib import Path

import numpy as np

from ..errors import UserError, unknown_name
from .longtail import image_digests, long_tail_counts, long_tail_indices
from .longtail_dataset import LongTailDataset, check_labels
from .packed import read_packed
from .sources import REGISTRY, Source

__all__ = ['create_dataset', 'default_imbalance_factor', 'list_datasets']

SPLITS = ('train', 'test')


def list_datasets() -> list[str]:
    """Return the names that `create_dataset` takes; a packed file is `packed:` and its path."""
    return [*sorted(REGISTRY), 'packed:FILE.safetensors']


def default_imbalance_factor(name: str) -> float:
    """Return the factor that a data set is cut by unless another is asked for; 1 for a set that is never cut."""
    return REGISTRY[name][1] if name in REGISTRY else 1.


def create_dataset(
        name: str,
        split: str,
        data_dir: str | Path | None = None,
        imbalance_factor: float | None = None,
        seed: int = 0,
        subset_order: str = 'file',
) -> LongTailDataset:
    """Load one split of a data set by name.

    The training split of a `*_lt` set is cut to the exponential profile; its test split is the full, balanced one.

    Args:
        name: One of `list_datasets()`; `packed:FILE.safetensors` reads a packed file.
        split: `train` or `test`.
        data_dir: Local copy of the set's Hub repository. None: the folder `$TIMM_LONGTAIL_DATA/<repository>` when it
            exists, else the Hub.
        imbalance_factor: None takes the set's default (100 for CIFAR, 20 for digits).
        seed: Data seed that chooses the images; training has a seed of its own.
        subset_order: `file` applies LDAM's rule to the rows as stored; `content` sorts the images by pixel digest
            first, which gives the same subset whatever the storage order.

    Raises:
        UserError: An unknown name, split or order; missing files or columns; a factor below 1; a label out of range;
            an empty class; an image that cannot be read.
    """
    if split not in SPLITS:
        raise unknown_name('split', split, SPLITS)
    if subset_order not in ('file', 'content'):
        raise unknown_name('subset order', subset_order, ('file', 'content'))
    if name.startswith('packed:'):
        return _open_packed(name, split, imbalance_factor)
    if name not in REGISTRY:
        raise unknown_name('data set', name, list_datasets())
    load, default_factor = REGISTRY[name]
    factor = default_factor if imbalance_factor is None else imbalance_factor
    if default_factor == 1 and factor != 1:
        raise UserError(f'{name} is the balanced set; name {name}_lt to cut it by a factor of {factor:g}')
    long_tail_counts(1, 1, factor)  # refuses a bad factor before anything is read
    source = load(split, None if data_dir is None else Path(data_dir))
    check_labels(name, source.targets, len(source.class_names))
    rows = np.arange(len(source.targets))
    if split == 'train' and default_factor != 1:
        rows = _choose_rows(source, factor, seed, subset_order)
    dataset = LongTailDataset(
        name=name, split=split, images=source.decode(rows), targets=source.targets[rows],
        class_names=source.class_names, mean=source.mean, std=source.std, indices=rows,
        source_names=source.names(rows), imbalance_factor=float(factor), seed=seed, subset_order=subset_order,
        original_order=source.original_order,
    )
    _check_classes(dataset)
    if split == 'train':
        dataset.shot_counts = list(dataset.class_counts)
    return dataset


def _open_packed(name: str, split: str, imbalance_factor: float | None) -> LongTailDataset:
    dataset = read_packed(name.removeprefix('packed:'), split)
    if imbalance_factor not in (None, dataset.imbalance_factor):
        raise UserError(f'{name} holds one subset, of factor {dataset.imbalance_factor:g}; it cannot be cut again')
    return dataset



def _check_classes(dataset: LongTailDataset):
    empty = [label for label, count in enumerate(dataset.class_counts) if count == 0]
    if empty:
        label = empty[0]
        more = f' and {len(empty) - 1} more' if len(empty) > 1 else ''
        raise UserError(
            f'{dataset.name} ({dataset.split}, imbalance factor {dataset.imbalance_factor:g}): '
            f'class {label} ({dataset.class_names[label]}){more} has no image')


def _choose_rows(source: Source, factor: float, seed: int, subset_order: str) -> np.ndarray:
    """Return the rows of a long-tailed training split, class after class."""
    num_classes = len(source.class_names)
    available = np.bincount(source.targets, minlength=num_classes)
    counts = long_tail_counts(int(available.max(initial=1)), num_classes, factor)
    if subset_order == 'file':
        return long_tail_indices(source.targets, counts, seed)
    digests = image_digests(source.decode(np.arange(len(source.targets))))
    # four big-endian words a digest, the first one decides: one order of all rows, whatever the storage order
    order = np.lexsort(digests.view('>u8').T[::-1])
    return order[long_tail_indices(source.targets[order], counts, seed)]
