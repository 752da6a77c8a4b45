"""The loader of decoded images: they lie on the device, and so do their views.

n samples of an epoch over all processes.
"""
from collections.abc import Iterator

import numpy as np
import torch

from .loader import Batch, Loader

__all__ = ['DeviceLoader']


class DeviceLoader(Loader):
    """A loader over images that lie on the device as uint8.

    Views are computed for a chunk of images at a time and normalised batch by batch.

    Args:
        images: uint8 [N,3,H,H].
        chunk_size: Images to compute views of at once.
        **kwargs: As `Loader`.
    """

    def __init__(self, images: torch.Tensor, *, chunk_size: int, **kwargs):
        super().__init__(**kwargs)
        self.images = images.to(self.device)
        self.chunk_size = chunk_size

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()
        group = max(1, self.chunk_size // self.batches.batch_size)
        for first in range(self.start_batch, len(self), group):
            spans = [self.batches.span(batch) for batch in range(first, min(first + group, len(self)))]
            positions = np.concatenate([np.arange(*span) for span in spans])
            index = torch.from_numpy(order[positions]).to(self.device)
            views = [self._compute(number, index, positions) for number in range(len(self.views))]
            sizes = [last - start for start, last in spans]
            for rows, *pixels in zip(index.split(sizes), *(view.split(sizes) for view in views), strict=True):
                yield tuple(self._normalise(view) for view in pixels), self.targets[rows], rows

    def _compute(self, number: int, index: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        """Return one view of the images at some positions, uint8."""
        view = self.views[number]
        uniforms = self._uniforms(number, positions)
        parts = [
            view.apply(self.images[rows], view.sample(numbers))
            for rows, numbers in zip(
                index.split(self.chunk_size),
                np.split(uniforms, range(self.chunk_size, len(uniforms), self.chunk_size)),
                strict=True,
            )
        ]
        return torch.cat(parts)
