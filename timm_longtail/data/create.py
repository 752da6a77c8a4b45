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
from .original_order import original_order
from .packed import read_packed
from .sources.registry import REGISTRY, Source, SourceOptions, find_dataset

__all__ = [
    'create_dataset',
    'create_splits',
    'default_imbalance_factor',
    'is_small',
    'list_datasets',
    'require_every_class',
]

SPLITS = ('train', 'test')
LOADERS = ('auto', 'resident', 'worker')
SUBSET_ORDERS = ('file', 'content', 'original')

# images up to this side are kept decoded by default, where all are square and of one size
_RESIDENT_SIDE = 96

# a standard deviation is what pixels are divided by: an image of one colour has none
_SMALLEST_STD = 0.01


def list_datasets() -> list[str]:
    """Return the names that `create_dataset` takes.

    `packed:` is followed by a file, and a name with a slash by a place.
    """
    names = []
    for name in sorted(REGISTRY):
        names.append(f'{name}NAME' if name.endswith('/') else name)
    return [*names, 'packed:FILE.safetensors']


def default_imbalance_factor(name: str) -> float | None:
    """Return the factor that a data set is cut by unless another is asked for.

    1 for a set that is never cut, None for one with natural counts.
    """
    if name.startswith('packed:'):
        return None
    registered, _ = find_dataset(name)
    return registered.imbalance_factor


def create_dataset(
        name: str,
        split: str,
        data_dir: str | Path | None = None,
        imbalance_factor: float | None = None,
        seed: int = 0,
        subset_order: str = 'file',
        order_file: str | Path | None = None,
        profile: str = 'exp',
        loader: str = 'auto',
        skip_bad_images: bool = False,
        **storage: Any,
) -> LongTailDataset:
    """Load one split of a data set by name.

    The training split of a `*_lt` set is cut to a long-tailed profile, that of a set with natural
    counts where a factor is given; the test split is never cut.

    Args:
        name: One of `list_datasets()`; `packed:FILE.safetensors` reads a packed file.
        split: `train` or `test`.
        data_dir: Folder of the images, or a local copy of the set's Hub repository. None, for a set
            of the Hub: the folder `$TIMM_LONGTAIL_DATA/<repository>` when it exists, else the Hub.
        imbalance_factor: Largest class over smallest; None takes the set's default (100 for CIFAR,
            20 for digits, the natural counts for a set of your own). A class that has fewer images
            than its share keeps all it has.
        seed: Data seed that chooses the images; training has a seed of its own.
        subset_order: `file` applies LDAM's rule to the rows as stored; `content` sorts the images
            by pixel digest first, which gives the same subset whatever the storage order;
            `original` puts them into the order of the release first, which gives the published
            subset.
        order_file: List of the release's file names in its order, see `original_order`; for
            `original` and a copy that is stored in another order.
        profile: Shape of the cut, `exp` or `step`.
        loader: `resident` decodes all images into memory (one square size), `worker` leaves them
            encoded for the workers of a loader; `auto` keeps square images of one size up to 96
            pixels resident.
        skip_bad_images: Whether unreadable images of a resident set are left out; False raises.
        **storage: Names in the storage, see `SourceOptions`: `train_split`, `test_split`,
            `input_key`, `target_key`; and for the test split of a folder, `class_names` and
            `whole`.

    Raises:
        UserError: An unknown name, split, order or profile; missing files or columns; a factor
            below 1; a label out of range; a training class without images; an image that cannot be
            read.
    """
    if split not in SPLITS:
        raise unknown_name('split', split, SPLITS)
    if subset_order not in SUBSET_ORDERS:
        raise unknown_name('subset order', subset_order, SUBSET_ORDERS)
    if loader not in LOADERS:
        raise unknown_name('loader', loader, LOADERS)

    if name.startswith('packed:'):
        cut = {
            'imbalance_factor': imbalance_factor,
            'subset_order': subset_order,
            'profile': profile,
        }
        return _open_packed(name, split, loader, data_dir, storage, cut)

    registered, argument = find_dataset(name)
    factor = _factor(name, registered.imbalance_factor, imbalance_factor)
    # a factor or a profile that is wrong is refused before anything is read
    long_tail_counts(1, 1, 1. if factor is None else factor, profile)

    folder = None if data_dir is None else Path(data_dir)
    source = registered.load(split, SourceOptions(argument, folder, **storage))
    check_labels(name, source.targets, len(source.class_names))

    rows = np.arange(len(source.targets))
    if split == 'train' and factor is not None and factor != 1:
        order = _row_order(name, source, subset_order, order_file)
        rows = _choose_rows(source, factor, seed, order, profile)

    dataset = _build(
        name, split, source, rows, loader, skip_bad_images,
        imbalance_factor=1. if factor is None else float(factor),
        seed=seed,
        subset_order=subset_order,
        profile=profile,
    )
    if split == 'train':
        require_every_class(dataset)
        dataset.shot_counts = list(dataset.class_counts)
    return dataset


