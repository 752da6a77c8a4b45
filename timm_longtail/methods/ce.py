"""Cross-entropy on the natural class distribution, the baseline of every table; mixup and Remix.

Shapes: B batch of this process, C classes.
"""
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..utils.errors import UserError
from ._method import Batch, Batches, ClassCounts, Method
from ._mixup import remix_share, swap_neighbours
from ._registry import register_method


@register_method('ce')
class CrossEntropy(Method):
    """Plain cross-entropy; with `mixup_alpha`, of images mixed in pairs.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C].
        label_smoothing: Share of the target spread over all classes; the long-tailed baselines use
            0.
        mixup_alpha: Each step mixes with one lambda from Beta(alpha, alpha), and the logged
            training accuracy compares mixed images with one of their labels; 0 leaves images as
            they are.
        remix_kappa: Factor between the counts of two classes from which Remix
            (https://arxiv.org/abs/2007.03943) gives the rarer one the whole label; the paper's 3.
        remix_tau: Share of the other image below which it does; the paper's 0.5. 0 is mixup.
        view: View of each image.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            label_smoothing: float = 0.0,
            mixup_alpha: float = 0.0,
            remix_kappa: float = 3.0,
            remix_tau: float = 0.0,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        if mixup_alpha < 0:
            raise UserError(f'mixup_alpha must be at least 0, got {mixup_alpha}')
        if remix_kappa < 1:
            raise UserError(f'remix_kappa must be at least 1, got {remix_kappa}')
        if remix_tau > 0 and mixup_alpha == 0:
            raise UserError(f'remix_tau={remix_tau} is of mixed images: mixup_alpha must be positive')
        if remix_tau == 0 and remix_kappa != 3:
            raise UserError(f'remix_kappa={remix_kappa} has no effect: remix_tau must be positive')

        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.remix = remix_kappa, remix_tau
        self.views = (view,)

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        # Remix gives rare classes more of the labels than is known
        return None if options['remix_tau'] > 0 else sampled

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        self.rng = rng

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        if self.mixup_alpha > 0:
            lam = self.rng.beta(self.mixup_alpha, self.mixup_alpha)
            x = lam * x + (1 - lam) * swap_neighbours(x)

        output = self.logits(self.features(x))  # [B, C]
        loss = self._cross_entropy(output, target)  # [B]
        if self.mixup_alpha > 0:
            other = swap_neighbours(target)
            other_loss = self._cross_entropy(output, other)
            counts, other_counts = self.class_counts[target], self.class_counts[other]
            share = remix_share(lam, counts, other_counts, *self.remix)  # [B]
            loss = share * loss + (1 - share) * other_loss

        return {'loss': loss.mean(), 'output': output}

    def _cross_entropy(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        smoothing = self.label_smoothing
        return F.cross_entropy(output, target, reduction='none', label_smoothing=smoothing)
