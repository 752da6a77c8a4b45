"""Global and local mixture consistency

Paper: `Global and Local Mixture Consistency Cumulative Learning for Long-tailed Visual Recognitions`
    - Fei Du, Peng Yang, Qi Jia, Fengtao Nan, Xiaoting Chen, Yun Yang, CVPR 2023
    - https://arxiv.org/abs/2305.08661

Implemented from the formula, L_sim; not halved, as in the published results.
Shapes: B batch, E width.
"""
import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ._common import full_precision


@full_precision
def mixture_consistency_loss(
        p1: torch.Tensor,
        p2: torch.Tensor,
        z1: torch.Tensor,
        z2: torch.Tensor,
) -> torch.Tensor:
    """Let the prediction from one mixture of two images resemble the projection of the other mixture.

        L_sim = -cos(p1, sg(z2)) - cos(p2, sg(z1)),    in [-2, 2]

    sg stops the gradient, as in SimSiam: it reaches the network through the predictions alone.

    Args:
        p1: Predictions [B, E] from the first mixtures (MixUp), of any length; normalised here.
        p2: Predictions from the second mixtures (CutMix).
        z1: Projections of the first mixtures, what the predictor was given.
        z2: Projections of the second mixtures.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that differ.
    """
    if p1.ndim != 2 or any(t.shape != p1.shape for t in (p2, z1, z2)):
        raise UserError(f'expected four tensors [B, E] of one shape, got {[[*t.shape] for t in (p1, p2, z1, z2)]}')
    p1, p2, z1, z2 = (F.normalize(t, dim=1) for t in (p1, p2, z1.detach(), z2.detach()))
    return -((p1 * z2).sum(1) + (p2 * z1).sum(1)).mean()
