"""Data sets by name: labels, images, and what a report must say about them.

N images, C classes.
"""
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..utils.errors import UserError, unknown_name
from .dataset import LongTailDataset, check_labels
from .images import EncodedImages, decode_images, encoded_digests
from .longtail import image_digests, long_tail_counts, long_tail_indices
from .packed import read_packed
from .sources.registry import REGISTRY, Source, SourceOptions, find_dataset

__all__ = ['create_dataset', 'create_splits', 'default_imbalance_factor', 'list_datasets']

SPLITS = ('train', 'test')
LOADERS = ('auto', 'resident', 'worker')

# images up to this side are kept decoded by default, where all are square and of one size
_RESIDENT_SIDE = 96


def list_datasets() -> list[str]:
    """Return the names that `create_dataset` takes; `packed:` and a name with a slash are followed by a place."""
    return [*(f'{name}NAME' if name.endswith('/') else name for name in sorted(REGISTRY)), 'packed:FILE.safetensors']


def default_imbalance_factor(name: str) -> float | None:
    """Return the factor that a data set is cut by unless another is asked for.

    1 for a set that is never cut, None for one with natural counts.
    """
    return None if name.startswith('packed:') else find_dataset(name)[0].imbalance_factor


def create_dataset(
        name: str,
        split: str,
        data_dir: str | Path | None = None,
        imbalance_factor: float | None = None,
        seed: int = 0,
        subset_order: str = 'file',
        profile: str = 'exp',
        loader: str = 'auto',
        skip_bad_images: bool = False,
        **storage: Any,
) -> LongTailDataset:
    """Load one split of a data set by name.

    The training split of a `*_lt` set is cut to a long-tailed profile, that of a set with natural counts where a factor
    is given; the test split is never cut.

    Args:
        name: One of `list_datasets()`; `packed:FILE.safetensors` reads a packed file.
        split: `train` or `test`.
        data_dir: Folder of the images, or a local copy of the set's Hub repository. None, for a set of the Hub: the
            folder `$TIMM_LONGTAIL_DATA/<repository>` when it exists, else the Hub.
        imbalance_factor: Largest class over smallest; None takes the set's default (100 for CIFAR, 20 for digits, the
            natural counts for a set of your own). A class that has fewer images than its share keeps all it has.
        seed: Data seed that chooses the images; training has a seed of its own.
        subset_order: `file` applies LDAM's rule to the rows as stored; `content` sorts the images by pixel digest
            first, which gives the same subset whatever the storage order.
        profile: Shape of the cut, `exp` or `step`.
        loader: `resident` decodes all images into memory (one square size), `worker` leaves them encoded for the
            workers of a loader; `auto` keeps square images of one size up to 96 pixels resident.
        skip_bad_images: Leave unreadable images of a resident set out instead of raising.
        **storage: What the storage calls things, see `SourceOptions`: `train_split`, `test_split`, `input_key`,
            `target_key`; and for the test split of a folder, `class_names` and `whole`.

    Raises:
        UserError: An unknown name, split, order or profile; missing files or columns; a factor below 1; a label out of
            range; a training class without images; an image that cannot be read.
    """
    for what, value, known in (
            ('split', split, SPLITS), ('subset order', subset_order, ('file', 'content')), ('loader', loader, LOADERS)):
        if value not in known:
            raise unknown_name(what, value, known)
    if name.startswith('packed:'):
        asked = {'imbalance_factor': imbalance_factor, 'subset_order': subset_order, 'profile': profile}
        # what only a folder has a use for asks nothing of a packed file
        named = [value for key, value in storage.items() if key not in ('class_names', 'whole')]
        return _open_packed(name, split, loader, asked, alone=data_dir is None and not any(named))
    registered, argument = find_dataset(name)
    factor = _factor(name, registered.imbalance_factor, imbalance_factor)
    long_tail_counts(1, 1, 1. if factor is None else factor, profile)  # refuses bad values before anything is read
    source = registered.load(split, SourceOptions(argument, None if data_dir is None else Path(data_dir), **storage))
    check_labels(name, source.targets, len(source.class_names))
    cut = split == 'train' and factor not in (None, 1)
    rows = _choose_rows(source, factor, seed, subset_order, profile) if cut else np.arange(len(source.targets))
    dataset = _build(
        name, split, source, rows, loader, skip_bad_images,
        imbalance_factor=1. if factor is None else float(factor), seed=seed, subset_order=subset_order, profile=profile)
    if split == 'train':
        require_every_class(dataset)
        dataset.shot_counts = list(dataset.class_counts)
    return dataset


def create_splits(name: str, **options) -> tuple[LongTailDataset, LongTailDataset]:
    """Load the training and the test split, both in memory or both left to the workers of a loader.

    What becomes of an image must not depend on its split; alone, each would decide by its own images.

    Args:
        name: One of `list_datasets()`.
        **options: As for `create_dataset`.

    Raises:
        UserError: As for `create_dataset`; the splits have other classes.
    """
    train_set, test_set = (create_dataset(name, split, **options) for split in SPLITS)
    if train_set.resident != test_set.resident:
        train_set, test_set = (create_dataset(name, split, **{**options, 'loader': 'worker'}) for split in SPLITS)
    if train_set.class_names != test_set.class_names:
        raise UserError(f'{name}: the training and the test split have other classes')
    # what the source of either split has to say is said once, at the start
    train_set.note = '; '.join(dict.fromkeys(filter(None, (train_set.note, test_set.note))))
    return train_set, test_set


