"""GLMC with contrastive learning between clean and mixed images

GLMC (Du et al., CVPR 2023, https://arxiv.org/abs/2305.08661) pulls the features of mixed classes
towards each other, and tail classes, which are mixed rarely, are then mistaken for head classes.
This method adds a contrast between the images before and after mixing, weighted by the mixing
ratio, which keeps different images apart: equations (1) to (3) of an extended abstract in Japanese
on contrast by the mixing ratio.

The clean images pass the network in training too, so BatchNorm's running statistics, which
evaluation uses, are of all four batches; GLMC's are of mixtures alone. Compare with
`contrastive_weight` 0 to see what the contrast does by itself.

The abstract gives neither the temperature nor the weight of the contrast, nor says which layer it
compares: the defaults are SimCLR's temperature on CIFAR, a plain sum, and the projector, all of
GLMC staying in place.

Shapes: B batch of this process, W processes, E width of the embeddings.
"""
import torch
from torch import nn

from ..losses import mixing_ratio_contrastive_loss
from ..utils.distributed import all_gather_cat
from ..utils.errors import UserError
from ._method import Batch, ClassCounts
from ._registry import register_method
from .glmc import GLMC


@register_method('glmc_clr')
class GLMCCLR(GLMC):
    """GLMC's loss + `contrastive_weight` * L_CLR; two more forwards a step, of the images before they were mixed.

    Args:
        model: As GLMC.
        class_counts: As GLMC.
        contrastive_weight: Weight of L_CLR.
        temperature: Temperature of L_CLR, tau.
        head: Layer that L_CLR compares: the output of the `projector`, of the `predictor` behind
            it, or the `features`.
        negatives: Negatives of an anchor: `all` other rows, or those of an `other_class` only,
            which the abstract names as future work.
        cross_only: Whether anchors are the clean rows only, and their terms the mixed ones: the
            other reading of equation (1).
        **kwargs: As GLMC; `joint_forward` takes the clean images into its one forward too.
    """

    forwards_per_image = 2  # B of each mixture, and the clean views of both streams

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            contrastive_weight: float = 1.0,
            temperature: float = 0.5,
            head: str = 'projector',
            negatives: str = 'all',
            cross_only: bool = False,
            **kwargs,
    ):
        super().__init__(model, class_counts, **kwargs)
        if head not in ('projector', 'predictor', 'features'):
            raise UserError(f'glmc_clr: head is projector, predictor or features, got {head!r}')
        if negatives not in ('all', 'other_class'):
            raise UserError(f'glmc_clr: negatives are all or other_class, got {negatives!r}')

        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.head = head
        self.negatives = negatives
        self.cross_only = cross_only
        self.contrastive_views = 1 if cross_only else 2

    def forward(self, first: Batch, second: Batch, phase: str = 'main') -> dict:
        (clean1, _), target1, _ = first
        (clean2, _), target2, _ = second
        mixture = self.mix(first, second)
        features = self.features_of(mixture.mixup, mixture.cutmix, clean1, clean2)
        projections = [self.model.branches['projector'](f) for f in features]

        # GLMC's loss on the mixtures, the contrast on all four
        result = self.mixture_losses(mixture, features[:2], projections[:2])
        contrastive_loss = self.contrast(mixture.lam, features, projections, target1, target2)
        loss = result['loss'] + self.contrastive_weight * contrastive_loss

        # the prediction for the first stream's clean images is logged; it trains nothing
        output = self.logits(features[2].detach()).detach()
        return {**result, 'loss': loss, 'output': output, 'contrastive_loss': contrastive_loss}

    def contrast(
            self,
            lam: float,
            features: list[torch.Tensor],
            projections: list[torch.Tensor],
            target1: torch.Tensor,
            target2: torch.Tensor,
    ) -> torch.Tensor:
        """Return L_CLR over the global batch.

        Args:
            lam: Share of the first stream in the mixtures.
            features: Features [B, D] of MixUp, CutMix and the clean images of both streams.
            projections: Their projections, [B, E] each.
            target1: Class ids of the first stream, int64 [B].
            target2: Class ids of the second stream.
        """
        # the layer that is compared
        if self.head == 'features':
            rows = features
        elif self.head == 'predictor':
            rows = [self.model.branches['predictor'](z) for z in projections]
        else:
            rows = projections
        gathered = all_gather_cat(torch.stack(rows, dim=1))  # [WB, 4, E]
        z_mixup, z_cutmix, z1, z2 = gathered.unbind(1)

        # the classes, where they decide what is a negative
        classes1 = classes2 = None
        if self.negatives == 'other_class':
            classes = all_gather_cat(torch.stack([target1, target2], dim=1))  # [WB, 2]
            classes1, classes2 = classes.unbind(1)

        return mixing_ratio_contrastive_loss(
            z1,
            z2,
            z_mixup,
            z_cutmix,
            lam,
            self.temperature,
            classes1,
            classes2,
            cross_only=self.cross_only,
        )
