"""`create_loader`: the loader that a data set asks for.

B batch of one process, N images, S side of a view.
"""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...utils.errors import UserError
from ..dataset import LongTailDataset
from ..samplers import EpochSampler, UniformSampler
from ..views.steps import PLACES
from ..views.view import View, create_view
from .loader import Loader
from .resident import DeviceLoader
from .sharding import ShardedBatches
from .workers import WorkerLoader

__all__ = ['Preprocessing', 'create_loader']


@dataclass(frozen=True)
class Preprocessing:
    """How an image is processed before the model sees it.

    Attributes:
        img_size: S, side of the model's input.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        crop_pct: Share of the shorter side that evaluation looks at; images in memory are looked at
            whole.
        interpolation: How evaluation resizes files; training is bilinear, and so are images in
            memory.
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

    def test_views(self, tta: str | None = None) -> tuple[str, ...]:
        """Return the names of the views whose logits are averaged in an evaluation.

        Args:
            tta: `five_crop` for the corners and the centre of an image file; None for one view.
        """
        if tta is None:
            return (self.eval_view,)
        return tuple(f'corner(place={place!r}, interpolation={self.interpolation!r})' for place in PLACES)


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
        dataset: Data set as `create_dataset` returns it.
        views: Names of the views of each image (`list_views()`, arguments allowed).
        sampler: Order of an epoch; gets `seed` and `stream`. None shuffles uniformly.
        batch_size: B, samples of a batch of one process.
        seed: Training seed.
        stream: Data stream: a two-stream method has two loaders, of streams 0 and 1.
        rank: Number of this process, from 0.
        world_size: Number of processes.
        device: Device on which resident images are kept or batches of files are sent, and on which
            views are computed.
        mean: Mean of each channel, for pixels in [0, 1]; None takes the data set's.
        std: Standard deviation of each channel, for pixels in [0, 1]; None takes the data set's.
        img_size: S, side of a view. Views of resident images are computed at the size of the
            images, which is the default, and then resized to S; files have no size of their own and
            need one.
        training: Whether the loader is for training. False gives the order of the data set, every
            image exactly once over all processes, and a last batch that may be smaller.
        chunk_size: Number of resident images whose views are computed at once; changes memory and
            speed, never a pixel. None is 512 on a CPU and 8192 elsewhere.
        num_workers: Number of processes that decode files; changes memory and speed, never a pixel.
            0 decodes in this process.
        skip_bad_images: Whether images that cannot be read are replaced (in training) or left out
            (in evaluation), see `WorkerLoader`; False raises.

    Raises:
        UserError: An unknown view, no complete batch, a sampler in evaluation, resident images that
            are not square, files without a size.
    """
    if not training and sampler is not None:
        raise UserError('evaluation visits every image once in order and takes no sampler')

    # the order of an epoch
    if training:
        if sampler is None:
            sampler = UniformSampler(len(dataset))
        sampler.seed = seed
        sampler.stream = stream
    num_samples = len(dataset) if sampler is None else len(sampler)

    # what each image becomes
    side = _side(dataset, img_size)
    built_views = [create_view(name, side) for name in views]

    device = torch.device(device)
    common: dict[str, Any] = dict(
        targets=torch.from_numpy(dataset.targets),
        views=built_views,
        sampler=sampler,
        batches=ShardedBatches(num_samples, batch_size, rank, world_size, training),
        mean=dataset.mean if mean is None else mean,
        std=dataset.std if std is None else std,
        img_size=img_size or side,
        device=device,
        seed=seed,
        stream=stream,
    )

    if dataset.images is None:
        return WorkerLoader(
            dataset.require_encoded(),
            num_workers=num_workers,
            skip_bad_images=skip_bad_images,
            **common,
        )

    _check_resident(dataset, built_views)
    if not chunk_size:
        # on a CPU a chunk should stay in the cache; on a GPU few launches matter more
        chunk_size = 512 if device.type == 'cpu' else 8192
    return DeviceLoader(dataset.images, chunk_size=chunk_size, **common)


def _check_resident(dataset: LongTailDataset, views: Sequence[View]):
    """Raise a `UserError` for a view that has no form for images in memory."""
    for view in views:
        if view.files_only:
            raise UserError(
                f'view {view.name} works on image files only, and {dataset.name} is decoded in memory: '
                'take another view, or --loader worker')


def _side(dataset: LongTailDataset, img_size: int | None) -> int:
    """Return the side of the views: that of resident images, else of the model's input."""
    if dataset.input_size is not None:
        _, height, width = dataset.input_size
        if height != width:
            raise UserError(
                f'{dataset.name} has images of {width}x{height} pixels; resident data must be square')
        return height

    if img_size is None:
        raise UserError(f'{dataset.name} is a set of files: say the size of a view')
    return img_size
