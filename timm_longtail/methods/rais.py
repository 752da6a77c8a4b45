"""Rotation Agnostic Images Sampling (RAIS), of PNDA

A. Miyai et al., "Rethinking Rotation in Self-Supervised Contrastive Learning: Adaptive Positive or Negative Data
Augmentation", WACV 2023, https://arxiv.org/abs/2210.12681.

Shapes: B batch of this process, N images, 4 rotations, rows in the order of the rotations: [4B].
"""
import logging
import math
from itertools import islice

import numpy as np
import torch
from torch.nn import functional as F

from ..evaluation.evaluators import LongTailEvaluator
from ..losses import rotation_entropy, rotation_separation_loss
from ..utils.distributed import all_reduce_sum, rank, world_size
from ..utils.errors import UserError
from ._flags import FLAG_FILE, flags_digest, write_flags
from ._method import Batch, Method
from ._registry import register_method

_logger = logging.getLogger(__name__)


def rotations(x: torch.Tensor) -> torch.Tensor:
    """Return images [B, 3, H, H] turned by 0, 90, 180 and 270 degrees, [4B, 3, H, H]."""
    return torch.cat([x.rot90(turn, (2, 3)) for turn in range(4)])


def _turns(x: torch.Tensor) -> torch.Tensor:
    return torch.arange(4, device=x.device).repeat_interleave(len(x))


class RotationEvaluator(LongTailEvaluator):
    """Accuracy over the rotations of each image; `balanced` and `worst_class` are over the four rotations."""

    counted = 'rotations told'

    def __init__(self, num_images: int):
        super().__init__([num_images] * 4)

    def update(self, model, images, target):
        self.add(model(rotations(images)), _turns(images))

    def compute(self, reduce=True):
        kept = 'all', 'balanced', 'worst_class', 'ece', 'loss', 'num_images'
        return {k: v for k, v in super().compute(reduce).items() if k in kept}


@register_method('rais')
class RAIS(Method):
    """A classifier of four rotations that gives up on images which look alike in all of them.

    Step 1 trains it on all images, and must end before it knows them by heart: as in the released code, its accuracy
    in evaluation mode on the training images, not flipped, decides. Step 2 goes on with those whose rotation it tells,
    and drives the entropies of all apart, with a weight that grows on a line. `finish` writes who is
    rotation-agnostic: those whose mean entropy over the rotations is above rho + margin, with rho = log(4) / 2.

    Args:
        model: timm model with 4 outputs.
        class_counts: Training images of each class, [C]; unused.
        first_epochs: Epochs of step 1; the rest are step 2.
        separation_weight: Weight of the entropy separation that step 2 grows to: (e + 1) / E of it in epoch
            e = 0 … E - 1.
        margin: Of the separation, and of the images that are flagged.
        most_accuracy: The run stops if step 1 ends with this rotation accuracy, or more; 1 never stops it.
        view: View of each image.
    """

    forwards_per_image = 4
    overfit_check = ('train_rotation_accuracy', 0.9)

    def __init__(
            self,
            model,
            class_counts,
            *,
            first_epochs: int = 10,
            separation_weight: float = 0.2,
            margin: float = 0.2,
            most_accuracy: float = 0.9,
            view: str = 'flip',
    ):
        super().__init__(model, class_counts)
        if model.num_classes != 4:
            raise UserError(f'rais tells four rotations apart, and the model has {model.num_classes} outputs')
        if first_epochs < 0 or not 0 <= margin < math.log(4) / 2:
            raise UserError(f'first_epochs is 0 or more and margin in [0, {math.log(4) / 2:.3f}), half of the largest '
                            f'entropy; got {first_epochs} and {margin}')
        if not 0 < most_accuracy <= 1:
            raise UserError(f'rais: most_accuracy is a share in (0, 1], got {most_accuracy}')
        self.views = (view,)
        self.first_epochs = first_epochs
        self.separation_weight = separation_weight
        self.margin = margin
        self.most_accuracy = most_accuracy
        self.threshold = math.log(4) / 2 + margin  # rho + m
        self.weight: float | None = None  # None in step 1
        # how many rotations are right after step 1, of how many; kept, since a run that resumes has other weights
        self.register_buffer('step_1_right', torch.zeros(2, dtype=torch.int64))

    @classmethod
    def num_outputs(cls, num_classes):
        return 4

    def create_evaluator(self, shot_counts):
        return RotationEvaluator(sum(shot_counts))

    def start_epoch(self, epoch, num_epochs, rng, batches):
        assert len(batches.digests)  # an image that cannot be read is found now, not by `finish`
        if epoch == 0 and num_epochs <= self.first_epochs:
            _logger.warning(f'rais: all {num_epochs} epochs are step 1 (first_epochs={self.first_epochs}): '
                            'nothing separates the images')
        if epoch == self.first_epochs > 0 and self.most_accuracy < 1:
            self._check_overfit(batches)
        step_2 = epoch - self.first_epochs  # epoch of step 2
        ramp = (step_2 + 1) / max(1, num_epochs - self.first_epochs)
        self.weight = None if step_2 < 0 else self.separation_weight * ramp

    def _check_overfit(self, batches):
        right, total = self.step_1_right.tolist()
        if total == 0:
            self.step_1_right.copy_(self._count_right(batches))
            right, total = self.step_1_right.tolist()

        if right >= self.most_accuracy * total:
            raise UserError(
                f'rais: step 1 ended with a rotation accuracy of {right / total:.3f} on the training images, not below '
                f'most_accuracy={self.most_accuracy:g}: it knows them by heart; take fewer first_epochs')

    @torch.no_grad()
    def _count_right(self, batches) -> torch.Tensor:
        """Rotations of the training images that are right in evaluation mode, and all; a share on each process."""
        was_training = self.training
        self.eval()
        counts = torch.zeros_like(self.step_1_right)
        for (x, *_), _, _ in islice(batches(), rank(), None, world_size()):
            right = self.logits(self.features(rotations(x))).argmax(1) == _turns(x)
            counts[0] += right.sum()
            counts[1] += len(right)
        self.train(was_training)
        return all_reduce_sum(counts)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), _, _ = batch
        logits, target = self.logits(self.features(rotations(x))), _turns(x)  # [4B, 4], [4B]
        right = logits.argmax(1) == target
        entropy = rotation_entropy(logits.detach()).view(4, -1).mean(0)  # [B]
        parts = {'output': None, 'rotation_accuracy': right.double().mean(),
                 'agnostic': (entropy > self.threshold).double().mean()}
        if self.weight is not None:
            return {'loss': rotation_separation_loss(logits, target, self.weight, self.margin), **parts}
        return {'loss': F.cross_entropy(logits, target), **parts}

    @torch.no_grad()
    def finish(self, folder, model, batches):
        model.eval()
        entropies, rows = [], []
        for (x, *_), _, index in batches():
            entropies.append(rotation_entropy(model(rotations(x))).view(4, -1).mean(0).cpu())
            rows.append(index.cpu())
        entropy, rows = (np.asarray(torch.cat(parts)) for parts in (entropies, rows))
        flags = write_flags(folder / FLAG_FILE, batches.digests, entropy[rows.argsort()], self.threshold)
        print(f'{100 * flags.mean():.2f} % of {len(flags)} images are rotation-agnostic: {folder / FLAG_FILE}',
              flush=True)
        return {'agnostic_share': float(flags.mean()), 'flags': flags_digest(flags)}
