"""Rethinking Rotation in Self-Supervised Contrastive Learning: Adaptive Positive or Negative Data Augmentation (PNDA)

A. Miyai et al., WACV 2023, https://arxiv.org/abs/2210.12681: a rotation of an image is a positive
where it looks like the image, and a negative where it does not. `rais` finds out which.

Shapes: B batch of this process, N images.
"""
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..utils.errors import UserError
from ..utils.files import require_regular_file
from ._flags import flags_digest, read_flags
from ._method import Batches, ClassCounts
from ._registry import register_method
from .moco import MoCo

_logger = logging.getLogger(__name__)

_ROTATIONS = ('none', 'pda', 'nda', 'pnda')


@register_method('pnda')
class PNDA(MoCo):
    """MoCo with the key in its four quarter turns: those of 90, 180 and 270 degrees attract the query or repel it.

    Queries are never turned, and only the key that is not enters the queue.

    Args:
        model: As `moco`.
        class_counts: As `moco`.
        rotations: Role of the turned keys: `pda` positives, `nda` negatives, `pnda` as `flags` say
            for each image; `none` leaves them out, which is `moco`.
        flags: File that `rais` wrote for these images, or for a set that they are part of; for
            `pnda`.
        **kwargs: As `moco`.
    """

    flags_number: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            rotations: str = 'nda',
            flags: str = '',
            **kwargs,
    ):
        if rotations not in _ROTATIONS:
            raise UserError(
                f'option rotations is one of {", ".join(_ROTATIONS)}, got {rotations!r}')
        if bool(flags) != (rotations == 'pnda'):
            raise UserError(
                'rotations=pnda takes flags=FILE, which method rais writes; the others take none')

        super().__init__(model, class_counts, **kwargs)
        self.rotations = rotations
        self.turns = (0,) if rotations == 'none' else (0, 1, 2, 3)
        self.forwards_per_image = 1 + len(self.turns)
        self.flags = flags
        self._is_positive: torch.Tensor | None = None

        # saved, so that a run that resumes with other flags is refused
        self.register_buffer('flags_number', torch.tensor(-1))

    def check_run(self, num_epochs: int, batch_size: int):
        super().check_run(num_epochs, batch_size)
        if self.flags:
            require_regular_file(Path(self.flags), 'flag file')

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        super().start_epoch(epoch, num_epochs, rng, batches)
        if self.flags:
            self._read_flags(batches.digests)

    def finish(self, folder: Path, model: nn.Module, batches: Batches) -> dict[str, Any] | None:
        if not self.flags:
            return None

        is_positive = self._read_flags(batches.digests)
        return {
            'positive_share': float(is_positive.double().mean()),
            'flags': f'{int(self.flags_number):012x}',
        }

    def _read_flags(self, digests: np.ndarray) -> torch.Tensor:
        """Return whose rotations are positives, bool [N]; the file is read once.

        Args:
            digests: Digests of the images, uint8 [N, 32].
        """
        if self._is_positive is not None:
            return self._is_positive

        flags, _entropies, _threshold = read_flags(self.flags, digests)
        number = int(flags_digest(flags), 16)
        if int(self.flags_number) not in (-1, number):
            raise UserError(f'{self.flags} holds other flags than those that this run began with')
        self.flags_number.fill_(number)

        percent = 100 * flags.mean()
        _logger.info(f'pnda: rotations are positives of {percent:.2f} % of the {len(flags)} images')
        self._is_positive = torch.from_numpy(flags).to(self.queue.device)
        return self._is_positive

    def rotation_positive(self, index: torch.Tensor) -> torch.Tensor:
        if self._is_positive is not None:
            return self._is_positive[index]
        return torch.full_like(index, self.rotations == 'pda', dtype=torch.bool)
