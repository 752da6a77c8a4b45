"""Loaders: batches of views of a data set, the same for any number of processes.

B batch of one process, W processes, N images, n samples of an epoch over all processes.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import UserError
from ..rng import generator
from .longtail_dataset import LongTailDataset
from .samplers import EpochSampler, UniformSampler
from .views import View, create_view

__all__ = ['DeviceLoader', 'ShardedBatches', 'create_loader']

Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class ShardedBatches:
    """Cuts the positions 0..n-1 of a global epoch into batches of one process.

    Training: global batch b is positions `b * W * B` on, cut in W equal parts; the incomplete last one is dropped, so
    all processes take the same number of steps. Evaluation: each process takes one contiguous part, every position
    exactly once without padding; parts differ by at most one position.

    Attributes:
        num_samples: n.
        batch_size: B.
        rank: This process.
        world_size: W.
        training: Which of the two rules.
    """
    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    training: bool = True

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f'the batch size must be at least 1, got {self.batch_size}')
        if not 0 <= self.rank < self.world_size:
            raise UserError(f'rank {self.rank} is not one of {self.world_size} processes')
        if self.training and len(self) == 0:
            raise UserError(
                f'no batch: an epoch has {self.num_samples} samples, fewer than the global batch of '
                f'{self.global_batch_size} ({self.world_size} x {self.batch_size}); lower the batch size')

    @property
    def global_batch_size(self) -> int:
        """W * B."""
        return self.world_size * self.batch_size

    @property
    def _part(self) -> tuple[int, int]:
        """First and last (exclusive) position of this process in evaluation."""
        return tuple(self.num_samples * rank // self.world_size for rank in (self.rank, self.rank + 1))

    def __len__(self) -> int:
        if self.training:
            return self.num_samples // self.global_batch_size
        first, last = self._part
        return -(-(last - first) // self.batch_size)

    def span(self, batch: int) -> tuple[int, int]:
        """Return the first and last (exclusive) position of a batch of this process."""
        if self.training:
            first = batch * self.global_batch_size + self.rank * self.batch_size
            return first, first + self.batch_size
        first, last = self._part
        first += batch * self.batch_size
        return first, min(first + self.batch_size, last)


class DeviceLoader:
    """Iterates over `(views, target, index)` of a data set that lies on the device as uint8.

    `views` is a tuple of normalised float32 [B,3,S,S], one a view; `target` and `index` are int64 [B], `index` into the
    data set; all on the device. Views are computed for a chunk of images at a time and normalised batch by batch. What
    an image looks like depends on seed, epoch, stream, view and its position in the global epoch: on nothing else.

    Args:
        images: uint8 [N,3,S,S] on the device.
        targets: int64 [N] on the device.
        views: Views of each image.
        sampler: Order of an epoch; None is the order of the data set.
        batches: How positions are dealt.
        mean, std: Per-channel constants for pixels in [0, 1].
        chunk_size: Images to compute views of at once.
        seed: Training seed of the views.
        stream: Data stream of the views.
    """

    def __init__(
            self,
            images: torch.Tensor,
            targets: torch.Tensor,
            views: Sequence[View],
            sampler: EpochSampler | None,
            batches: ShardedBatches,
            mean: Sequence[float],
            std: Sequence[float],
            chunk_size: int,
            seed: int = 0,
            stream: int = 0,
    ):
        self.images = images
        self.targets = targets
        self.views = tuple(views)
        self.sampler = sampler
        self.batches = batches
        self.chunk_size = chunk_size
        self.seed = seed
        self.stream = stream
        self._mean, self._std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(1, -1, 1, 1) for values in (mean, std))
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
        """Batches of a whole epoch on this process."""
        return len(self.batches)

    def set_epoch(self, epoch: int, start_batch: int = 0):
        """Choose the epoch that iteration gives, and the batch to start at: a resumed epoch skips what was trained on.

        Args:
            epoch: Epoch, from 0.
            start_batch: First batch; skipped ones cost nothing, and later ones are the same to the bit.
        """
        self.epoch = epoch
        self.start_batch = start_batch
        if self.sampler is not None:
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Batch]:
        order = np.arange(self.num_samples) if self.sampler is None else self.sampler.order()
        group = max(1, self.chunk_size // self.batches.batch_size)
        for first in range(self.start_batch, len(self), group):
            spans = [self.batches.span(batch) for batch in range(first, min(first + group, len(self)))]
            positions = np.concatenate([np.arange(*span) for span in spans])
            index = torch.from_numpy(order[positions]).to(self.images.device)
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

    def _uniforms(self, number: int, positions: np.ndarray) -> np.ndarray:
        """Return the rows of the global epoch's uniforms [n,num_uniforms] at some positions.

        PCG64 spends one step a number, so a generator moved ahead gives the same rows as drawing all that come before.
        """
        width = self.views[number].num_uniforms
        runs = np.split(positions, np.flatnonzero(np.diff(positions) != 1) + 1)
        rows = []
        for run in runs:
            random = generator(self.seed, self.epoch, self.stream, f'view{number}')
            random.bit_generator.advance(int(run[0]) * width)
            rows.append(random.random((len(run), width)))
        return np.concatenate(rows)

    def _normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float().div_(255).sub_(self._mean).div_(self._std)


def create_loader(
        dataset: LongTailDataset,
        views: Sequence[str] = ('eval',),
        sampler: EpochSampler | None = None,
        *,
        batch_size: int,
        seed: int = 0,
        stream: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = 'cpu',
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        training: bool = True,
        chunk_size: int | None = None,
) -> DeviceLoader:
    """Build the loader of one process over a resident data set.

    Args:
        dataset: What `create_dataset` returns.
        views: Names of the views of each image (`list_views()`, arguments allowed).
        sampler: Order of an epoch; gets `seed` and `stream`. None shuffles uniformly.
        batch_size: B, of one process.
        seed: Training seed.
        stream: Data stream: a two-stream method has two loaders, of streams 0 and 1.
        rank: This process.
        world_size: Number of processes.
        device: Where images are kept and views computed.
        mean, std: Per-channel constants; None takes the data set's.
        training: False gives the order of the data set, every image exactly once over all processes, the last batch
            smaller; no sampler.
        chunk_size: Images to compute views of at once; changes memory and speed, never a pixel.

    Raises:
        UserError: An unknown view, no complete batch, a sampler in evaluation, images that are not square.
    """
    _, height, width = dataset.input_size
    if height != width:
        raise UserError(f'{dataset.name} has images of {width}x{height} pixels; resident data must be square')
    if not training and sampler is not None:
        raise UserError('evaluation visits every image once in order and takes no sampler')
    if training:
        sampler = UniformSampler(len(dataset)) if sampler is None else sampler
        sampler.seed, sampler.stream = seed, stream
    device = torch.device(device)
    return DeviceLoader(
        images=dataset.images.to(device),
        targets=torch.from_numpy(dataset.targets).to(device),
        views=[create_view(name, height) for name in views],
        sampler=sampler,
        batches=ShardedBatches(len(sampler) if training else len(dataset), batch_size, rank, world_size, training),
        mean=dataset.mean if mean is None else mean,
        std=dataset.std if std is None else std,
        # on a CPU a chunk should stay in the cache; on a GPU few launches matter more
        chunk_size=chunk_size or (512 if device.type == 'cpu' else 8192),
        seed=seed,
        stream=stream,
    )
