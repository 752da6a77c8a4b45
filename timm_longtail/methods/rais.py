"""Rotation Agnostic Images Sampling (RAIS), of PNDA

A. Miyai et al., "Rethinking Rotation in Self-Supervised Contrastive Learning: Adaptive Positive or
Negative Data Augmentation", WACV 2023, https://arxiv.org/abs/2210.12681.

Shapes: B batch of this process, N images, 4 rotations, rows in the order of the rotations: [4B].
"""
import logging
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..evaluation.evaluators import LongTailEvaluator
from ..losses import rotation_entropy, rotation_separation_loss
from ..utils.distributed import all_reduce_sum, rank, world_size
from ..utils.errors import UserError
from ._flags import FLAG_FILE, flags_digest, write_flags
from ._method import Batch, Batches, ClassCounts, Method
from ._registry import register_method

_logger = logging.getLogger(__name__)

_RHO = math.log(4) / 2  # half of the largest entropy


def rotations(x: torch.Tensor) -> torch.Tensor:
    """Return images [B, 3, H, H] turned by 0, 90, 180 and 270 degrees, [4B, 3, H, H]."""
    return torch.cat([x.rot90(turn, (2, 3)) for turn in range(4)])


def _turns(x: torch.Tensor) -> torch.Tensor:
    """Return the quarter turns of each row of `rotations(x)`, int64 [4B]."""
    return torch.arange(4, device=x.device).repeat_interleave(len(x))


