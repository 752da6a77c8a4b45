"""Prototype conformity loss

Paper: `Adversarial Defense by Restricting the Hidden Space of Deep Neural Networks`
    - Aamir Mustafa, Salman Khan, Munawar Hayat, Roland Goecke, Jianbing Shen, Ling Shao, ICCV 2019
    - https://arxiv.org/abs/1904.00887

Implemented from the paper's formulation. The released code is another loss: `squared=True`, `centre_term=False`,
`repel_centroids` of their own, and `repel_weight=1e-4`.

Shapes: B batch, C classes, D width of the features.
"""
import torch

from ..utils.errors import UserError
from ._common import full_precision, mean_over_batch


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

    Nothing bounds it below: scaled features and centroids scale it, so wherever it is negative it falls for ever. It
    needs a small weight, slow centroids, or features whose length something else keeps. Two equal points have no
    direction: their distance has the gradient 0.

    Args:
        features: Rows [B, D] of any length.
        target: Class ids in [0, C), int64 [B]; their range is not looked at, which would wait for the device.
        centroids: One row a class [C, D]; gradients reach them.
        mask: Rows that count, bool [B]; None counts all. Other classes' centroids repel in either case, and the sum is
            divided by B, so that averages over processes are exact and a batch without such rows gives 0.
        squared: Take squared distances.
        centre_term: Take gamma, the distance between centroids.
        repel_centroids: What stands for w_j, j != y_i, [C, D]; None is `centroids`.
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
    for rows in (centroids, others):
        if features.ndim != 2 or target.shape != features.shape[:1] or rows.shape != (len(others), features.shape[1]):
            raise UserError(f'expected features [B, D], target [B] and centroids [C, D], got {[*features.shape]}, '
                            f'{[*target.shape]} and {[*rows.shape]}')
    own = centroids[target]  # [B, D]
    attraction = torch.linalg.vector_norm(features - own, dim=1)
    repulsion = _distances(features, others)
    if squared:
        attraction, repulsion = attraction.square(), repulsion.square()
    if centre_term:
        gamma = _distances(own, others)
        repulsion = repulsion + (gamma.square() if squared else gamma)
    is_own = target[:, None] == torch.arange(len(others), dtype=target.dtype, device=target.device)
    repulsion = repulsion.masked_fill(is_own, 0).sum(1) / max(len(others) - 1, 1)
    return mean_over_batch(attraction, mask), mean_over_batch(repulsion, mask)


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    # differences, not ||a||^2 - 2ab + ||b||^2, which cancels where points are close; [B, C, D] never exists
    return torch.cdist(first, second, compute_mode='donot_use_mm_for_euclid_dist')
