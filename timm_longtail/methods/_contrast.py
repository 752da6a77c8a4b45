"""What BCL, SupCon and ProCo share: a classifier on one view of an image, and a contrast between two.

Shapes: B batch of this process, C classes, D width of the features, E width of the embeddings.
"""
from collections.abc import Sequence

import torch
from torch import nn

from ..models.layers import unit_rows
from ..utils.errors import UserError
from ._method import Batch, ClassCounts, Method

__all__ = ['ContrastiveMethod']


class ContrastiveMethod(Method):
    """A classification loss on the first view of an image, a contrastive loss on the last two.

    With three views these are others than the first, as in the papers. With two, which take two
    thirds of the time, the first one is classified and contrasted.

    The loss is `ce_weight` * L_LC + `contrastive_weight` * L_contrast, with L_LC the logit-adjusted
    cross-entropy. A method adds the branch `projector`, where the model has none, and the contrast.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C]; the prior of the logit adjustment.
        ce_weight: Weight of the classification loss.
        contrastive_weight: Weight of the contrastive loss.
        temperature: Temperature of the contrastive loss.
        tau: Strength of the logit adjustment; 0 is plain cross-entropy.
        views: View of the classifier, then the two views of the contrast; or two views, of which the
            first serves both.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            ce_weight: float,
            contrastive_weight: float,
            temperature: float,
            tau: float,
            views: Sequence[str],
    ):
        super().__init__(model, class_counts)
        if isinstance(views, str) or len(views) not in (2, 3):
            raise UserError(
                'three views are needed, one to classify and two to contrast, or two, of which the '
                f'first is for both; got {views}')

        self.ce_weight = ce_weight
        self.contrastive_weight = contrastive_weight
        self.temperature = temperature
        self.tau = tau
        self.views = tuple(views)

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        return sampled / class_counts ** options['tau']

    def embed(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Run all views of a batch through the network.

        Args:
            batch: Two or three views of B images, and their classes.

        Returns:
            Logits [B, C] of the first view, and the unit embeddings [2B, E] of the last two, one
            view behind the other.
        """
        views, target, _ = batch
        batch_size = len(target)

        # [2B or 3B, D], one forward: BatchNorm sees all views
        features = self.features(torch.cat(views))
        output = self.logits(features[:batch_size])
        embeddings = unit_rows(self.model.branches['projector'](features[-2 * batch_size:]))
        return output, embeddings