def create_splits(name: str, **options: Any) -> tuple[LongTailDataset, LongTailDataset]:
    """Load the training and the test split, both in memory or both left to the workers of a loader.

    How an image is processed must not depend on its split; alone, each would decide by its own
    images.

    Args:
        name: One of `list_datasets()`.
        **options: Options of `create_dataset`.

    Raises:
        UserError: As for `create_dataset`; the splits have other classes.
    """
    train_set = create_dataset(name, 'train', **options)
    test_set = create_dataset(name, 'test', **options)

    # one split is small and the other is not: neither is kept in memory
    if train_set.resident != test_set.resident:
        options = {**options, 'loader': 'worker'}
        train_set = create_dataset(name, 'train', **options)
        test_set = create_dataset(name, 'test', **options)

    if train_set.class_names != test_set.class_names:
        raise UserError(f'{name}: the training and the test split have other classes')

    # what the source of either split has to say is said once, at the start
    notes = dict.fromkeys(note for note in (train_set.note, test_set.note) if note)
    train_set.note = '; '.join(notes)
    return train_set, test_set


def _factor(name: str, default: float | None, asked: float | None) -> float | None:
    """Return the factor to cut by; None for natural counts."""
    if asked is None:
        return default

    if default == 1 and asked != 1:
        hint = 'its counts are part of the benchmark'
        if f'{name}_lt' in REGISTRY:
            hint = f'name {name}_lt to cut it'
        raise UserError(f'{name} cannot be cut by a factor of {asked:g}: {hint}')
    return asked


def _build(
        name: str,
        split: str,
        source: Source,
        rows: np.ndarray,
        loader: str,
        skip_bad_images: bool,
        **cut: Any,
) -> LongTailDataset:
    """Return the data set of some rows, decoded or not.

    Args:
        name: Name that the data set was asked for by.
        split: `train` or `test`.
        source: All rows of the split.
        rows: Rows that the data set has, int64 [N].
        loader: `auto`, `resident` or `worker`.
        skip_bad_images: Whether images that cannot be decoded are left out.
        **cut: How the rows were chosen, fields of `LongTailDataset`.
    """
    images: torch.Tensor | None = None
    encoded: EncodedImages | None = None
    bad_images: list[str] = []

    if isinstance(source.images, torch.Tensor):
        if loader == 'worker':
            raise UserError(
                f'{name} has no files: it comes decoded, and --loader worker has nothing to read')
        assert source.names is not None, 'decoded images have no file names of their own'
        images = source.images[torch.from_numpy(rows)]
        names = [source.names[row] for row in rows]
    else:
        encoded = source.images.take(rows)
        names = encoded.names()

        wants_resident = loader == 'resident'
        if loader == 'auto':
            wants_resident = source.published or is_small(encoded)
        if wants_resident:
            images, kept = decode_images(encoded, skip_bad_images)
            left_out = np.setdiff1d(np.arange(len(rows)), kept)
            bad_images = [names[position] for position in left_out]
            names = [names[position] for position in kept]
            rows = rows[kept]
            encoded = None

    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = _measure(images)
    return LongTailDataset(
        name=source.title or name,
        split=split,
        images=images,
        encoded=encoded,
        targets=source.targets[rows],
        class_names=source.class_names,
        mean=mean,
        std=std,
        indices=rows,
        source_names=names,
        original_order=source.original_order,
        bad_images=bad_images,
        hub_id=source.hub_id,
        note=source.note,
        **cut,
    )


def is_small(encoded: EncodedImages) -> bool:
    """Whether all images are square, of one size, and small; headers are read, no pixels."""
    first = None
    for size in encoded.image_sizes():
        width, height = size
        if first is None:
            first = size
        if size != first or width != height or width > _RESIDENT_SIDE:
            return False
    return first is not None


