"""Loaders: batches of views of a data set, the same for any number of processes, workers and chunks.

B batch of one process, W processes, N images, n samples of an epoch over all processes, S side of a
view.
"""
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from ...utils.rng import generator
from ..samplers import EpochSampler
from ..views.view import View
from .sharding import ShardedBatches

__all__ = ['Batch', 'Loader']

# views, float32 [B,3,S,S] each (or features, float [B,D]); target, int64 [B]; index, int64 [B]
Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]


class Loader:
    """Base of the loaders: epochs, order, random numbers, normalisation.

    Iteration gives `(views, target, index)`: a tuple of normalised float32 [B,3,S,S], one a view;
    int64 [B] and int64 [B], `index` into the data set; all on the device. What an image looks like
    depends on seed, epoch, stream, view and its position in the global epoch: on nothing else.

    Args:
        targets: Class of each image, int64 [N].
        views: Views of each image.
        sampler: Order of an epoch; None is the order of the data set.
        batches: Rule by which positions are dealt to processes and batches.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        img_size: S; views of another size are resized, bilinear with antialiasing.
        device: Device of the batches.
        seed: Training seed of the views.
        stream: Data stream of the views.
    """

    def __init__(
            self,
            targets: torch.Tensor,
            views: Sequence[View],
            sampler: EpochSampler | None,
            batches: ShardedBatches,
            mean: Sequence[float],
            std: Sequence[float],
            img_size: int,
            device: torch.device,
            seed: int = 0,
            stream: int = 0,
    ):
        self.targets = targets.to(device)
        self.views = tuple(views)
        self.sampler = sampler
        self.batches = batches
        self.img_size = img_size
        self.device = device
        self.seed = seed
        self.stream = stream
        self._mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)

        self.bad_images: dict[str, str] = {}
        self.set_epoch(0)

    @property
    def global_batch_size(self) -> int:
        """Samples of one step over all processes."""
        return self.batches.global_batch_size

    @property
    def num_samples(self) -> int:
        """Samples of an epoch over all processes, the dropped ones included."""
        return self.batches.num_samples

    def __len__(self) -> int:
        """Number of batches of a whole epoch on this process."""
        return len(self.batches)

    def set_epoch(self, epoch: int, start_batch: int = 0):
        """Choose the epoch that iteration gives, and the batch to start at.

        A resumed epoch skips the batches that were trained on.

        Args:
            epoch: Number of the epoch, from 0.
            start_batch: First batch; skipped ones cost nothing, and later ones are bit-identical.
        """
        self.epoch = epoch
        self.start_batch = start_batch
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        raise NotImplementedError

    def _order(self) -> np.ndarray:
        """Return the index into the data set at each position of the global epoch, int64 [n]."""
        if self.sampler is None:
            return np.arange(self.num_samples)
        return self.sampler.order()

    def _uniforms(self, number: int, positions: np.ndarray) -> np.ndarray:
        """Return the rows of the global epoch's uniforms [n,num_uniforms] at some positions.

        PCG64 takes one step a number, so a generator that is moved ahead gives the same rows as one
        that draws all rows before them.

        Args:
            number: Position of the view in `views`.
            positions: Increasing positions in the global epoch, int64 [b].
        """
        width = self.views[number].num_uniforms

        # runs of neighbouring positions: one jump of the generator for each
        ends = np.flatnonzero(np.diff(positions) != 1) + 1
        rows = []
        for run in np.split(positions, ends):
            random = generator(self.seed, self.epoch, self.stream, f'view{number}')
            bits = random.bit_generator
            assert isinstance(bits, np.random.PCG64)
            bits.advance(int(run[0]) * width)
            rows.append(random.random((len(run), width)))
        return np.concatenate(rows)

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return uint8 [B,3,H,H] as normalised float32 [B,3,S,S]."""
        pixels = pixels.float()
        if pixels.shape[-1] != self.img_size:
            size = (self.img_size, self.img_size)
            pixels = F.interpolate(pixels, size, mode='bilinear', antialias=True, align_corners=False)
        return pixels.div_(255).sub_(self._mean).div_(self._std)
