"""The loader of image files: workers decode each image once and place all its views, the device does the rest.

B batch of one process, S side of a view, G views.
"""
import logging
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ...utils.errors import UserError
from ...utils.signals import stop_signals
from ..images import EncodedImages
from ..views.view import View
from .loader import Batch, Loader

__all__ = ['WorkerLoader']

_logger = logging.getLogger(__name__)

# images whose colours are changed at once: 64 of 224 pixels take 77 MB in float32
_CHUNK = 64

# (position in the data set, one row of uniforms a view)
Item = tuple[int, list[np.ndarray]]


class _PlacedImages(Dataset):
    """The data set of a worker: decodes an image and places it in every view.

    Args:
        encoded: N encoded images.
        targets: Class of each image, int64 [N].
        views: G views of each image.
        substitute: Whether another image of the class takes the place of one that cannot be read.
    """

    def __init__(self, encoded: EncodedImages, targets: np.ndarray, views: Sequence[View], substitute: bool):
        self.encoded = encoded
        self.targets = targets
        self.views = views
        self.substitute = substitute

    def __getitem__(self, item: Item) -> tuple[list[np.ndarray] | None, int, dict[int, str]]:
        """Return what a worker makes of one item.

        Args:
            item: Position in the data set, and the uniforms of each view.

        Returns:
            The G views, uint8 [S,S,3] each, None where no image can be read; the position of the
            image that they show; reasons by position of the images that cannot be read.
        """
        first, uniforms = item
        bad: dict[int, str] = {}
        for position in self._candidates(first):
            try:
                image = self.encoded.image(position)
            except UserError as error:
                bad[position] = str(error)
                continue
            views = [view.place(image, row) for view, row in zip(self.views, uniforms, strict=True)]
            return views, position, bad
        return None, first, bad

    def _candidates(self, first: int) -> Iterator[int]:
        """Yield a position, then those of the other images of its class, from there on and around."""
        yield first
        if not self.substitute:
            return

        same = np.flatnonzero(self.targets == self.targets[first])
        place = int(np.searchsorted(same, first))
        yield from same[place + 1:].tolist()
        yield from same[:place].tolist()


def _collate(rows: list) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, dict[int, str]]:
    """Stack what the items of a batch became.

    Args:
        rows: Results of `_PlacedImages`, [B].

    Returns:
        The G views of the b images that could be read, uint8 [b,S,S,3] each, none where b is 0;
        their positions in the data set, int64 [b]; their rows in the batch, int64 [b]; reasons by
        position of the images that cannot be read.
    """
    placed: list[list[np.ndarray]] = []
    positions: list[int] = []
    kept: list[int] = []
    bad: dict[int, str] = {}
    for row, (views, position, found) in enumerate(rows):
        bad |= found
        if views is not None:
            placed.append(views)
            positions.append(position)
            kept.append(row)

    stacked = [torch.from_numpy(np.stack(view)) for view in zip(*placed, strict=True)]
    index = torch.tensor(positions, dtype=torch.int64)
    return stacked, index, torch.tensor(kept, dtype=torch.int64), bad


def _ignore_signals(worker: int):
    """Leave signals to the whole group (Ctrl-C, SIGTERM, a closed terminal) to the training process.

    torch ends orphans itself.
    """
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)


class _Epoch:
    """The batches that workers are to prepare.

    A worker gets the uniforms of the geometry with its items. Those of the photometry stay here, in
    `uniforms`, one entry a batch and [B,num_uniforms] a view, until the batch comes back.
    """

    def __init__(self, loader: 'WorkerLoader'):
        self.loader = loader
        self.uniforms: deque[list[np.ndarray]] = deque()

    def __iter__(self) -> Iterator[list[Item]]:
        loader = self.loader
        self.uniforms.clear()
        order = loader._order()

        for batch in range(loader.start_batch, len(loader)):
            positions = np.arange(*loader.batches.span(batch))

            # the first uniforms of an image decide its geometry, the others its photometry
            geometry, photometry = [], []
            for number, view in enumerate(loader.views):
                uniforms = loader._uniforms(number, positions)
                geometry.append(uniforms[:, :view.num_place_uniforms])
                photometry.append(uniforms[:, view.num_place_uniforms:])
            self.uniforms.append(photometry)

            items = []
            for row, index in enumerate(order[positions]):
                items.append((int(index), [uniforms[row] for uniforms in geometry]))
            yield items


class WorkerLoader(Loader):
    """A loader over encoded images of any size.

    Args:
        encoded: N encoded images.
        num_workers: Number of processes that decode, started for each epoch; 0 decodes in this one.
        skip_bad_images: Whether an image that cannot be read is replaced by another of its class,
            in training, or left out, in evaluation. `bad_images` then holds names and reasons.
        **kwargs: Arguments of `Loader`.
    """

    def __init__(
            self,
            encoded: EncodedImages,
            *,
            num_workers: int = 0,
            skip_bad_images: bool = False,
            **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_workers = num_workers
        self.skip_bad_images = skip_bad_images
        self._describe = encoded.describe
        self._photometry = [view.photometry_view for view in self.views]

        images = _PlacedImages(
            encoded,
            self.targets.cpu().numpy(),
            self.views,
            substitute=skip_bad_images and self.batches.training,
        )
        self._epoch = _Epoch(self)
        self._loader = DataLoader(
            images,
            batch_sampler=self._epoch,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=self.device.type == 'cuda',
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # its own: the global one would be moved on by every epoch
        )

    def __iter__(self) -> Iterator[Batch]:
        for views, index, kept, bad in self._loader:
            uniforms = self._epoch.uniforms.popleft()
            for position, reason in bad.items():
                self._report(position, reason)

            if not len(index):
                if self.batches.training:
                    image = self._describe(next(iter(bad)))
                    raise UserError(f'no image of the class of {image} can be read')
                continue

            # what is left of each view, for the images that there are
            finished = []
            for number, (view, numbers) in enumerate(zip(views, uniforms, strict=True)):
                finished.append(self._finish(number, view, numbers[kept.numpy()]))

            index = index.to(self.device, non_blocking=True)
            yield tuple(finished), self.targets[index], index

    def _report(self, position: int, reason: str):
        """Warn of an image that cannot be read, once; raise where such images are not to be skipped."""
        if not self.skip_bad_images:
            raise UserError(f'{reason}; --skip-bad-images goes on without such images')
        name = self._describe(position)
        if name not in self.bad_images:
            self.bad_images[name] = reason
            _logger.warning(f'{reason}; skipped')

    def _finish(self, number: int, pixels: torch.Tensor, uniforms: np.ndarray) -> torch.Tensor:
        """Move one view to the device and change its colours there.

        Args:
            number: Position of the view in `views`.
            pixels: Placed images, uint8 [b,S,S,3].
            uniforms: Uniforms of the photometry, float64 [b,num_uniforms].

        Returns:
            Normalised view, float32 [b,3,S,S].
        """
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        view = self._photometry[number]

        parts = []
        for first in range(0, len(pixels), _CHUNK):
            chunk = slice(first, first + _CHUNK)
            parts.append(view.apply(pixels[chunk], view.sample(uniforms[chunk])))
        return self._normalise(torch.cat(parts))
