"""Features in the place of images: vectors that a backbone computed once, for classifiers that train in seconds.

N images, B batch of one process, D width of the features.
"""
from collections.abc import Iterator, Sequence

import torch

from ..samplers import EpochSampler
from .loader import Batch, Loader
from .sharding import ShardedBatches

__all__ = ['FeatureLoader']


class FeatureLoader(Loader):
    """Gives `((features,), target, index)`: float [B,D], int64 [B], int64 [B], all on the device.

    Args:
        features: Of all images, float [N,D].
        targets: Class of each image, [N].
        sampler: Order of an epoch; None is the order of the features, each once.
        batch_size: B.
        device: Where features are kept.
    """

    def __init__(
            self,
            features: torch.Tensor,
            targets: Sequence[int],
            sampler: EpochSampler | None,
            batch_size: int,
            device: str | torch.device = 'cpu',
    ):
        training = sampler is not None
        batches = ShardedBatches(len(sampler) if training else len(features), batch_size, training=training)
        super().__init__(
            torch.as_tensor(targets), views=(), sampler=sampler, batches=batches, mean=(), std=(),
            img_size=features.shape[1], device=torch.device(device))
        self.features = features.to(self.device)

    def __iter__(self) -> Iterator[Batch]:
        order = torch.from_numpy(self._order()).to(self.device)
        for batch in range(self.start_batch, len(self)):
            rows = order[slice(*self.batches.span(batch))]
            yield (self.features[rows],), self.targets[rows], rows
