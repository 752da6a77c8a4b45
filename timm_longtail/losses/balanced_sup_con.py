"""Balanced supervised contrastive loss

Paper: `Balanced Contrastive Learning for Long-Tailed Visual Recognition`
    - Jianggang Zhu, Zheng Wang, Jingjing Chen, Yi-Ping Phoebe Chen, Yu-Gang Jiang, CVPR 2022
    - https://arxiv.org/abs/2207.09052

Implemented from the paper's formulation. What it leaves open (prototypes are never anchors, the anchor leaves both its
class's sum and its count, no stop-gradient) follows the authors' code,
https://github.com/FlamieZhu/Balanced-Contrastive-Learning.
Shapes: B batch (rows, all views of all images), C classes, D width.
"""
import torch

from ..errors import UserError
from ._common import check_embeddings, full_precision, reduce_rows


@full_precision
def balanced_sup_con_loss(
        embeddings: torch.Tensor,
        target: torch.Tensor,
        prototypes: torch.Tensor,
        temperature: float,
        reduction: str = 'mean',
) -> torch.Tensor:
    """Supervised contrastive loss in which every class weighs the same in the denominator, whatever its rows.

        L_i = -1/|P_i| sum_{p in P_i} log( exp(z_i.z_p / t) / sum_k S_k / m_k )
        S_k = sum_{j in B_k + {c_k}, j != i} exp(z_i.z_j / t)

    Class-averaging: each class k enters by the mean over its m_k terms. Class-complement: its prototype c_k is one of
    them, so a class absent from the batch is still there. P_i holds the other rows of the anchor's class and its
    prototype, so it is never empty. m_k is (rows of class k) + 1, less 1 for the anchor's own class.

    The plain mean over anchors weighs head anchors more, so its minimum is not the regular simplex of the paper's
    theorem either: for that, take reduction='none' and average within each class, then over classes.

    Memory is B x (B + C).

    Args:
        embeddings: Rows [B, D], L2-normalised by the caller.
        target: Class ids in [0, C), int64 [B]; their range is not looked at, which would wait for the device.
        prototypes: One row a class [C, D], L2-normalised by the caller; gradients reach them.
        temperature: Divides the similarities, t above.
        reduction: 'mean' and 'sum' over anchors, 'none' for [B].

    Returns:
        Scalar, or [B] with reduction 'none', in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, a temperature that is not positive, an unknown reduction.
    """
    check_embeddings(embeddings, target, temperature)
    if prototypes.ndim != 2 or prototypes.shape[1] != embeddings.shape[1]:
        raise UserError(f'expected prototypes [C, {embeddings.shape[1]}], got {[*prototypes.shape]}')
    classes = torch.arange(len(prototypes), dtype=target.dtype, device=target.device)
    columns = torch.cat([target, classes])  # [B + C], the class of each term
    is_same = target[:, None] == columns  # [B, B + C]
    is_self = torch.eye(*is_same.shape, dtype=torch.bool, device=target.device)
    is_positive = is_same & ~is_self

    similarity = embeddings @ torch.cat([embeddings, prototypes]).T / temperature  # [B, B + C]
    # rows of each column's class, and its prototype; in the anchor's own class the anchor makes up for the prototype
    term_count = is_same.sum(0, dtype=similarity.dtype) + ~is_same  # m_k at each term, >= 1
    weighted = (similarity - term_count.log()).masked_fill(is_self, torch.finfo(similarity.dtype).min)
    mean_positive = similarity.masked_fill(~is_positive, 0).sum(1) / is_positive.sum(1)
    return reduce_rows(weighted.logsumexp(1) - mean_positive, reduction)
