"""Separation of images by how well their rotation is recognised

Paper: `Rethinking Rotation in Self-Supervised Contrastive Learning: Adaptive Positive or Negative Data Augmentation`
    - Atsuyuki Miyai, Qing Yu, Daiki Ikami, Go Irie, Kiyoharu Aizawa, WACV 2023
    - https://arxiv.org/abs/2210.12681

Implemented from equations (2) to (4); the entropy separation is that of Q. Yu et al., CVPR 2021.
Shapes: N rows (the rotations of all images), S rotations.
"""
import math

import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ._common import full_precision
from ._logits import check_logits


@full_precision
def rotation_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Return the entropy H of each row's prediction, in nats: log S where the rotation cannot be recognised.

    Args:
        logits: Scores of the rotations [N, S].

    Returns:
        [N], in float32 or wider.
    """
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1)


@full_precision
def rotation_separation_loss(
        logits: torch.Tensor,
        target: torch.Tensor,
        weight: float,
        margin: float = 0.2,
) -> torch.Tensor:
    """Train on rows whose rotation is recognised, and drive all entropies away from half of their range.

        L = 1/N sum_i ( [H_i - rho < -m] CE_i - weight [|H_i - rho| > m] |H_i - rho| )
        rho = log(S) / 2

    Rows within m of rho count as 0. The paper divides by the images, a factor of S more; the means
    over rows are those of the released code. Which rows count is decided without a gradient.

    Args:
        logits: Scores of the rotations [N, S].
        target: Rotation of each row, int64 [N].
        weight: Weight of the entropy separation, lambda in equation (4).
        margin: Distance from rho below which a row counts as 0, m above.

    Returns:
        Mean over the rows, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, or a negative margin.
    """
    check_logits(logits, target)
    if margin < 0:
        raise UserError(f'margin must not be negative, got {margin}')

    rho = math.log(logits.shape[1]) / 2
    distance = rotation_entropy(logits) - rho  # H - rho, [N]

    # the cross-entropy of rows whose rotation is recognised, and the separation of all rows
    cross_entropy = F.cross_entropy(logits, target, reduction='none')
    cross_entropy = cross_entropy.masked_fill(distance >= -margin, 0)
    separation = distance.abs()
    separation = separation.masked_fill(separation <= margin, 0)
    return (cross_entropy - weight * separation).mean()
