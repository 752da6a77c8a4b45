"""Global and Local Mixture Consistency Cumulative Learning for Long-tailed Visual Recognitions

F. Du, P. Yang, Q. Jia, F. Nan, X. Chen, Y. Yang, CVPR 2023, https://arxiv.org/abs/2305.08661

Written from the formulas. Where the paper and the published results differ, what gave the results
is the default and the other an option.

Shapes: B batch of this process, C classes, D width of the features, E width of the embeddings, H x
    W image.
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
from ._method import Batch, Batches, ClassCounts, Method
from ._registry import register_method


class Mixture(NamedTuple):
    """Two mixtures of two batches: images [B, 3, H, W] and labels [B, C].

    `lam` is the share of the first batch.
    """
    lam: float
    mixup: torch.Tensor
    cutmix: torch.Tensor
    mixup_target: torch.Tensor
    cutmix_target: torch.Tensor


@register_method('glmc')
class GLMC(Method):
    """Consistency between MixUp and CutMix of the same images, and two classifiers of which the re-balanced one grows.

    The loss is a L_bal + (1 - a) L_reb + `consistency_weight` * L_sim with a = 1 - (t / T)^2 in
    epoch t of T. L_bal and L_reb are cross-entropies on both mixtures, of the second classifier
    with the mixed labels, and of the model's own, which predicts, with labels weighted by class.
    One stream is shuffled; in the other an image weighs n_class^-k.

    Args:
        model: timm model with C outputs and one linear classifier; branches `classifier`,
            `projector` and `predictor` are added where it has none.
        class_counts: Training images of each class, [C].
        resample_power: Strength k of the second stream's re-sampling; 0 draws from all images
            alike.
        reweight_power: Power q of the label weights n^-q, whose mean over the classes is 1.
        consistency_weight: Weight of L_sim, gamma.
        mix_alpha: Parameter of Beta(mix_alpha, mix_alpha), from which the share lam of the first
            stream is drawn.
        area_correction: Whether the label of a CutMix image follows the area of its box, which the
            border cuts off; otherwise 2/3 of an image stay on average, and 1/2 of its label.
        even_box: Whether the sides of the box are rounded down to even numbers of pixels, as in the
            released code, whose box has as many before its centre as behind it; False is the box of
            CutMix, with 3 % more area.
        joint_forward: Whether both mixtures pass in one forward; otherwise each has its own
            BatchNorm statistics.
        out_features: Width E of the embeddings, where branches are added here; None is the model's
            own, else 128.
        views: Views of an image for MixUp and for CutMix.
    """

    forwards_per_image = 1  # two streams of two views become two mixtures
    overfit_check = ('eval_all', 80.0)  # no clean image is trained on; chance is 10

    class_weight: torch.Tensor
    balance: float
    rng: np.random.Generator

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
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
        super().__init__(model, class_counts)
        if isinstance(views, str) or len(views) != 2:
            raise UserError(f'glmc takes two views: that of MixUp and that of CutMix; got {views}')
        if not mix_alpha > 0:
            raise UserError(f'glmc: mix_alpha must be positive, got {mix_alpha}')

        if 'classifier' not in getattr(model, 'branches', ()):
            attach_branches(model, 'glmc', out_features=out_features)

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
        q = 1 - self.resample_power
        return None, PowerSampler(targets, q)  # type: ignore[arg-type]  # an array is a sequence here

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        self.balance = 1 - (epoch / num_epochs) ** 2
        self.rng = rng

    def forward(self, first: Batch, second: Batch, phase: str = 'main') -> dict:
        mixture = self.mix(first, second)
        features = self.features_of(mixture.mixup, mixture.cutmix)
        projections = [self.model.branches['projector'](f) for f in features]

        result = self.mixture_losses(mixture, features, projections)
        return {**result, 'output': None}

    def mix(self, first: Batch, second: Batch) -> Mixture:
        """Mix the first views of two batches by MixUp, the second ones by CutMix, in one ratio."""
        (x1, x2), target1, _ = first
        (y1, y2), target2, _ = second
        height, width = x2.shape[-2:]
        lam = float(self.rng.beta(self.mix_alpha, self.mix_alpha))

        # MixUp
        mixup = lam * x1 + (1 - lam) * y1

        # CutMix
        rows, columns = draw_box(lam, height, width, self.rng, self.even_box)
        cutmix = x2.clone()
        cutmix[..., rows, columns] = y2[..., rows, columns]

        # labels, [B, C]
        share = lam
        if self.area_correction:
            box = (rows.stop - rows.start) * (columns.stop - columns.start)
            share = 1 - box / (height * width)
        labels1 = self._one_hot(target1, x1)
        labels2 = self._one_hot(target2, x1)

        return Mixture(
            lam=lam,
            mixup=mixup,
            cutmix=cutmix,
            mixup_target=lam * labels1 + (1 - lam) * labels2,
            cutmix_target=share * labels1 + (1 - share) * labels2,
        )

    def _one_hot(self, target: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        # not F.one_hot, which reads the classes
        labels = x.new_zeros(len(target), len(self.class_counts))
        return labels.scatter_(1, target[:, None], 1)

    def features_of(self, *images: torch.Tensor) -> list[torch.Tensor]:
        """Return the features [B, D] of several batches of images.

        BatchNorm sees one batch after the other, or all at once with `joint_forward`.
        """
        if self.joint_forward:
            features = self.features(torch.cat(images))
            return list(features.chunk(len(images)))
        return [self.features(x) for x in images]

    def mixture_losses(
            self,
            mixture: Mixture,
            features: list[torch.Tensor],
            projections: list[torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """Return the loss and its parts.

        Args:
            mixture: Images and labels of both mixtures.
            features: Features [B, D] of MixUp, then of CutMix.
            projections: Their projections, [B, E] each.
        """
        classifier = self.model.branches['classifier']
        predictor = self.model.branches['predictor']
        mixup, cutmix = features

        # L_bal: the second classifier, with the mixed labels
        balanced = (
            soft_cross_entropy(classifier(mixup), mixture.mixup_target)
            + soft_cross_entropy(classifier(cutmix), mixture.cutmix_target)
        )

        # L_reb: the model's own classifier, with labels weighted by class
        rebalanced = (
            soft_cross_entropy(self.logits(mixup), mixture.mixup_target, self.class_weight)
            + soft_cross_entropy(self.logits(cutmix), mixture.cutmix_target, self.class_weight)
        )

        # L_sim
        predictions = [predictor(z) for z in projections]
        consistency = mixture_consistency_loss(*predictions, *projections)

        loss = (
            self.balance * balanced
            + (1 - self.balance) * rebalanced
            + self.consistency_weight * consistency
        )
        return {
            'loss': loss,
            'balanced_loss': balanced,
            'rebalanced_loss': rebalanced,
            'consistency_loss': consistency,
        }


def draw_box(
        lam: float,
        height: int,
        width: int,
        rng: np.random.Generator,
        even: bool = False,
) -> tuple[slice, slice]:
    """Draw the rows and columns of CutMix: (1 - lam) of the area, rounded up, about any pixel.

    The border of the image cuts the box.

    Args:
        lam: Share of the image that stays.
        height: Rows of the image.
        width: Columns of the image.
        rng: Generator that draws the centre, its row first.
        even: Whether the last row or column of an odd side is left out, as in GLMC's code; CutMix
            keeps it.
    """
    spans = []
    for size in (height, width):
        side = math.ceil(math.sqrt(1 - lam) * size)
        if even:
            side -= side % 2

        start = int(rng.integers(size)) - side // 2
        spans.append(slice(max(start, 0), min(start + side, size)))

    return spans[0], spans[1]
