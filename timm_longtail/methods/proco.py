"""Probabilistic Contrastive Learning for Long-Tailed Visual Recognition

C. Du, Y. Wang, S. Song, G. Huang, TPAMI 2024, https://arxiv.org/abs/2403.06726

Inferred: the projector's sizes are those of BCL on CIFAR; a class that has not been seen yet, in
    the first steps of a
run, is uniform on the sphere. The two estimates of a class's mean follow the behaviour of the
released code, https://github.com/LeapLabTHU/ProCo, but for the order within a batch: here both
views are in the means before either is scored, there the first view is scored by means that the
second has not entered yet.

Shapes: B batch of this process, C classes, D width of the features, E width of the embeddings.
"""
import torch
from torch import nn

from ..losses import logit_adjusted_cross_entropy, proco_loss
from ..models import attach_branches
from ..models.layers import projection_mlp
from ..utils.distributed import all_reduce_sum
from ..utils.errors import UserError
from ._contrast import ContrastiveMethod
from ._method import Batch, ClassCounts
from ._registry import register_method


@register_method('proco')
class ProCo(ContrastiveMethod):
    """A logit-adjusted classifier on one view; two more against von Mises-Fisher classes estimated as training goes.

    The loss is `ce_weight` * L_LC + `contrastive_weight` * L_ProCo. The mean embedding of a class
    is that of the last epoch, continued through the present one; the means of the present epoch are
    kept beside it for the next. They take no gradient. A row is compared with C classes, never with
    other rows, so the batch may be small.

    Args:
        model: timm model with C outputs and one linear classifier; a branch `projector` is added
            where it has none.
        class_counts: Training images of each class, [C]; the prior of both losses.
        ce_weight: Weight of the classification loss.
        contrastive_weight: Weight of the contrastive loss, alpha of the paper.
        temperature: Temperature of the contrastive loss.
        tau: Strength of the classifier's logit adjustment.
        hidden_features: Hidden width of the projector, where it is added here.
        out_features: Width E of the embeddings, likewise.
        views: View of the classifier, then the two views of the contrast; or two views, of which the
            first serves both.
    """

    sums: torch.Tensor
    counts: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            ce_weight: float = 1.0,
            contrastive_weight: float = 1.0,
            temperature: float = 0.1,
            tau: float = 1.0,
            hidden_features: int = 512,
            out_features: int = 128,
            views: tuple[str, str] | tuple[str, str, str] = ('autoaugment', 'sim(scale=0.08)', 'sim(scale=0.08)'),
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
        if not hasattr(model, 'branches'):
            width = self.model.head_hidden_size
            projector = projection_mlp(width, hidden_features, out_features)
            attach_branches(model, {'projector': projector})
        if [*self.model.branches] != ['projector']:
            found = ', '.join(self.model.branches)
            raise UserError(f'proco trains one branch, projector; the model has {found}')

        # two estimates of the class means: the one in use, and the one that this epoch begins
        num_classes = len(self.class_counts)
        width = self.model.branches['projector'][-1].out_features
        self.register_buffer('sums', self.class_counts.new_zeros(2, num_classes, width))
        self.register_buffer('counts', self.class_counts.new_zeros(2, num_classes, 1))

    def start_epoch(self, epoch, num_epochs, rng, batches):
        for estimate in (self.sums, self.counts):
            estimate[0] = estimate[1]
            estimate[1] = 0

    @torch.no_grad()
    def _means(self, embeddings: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Add the embeddings [N, E] of all processes to the estimates; return class means [C, E]."""
        ones = torch.ones_like(embeddings[:, :1])
        for estimate, rows in ((self.sums, embeddings), (self.counts, ones)):
            added = torch.zeros_like(estimate[0])
            added.index_add_(0, target, rows.to(estimate.dtype))
            estimate += all_reduce_sum(added)

        return self.sums[0] / self.counts[0].clamp(min=1)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        _, target, _ = batch
        output, embeddings = self.embed(batch)  # [B, C], [2B, E]
        ce_loss = logit_adjusted_cross_entropy(output, target, self.class_counts, tau=self.tau)

        target = target.repeat(2)  # [2B]
        means = self._means(embeddings.detach(), target)  # [C, E]
        contrastive_loss = proco_loss(
            embeddings, target, means, self.class_counts, self.temperature)

        loss = self.ce_weight * ce_loss + self.contrastive_weight * contrastive_loss
        return {
            'loss': loss,
            'output': output,
            'ce_loss': ce_loss,
            'contrastive_loss': contrastive_loss,
        }
