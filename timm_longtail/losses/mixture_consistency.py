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
        z1: Projections of the first mixtures, the predictor's input.
        z2: Projections of the second mixtures.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that differ.
    """
    shapes = [[*t.shape] for t in (p1, p2, z1, z2)]
    if p1.ndim != 2 or any(shape != shapes[0] for shape in shapes):
        raise UserError(f'expected four tensors [B, E] of one shape, got {shapes}')

    p1 = F.normalize(p1, dim=1)
    p2 = F.normalize(p2, dim=1)
    z1 = F.normalize(z1.detach(), dim=1)  # sg
    z2 = F.normalize(z2.detach(), dim=1)

    cosines = (p1 * z2).sum(1) + (p2 * z1).sum(1)  # [B]
    return -cosines.mean()
