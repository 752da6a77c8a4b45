"""Images as a caller holds them: paths, Pillow images, arrays or tensors, in one list."""
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from ..utils.errors import UserError, one_line
from .images import EncodedImages, read_file

__all__ = ['GivenImages']


class GivenImages(EncodedImages):
    """Images of any of these kinds, in the order in which they are given.

    Args:
        items: Paths; Pillow images; arrays, uint8 [H, W, 3] or [H, W]; tensors, uint8 [3, H, W] or [1, H, W].
    """

    def __init__(self, items: Sequence[Any]):
        super().__init__('images', len(items))
        self.items = list(items)

    def describe(self, position: int) -> str:
        """Return the path of an image, or `image N`, counted from 1."""
        row = self.rows[position]
        item = self.items[row]
        return os.fspath(item) if _is_path(item) else f'image {row + 1}'

    def image(self, position: int, data: bytes | None = None) -> Image.Image:
        """Return one image upright, a Pillow image in RGB.

        Raises:
            UserError: It cannot be read, or is of another kind; names it.
        """
        item = self.items[self.rows[position]]
        if _is_path(item):
            return super().image(position, data)
        try:
            return _to_pillow(item)
        except Exception as error:  # a Pillow image is decoded here, and its plugins have no error in common
            raise self._unreadable(position, one_line(error) or type(error).__name__) from error

    def image_sizes(self) -> Iterator[tuple[int, int]]:
        """Yield (width, height) of each image, without those that cannot be read."""
        for position, row in enumerate(self.rows):
            if _is_path(self.items[row]):
                one = self.take(np.array([position]))
                yield from EncodedImages.image_sizes(one)  # from its header
                continue
            try:
                yield self.image(position).size
            except UserError:
                continue

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        return [read_file(Path(self.items[row])) for row in rows]

    def _names(self, rows: np.ndarray) -> list[str]:
        return [os.fspath(self.items[row]) if _is_path(self.items[row]) else f'image {row + 1}' for row in rows]


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


def _to_pillow(item: Any) -> Image.Image:
    """Return an image in memory as a Pillow image in RGB."""
    if isinstance(item, Image.Image):
        if item.mode == 'F' or item.mode.startswith('I'):
            raise ValueError(f'its mode is {item.mode}: give it 8 bits')
        return ImageOps.exif_transpose(item).convert('RGB')

    if isinstance(item, torch.Tensor):
        if item.dtype != torch.uint8 or item.ndim != 3 or item.shape[0] not in (1, 3):
            raise ValueError(f'a tensor is uint8 [3, H, W], got {str(item.dtype)[6:]} {list(item.shape)}')
        item = item.permute(1, 2, 0).cpu().numpy()

    if not isinstance(item, np.ndarray):
        raise TypeError(f'an image is a path, a Pillow image, an array or a tensor, got {type(item).__name__}')
    if item.ndim == 3 and item.shape[2] == 1:
        item = item[:, :, 0]
    is_colour = item.ndim == 3 and item.shape[2] == 3
    if item.dtype != np.uint8 or not (is_colour or item.ndim == 2):
        raise ValueError(f'an array is uint8 [H, W, 3] or [H, W], got {item.dtype} {list(item.shape)}')
    return Image.fromarray(np.ascontiguousarray(item)).convert('RGB')
