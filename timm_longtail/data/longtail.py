"""What makes a data set long-tailed: class counts, the images that stay, their fingerprint, shot groups, the hold-out.

The exponential profile and its index rule are those of LDAM (Cao et al., NeurIPS 2019,
https://arxiv.org/abs/1906.07413) which most later papers share. N images, C classes.
"""
import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from ..utils.errors import UserError, unknown_name
from ..utils.rng import generator

__all__ = [
    'head_tail_groups',
    'hold_out_indices',
    'image_digests',
    'long_tail_counts',
    'long_tail_indices',
    'natural_imbalance',
    'shot_groups',
    'subset_hash',
]


def _exponential(class_index: int, num_classes: int, imbalance_factor: float) -> float:
    return imbalance_factor ** (-class_index / max(num_classes - 1, 1))


def _step(class_index: int, num_classes: int, imbalance_factor: float) -> float:
    return 1. if class_index < num_classes / 2 else 1 / imbalance_factor


_PROFILES = {'exp': _exponential, 'step': _step}


def long_tail_counts(
        max_count: int,
        num_classes: int,
        imbalance_factor: float,
        profile: str = 'exp',
) -> list[int]:
    """Return how many images each class keeps, by LDAM's rules, truncated.

    `exp`: `int(max_count * imbalance_factor ** (-c / (C - 1)))`. `step`: the first half of the
    classes (the larger half of an odd number) keeps `max_count`, the others `int(max_count /
    imbalance_factor)`.

    Args:
        max_count: Number of images of class 0, the largest.
        num_classes: C, number of classes.
        imbalance_factor: Largest count over smallest, at least 1 (1 keeps every class at
            `max_count`).
        profile: Shape of the decay, `exp` or `step`; `exp` is the one of the CIFAR-LT benchmarks.

    Returns:
        C counts in label order, never increasing. A factor too large for `max_count` gives zeros:
        the caller decides.

    Raises:
        UserError: A factor below 1, a count or a number of classes below 1, an unknown profile.
    """
    if profile not in _PROFILES:
        raise unknown_name('profile', profile, _PROFILES)
    if not imbalance_factor >= 1:
        raise UserError(
            f'the imbalance factor is the largest class over the smallest: >= 1, got {imbalance_factor}')
    if max_count < 1 or num_classes < 1:
        raise UserError(
            f'need at least one image and one class, got {max_count} images and {num_classes} classes')

    decay = _PROFILES[profile]
    return [int(max_count * decay(c, num_classes, imbalance_factor)) for c in range(num_classes)]


def long_tail_indices(
        targets: Sequence[int] | np.ndarray,
        counts: Sequence[int],
        seed: int = 0,
) -> np.ndarray:
    """Choose the images that stay, by LDAM's rule: shuffle each class's indices, take the first `n_c`.

    One `np.random.RandomState(seed)` serves all classes in label order, so the choice depends on
    the order of the rows but on nothing else; on the original CIFAR order and seed 0 it is the
    subset that LDAM, BCL and ProCo train on.

    Args:
        targets: Class of each image [N].
        counts: Number of images to keep of each class [C]; a class that has fewer gives all it has.
        seed: Data seed (not the training seed).

    Returns:
        Row numbers, int64, class after class.
    """
    labels = np.asarray(targets)
    random = np.random.RandomState(seed)

    chosen = [np.empty(0, np.int64)]  # no class, no rows
    for label, count in enumerate(counts):
        rows = np.where(labels == label)[0]
        random.shuffle(rows)
        chosen.append(rows[:count])
    return np.concatenate(chosen).astype(np.int64)