def _mean_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean entropy over the rotations of each image, [B], of logits [4B, 4]."""
    return rotation_entropy(logits).view(4, -1).mean(0)


class RotationEvaluator(LongTailEvaluator):
    """Accuracy over the rotations of each image; `balanced` and `worst_class` are over rotations."""

    counted = 'rotations recognised'

    def __init__(self, num_images: int):
        super().__init__([num_images] * 4)

    def update(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor):
        self.add(model(rotations(images)), _turns(images))

    def compute(self, reduce: bool = True) -> dict[str, Any]:
        metrics = super().compute(reduce)
        kept = ('all', 'balanced', 'worst_class', 'ece', 'loss', 'num_images')
        return {name: metrics[name] for name in kept}


@register_method('rais')
class RAIS(Method):
    """A classifier of four rotations that gives up on images which look alike in all of them.

    Step 1 trains it on all images, and must end before it memorises them: as in the released code,
    its accuracy in evaluation mode on the training images, not flipped, decides. Step 2 continues
    with those whose rotation it recognises, and drives the entropies of all apart, with a weight
    that grows linearly. `finish` writes which images are rotation-agnostic: those whose mean
    entropy over the rotations is above rho + margin, with rho = log(4) / 2.

    Args:
        model: timm model with 4 outputs.
        class_counts: Training images of each class, [C]; unused.
        first_epochs: Epochs of step 1; the rest are step 2.
        separation_weight: Weight of the entropy separation that step 2 grows to: (e + 1) / E of it
            in epoch e = 0 … E - 1.
        margin: Margin of the separation, and of the images that are flagged.
        most_accuracy: Rotation accuracy at the end of step 1 from which on the run is stopped; 1
            never stops it.
        view: View of each image.
    """

    forwards_per_image = 4
    overfit_check = ('train_rotation_accuracy', 0.9)

    step_1_right: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            first_epochs: int = 10,
            separation_weight: float = 0.2,
            margin: float = 0.2,
            most_accuracy: float = 0.9,
            view: str = 'flip',
    ):
        super().__init__(model, class_counts)
        if self.model.num_classes != 4:
            raise UserError(
                f'rais classifies four rotations, and the model has {self.model.num_classes} outputs')
        if first_epochs < 0:
            raise UserError(f'first_epochs must be at least 0, got {first_epochs}')
        if not 0 <= margin < _RHO:
            raise UserError(
                f'margin must be in [0, {_RHO:.3f}), half of the largest entropy, got {margin}')
        if not 0 < most_accuracy <= 1:
            raise UserError(f'rais: most_accuracy is a share in (0, 1], got {most_accuracy}')

        self.views = (view,)
        self.first_epochs = first_epochs
        self.separation_weight = separation_weight
        self.margin = margin
        self.most_accuracy = most_accuracy
        self.threshold = _RHO + margin
        self.weight: float | None = None  # None in step 1

        # how many rotations are right after step 1, and of how many; saved, since a resumed run has
        # other weights
        self.register_buffer('step_1_right', torch.zeros(2, dtype=torch.int64))

    @classmethod
    def num_outputs(cls, num_classes: int) -> int:
        return 4

    @classmethod
    def result_sentence(cls, metrics: Mapping[str, Any]) -> str:
        return f'{metrics["all"]:.2f} % of the rotations of the test images are recognised, in fp32.'

    def create_evaluator(self, shot_counts: Sequence[int]) -> RotationEvaluator:
        return RotationEvaluator(sum(shot_counts))

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        assert len(batches.digests)  # an image that cannot be read is found now, not by `finish`
        if epoch == 0 and num_epochs <= self.first_epochs:
            _logger.warning(
                f'rais: all {num_epochs} epochs are step 1 (first_epochs={self.first_epochs}): '
                f'nothing separates the images')

        if epoch == self.first_epochs > 0 and self.most_accuracy < 1:
            self._check_overfit(batches)

        # the weight grows over the epochs of step 2
        if epoch < self.first_epochs:
            self.weight = None
        else:
            ramp = (epoch - self.first_epochs + 1) / max(1, num_epochs - self.first_epochs)
            self.weight = self.separation_weight * ramp

    def _check_overfit(self, batches: Batches):
        """Raise a `UserError` where step 1 has memorised the training images."""
        if self.step_1_right[1] == 0:
            self.step_1_right.copy_(self._count_right(batches))

        right, total = self.step_1_right.tolist()
        if right >= self.most_accuracy * total:
            raise UserError(
                f'rais: step 1 ended with a rotation accuracy of {right / total:.3f} on the training '
                f'images, not below most_accuracy={self.most_accuracy:g}: it has memorised them; '
                f'run it again with another --seed, as the authors did, or take fewer first_epochs')

    @torch.no_grad()
    def _count_right(self, batches: Batches) -> torch.Tensor:
        """Count the rotations of the training images that are right in evaluation mode.

        Returns:
            How many are right, and of how many, int64 [2].
        """
        was_training = self.training
        self.eval()

        counts = torch.zeros_like(self.step_1_right)
        own_share = islice(batches(), rank(), None, world_size())
        for (x, *_), _, _ in own_share:
            predicted = self.logits(self.features(rotations(x))).argmax(1)
            right = predicted == _turns(x)
            counts[0] += right.sum()
            counts[1] += len(right)

        self.train(was_training)
        return all_reduce_sum(counts)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), _, _ = batch
        logits = self.logits(self.features(rotations(x)))  # [4B, 4]
        target = _turns(x)  # [4B]

        if self.weight is None:
            loss = F.cross_entropy(logits, target)
        else:
            loss = rotation_separation_loss(logits, target, self.weight, self.margin)

        right = logits.argmax(1) == target
        is_agnostic = _mean_entropy(logits.detach()) > self.threshold  # [B]
        return {
            'loss': loss,
            'output': None,
            'rotation_accuracy': right.double().mean(),
            'agnostic': is_agnostic.double().mean(),
        }

    @torch.no_grad()
    def finish(self, folder: Path, model: nn.Module, batches: Batches) -> dict[str, Any]:
        model.eval()
        entropies, indices = [], []
        for (x, *_), _, index in batches():
            entropies.append(_mean_entropy(model(rotations(x))).cpu())
            indices.append(index.cpu())

        # in the order of the data set
        order = torch.cat(indices).argsort()
        entropy = torch.cat(entropies)[order].numpy()

        path = folder / FLAG_FILE
        flags = write_flags(path, batches.digests, entropy, self.threshold)
        share = float(flags.mean())
        print(f'{100 * share:.2f} % of {len(flags)} images are rotation-agnostic: {path}', flush=True)
        return {'agnostic_share': share, 'flags': flags_digest(flags)}
