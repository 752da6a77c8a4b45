"""Every random number of a training run, as a function of (seed, epoch, stream, purpose).

Nothing here keeps state, so an interrupted run needs no generator state to start an epoch again,
and the numbers of a global epoch are the same for any number of processes, workers and chunks.
`seed + epoch` is never used: seed 0 in epoch 1 would then repeat seed 1 in epoch 0.
"""
import zlib

import numpy as np
import torch

from .errors import UserError

__all__ = ['generator', 'seed_torch']


def _seed_sequence(seed: int, epoch: int, stream: int, purpose: str) -> np.random.SeedSequence:
    # four words of 32 bits, always: SeedSequence pads with zeros, so lists of several lengths
    # could collide
    words = (seed, epoch, stream, zlib.crc32(purpose.encode()))
    if not all(0 <= word < 2 ** 32 for word in words):
        raise UserError(
            f'seed, epoch and stream must be in [0, 2**32), got {seed}, {epoch}, {stream}')

    return np.random.SeedSequence(words)


def generator(
        seed: int,
        epoch: int = 0,
        stream: int = 0,
        purpose: str = 'order',
) -> np.random.Generator:
    """Return the numpy generator of one purpose in one epoch, equal on every process.

    Args:
        seed: Training seed of the run.
        epoch: Epoch, from 0.
        stream: Data stream; two-stream methods draw from 0 and 1.
        purpose: What the numbers are for, e.g. `order`, `view0`, `method`. Purposes are
            independent of each other.

    Raises:
        UserError: A seed, epoch or stream outside [0, 2**32).
    """
    return np.random.Generator(np.random.PCG64(_seed_sequence(seed, epoch, stream, purpose)))


def seed_torch(seed: int, epoch: int = 0, rank: int = 0, purpose: str = 'torch'):
    """Seed torch's global generators, on all devices: dropout and the like.

    Args:
        seed: Training seed of the run.
        epoch: Epoch, from 0.
        rank: Process; processes draw different numbers.
        purpose: Keeps the initialisation of a model (`init`) apart from its training.
    """
    word = _seed_sequence(seed, epoch, rank, purpose).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(word >> np.uint64(1)))  # 63 bits: a seed of torch is signed