def _pixels(images: torch.Tensor) -> np.ndarray:
    """Return [N,3,H,W] uint8 images as contiguous HWC rows."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise UserError(f'expected uint8 images [N,3,H,W], got {images.dtype} {list(images.shape)}')
    return images.permute(0, 2, 3, 1).contiguous().cpu().numpy()


def image_digests(images: torch.Tensor) -> np.ndarray:
    """Return the sha256 of each image's uint8 HWC pixels: the name of an image in any container or codec.

    Args:
        images: uint8 [N,3,H,W].

    Returns:
        uint8 [N,32], one digest a row.
    """
    digests = bytearray()
    for image in _pixels(images):
        digests += hashlib.sha256(image).digest()
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32).copy()


def subset_hash(images: torch.Tensor, targets: Sequence[int] | np.ndarray) -> str:
    """Return a fingerprint of a labelled set that ignores row order, container and (lossless) codec.

    The sorted sha256 of every (label as 8 little-endian bytes, uint8 HWC pixels) are hashed by
    sha256 again.

    Args:
        images: uint8 [N,3,H,W].
        targets: Class of each image [N].

    Returns:
        The first 12 hexadecimal digits.
    """
    labels = np.asarray(targets).astype('<i8')

    rows = []
    for label, image in zip(labels, _pixels(images), strict=True):
        rows.append(hashlib.sha256(label.tobytes() + image.tobytes()).digest())

    # sorted: the order of the rows does not matter
    return hashlib.sha256(b''.join(sorted(rows))).hexdigest()[:12]


def natural_imbalance(imbalance_factor: float, class_counts: Sequence[int]) -> str | None:
    """Return the imbalance in words where it is that of the images as they are; None where they were cut, or are even.

    A data set that is not cut has factor 1, whatever the sizes of its classes.

    Args:
        imbalance_factor: Factor that the data set was cut to.
        class_counts: Images of each class.
    """
    if imbalance_factor != 1 or not class_counts or min(class_counts) == max(class_counts):
        return None
    ratio = max(class_counts) / max(min(class_counts), 1)
    return f'not cut; largest class over smallest {ratio:.4g}'


def shot_groups(
        class_counts: Sequence[int],
        many: int = 100,
        few: int = 20,
        few_inclusive: bool = False,
) -> dict[str, list[int]]:
    """Split classes by training images: Many > `many`, Few < `few`, Medium the rest.

    Args:
        class_counts: Number of training images of each class [C].
        many: Count above which a class is Many (OLTR's 100).
        few: Count below which a class is Few (OLTR's 20).
        few_inclusive: Whether a class of exactly `few` images is Few, as in GLMC's code (`<= 20`).

    Returns:
        Class ids of `many`, `medium` and `few`; a group may be empty.
    """
    groups: dict[str, list[int]] = {'many': [], 'medium': [], 'few': []}
    for label, count in enumerate(class_counts):
        if count > many:
            group = 'many'
        elif count < few or (few_inclusive and count == few):
            group = 'few'
        else:
            group = 'medium'
        groups[group].append(label)
    return groups


def head_tail_groups(class_counts: Sequence[int], head: int = 100) -> dict[str, list[int]]:
    """Split classes in two: Head has at least `head` training images, Tail fewer.

    Args:
        class_counts: Number of training images of each class [C].
        head: Smallest count of a Head class.

    Returns:
        Class ids of `head` and `tail`.
    """
    groups: dict[str, list[int]] = {'head': [], 'tail': []}
    for label, count in enumerate(class_counts):
        if count >= head:
            groups['head'].append(label)
        else:
            groups['tail'].append(label)
    return groups


def hold_out_indices(
        targets: Sequence[int] | np.ndarray,
        fraction: float,
        seed: int,
) -> np.ndarray:
    """Choose a validation part: `max(1, floor(fraction * n_c))` images of each class that has at least two.

    The one image of a class that has no other stays in training: such a class is not validated.

    Args:
        targets: Class of each image [N].
        fraction: Share to hold out, in (0, 1).
        seed: Data seed.

    Returns:
        Row numbers to hold out, int64, increasing.

    Raises:
        UserError: A fraction outside (0, 1); no class has two images.
    """
    if not 0 < fraction < 1:
        raise UserError(f'the fraction to hold out must lie between 0 and 1, got {fraction}')

    labels = np.asarray(targets)
    random = generator(seed, purpose='hold_out')

    held = []
    for label in np.unique(labels):
        rows = random.permutation(np.where(labels == label)[0])
        if len(rows) < 2:
            continue

        # the tiny term undoes 0.29 * 100 = 28.999999999999996; n - 1 keeps it from emptying a class
        share = max(1, int(fraction * len(rows) + 1e-9))
        held.append(rows[:min(share, len(rows) - 1)])

    if not held:
        raise UserError(
            'no class has two images: nothing can be held out (the one image of a class stays in training)')
    return np.sort(np.concatenate(held)).astype(np.int64)
