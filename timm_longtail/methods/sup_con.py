"""Supervised Contrastive Learning

P. Khosla et al., NeurIPS 2020, https://arxiv.org/abs/2004.11362, in the two branches of BCL, trained together
(J. Zhu et al., CVPR 2022, https://arxiv.org/abs/2207.09052).

Shapes: B batch of this process, W processes, C classes, D width of the features, E width of the embeddings.
"""
import torch
from torch import nn

from ..losses import logit_adjusted_cross_entropy, sup_con_loss
from ..models import attach_branches
from ..models.layers import projection_mlp, unit_rows
from ..utils.distributed import all_gather_cat
from ..utils.errors import UserError
from ._method import Batch, Method
from ._registry import register_method


@register_method('sup_con')
class SupCon(Method):
    """A logit-adjusted classifier on one view, plain supervised contrast between two more.

    All is as in `bcl` but the contrast, which has neither class averages nor prototypes.

    Args:
        model: timm model with C outputs and one linear classifier, without branches; `projector` is added.
        class_counts: Training images of each class, [C]; the prior of the logit adjustment.
        ce_weight, contrastive_weight: Weights of the two losses.
        temperature: Temperature of the contrastive loss.
        tau: Strength of the logit adjustment; 0 is plain cross-entropy.
        hidden_features, out_features: Hidden width of the projector, and width E of the embeddings.
        views: View of the classifier, then the two views of the contrast.
    """

    contrastive_views = 2

    def __init__(
            self,
            model: nn.Module,
            class_counts,
            *,
            ce_weight: float = 2.0,
            contrastive_weight: float = 0.6,
            temperature: float = 0.1,
            tau: float = 1.0,
            hidden_features: int = 512,
            out_features: int = 128,
            views: tuple[str, str, str] = ('autoaugment', 'sim', 'sim'),
    ):
        if isinstance(views, str) or len(views) != 3:
            raise UserError(f'sup_con takes three views: the classifier\'s and the two of the contrast; got {views}')
        attach_branches(model, {'projector': projection_mlp(model.head_hidden_size, hidden_features, out_features)})
        super().__init__(model, class_counts)
        self.weights = ce_weight, contrastive_weight
        self.temperature = temperature
        self.tau = tau
        self.views = tuple(views)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        views, target, _ = batch
        batch_size = len(target)
        features = self.features(torch.cat(views))  # [3B, D], one forward: BatchNorm sees all views
        output = self.logits(features[:batch_size])  # [B, C]
        embeddings = unit_rows(self.model.branches['projector'](features[batch_size:]))  # [2B, E]
        ce_loss = logit_adjusted_cross_entropy(output, target, self.class_counts, tau=self.tau)
        contrastive_loss = sup_con_loss(  # of the global batch, [2BW, E]
            all_gather_cat(embeddings), all_gather_cat(target.repeat(2)), self.temperature)
        loss = self.weights[0] * ce_loss + self.weights[1] * contrastive_loss
        return {'loss': loss, 'output': output, 'ce_loss': ce_loss, 'contrastive_loss': contrastive_loss}
