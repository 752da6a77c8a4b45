"""GLMC with contrastive learning between clean and mixed images

GLMC (Du et al., CVPR 2023, https://arxiv.org/abs/2305.08661) pulls the features of mixed classes towards each other,
and tail classes, which are mixed rarely, are then mistaken for head classes. This method adds a contrast between the
images before and after mixing, weighted by the mixing ratio, which keeps different images apart: equations (1) to (3)
of an extended abstract in Japanese on contrast by the mixing ratio.

The clean images pass the network in training too, so BatchNorm's running statistics, which evaluation uses, are of all
four batches; GLMC's are of mixtures alone. Compare with `contrastive_weight` 0 to see what the contrast does by itself.

The abstract gives neither the temperature nor the weight of the contrast, nor says which layer it compares: the
defaults are SimCLR's temperature on CIFAR, a plain sum, and the projector, all of GLMC staying in place.

Shapes: B batch of this process, W processes, E width of the embeddings.
"""
import torch
from torch import nn

from ..losses import mixing_ratio_contrastive_loss
from ..utils.distributed import all_gather_cat
from ..utils.errors import UserError
from ._method import Batch
from ._registry import register_method
from .glmc import GLMC


@register_method('glmc_clr')
class GLMCCLR(GLMC):
    """GLMC's loss + `contrastive_weight` * L_CLR; two more forwards a step, of the images before they were mixed.

    Args:
        model: As GLMC.
        class_counts: As GLMC.
        contrastive_weight: Weight of L_CLR.
        temperature: Its temperature, tau.
        head: What it compares: the output of the `projector`, of the `predictor` behind it, or the `features`.
        negatives: `all` other rows, or those of an `other_class` only: the abstract's future work.
        cross_only: Anchors are the clean rows only, and their terms the mixed ones: the other reading of equation (1).
        **kwargs: As GLMC; `joint_forward` takes the clean images into its one forward too.
    """

    forwards_per_image = 2  # B of each mixture, and the clean views of both streams

    def __init__(
            self,
            model: nn.Module,
            class_counts,
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
        mixture = self.mix(first, second)
        clean = first[0][0], second[0][0]
        features = self.features_of(mixture.mixup, mixture.cutmix, *clean)
        projections = [self.model.branches['projector'](f) for f in features]
        result = self.mixture_losses(mixture, features[:2], projections[:2])
        contrastive_loss = self.contrast(mixture.lam, features, projections, first[1], second[1])
        loss = result['loss'] + self.contrastive_weight * contrastive_loss
        # what the first stream's images are taken for; it trains nothing
        output = self.logits(features[2].detach())
        return {**result, 'loss': loss, 'output': output.detach(), 'contrastive_loss': contrastive_loss}

    def contrast(
            self,
            lam: float,
            features: list[torch.Tensor],
            projections: list[torch.Tensor],
            target1: torch.Tensor,
            target2: torch.Tensor,
    ) -> torch.Tensor:
        """Return L_CLR over the global batch from features and projections of MixUp, CutMix and both clean batches."""
        if self.head == 'predictor':
            projections = [self.model.branches['predictor'](z) for z in projections]
        rows = features if self.head == 'features' else projections
        z_mixup, z_cutmix, z1, z2 = all_gather_cat(torch.stack(rows, dim=1)).unbind(1)  # [B W, E] each
        targets = ()
        if self.negatives == 'other_class':
            targets = all_gather_cat(torch.stack([target1, target2], dim=1)).unbind(1)
        return mixing_ratio_contrastive_loss(
            z1, z2, z_mixup, z_cutmix, lam, self.temperature, *targets, cross_only=self.cross_only)
