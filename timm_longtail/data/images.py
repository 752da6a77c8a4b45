"""Images as they are stored: encoded bytes by row, from a folder or a table, decoded with Pillow.

N images.
"""
import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..utils.errors import UserError, one_line
from ..utils.files import reading
from ..utils.progress import progress
from .decoding import decode_rgb, read_size

__all__ = [
    'EncodedImages',
    'FileImages',
    'decode_images',
    'encoded_digests',
    'files_hash',
    'read_file',
]


class EncodedImages:
    """Encoded images in some storage. A sub-class says how rows are read and what they are called.

    Objects travel to worker processes, so they hold paths and offsets, never open files.

    Args:
        place: Name of the storage in an error.
        num_rows: Number of stored rows.
    """

    block_size = 1
    """How many images are read at once: a table reads 512 as fast as ten."""

    def __init__(self, place: str, num_rows: int):
        self.place = place
        self.rows = np.arange(num_rows)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> 'EncodedImages':
        """Return the images at some positions, in that order."""
        other = copy.copy(self)
        other.rows = self.rows[positions]
        return other

    def read(self, positions: Sequence[int]) -> list[bytes | None]:
        """Return the encoded images at some positions; None where the storage holds none.

        Raises:
            OSError, UserError: A file that cannot be read.
        """
        return self._read(self.rows[positions])

    def names(self) -> list[str]:
        """Return the N file names, or what stands for them."""
        return self._names(self.rows)

    def sizes(self) -> np.ndarray:
        """Return the length of each encoded image in bytes, int64 [N]."""
        return self._sizes(self.rows)

    def files(self) -> Sequence[str | Path]:
        """Return the paths of the files that the images are read from; none where the storage has no files."""
        return ()

    def describe(self, position: int) -> str:
        """Return what one image is called in an error."""
        row = self.rows[position]
        name = self._names(self.rows[position:position + 1])[0]
        return f'{self.place}, row {row} ({name})'

    def image(self, position: int, data: bytes | None = None) -> Image.Image:
        """Return one image decoded and upright, a Pillow image in RGB.

        Args:
            position: Position of the image.
            data: Bytes of the image, where they have been read already.

        Raises:
            UserError: It cannot be read; names it.
        """
        try:
            if data is None:
                data = self.read([position])[0]
        except OSError as error:
            raise self._unreadable(position, _reason(error)) from error

        if data is None:
            raise self._unreadable(position, 'there is none')

        try:
            return decode_rgb(data)
        except Exception as error:  # Pillow's plugins have no error in common
            raise self._unreadable(position, _reason(error)) from error

    def image_sizes(self) -> Iterator[tuple[int, int]]:
        """Yield (width, height) of each image from its header, without those that cannot be read."""
        for start in range(0, len(self), self.block_size):
            try:
                block = self.read(range(start, min(start + self.block_size, len(self))))
            except (OSError, UserError):
                continue

            for data in block:
                if not data:
                    continue
                try:
                    yield read_size(data)
                except Exception:  # as above; decoding will name it
                    continue

    def _unreadable(self, position: int, reason: str) -> UserError:
        return UserError(f'cannot read the image of {self.describe(position)}: {reason}')

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        raise NotImplementedError

    def _names(self, rows: np.ndarray) -> list[str]:
        raise NotImplementedError

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        # one image at a time: together they may not fit into memory
        sizes = []
        for row in rows:
            data = self._read(np.array([row]))[0]
            sizes.append(len(data or b''))
        return np.array(sizes, np.int64)


class FileImages(EncodedImages):
    """Image files under one folder.

    Args:
        root: Folder of the files.
        paths: Paths of the files, relative to `root` or absolute, [N].
    """

    def __init__(self, root: str | Path, paths: Sequence[str]):
        super().__init__(str(root), len(paths))
        self.root = Path(root)
        self.paths = list(paths)

    def files(self) -> list[str]:
        return self._full_paths(self.rows)

    def describe(self, position: int) -> str:
        return str(self.root / self.paths[self.rows[position]])

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        return [read_file(self.root / self.paths[row]) for row in rows]

    def _names(self, rows: np.ndarray) -> list[str]:
        return [self.paths[row] for row in rows.tolist()]

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        return np.array([_file_size(path) for path in self._full_paths(rows)], np.int64)

    def _full_paths(self, rows: np.ndarray) -> list[str]:
        # text: of half a million files, building `Path`s takes five times as long as looking at them
        root = str(self.root)
        return [os.path.join(root, self.paths[row]) for row in rows.tolist()]


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        UserError: There is none, or it is not a regular file: a named pipe or a device would be
            read for ever.
    """
    with reading(path, 'image file'):
        return path.read_bytes()


def _file_size(path: str) -> int:
    """Return the length of a file; 0 where it is gone, which decoding will name."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _reason(error: Exception) -> str:
    return one_line(error) or type(error).__name__


