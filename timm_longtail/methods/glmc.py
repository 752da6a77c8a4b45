"""Global and Local Mixture Consistency Cumulative Learning for Long-tailed Visual Recognitions

F. Du, P. Yang, Q. Jia, F. Nan, X. Chen, Y. Yang, CVPR 2023, https://arxiv.org/abs/2305.08661

Written from the formulas. Where the paper and the published results differ, what gave the results is the default and
the other an option.

Shapes: B batch of this process, C classes, D width of the features, E width of the embeddings, H x W image.
"""
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..data import PowerSampler
from ..losses import mixture_consistency_loss, soft_cross_entropy
from ..models import attach_branches
from ..utils.errors import UserError
from ._method import Batch, Method
from ._registry import register_method


class Mixture(NamedTuple):
    """Two mixtures of two batches, images [B, 3, H, W], and their labels [B, C]; `lam` is the share of the first."""
    lam: float
    mixup: torch.Tensor
    cutmix: torch.Tensor
    mixup_target: torch.Tensor
    cutmix_target: torch.Tensor


@register_method('glmc')
class GLMC(Method):
    """Consistency between MixUp and CutMix of the same images, and two classifiers of which the re-balanced one grows.

    The loss is a L_bal + (1 - a) L_reb + `consistency_weight` * L_sim with a = 1 - (t / T)^2 in epoch t of T. L_bal and
    L_reb are cross-entropies on both mixtures, of the second classifier with the mixed labels, and of the model's own,
    which predicts, with labels weighted by class. One stream is shuffled; in the other an image weighs n_class^-k.

    Args:
        model: timm model with C outputs and one linear classifier; branches `classifier`, `projector` and `predictor`
            are added where it has none.
        class_counts: Training images of each class, [C].
        resample_power: k, strength of the second stream's re-sampling; 0 draws from all images alike.
        reweight_power: q, labels are weighted by n^-q, with mean 1 over the classes.
        consistency_weight: Weight of L_sim, gamma.
        mix_alpha: The share lam of the first stream is drawn from Beta(mix_alpha, mix_alpha).
        area_correction: Let the label of a CutMix image follow the area of its box, which the border cuts off: without,
            about 2/3 of an image stay on average, and 1/2 of its label.
        even_box: Round the sides of the box down to even numbers of pixels, as the released code, whose box has as many
            before its centre as behind it; False is the box of CutMix, with 3 % more of the area.
        joint_forward: One forward for both mixtures; else each has its own BatchNorm statistics.
        out_features: Width E of the embeddings, where branches are added here; None is the model's own, else 128.
        views: Views of an image for MixUp and for CutMix.
    """

    forwards_per_image = 1  # two streams of two views become two mixtures
    overfit_check = ('eval_all', 80.0)  # no clean image is trained on; chance is 10

    def __init__(
            self,
            model: nn.Module,
            class_counts,
            *,
            resample_power: float = 0.0,
            reweight_power: float = 1.2,
            consistency_weight: float = 4.0,
            mix_alpha: float = 1.0,
            area_correction: bool = False,
            even_box: bool = True,
            joint_forward: bool = False,
            out_features: int | None = None,
            views: tuple[str, str] = ('crop_flip', 'crop_flip'),
    ):
        if 'classifier' not in getattr(model, 'branches', ()):
            attach_branches(model, 'glmc', out_features=out_features)
        super().__init__(model, class_counts)
        if isinstance(views, str) or len(views) != 2:
            raise UserError(f'glmc takes two views: that of MixUp and that of CutMix; got {views}')
        if not mix_alpha > 0:
            raise UserError(f'glmc: mix_alpha must be positive, got {mix_alpha}')
        self.resample_power = resample_power
        self.consistency_weight = consistency_weight
        self.mix_alpha = mix_alpha
        self.area_correction = area_correction
        self.even_box = even_box
        self.joint_forward = joint_forward
        self.views = tuple(views)
        weight = self.class_counts ** -reweight_power
        self.register_buffer('class_weight', weight / weight.mean(), persistent=False)

    def samplers(self, targets: np.ndarray) -> tuple:
        # n_j images of weight n_j^-k each: the class has n_j^(1 - k)
        return None, PowerSampler(targets, q=1 - self.resample_power)

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches):
        self.balance = 1 - (epoch / num_epochs) ** 2
        self.rng = rng

    def forward(self, first: Batch, second: Batch, phase: str = 'main') -> dict:
        mixture = self.mix(first, second)
        features = self.features_of(mixture.mixup, mixture.cutmix)
        projections = [self.model.branches['projector'](f) for f in features]
        return {**self.mixture_losses(mixture, features, projections), 'output': None}

    def mix(self, first: Batch, second: Batch) -> Mixture:
        """Mix the first views of two batches by MixUp and the second ones by CutMix, in one ratio."""
        (x1, x2), target1, _ = first
        (y1, y2), target2, _ = second
        lam = float(self.rng.beta(self.mix_alpha, self.mix_alpha))
        rows, columns = draw_box(lam, *x2.shape[-2:], self.rng, self.even_box)
        cutmix = x2.clone()
        cutmix[..., rows, columns] = y2[..., rows, columns]
        area = (rows.stop - rows.start) * (columns.stop - columns.start) / (x2.shape[-2] * x2.shape[-1])
        share = 1 - area if self.area_correction else lam
        labels1, labels2 = (  # not one_hot, which reads the classes
            x1.new_zeros(len(t), len(self.class_counts)).scatter_(1, t[:, None], 1) for t in (target1, target2))
        return Mixture(
            lam, lam * x1 + (1 - lam) * y1, cutmix,
            lam * labels1 + (1 - lam) * labels2, share * labels1 + (1 - share) * labels2)

    def features_of(self, *images: torch.Tensor) -> list[torch.Tensor]:
        """Return the features [B, D] of several batches of images: BatchNorm sees one after the other, or all."""
        if self.joint_forward:
            return list(self.features(torch.cat(images)).chunk(len(images)))
        return [self.features(x) for x in images]

    def mixture_losses(
            self,
            mixture: Mixture,
            features: list[torch.Tensor],
            projections: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts from the features and projections of both mixtures, MixUp first."""
        branches = self.model.branches
        targets = mixture.mixup_target, mixture.cutmix_target
        balanced = sum(soft_cross_entropy(branches['classifier'](f), t) for f, t in zip(features, targets))
        rebalanced = sum(soft_cross_entropy(self.logits(f), t, self.class_weight) for f, t in zip(features, targets))
        consistency = mixture_consistency_loss(*map(branches['predictor'], projections), *projections)
        loss = self.balance * balanced + (1 - self.balance) * rebalanced + self.consistency_weight * consistency
        return {
            'loss': loss, 'balanced_loss': balanced, 'rebalanced_loss': rebalanced, 'consistency_loss': consistency}


def draw_box(
        lam: float,
        height: int,
        width: int,
        rng: np.random.Generator,
        even: bool = False,
) -> tuple[slice, slice]:
    """Draw the rows and columns of CutMix: (1 - lam) of the area, rounded up, about any pixel; the rim cuts it.

    Args:
        lam: Share of the image that stays.
        height: Rows of the image.
        width: Columns of the image.
        rng: Draws the centre, its row first.
        even: Leave out the last row or column of an odd side, as GLMC's code; CutMix keeps it.
    """
    spans = []
    for size in (height, width):
        side = math.ceil(math.sqrt(1 - lam) * size)
        if even:
            side -= side % 2
        start = int(rng.integers(size)) - side // 2
        spans.append(slice(max(start, 0), min(start + side, size)))
    return spans[0], spans[1]