def _factor(name: str, default: float | None, asked: float | None) -> float | None:
    """Return the factor to cut by; None for natural counts."""
    if asked is None:
        return default
    if default == 1 and asked != 1:
        hint = f'name {name}_lt to cut it' if f'{name}_lt' in REGISTRY else 'its counts are part of the benchmark'
        raise UserError(f'{name} cannot be cut by a factor of {asked:g}: {hint}')
    return asked


def _build(name: str, split: str, source: Source, rows: np.ndarray, loader: str, skip_bad: bool, **cut):
    """Return the data set of some rows, decoded or not."""
    encoded, bad = None, []
    if isinstance(source.images, torch.Tensor):
        if loader == 'worker':
            raise UserError(f'{name} has no files: it comes decoded, and --loader worker has nothing to read')
        images, names = source.images[torch.from_numpy(rows)], [source.names[row] for row in rows]
    else:
        encoded = source.images.take(rows)
        names, images = encoded.names(), None
        if loader == 'resident' or (loader == 'auto' and (source.published or _is_small(encoded))):
            images, kept = decode_images(encoded, skip_bad)
            bad = [names[position] for position in np.setdiff1d(np.arange(len(rows)), kept)]
            rows, names, encoded = rows[kept], [names[position] for position in kept], None
    constants = {'mean': source.mean, 'std': source.std} if source.mean else _measure(images)
    return LongTailDataset(
        name=source.title or name, split=split, images=images, encoded=encoded, targets=source.targets[rows],
        class_names=source.class_names, indices=rows, source_names=names, original_order=source.original_order,
        bad_images=bad, hub_id=source.hub_id, note=source.note, **constants, **cut)


def _is_small(encoded: EncodedImages) -> bool:
    """Whether all images are square, of one size, and small; headers are read, no pixels."""
    first = None
    for size in encoded.image_sizes():
        first = first or size
        if size != first or size[0] != size[1] or size[0] > _RESIDENT_SIDE:
            return False
    return first is not None


def _measure(images: torch.Tensor | None) -> dict[str, tuple[float, ...]]:
    """Return the channel constants of resident images, to four digits; ImageNet's for files."""
    if images is None:
        return {'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD}
    # sums of bytes: exact, so that they do not depend on how they are added
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    histogram = [torch.bincount(channel.flatten(), minlength=256).double() for channel in images.unbind(1)]
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean = [(counts * levels).sum() / pixels for counts in histogram]
    std = [((counts * (levels - m) ** 2).sum() / pixels).sqrt() for counts, m in zip(histogram, mean)]
    # an image of one colour has no spread to divide by
    return {'mean': tuple(round(float(m), 4) for m in mean), 'std': tuple(max(round(float(s), 4), 0.01) for s in std)}


def _open_packed(name: str, split: str, loader: str, asked: dict, alone: bool) -> LongTailDataset:
    if not alone:
        raise UserError(f'{name} is one file of both splits: it takes no folder, and no names of splits and columns')
    dataset = read_packed(name.removeprefix('packed:'), split, loader)
    for key, value in asked.items():
        held = getattr(dataset, key)
        if value not in (None, 'file', 'exp', held):  # the defaults ask for nothing
            raise UserError(f'{name} holds one subset, of {key.replace("_", " ")} {held}; it cannot be cut again')
    return dataset


def require_every_class(dataset: LongTailDataset):
    """Raise a `UserError` that names the first class without an image."""
    empty = [label for label, count in enumerate(dataset.class_counts) if count == 0]
    if empty:
        label = empty[0]
        more = f' and {len(empty) - 1} more' if len(empty) > 1 else ''
        raise UserError(
            f'{dataset.name} ({dataset.split}, imbalance factor {dataset.imbalance_factor:g}): '
            f'class {label} ({dataset.class_names[label]}){more} has no image'
            + ('' if dataset.imbalance_factor == 1 else ': a smaller factor leaves some')
            + (f'; {dataset.note}' if dataset.note else ''))


def _choose_rows(source: Source, factor: float, seed: int, subset_order: str, profile: str) -> np.ndarray:
    """Return the rows of a long-tailed training split, class after class."""
    num_classes = len(source.class_names)
    available = np.bincount(source.targets, minlength=num_classes)
    counts = long_tail_counts(int(available.max(initial=1)), num_classes, factor, profile)
    if subset_order == 'file':
        return long_tail_indices(source.targets, counts, seed)
    decoded = isinstance(source.images, torch.Tensor)
    digests = image_digests(source.images) if decoded else encoded_digests(source.images)
    # four big-endian words a digest, the first one decides: one order of all rows, whatever the storage order
    order = np.lexsort(digests.view('>u8').T[::-1])
    return order[long_tail_indices(source.targets[order], counts, seed)]
