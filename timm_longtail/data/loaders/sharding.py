"""Which positions of an epoch each process takes.

B batch of one process, W processes, n samples of an epoch over all processes.
"""
import math
from dataclasses import dataclass

from ...utils.errors import UserError

__all__ = ['ShardedBatches']


@dataclass(frozen=True)
class ShardedBatches:
    """Cuts the positions 0..n-1 of a global epoch into batches of one process.

    Training: global batch b is positions `b * W * B` on, cut in W equal parts; the incomplete last
    one is dropped, so all processes take the same number of steps. Evaluation: each process takes
    one contiguous part, every position exactly once without padding; parts differ by at most one
    position.

    Attributes:
        num_samples: n, samples of an epoch over all processes.
        batch_size: B, samples of a batch of one process.
        rank: Number of this process, from 0.
        world_size: W, number of processes.
        training: Whether batches are cut by the rule of training; False is that of evaluation.
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
        first = self.num_samples * self.rank // self.world_size
        last = self.num_samples * (self.rank + 1) // self.world_size
        return first, last

    def __len__(self) -> int:
        """Batches of this process."""
        if self.training:
            return self.num_samples // self.global_batch_size

        # the last batch may be smaller
        first, last = self._part
        return math.ceil((last - first) / self.batch_size)

    def span(self, batch: int) -> tuple[int, int]:
        """Return the first and last (exclusive) position of a batch of this process."""
        if self.training:
            first = batch * self.global_batch_size + self.rank * self.batch_size
            return first, first + self.batch_size

        first, last = self._part
        first += batch * self.batch_size
        return first, min(first + self.batch_size, last)