def _decoded(encoded: EncodedImages, skip_bad: bool) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the position and the pixels, uint8 [H,W,3], of each image that can be read."""
    block: list[bytes | None] = []
    for position in range(len(encoded)):
        offset = position % encoded.block_size
        if encoded.block_size > 1 and offset == 0:
            block = _read_block(encoded, position)

        # a block that could not be read has nothing at any offset: each image is read by itself
        data = block[offset] if block else None
        try:
            image = encoded.image(position, data)
        except UserError:
            if not skip_bad:
                raise
            continue
        yield position, np.asarray(image)


def _read_block(encoded: EncodedImages, start: int) -> list[bytes | None]:
    """Return the images of one block; none where one of them cannot be read, so that each is read by itself."""
    try:
        return encoded.read(range(start, min(start + encoded.block_size, len(encoded))))
    except (OSError, UserError):
        return []


def decode_images(encoded: EncodedImages, skip_bad: bool = False) -> tuple[torch.Tensor, np.ndarray]:
    """Decode images of one size.

    Args:
        encoded: N encoded images.
        skip_bad: Whether images that cannot be read are left out; False raises.

    Returns:
        Pixels, uint8 [n,3,H,W], and positions of the n images, int64 [n]; n = N unless some were
        left out.

    Raises:
        UserError: An image that cannot be read, or of another size than the first; no image.
    """
    images: np.ndarray | None = None
    kept: list[int] = []
    for position, pixels in progress(_decoded(encoded, skip_bad), 'reading', len(encoded)):
        # the first image says how much room all of them need
        if images is None:
            images = _allocate(encoded, pixels.shape)

        if pixels.shape != images.shape[1:]:
            raise UserError(
                f'{encoded.describe(position)} is {pixels.shape[1]}x{pixels.shape[0]}, the first image '
                f'{images.shape[2]}x{images.shape[1]}: a resident data set has one size')
        images[len(kept)] = pixels
        kept.append(position)

    if images is None:
        raise UserError(f'{encoded.place}: there is no image to decode')
    decoded = torch.from_numpy(images[:len(kept)]).permute(0, 3, 1, 2).contiguous()
    return decoded, np.array(kept, np.int64)


def _allocate(encoded: EncodedImages, shape: tuple[int, ...]) -> np.ndarray:
    """Return room for all images decoded, uint8 [N,H,W,3]."""
    try:
        return np.empty((len(encoded), *shape), np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(
            f'{encoded.place}: {len(encoded)} images of {shape[1]}x{shape[0]} pixels do not fit into memory: '
            'leave them encoded with --loader worker') from error


def encoded_digests(encoded: EncodedImages) -> np.ndarray:
    """Return the sha256 of each image's uint8 HWC pixels, as `image_digests` does: uint8 [N,32].

    Raises:
        UserError: An image that cannot be read.
    """
    digests = bytearray()
    for _, pixels in progress(_decoded(encoded, skip_bad=False), 'reading', len(encoded)):
        digests += hashlib.sha256(pixels.tobytes()).digest()
    return np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32).copy()


def files_hash(names: Sequence[str], sizes: np.ndarray, targets: np.ndarray) -> str:
    """Return a fingerprint of a labelled set of files that ignores their order.

    It is one of names, lengths and labels, not of pixels: decoding a large set to name it would
    take longer than an epoch.

    Args:
        names: File name of each image [N], relative to the root of the set.
        sizes: Bytes of each image [N].
        targets: Class of each image [N].

    Returns:
        The first 12 hexadecimal digits of the sha256 over the sorted lines `label length name`.
    """
    lines = []
    for name, size, label in zip(names, sizes.tolist(), targets.tolist(), strict=True):
        lines.append(f'{label} {size} {name}\n')

    # paths are bytes to the file system, and may not be UTF-8
    text = ''.join(sorted(lines)).encode(errors='surrogateescape')
    return hashlib.sha256(text).hexdigest()[:12]
