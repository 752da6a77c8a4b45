"""Balanced Contrastive Learning for Long-Tailed Visual Recognition

J. Zhu, Z. Wang, J. Chen, Y.-P. P. Chen, Y.-G. Jiang, CVPR 2022, https://arxiv.org/abs/2207.09052

Written from the paper; where paper and released code leave CIFAR open (its CIFAR code was never
published), the values are the consensus of the works that build on it. They do not agree on how the
MLPs start: here as PyTorch's linear layers do, as in the code for ImageNet-LT; one of them
(GKP-GSA) draws from Kaiming's normal distribution, 2.45 times as wide.

Shapes: B batch of this process, W processes, C classes, D width of the features, E width of the
    embeddings.
"""
from torch import nn

from ..losses import balanced_sup_con_loss, logit_adjusted_cross_entropy
from ..models import attach_branches
from ..models.layers import unit_rows
from ..utils.distributed import all_gather_cat
from ..utils.errors import UserError
from ._contrast import ContrastiveMethod
from ._method import Batch, ClassCounts
from ._registry import register_method


@register_method('bcl')
class BCL(ContrastiveMethod):
    """A logit-adjusted classifier on one view, balanced supervised contrast between two more.

    The loss is `ce_weight` * L_LC + `contrastive_weight` * L_BCL (lambda and mu of the paper).
    Class prototypes are the classifier's weights seen through an MLP of their own, so that the
    contrast trains the classifier too.

    Args:
        model: timm model with C outputs, at least two, and one (cosine) linear classifier; branches
            `projector` and `prototype` are added where it has none.
        class_counts: Training images of each class, [C]; the prior of the logit adjustment.
        ce_weight: Weight of the classification loss, lambda.
        contrastive_weight: Weight of the contrastive loss, mu.
        temperature: Temperature of the contrastive loss.
        tau: Strength of the logit adjustment.
        hidden_features: Hidden width of both MLPs, where they are added here; None is the model's
            own, or 512 where it has none.
        out_features: Width E of the embeddings, likewise; None is the model's own, or 128.
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
            hidden_features: int | None = None,
            out_features: int | None = None,
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
        if len(class_counts) < 2:
            raise UserError(
                'bcl compares classes and needs two or more; '
                'BatchNorm of one prototype has no variance')

        if not hasattr(model, 'branches'):
            attach_branches(
                model, 'bcl', hidden_features=hidden_features, out_features=out_features)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        _, target, _ = batch
        output, embeddings = self.embed(batch)  # [B, C], [2B, E]
        class_weights = self.model.get_classifier().weight  # [C, D]
        prototypes = unit_rows(self.model.branches['prototype'](class_weights))  # [C, E]

        ce_loss = logit_adjusted_cross_entropy(output, target, self.class_counts, tau=self.tau)
        contrastive_loss = balanced_sup_con_loss(
            all_gather_cat(embeddings),  # [2BW, E]: the paper's batch is the global one
            all_gather_cat(target.repeat(2)),
            prototypes,
            self.temperature,
        )
        loss = self.ce_weight * ce_loss + self.contrastive_weight * contrastive_loss
        return {
            'loss': loss,
            'output': output,
            'ce_loss': ce_loss,
            'contrastive_loss': contrastive_loss,
        }
