"""Features in the place of images: vectors that a backbone computed once, for classifiers that train in seconds.

N images, B batch of one process, D width of the features.
"""
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..samplers import EpochSampler
from .loader import Batch, Loader
from .sharding import ShardedBatches

__all__ = ['FeatureLoader']


class FeatureLoader(Loader):
    """Gives `((features,), target, index)`: float [B,D], int64 [B], int64 [B], all on the device.

    Args:
        features: Features of all images, float [N,D].
        targets: Class of each image, [N].
        sampler: Order of an epoch; None is the order of the features, each once.
        batch_size: B, samples of a batch.
        device: Device on which the features are kept.
    """

    def __init__(
            self,
            features: torch.Tensor,
            targets: Sequence[int] | np.ndarray | torch.Tensor,
            sampler: EpochSampler | None,
            batch_size: int,
            device: str | torch.device = 'cpu',
    ):
        num_samples = len(features) if sampler is None else len(sampler)
        batches = ShardedBatches(num_samples, batch_size, training=sampler is not None)
        # vectors have no views and no channels; their width takes the place of the image size
        super().__init__(
            torch.as_tensor(targets),
            views=(),
            sampler=sampler,
            batches=batches,
            mean=(),
            std=(),
            img_size=features.shape[1],
            device=torch.device(device),
        )
        self.features = features.to(self.device)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.from_numpy(self._order()).to(self.device)
        for batch in range(self.start_batch, len(self)):
            first, last = self.batches.span(batch)
            rows = order[first:last]
            yield (self.features[rows],), self.targets[rows], rows
