"""Prototype conformity loss

Paper: `Adversarial Defense by Restricting the Hidden Space of Deep Neural Networks`
    - Aamir Mustafa, Salman Khan, Munawar Hayat, Roland Goecke, Jianbing Shen, Ling Shao, ICCV 2019
    - https://arxiv.org/abs/1904.00887

Implemented from the paper's formulation. The released code is another loss: `squared=True`,
`centre_term=False`, `repel_centroids` of their own, and `repel_weight=1e-4`.

Shapes: B batch, C classes, D width of the features.
"""
import torch

from ..utils.errors import UserError
from ._common import full_precision, mean_over_batch
from ._logits import is_target_class


def prototype_conformity_loss(
        features: torch.Tensor,
        target: torch.Tensor,
        centroids: torch.Tensor,
        mask: torch.Tensor | None = None,
        squared: bool = False,
        centre_term: bool = True,
        repel_centroids: torch.Tensor | None = None,
        repel_weight: float = 1.0,
) -> torch.Tensor:
    """Pull features to the centroid of their class, push them and that centroid from the centroids of the others.

        L = 1/B sum_i ( alpha_i - 1 / (C - 1) sum_{j != y_i} (beta_ij + gamma_ij) )
        alpha_i = ||f_i - w_{y_i}||    beta_ij = ||f_i - w_j||    gamma_ij = ||w_{y_i} - w_j||

    Nothing bounds it below: scaled features and centroids scale it, so wherever it is negative it
    falls for ever. It needs a small weight, slow centroids, or features whose length something else
    keeps. Two equal points have no direction: their distance has the gradient 0.

    Args:
        features: Rows [B, D] of any length.
        target: Class ids in [0, C), int64 [B]; the range is not checked, which would wait for the
            device.
        centroids: One row for each class, [C, D]; gradients reach them.
        mask: Rows that count, bool [B]; None counts all. Other classes' centroids repel in either
            case, and the sum is divided by B, so that averages over processes are exact and a batch
            without such rows gives 0.
        squared: Whether distances are squared.
        centre_term: Whether gamma, the distance between centroids, is part of the sum.
        repel_centroids: Centroids that repel, w_j for j != y_i, [C, D]; None is `centroids`.
        repel_weight: Weight of the sum over the other classes.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit.
    """
    attraction, repulsion = prototype_conformity_parts(
        features, target, centroids, mask, squared, centre_term, repel_centroids)
    return attraction - repel_weight * repulsion


@full_precision
def prototype_conformity_parts(
        features: torch.Tensor,
        target: torch.Tensor,
        centroids: torch.Tensor,
        mask: torch.Tensor | None = None,
        squared: bool = False,
        centre_term: bool = True,
        repel_centroids: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `prototype_conformity_loss` subtracts: alpha, and the mean of beta + gamma over other classes."""
    others = centroids if repel_centroids is None else repel_centroids
    num_classes = len(others)
    _check_shapes(features, target, centroids, num_classes)
    _check_shapes(features, target, others, num_classes)

    # the distances of the equation, squared where asked for
    own = centroids[target]  # [B, D]
    alpha = torch.linalg.vector_norm(features - own, dim=1)  # [B]
    beta = _distances(features, others)  # [B, C]
    if squared:
        alpha = alpha.square()
        beta = beta.square()

    repulsion = beta
    if centre_term:
        gamma = _distances(own, others)  # [B, C]
        if squared:
            gamma = gamma.square()
        repulsion = repulsion + gamma

    # the mean over the other classes
    is_own = is_target_class(target, num_classes)
    repulsion = repulsion.masked_fill(is_own, 0).sum(1) / max(num_classes - 1, 1)
    return mean_over_batch(alpha, mask), mean_over_batch(repulsion, mask)


def _check_shapes(
        features: torch.Tensor,
        target: torch.Tensor,
        centroids: torch.Tensor,
        num_classes: int,
):
    fits = features.ndim == 2 and target.shape == features.shape[:1]
    if not fits or centroids.shape != (num_classes, features.shape[1]):
        raise UserError(
            f'expected features [B, D], target [B] and centroids [C, D], '
            f'got {[*features.shape]}, {[*target.shape]} and {[*centroids.shape]}')


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    # not ||a||^2 - 2ab + ||b||^2, which cancels where points are close; [B, C, D] never exists
    return torch.cdist(first, second, compute_mode='donot_use_mm_for_euclid_dist')
