"""The loader of decoded images: they lie on the device, and so do their views.

N images of H x H pixels, n of them at a time.
"""
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .loader import Batch, Loader

__all__ = ['DeviceLoader']


class DeviceLoader(Loader):
    """A loader over images that lie on the device as uint8.

    Views are computed for a chunk of images at a time and normalised batch by batch.

    Args:
        images: Images of the data set, uint8 [N,3,H,H].
        chunk_size: Number of images whose views are computed at once.
        **kwargs: Arguments of `Loader`.
    """

    def __init__(self, images: torch.Tensor, *, chunk_size: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.images = images.to(self.device)
        self.chunk_size = chunk_size

    def __iter__(self) -> Iterator[Batch]:
        order = self._order()

        # as many whole batches at a time as a chunk holds
        group = max(1, self.chunk_size // self.batches.batch_size)
        for first in range(self.start_batch, len(self), group):
            last = min(first + group, len(self))
            spans = [self.batches.span(batch) for batch in range(first, last)]
            positions = np.concatenate([np.arange(*span) for span in spans])
            index = torch.from_numpy(order[positions]).to(self.device)
            views = [self._compute(number, index, positions) for number in range(len(self.views))]

            # cut the group into its batches
            sizes = [end - start for start, end in spans]
            split_views = [view.split(sizes) for view in views]
            for rows, *pixels in zip(index.split(sizes), *split_views, strict=True):
                batch_views = tuple(self._normalise(view) for view in pixels)
                yield batch_views, self.targets[rows], rows

    def _compute(self, number: int, index: torch.Tensor, positions: np.ndarray) -> torch.Tensor:
        """Return one view of some images, uint8 [n,3,H,H].

        Args:
            number: Position of the view in `views`.
            index: Positions of the images in the data set, int64 [n].
            positions: Positions of the images in the global epoch, int64 [n].
        """
        view = self.views[number]
        uniforms = self._uniforms(number, positions)

        # a batch may be larger than a chunk
        parts = []
        for first in range(0, len(index), self.chunk_size):
            chunk = slice(first, first + self.chunk_size)
            params = view.sample(uniforms[chunk])
            parts.append(view.apply(self.images[index[chunk]], params))
        return torch.cat(parts)
