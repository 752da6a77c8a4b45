"""A long-tailed data set, decoded in memory or encoded as it is stored.

N images, C classes.
"""
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from ..utils.errors import UserError
from .file_state import FileState
from .images import EncodedImages, encoded_digests, files_hash
from .longtail import hold_out_indices, image_digests, subset_hash
from .titles import plain_title

__all__ = ['LongTailDataset', 'check_labels']


@dataclass
class LongTailDataset:
    """A labelled set of images: small ones of one size decoded, others as they are stored.

    Attributes:
        name: Name it was created by, as one line; a folder or a file of others may hold any
            characters.
        split: `train` or `test`.
        images: uint8 [N,3,H,W], or None for a set of files.
        targets: Class of each image, int64 [N].
        class_names: C names.
        class_counts: Images of each class in this very set [C].
        shot_counts: Training images of each class before any hold-out [C]: what Many / Medium / Few
            are defined by. The training set owns them; None on a test split.
        indices: Row of each image in the source as stored, int64 [N].
        source_names: File name of each image, as the source has it.
        mean, std: Per-channel constants of the set, for pixels in [0, 1].
        imbalance_factor: Factor asked for; 1 for a balanced set.
        seed: Data seed that chose the images.
        subset_order: `file` or `content`: what the seed shuffled.
        original_order: Whether the source's rows are stored in the order of the original release.
        profile: Shape of the cut, `exp` or `step`.
        encoded: The N encoded images of a set of files, None where `images` is there.
        bad_images: Names of images that could not be read and were left out.
        hub_id: The Hub's name of the data set, where it has one.
        note: A line that the user should read at the start, or ''.
        file_state: State of the files when the set was created; None of a set in memory. A part of
            the set keeps that of the whole.
    """
    name: str
    split: str
    images: torch.Tensor | None
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
    profile: str = 'exp'
    encoded: EncodedImages | None = None
    bad_images: list[str] = field(default_factory=list)
    hub_id: str | None = None
    note: str = ''
    file_state: FileState | None = None
    class_counts: list[int] = field(init=False)

    def __post_init__(self):
        self.name = plain_title(self.name)
        if self.file_state is None and self.encoded is not None:
            self.file_state = FileState(self.encoded)

        check_labels(self.name, self.targets, len(self.class_names))
        self.class_counts = np.bincount(self.targets, minlength=len(self.class_names)).tolist()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def resident(self) -> bool:
        """Whether the images are decoded in memory."""
        return self.images is not None

    @property
    def input_size(self) -> tuple[int, int, int] | None:
        """(3, H, W), or None for a set of files of any size."""
        if self.images is None:
            return None
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def real_imbalance_factor(self) -> float:
        """Largest class over smallest."""
        smallest = max(min(self.class_counts), 1)
        return max(self.class_counts) / smallest

    def require_encoded(self) -> EncodedImages:
        """Return the encoded images of a set of files; a set in memory has none."""
        assert self.encoded is not None, 'a set in memory has no files'
        return self.encoded

    def decode(self, position: int) -> Image.Image:
        """Return one image of a set of files, a Pillow image in RGB.

        Raises:
            UserError: It cannot be read; names it.
        """
        return self.require_encoded().image(position)

    @cached_property
    def digests(self) -> np.ndarray:
        """sha256 of each image's uint8 HWC pixels, uint8 [N,32].

        A set of files is decoded for it, image by image.
        """
        if self.images is not None:
            return image_digests(self.images)
        return encoded_digests(self.require_encoded())

    @cached_property
    def hash(self) -> str:
        """Fingerprint, 12 hexadecimal digits, whatever the order of the rows.

        Of pixels and labels where the set is resident (container and codec do not matter), of
        names, lengths and labels where it is one of files.
        """
        if self.images is not None:
            return subset_hash(self.images, self.targets)
        encoded = self.require_encoded()
        sizes = encoded.sizes() if self.file_state is None else self.file_state.image_sizes(encoded)
        return files_hash(self.source_names, sizes, self.targets)

    def changed_file(self) -> str | None:
        """Return a file that is no longer as it was when the set was created, or None.

        A run asks at its end. A set in memory has been read already, so that nothing of it can
        change.
        """
        if self.file_state is None:
            return None
        return self.file_state.first_changed()

    @property
    def order(self) -> int:
        """Checksum of which row stands at which position; two orders of one set share a `hash`."""
        return zlib.crc32(self.indices.tobytes() + self.targets.tobytes())

    def subset(self, indices: Sequence[int] | np.ndarray) -> 'LongTailDataset':
        """Return the set of the given positions; `indices` of the result still count source rows."""
        rows = np.asarray(indices, np.int64)

        images, encoded = None, None
        if self.images is not None:
            images = self.images[torch.from_numpy(rows)]
        else:
            encoded = self.require_encoded().take(rows)

        return replace(
            self,
            images=images,
            encoded=encoded,
            targets=self.targets[rows],
            indices=self.indices[rows],
            source_names=[self.source_names[row] for row in rows],
        )

    def hold_out(self, fraction: float, seed: int) -> tuple['LongTailDataset', 'LongTailDataset']:
        """Split a validation part off: `(rest, held)`, both with the `shot_counts` of the whole.

        Args:
            fraction: Share of each class to hold out, at least one image of each class that has
                two; the only image of a class stays in the rest.
            seed: Data seed.

        Raises:
            UserError: A fraction outside (0, 1); no class has two images.
        """
        held = hold_out_indices(self.targets, fraction, seed)
        rest = np.setdiff1d(np.arange(len(self)), held)
        return self.subset(rest), self.subset(held)


def check_labels(name: str, targets: np.ndarray, num_classes: int):
    """Raise a `UserError` that names the first row whose class is not in [0, num_classes)."""
    wrong = np.flatnonzero((targets < 0) | (targets >= num_classes))
    if not len(wrong):
        return

    row = wrong[0]
    raise UserError(f'{name}: row {row} has label {targets[row]}, outside 0..{num_classes - 1}')
