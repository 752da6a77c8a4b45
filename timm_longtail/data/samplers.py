"""Orders of an epoch. A sampler gives the global order; `ShardedBatches` cuts it for the processes.

A sampler keeps no generator: its order is a function of (seed, epoch, stream), so every process computes the same one
and a resumed run needs no state. `create_loader` sets `seed` and `stream`.
"""
from collections.abc import Iterator

import numpy as np

from ..errors import UserError
from ..rng import generator

__all__ = ['EpochSampler', 'UniformSampler']


class EpochSampler:
    """Base of samplers: a sub-class says what one epoch draws, in `draw`.

    Args:
        num_samples: Length of an epoch, over all processes.
        seed: Training seed.
        stream: Data stream; a two-stream method draws independent orders.
    """

    def __init__(self, num_samples: int, seed: int = 0, stream: int = 0):
        if num_samples < 1:
            raise UserError(f'a sampler needs at least one sample an epoch, got {num_samples}')
        self.num_samples = num_samples
        self.seed = seed
        self.stream = stream
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int):
        """Choose the epoch that `order` and iteration give, from 0."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Return the positions in the data set that the epoch visits, over all processes: int64 [num_samples]."""
        return self.draw(generator(self.seed, self.epoch, self.stream, 'order')).astype(np.int64, copy=False)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Draw the order of the current epoch from a generator made for it."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class UniformSampler(EpochSampler):
    """Every image once an epoch, shuffled."""

    def draw(self, random: np.random.Generator) -> np.ndarray:
        return random.permutation(self.num_samples)
