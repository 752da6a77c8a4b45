"""Where images come from: labels first, then the pixels of the rows that are asked for.

N images, C classes.
"""
import io
import os
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError
from .longtail import hold_out_indices

__all__ = ['Source', 'decode_images', 'register_dataset']

DATA_VARIABLE = 'TIMM_LONGTAIL_DATA'

# first labels of the original releases (Krizhevsky, 2009): ten labels tell a shuffled copy from the original order
_ORIGINAL_LABELS = {
    ('cifar10', 'train'): [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
    ('cifar10', 'test'): [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    ('cifar100', 'train'): [19, 29, 0, 11, 1, 86, 90, 28, 23, 31],
    ('cifar100', 'test'): [49, 33, 72, 51, 71, 92, 15, 14, 23, 0],
}


@dataclass
class Source:
    """What a data set needs of its storage.

    Attributes:
        targets: Class of each row, int64 [N].
        class_names: C names.
        decode: Row numbers [n] to uint8 [n,3,H,W]; raises UserError that names the image.
        names: Row numbers [n] to n file names.
        mean, std: Per-channel constants for pixels in [0, 1].
        original_order: Whether the rows are stored in the order of the original release.
    """
    targets: np.ndarray
    class_names: list[str]
    decode: Callable[[np.ndarray], torch.Tensor]
    names: Callable[[np.ndarray], list[str]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    original_order: bool = True


REGISTRY: dict[str, tuple[Callable[[str, Path | None], Source], float]] = {}


def register_dataset(name: str, imbalance_factor: float = 1.) -> Callable:
    """Register a function `(split, data_dir) -> Source` under a name.

    Args:
        name: What `create_dataset` calls it.
        imbalance_factor: Default factor of the training split; 1 is a set that is never cut.
    """
    def register(load: Callable) -> Callable:
        REGISTRY[name] = (load, imbalance_factor)
        return load
    return register


def decode_images(encoded: Iterable[bytes], names: list[str]) -> torch.Tensor:
    """Decode images of one size with Pillow.

    Args:
        encoded: Bytes of n images in any format that Pillow reads; None counts as unreadable.
        names: What to call each image in an error.

    Returns:
        uint8 [n,3,H,W].

    Raises:
        UserError: An image that cannot be read, or of another size than the first.
    """
    from PIL import Image
    images, formats = None, None
    for position, data in enumerate(encoded):
        try:
            # trying the format of the previous image first saves a third of the time
            try:
                image = Image.open(io.BytesIO(data), formats=formats)
            except Image.UnidentifiedImageError:
                image = Image.open(io.BytesIO(data))
            pixels = np.asarray(image.convert('RGB'))
        except (OSError, TypeError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f'cannot read the image of {names[position]}: {error}') from error
        formats = [image.format]
        if images is None:
            images = np.empty((len(names), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UserError(
                f'{names[position]} is {pixels.shape[1]}x{pixels.shape[0]}, the first image '
                f'{images.shape[2]}x{images.shape[1]}: a resident data set has one size')
        images[position] = pixels
    if images is None:
        raise UserError('there is no image to decode')
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


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


def _load_split(repository: str, split: str, data_dir: Path | None):
    """Open one split of a Hub repository or of its local copy; returns the data set and what to call it."""
    import datasets
    root = os.environ.get(DATA_VARIABLE)
    if data_dir is None and root and (Path(root) / repository).is_dir():
        data_dir = Path(root) / repository
    if data_dir is not None and not any(data_dir.glob(f'**/*{split}*.parquet')):
        what = f'holds no {split} split' if data_dir.is_dir() else 'is not a folder'
        raise UserError(
            f'{data_dir} {what}: looked for **/*{split}*.parquet, as in a copy of the Hub repository {repository}')
    place = repository if data_dir is None else str(data_dir)
    try:
        with _quiet(datasets):
            return datasets.load_dataset(place, split=split), place
    except Exception as error:  # the library, the network and Arrow each raise their own kinds
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        hint = '' if data_dir else f'; name a local copy with --data-dir or ${DATA_VARIABLE}'
        raise UserError(f'cannot load {split} of {place}: {reason}{hint}') from error


def _read_labels(rows, column: str, num_classes: int, place: str) -> tuple[np.ndarray, list[str]]:
    """Return labels (without decoding an image) and class names."""
    targets = rows.with_format('numpy')[column][:]
    if not np.issubdtype(targets.dtype, np.integer):
        raise UserError(f'{place}: column {column} holds {targets.dtype}, not integer labels')
    names = getattr(rows.features[column], 'names', None)
    return targets.astype(np.int64), list(names or map(str, range(num_classes)))


def _load_hub(repository: str, split: str, data_dir: Path | None, label: str, num_classes: int, **constants) -> Source:
    """Open a repository with columns `img` and `label` and leave its images encoded."""
    import datasets
    rows, place = _load_split(repository, split, data_dir)
    for column in ('img', label):
        if column not in rows.column_names:
            raise UserError(f'{place} has no column {column!r}; its columns are {", ".join(rows.column_names)}')
    targets, class_names = _read_labels(rows, label, num_classes, place)
    encoded = rows.select_columns('img').cast_column('img', datasets.Image(decode=False)).with_format('arrow')

    def read(indices: np.ndarray) -> list[dict]:
        return encoded[indices.tolist()]['img'].to_pylist() if len(indices) else []

    def names(indices: np.ndarray) -> list[str]:
        return [Path(image['path'] or f'row {row}').name for row, image in zip(indices, read(indices), strict=True)]

    def decode(indices: np.ndarray) -> torch.Tensor:
        images = read(indices)
        places = [f'{place}, row {row} ({image["path"]})' for row, image in zip(indices, images, strict=True)]
        return decode_images((image['bytes'] for image in images), places)

    first = _ORIGINAL_LABELS[repository.split('/')[1], split]
    original = targets[:len(first)].tolist() == first
    return Source(targets, class_names, decode, names, original_order=original, **constants)


@register_dataset('cifar10')
@register_dataset('cifar10_lt', imbalance_factor=100)
def _cifar10(split: str, data_dir: Path | None) -> Source:
    return _load_hub(
        'uoft-cs/cifar10', split, data_dir, label='label', num_classes=10,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2470, 0.2435, 0.2616),
    )


@register_dataset('cifar100')
@register_dataset('cifar100_lt', imbalance_factor=100)
def _cifar100(split: str, data_dir: Path | None) -> Source:
    return _load_hub(
        'uoft-cs/cifar100', split, data_dir, label='fine_label', num_classes=100,
        mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762),
    )


@register_dataset('digits_lt', imbalance_factor=20)
def _digits(split: str, data_dir: Path | None) -> Source:
    """scikit-learn's 8x8 digits, up-sampled to 32x32 RGB; 20 % of each class are the test split."""
    from sklearn.datasets import load_digits
    if data_dir is not None:
        raise UserError('digits_lt comes with scikit-learn; it takes no --data-dir')
    digits = load_digits()
    test = hold_out_indices(digits.target, 0.2, seed=0)
    rows = test if split == 'test' else np.setdiff1d(np.arange(len(digits.target)), test)
    grey = torch.from_numpy(digits.images).float() * (255 / 16)
    large = torch.nn.functional.interpolate(grey[:, None], size=(32, 32), mode='bilinear', align_corners=False)
    images = large.round().to(torch.uint8).expand(-1, 3, -1, -1)
    return Source(
        targets=digits.target[rows].astype(np.int64),
        class_names=[str(digit) for digit in range(10)],
        decode=lambda indices: images[torch.from_numpy(rows[indices])].contiguous(),
        names=lambda indices: [f'digit_{row:04d}' for row in rows[indices]],
        mean=(0.3051,) * 3,
        std=(0.3234,) * 3,
    )
