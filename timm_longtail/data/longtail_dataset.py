"""A long-tailed data set in memory.

N images, C classes.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch

from ..errors import UserError
from .longtail import hold_out_indices, image_digests, subset_hash

__all__ = ['LongTailDataset', 'check_labels']


@dataclass
class LongTailDataset:
    """A labelled set of images of one size, decoded.

    Attributes:
        name: Name it was created by.
        split: `train` or `test`.
        images: uint8 [N,3,H,W].
        targets: Class of each image, int64 [N].
        class_names: C names.
        class_counts: Images of each class in this very set [C].
        shot_counts: Training images of each class before any hold-out [C]: what Many / Medium / Few are defined by.
            The training set owns them; None on a test split.
        indices: Row of each image in the source as stored, int64 [N].
        source_names: File name of each image, as the source has it.
        mean, std: Per-channel constants of the set, for pixels in [0, 1].
        imbalance_factor: Factor asked for; 1 for a balanced set.
        seed: Data seed that chose the images.
        subset_order: `file` or `content`: what the seed shuffled.
        original_order: Whether the source's rows are stored in the order of the original release.
    """
    name: str
    split: str
    images: torch.Tensor
    targets: np.ndarray
    class_names: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    indices: np.ndarray
    source_names: list[str]
    shot_counts: list[int] | None = None
    imbalance_factor: float = 1.
    seed: int = 0
    subset_order: str = 'file'
    original_order: bool = True
    class_counts: list[int] = field(init=False)

    def __post_init__(self):
        check_labels(self.name, self.targets, len(self.class_names))
        self.class_counts = np.bincount(self.targets, minlength=len(self.class_names)).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(3, H, W)."""
        return tuple(self.images.shape[1:])

    @cached_property
    def digests(self) -> np.ndarray:
        """sha256 of each image's uint8 HWC pixels, uint8 [N,32]."""
        return image_digests(self.images)

    @cached_property
    def hash(self) -> str:
        """Fingerprint of the images and labels, 12 hexadecimal digits; row order and codec do not matter."""
        return subset_hash(self.images, self.targets)

    def subset(self, indices: Sequence[int]) -> 'LongTailDataset':
        """Return the set of the given positions; `indices` of the result still count rows of the source."""
        rows = np.asarray(indices, np.int64)
        return replace(
            self,
            images=self.images[torch.from_numpy(rows)],
            targets=self.targets[rows],
            indices=self.indices[rows],
            source_names=[self.source_names[row] for row in rows],
        )

    def hold_out(self, fraction: float, seed: int) -> tuple['LongTailDataset', 'LongTailDataset']:
        """Cut a validation part off: `(rest, held)`, both with the `shot_counts` of the whole.

        Args:
            fraction: Share of each class, at least one image of each class that has two.
            seed: Data seed.
        """
        held = hold_out_indices(self.targets, fraction, seed)
        rest = np.setdiff1d(np.arange(len(self)), held)
        return self.subset(rest), self.subset(held)


def check_labels(name: str, targets: np.ndarray, num_classes: int):
    """Raise a `UserError` that names the first row whose class is not in [0, num_classes)."""
    wrong = np.flatnonzero((targets < 0) | (targets >= num_classes))
    if len(wrong):
        raise UserError(f'{name}: row {wrong[0]} has label {targets[wrong[0]]}, outside 0..{num_classes - 1}')
