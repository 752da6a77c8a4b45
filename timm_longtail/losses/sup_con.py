"""Supervised contrastive loss

Paper: `Supervised Contrastive Learning`
    - Prannay Khosla, Piotr Teterwak, Chen Wang, Aaron Sarna, Yonglong Tian, Phillip Isola, Aaron
      Maschinot, Ce Liu, Dilip Krishnan, NeurIPS 2020
    - https://arxiv.org/abs/2004.11362

Implemented from the paper's equation (2), L_out.
Shapes: B batch (rows, all views of all images), D width, R anchors of a block.
"""
import torch

from ._common import check_embeddings, full_precision, loss_of_anchors, reduce_rows


@full_precision
def sup_con_loss(
        embeddings: torch.Tensor,
        target: torch.Tensor,
        temperature: float,
        reduction: str = 'mean',
) -> torch.Tensor:
    """Pull rows of one class together and push all other rows away, each row being an anchor once.

        L_i = -1/|P_i| sum_{p in P_i} log( exp(z_i.z_p / t) / sum_{a != i} exp(z_i.z_a / t) )

    P_i holds the other rows of the anchor's class. An anchor without any gives 0 and counts in the
    mean. There is no factor for a base temperature. Every row enters the denominator once, so head
    classes fill it: see `balanced_sup_con_loss`. Memory is B x B up to `BLOCK_SIZE`, and O(B)
    beyond.

    Args:
        embeddings: Rows [B, D], L2-normalised by the caller.
        target: Class ids, int64 [B].
        temperature: Divisor of the similarities, t above.
        reduction: 'mean' or 'sum' over anchors, 'none' for [B].

    Returns:
        Scalar, or [B] with reduction 'none', in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, a temperature that is not positive, an unknown reduction.
    """
    check_embeddings(embeddings, target, temperature)
    loss = loss_of_anchors(
        _block_loss, embeddings, target, len(target), embeddings, target, temperature)
    return reduce_rows(loss, reduction)


def _block_loss(
        first: int,
        anchors: torch.Tensor,
        anchor_target: torch.Tensor,
        embeddings: torch.Tensor,
        target: torch.Tensor,
        temperature: float,
) -> torch.Tensor:
    """L_i of the anchors [R, D], which are the rows from `first` on."""
    similarity = anchors @ embeddings.T / temperature  # [R, B]

    # the anchor is neither a positive nor a term of its own denominator
    is_self = torch.zeros_like(similarity, dtype=torch.bool)
    is_self.diagonal(first).fill_(True)
    is_positive = (anchor_target[:, None] == target) & ~is_self
    num_positives = is_positive.sum(1)

    # the lowest finite number, not -inf: a row alone keeps a finite (and then unused) logsumexp
    lowest = torch.finfo(similarity.dtype).min
    log_denominator = similarity.masked_fill(is_self, lowest).logsumexp(1)
    mean_positive = similarity.masked_fill(~is_positive, 0).sum(1) / num_positives.clamp(min=1)
    return (log_denominator - mean_positive).masked_fill(num_positives == 0, 0)
