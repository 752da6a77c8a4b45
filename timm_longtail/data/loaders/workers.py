"""The loader of image files: workers decode each image once and place all its views, the device does the rest.

B batch of one process, S side of a view, G views.
"""
import logging
import signal
from collections import deque
from collections.abc import Iterator, Sequence

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
    """What runs in a worker: decode an image, place it in every view.

    Args:
        encoded: N encoded images.
        targets: Class of each, int64 [N].
        views: The G views.
        substitute: Give another image of the class for one that cannot be read; False gives none.
    """

    def __init__(self, encoded: EncodedImages, targets: np.ndarray, views: Sequence[View], substitute: bool):
        self.encoded = encoded
        self.targets = targets
        self.views = views
        self.substitute = substitute

    def __getitem__(self, item: Item) -> tuple[list[np.ndarray] | None, int, dict[int, str]]:
        """Return G views, uint8 [S,S,3] each; the position they are of; unreadable positions and why."""
        first, uniforms = item
        bad: dict[int, str] = {}
        for position in self._candidates(first):
            try:
                image = self.encoded.image(position)
            except UserError as error:
                bad[position] = str(error)
                if not self.substitute:
                    break
            else:
                return [view.place(image, row) for view, row in zip(self.views, uniforms, strict=True)], position, bad
        return None, first, bad

    def _candidates(self, first: int) -> Iterator[int]:
        yield first
        same = np.flatnonzero(self.targets == self.targets[first])
        yield from np.roll(same, -1 - np.searchsorted(same, first))[:-1].tolist()


def _collate(rows: list) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor, dict[int, str]]:
    """Stack the views that there are: G times uint8 [b,S,S,3], positions [b], rows of the batch [b]; bad positions."""
    kept = [row for row, (views, *_) in enumerate(rows) if views is not None]
    stacked = [torch.from_numpy(np.stack(view)) for view in zip(*(rows[row][0] for row in kept), strict=True)]
    bad = {position: reason for *_, found in rows for position, reason in found.items()}
    return stacked, torch.tensor([rows[row][1] for row in kept], dtype=torch.int64), torch.tensor(kept), bad


def _ignore_signals(worker: int):
    """Leave what reaches the whole group (Ctrl-C, SIGTERM, a closed terminal) to the training process.

    torch ends orphans itself.
    """
    for signum in stop_signals():
        signal.signal(signum, signal.SIG_IGN)


class _Epoch:
    """The batches that workers are to prepare: items in, and beside them the uniforms of the photometry."""

    def __init__(self, loader: 'WorkerLoader'):
        self.loader = loader
        self.uniforms: deque[list[np.ndarray]] = deque()

    def __iter__(self) -> Iterator[list[Item]]:
        loader = self.loader
        self.uniforms.clear()
        order = loader._order()
        for batch in range(loader.start_batch, len(loader)):
            positions = np.arange(*loader.batches.span(batch))
            rows = [loader._uniforms(number, positions) for number in range(len(loader.views))]
            placed = [view.num_place_uniforms for view in loader.views]
            self.uniforms.append([one[:, number:] for one, number in zip(rows, placed, strict=True)])
            yield [
                (int(index), [one[row, :number] for one, number in zip(rows, placed, strict=True)])
                for row, index in enumerate(order[positions])
            ]


class WorkerLoader(Loader):
    """A loader over encoded images of any size.

    Args:
        encoded: N encoded images.
        num_workers: Processes that decode, started for each epoch; 0 decodes in this one.
        skip_bad_images: In training, take another image of the class for one that cannot be read; in evaluation leave
            it out. `bad_images` then holds their names and reasons.
        **kwargs: As `Loader`.
    """

    def __init__(self, encoded: EncodedImages, *, num_workers: int = 0, skip_bad_images: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.num_workers = num_workers
        self.skip_bad_images = skip_bad_images
        self._photometry = [view.photometry_view for view in self.views]
        self._epoch = _Epoch(self)
        training = self.batches.training
        images = _PlacedImages(encoded, self.targets.cpu().numpy(), self.views, skip_bad_images and training)
        self._describe = encoded.describe
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
                    raise UserError(f'no image of the class of {self._describe(next(iter(bad)))} can be read')
                continue
            index = index.to(self.device, non_blocking=True)
            yield (
                tuple(
                    self._finish(number, view, numbers[kept.numpy()])
                    for number, (view, numbers) in enumerate(zip(views, uniforms, strict=True))),
                self.targets[index],
                index,
            )

    def _report(self, position: int, reason: str):
        if not self.skip_bad_images:
            raise UserError(f'{reason}; --skip-bad-images goes on without such images')
        name = self._describe(position)
        if name not in self.bad_images:
            self.bad_images[name] = reason
            _logger.warning(f'{reason}; skipped')

    def _finish(self, number: int, pixels: torch.Tensor, uniforms: np.ndarray) -> torch.Tensor:
        """Move one view to the device and change its colours there: uint8 [b,S,S,3] to normalised [b,3,S,S]."""
        pixels = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2).contiguous()
        view = self._photometry[number]
        parts = [
            view.apply(part, view.sample(numbers)) for part, numbers in zip(
                pixels.split(_CHUNK), np.split(uniforms, range(_CHUNK, len(uniforms), _CHUNK)), strict=True)
        ]
        return self._normalise(torch.cat(parts))