def _measure(images: torch.Tensor | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, to four digits; ImageNet's for files.

    Args:
        images: Resident images, uint8 [N,3,H,W], or None.
    """
    if images is None:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    num_pixels = images.shape[0] * images.shape[2] * images.shape[3]
    levels = torch.arange(256, dtype=torch.float64) / 255

    means, stds = [], []
    for channel in images.unbind(1):
        # counts of levels are exact, so that the result does not depend on the order of summation
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        mean = (counts * levels).sum() / num_pixels
        std = ((counts * (levels - mean) ** 2).sum() / num_pixels).sqrt()
        means.append(round(float(mean), 4))
        stds.append(max(round(float(std), 4), _SMALLEST_STD))
    return tuple(means), tuple(stds)


def _open_packed(
        name: str,
        split: str,
        loader: str,
        data_dir: str | Path | None,
        storage: dict[str, Any],
        cut: dict[str, Any],
) -> LongTailDataset:
    """Read a split of a packed file, which holds one subset and has no names to choose from.

    Args:
        name: `packed:` and the path of the file.
        split: `train` or `test`.
        loader: `auto`, `resident` or `worker`.
        data_dir: Folder that was asked for.
        storage: Names in the storage that were asked for.
        cut: Fields of the data set that were asked for: the file must hold them.

    Raises:
        UserError: Something is asked for that the file does not hold.
    """
    # a caller may give the classes of a model for any data set; only a folder has a use for them
    chosen = [value for key, value in storage.items() if key not in ('class_names', 'whole')]
    if data_dir is not None or any(chosen):
        raise UserError(
            f'{name} is one file of both splits: it takes no folder, and no names of splits and columns')

    dataset = read_packed(name.removeprefix('packed:'), split, loader)
    for key, value in cut.items():
        held = getattr(dataset, key)
        asks_nothing = value in (None, 'file', 'exp')  # the defaults
        if not asks_nothing and value != held:
            words = key.replace('_', ' ')
            raise UserError(f'{name} holds one subset, of {words} {held}; it cannot be cut again')
    return dataset


def require_every_class(dataset: LongTailDataset):
    """Raise a `UserError` that names the first class without an image."""
    empty = [label for label, count in enumerate(dataset.class_counts) if count == 0]
    if not empty:
        return

    label = empty[0]
    factor = dataset.imbalance_factor
    message = (
        f'{dataset.name} ({dataset.split}, imbalance factor {factor:g}): '
        f'class {label} ({dataset.class_names[label]})')
    if len(empty) > 1:
        message += f' and {len(empty) - 1} more'
    message += ' has no image'
    if factor != 1:
        message += ': a smaller factor leaves some'
    if dataset.note:
        message += f'; {dataset.note}'
    raise UserError(message)


def _choose_rows(
        source: Source,
        factor: float,
        seed: int,
        order: np.ndarray,
        profile: str,
) -> np.ndarray:
    """Return the rows of a long-tailed training split, class after class.

    Args:
        source: All rows.
        factor: Largest class over smallest.
        seed: Data seed.
        order: Rows in the order that LDAM's rule shuffles, [N].
        profile: Shape of the cut.
    """
    num_classes = len(source.class_names)
    available = np.bincount(source.targets, minlength=num_classes)
    counts = long_tail_counts(int(available.max(initial=1)), num_classes, factor, profile)
    return order[long_tail_indices(source.targets[order], counts, seed)]


def _row_order(
        name: str,
        source: Source,
        subset_order: str,
        order_file: str | Path | None,
) -> np.ndarray:
    """Return the rows of a source in the order that LDAM's rule shuffles, int64 [N].

    Args:
        name: Name of the data set.
        source: All rows.
        subset_order: One of SUBSET_ORDERS.
        order_file: List of file names for `original`, or None.

    Raises:
        UserError: `original` for a copy that says nothing about the order of the release.
    """
    if subset_order == 'content':
        if isinstance(source.images, torch.Tensor):
            digests = image_digests(source.images)
        else:
            digests = encoded_digests(source.images)

        # four big-endian words a digest, the first one decides: one order of all rows, whatever
        # the storage order
        return np.lexsort(digests.view('>u8').T[::-1])

    stored = np.arange(len(source.targets))
    if subset_order == 'file' or source.original_order:
        return stored

    if order_file is None:
        raise UserError(
            f'{name}: this copy is not stored in the order of the original release; --subset-order original '
            'needs --order-file, a list of the file names of the release in its order')
    if isinstance(source.images, torch.Tensor):
        raise UserError(f'{name}: this copy has no file names, by which --order-file could put it into order')
    return original_order(source.images.names(), source.targets, Path(order_file))
