"""Supervised Contrastive Learning

P. Khosla et al., NeurIPS 2020, https://arxiv.org/abs/2004.11362, in the two branches of BCL,
trained together (J. Zhu et al., CVPR 2022, https://arxiv.org/abs/2207.09052).

Shapes: B batch of this process, W processes, C classes, D width of the features, E width of the
    embeddings.
"""
from torch import nn

from ..losses import logit_adjusted_cross_entropy, sup_con_loss
from ..models import attach_branches
from ..models.layers import projection_mlp
from ..utils.distributed import all_gather_cat
from ._contrast import ContrastiveMethod
from ._method import Batch, ClassCounts
from ._registry import register_method


@register_method('sup_con')
class SupCon(ContrastiveMethod):
    """A logit-adjusted classifier on one view, plain supervised contrast between two more.

    Everything is as in `bcl`, except the contrast, which has neither class averages nor prototypes.

    Args:
        model: timm model with C outputs and one linear classifier, without branches; `projector` is
            added.
        class_counts: Training images of each class, [C]; the prior of the logit adjustment.
        ce_weight: Weight of the classification loss.
        contrastive_weight: Weight of the contrastive loss.
        temperature: Temperature of the contrastive loss.
        tau: Strength of the logit adjustment; 0 is plain cross-entropy.
        hidden_features: Hidden width of the projector.
        out_features: Width E of the embeddings.
        views: View of the classifier, then the two views of the contrast; or two views, of which the
            first serves both.
    """

    contrastive_views = 2

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            ce_weight: float = 2.0,
            contrastive_weight: float = 0.6,
            temperature: float = 0.1,
            tau: float = 1.0,
            hidden_features: int = 512,
            out_features: int = 128,
            views: tuple[str, str] | tuple[str, str, str] = ('autoaugment', 'sim', 'sim'),
    ):
        super().__init__(
            model,
            class_counts,
            ce_weight=ce_weight,
            contrastive_weight=contrastive_weight,
            temperature=temperature,
            tau=tau,
            views=views,
        )
        width = self.model.head_hidden_size
        projector = projection_mlp(width, hidden_features, out_features)
        attach_branches(model, {'projector': projector})

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        _, target, _ = batch
        output, embeddings = self.embed(batch)  # [B, C], [2B, E]

        ce_loss = logit_adjusted_cross_entropy(output, target, self.class_counts, tau=self.tau)
        contrastive_loss = sup_con_loss(
            all_gather_cat(embeddings),  # [2BW, E], of the global batch
            all_gather_cat(target.repeat(2)),
            self.temperature,
        )
        loss = self.ce_weight * ce_loss + self.contrastive_weight * contrastive_loss
        return {
            'loss': loss,
            'output': output,
            'ce_loss': ce_loss,
            'contrastive_loss': contrastive_loss,
        }
