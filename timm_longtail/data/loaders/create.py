"""`create_loader`: the loader that a data set asks for.

B batch of one process, N images, S side of a view.
"""
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...utils.errors import UserError
from ..dataset import LongTailDataset
from ..samplers import EpochSampler, UniformSampler
from ..views.view import View, create_view
from .loader import Loader
from .resident import DeviceLoader
from .sharding import ShardedBatches
from .workers import WorkerLoader

__all__ = ['Preprocessing', 'create_loader']


@dataclass(frozen=True)
class Preprocessing:
    """What becomes of an image before the model sees it.

    Attributes:
        img_size: S, side of the model's input.
        mean, std: Per-channel constants for pixels in [0, 1].
        crop_pct: Share of the shorter side that evaluation looks at; images in memory are looked at whole.
        interpolation: How evaluation resizes files; training is bilinear, and so are images in memory.
    """
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = 'bilinear'

    @property
    def eval_view(self) -> str:
        """Name of the view that is evaluated."""
        return f'eval(crop_pct={self.crop_pct:g}, interpolation={self.interpolation!r})'


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
        img_size: int | None = None,
        training: bool = True,
        chunk_size: int | None = None,
        num_workers: int = 0,
        skip_bad_images: bool = False,
) -> Loader:
    """Build the loader of one process.

    Args:
        dataset: What `create_dataset` returns.
        views: Names of the views of each image (`list_views()`, arguments allowed).
        sampler: Order of an epoch; gets `seed` and `stream`. None shuffles uniformly.
        batch_size: B, of one process.
        seed: Training seed.
        stream: Data stream: a two-stream method has two loaders, of streams 0 and 1.
        rank, world_size: This process, and how many there are.
        device: Where images are kept, or batches sent, and views computed.
        mean, std: Per-channel constants; None takes the data set's.
        img_size: S. Resident images are seen at their own size and then resized to it, which is also the default;
            files have no size of their own and must be given one.
        training: False gives the order of the data set, every image exactly once over all processes, the last batch
            smaller; no sampler.
        chunk_size, num_workers: Resident images to compute views of at once, and processes that decode files: they
            change memory and speed, never a pixel.
        skip_bad_images: See `WorkerLoader`.

    Raises:
        UserError: An unknown view, no complete batch, a sampler in evaluation, resident images that are not square,
            files without a size.
    """
    if not training and sampler is not None:
        raise UserError('evaluation visits every image once in order and takes no sampler')
    if training:
        sampler = UniformSampler(len(dataset)) if sampler is None else sampler
        sampler.seed, sampler.stream = seed, stream
    device, side = torch.device(device), _side(dataset, img_size)
    common = dict(
        targets=torch.from_numpy(dataset.targets), views=[create_view(name, side) for name in views], sampler=sampler,
        batches=ShardedBatches(len(sampler) if training else len(dataset), batch_size, rank, world_size, training),
        mean=dataset.mean if mean is None else mean, std=dataset.std if std is None else std,
        img_size=img_size or side, device=device, seed=seed, stream=stream)
    if not dataset.resident:
        return WorkerLoader(dataset.encoded, num_workers=num_workers, skip_bad_images=skip_bad_images, **common)
    _check_resident(dataset, common['views'])
    # on a CPU a chunk should stay in the cache; on a GPU few launches matter more
    chunk_size = chunk_size or (512 if device.type == 'cpu' else 8192)
    return DeviceLoader(dataset.images, chunk_size=chunk_size, **common)


def _check_resident(dataset: LongTailDataset, views: Sequence[View]):
    for view in views:
        if view.files_only:
            raise UserError(f'view {view.name} works on image files only, and {dataset.name} is decoded in memory: '
                            'take another view, or --loader worker')


def _side(dataset: LongTailDataset, img_size: int | None) -> int:
    """Return the side of the views: that of resident images, else of the model's input."""
    if dataset.resident:
        _, height, width = dataset.input_size
        if height != width:
            raise UserError(f'{dataset.name} has images of {width}x{height} pixels; resident data must be square')
        return height
    if img_size is None:
        raise UserError(f'{dataset.name} is a set of files: say the size of a view')
    return img_size
