"""Balanced supervised contrastive loss

Paper: `Balanced Contrastive Learning for Long-Tailed Visual Recognition`
    - Jianggang Zhu, Zheng Wang, Jingjing Chen, Yi-Ping Phoebe Chen, Yu-Gang Jiang, CVPR 2022
    - https://arxiv.org/abs/2207.09052

Implemented from the paper's formulation. What it leaves open (prototypes are never anchors, the
anchor leaves both its class's sum and its count, no stop-gradient) follows the authors' code,
https://github.com/FlamieZhu/Balanced-Contrastive-Learning.
Shapes: B batch (rows, all views of all images), C classes, D width, R anchors of a block.
"""
import torch

from ..utils.errors import UserError
from ._common import check_embeddings, full_precision, loss_of_anchors, reduce_rows


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

    Class-averaging: each class k enters by the mean over its m_k terms. Class-complement: its
    prototype c_k is one of them, so a class absent from the batch is still there. P_i holds the
    other rows of the anchor's class and its prototype, so it is never empty. m_k is (rows of class
    k) + 1, less 1 for the anchor's own class.

    The plain mean over anchors weighs head anchors more, so its minimum is not the regular simplex
    of the paper's theorem either: for that, take reduction='none' and average within each class,
    then over classes.

    Memory is B x (B + C) up to `BLOCK_SIZE`, and O(B + C) beyond.

    Args:
        embeddings: Rows [B, D], L2-normalised by the caller.
        target: Class ids in [0, C), int64 [B]; the range is not checked, which would wait for the
            device.
        prototypes: One row for each class, [C, D], L2-normalised by the caller; gradients reach
            them.
        temperature: Divisor of the similarities, t above.
        reduction: 'mean' or 'sum' over anchors, 'none' for [B].

    Returns:
        Scalar, or [B] with reduction 'none', in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, a temperature that is not positive, an unknown reduction.
    """
    check_embeddings(embeddings, target, temperature)
    if prototypes.ndim != 2 or prototypes.shape[1] != embeddings.shape[1]:
        raise UserError(
            f'expected prototypes [C, {embeddings.shape[1]}], got {[*prototypes.shape]}')

    # the terms of every sum: the rows of the batch, then one prototype a class
    classes = torch.arange(len(prototypes), dtype=target.dtype, device=target.device)
    terms = torch.cat([embeddings, prototypes])  # [B + C, D]
    columns = torch.cat([target, classes])  # [B + C], the class of each term

    # how many rows of the batch have the class of each term
    ones = torch.ones_like(target, dtype=embeddings.dtype)
    class_rows = torch.zeros_like(classes, dtype=embeddings.dtype).index_add(0, target, ones)  # [C]
    class_rows = class_rows[columns]  # [B + C]

    loss = loss_of_anchors(
        _block_loss, embeddings, target, len(columns), terms, columns, class_rows, temperature)
    return reduce_rows(loss, reduction)


def _block_loss(
        first: int,
        anchors: torch.Tensor,
        anchor_target: torch.Tensor,
        terms: torch.Tensor,
        columns: torch.Tensor,
        class_rows: torch.Tensor,
        temperature: float,
) -> torch.Tensor:
    """L_i of the anchors [R, D], which are the terms from `first` on.

    `class_rows` are the rows of each term's class, [B + C].
    """
    similarity = anchors @ terms.T / temperature  # [R, B + C]
    is_positive = anchor_target[:, None] == columns

    # log m_k at each term: the rows of its class and its prototype, but not the anchor itself
    log_count = torch.where(is_positive, class_rows.log(), (class_rows + 1).log())

    # the anchor is neither a positive nor a term of its own sum
    is_positive.diagonal(first).fill_(False)
    log_count.diagonal(first).fill_(torch.inf)

    # the mean over the positives first: the sum below keeps a matrix for the backward pass
    mean_positive = similarity.masked_fill(~is_positive, 0).sum(1) / is_positive.sum(1)
    log_denominator = (similarity - log_count).logsumexp(1)  # log sum_k S_k / m_k
    return log_denominator - mean_positive
