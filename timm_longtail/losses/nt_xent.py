"""NT-Xent, the contrastive loss of SimCLR

Paper: `A Simple Framework for Contrastive Learning of Visual Representations`
    - Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton, ICML 2020
    - https://arxiv.org/abs/2002.05709

Implemented from the paper's equation (1) and algorithm 1.
Shapes: B batch, E width, R anchors of a block, A anchors, T terms of an anchor.
"""
import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ._common import full_precision, loss_of_anchors


@full_precision
def nt_xent_loss(z1: torch.Tensor, z2: torch.Tensor, temperature: float) -> torch.Tensor:
    """Pull the two embeddings of an image together and push all other rows of both away.

        L_i = -log( exp(cos(z_i, z_p(i)) / t) / sum_{k != i} exp(cos(z_i, z_k) / t) )
        z = [z1; z2]

    Each of the 2B rows is an anchor once; p(i) is the other embedding of its image. Labels have no
    part in it. Memory is 2B x 2B up to `BLOCK_SIZE`, and O(B) beyond.

    Args:
        z1: Embeddings [B, E] of any length; normalised here.
        z2: The other embeddings of the same images, in the same order.
        temperature: Divisor of the similarities, t above.

    Returns:
        Mean over the 2B anchors, in float32 or wider.

    Raises:
        UserError: Shapes that differ, a temperature that is not positive.
    """
    check_pairs(temperature, z1, z2)
    rows = F.normalize(torch.cat([z1, z2]), dim=1)  # [2B, E]
    others = torch.arange(len(rows), device=rows.device).roll(len(z1))  # p(i)
    return pair_loss(rows, rows, others, temperature, anchors_are_terms=True)


def check_pairs(temperature: float, *embeddings: torch.Tensor):
    """Check that all embeddings are [B, E], by their shapes only.

    Raises:
        UserError: Shapes that differ, or a temperature that is not positive.
    """
    shapes = [[*z.shape] for z in embeddings]
    if len(shapes[0]) != 2 or any(shape != shapes[0] for shape in shapes):
        raise UserError(f'expected embeddings [B, E] of one shape, got {shapes}')
    if not temperature > 0:
        raise UserError(f'temperature must be positive, got {temperature}')


def pair_loss(
        anchors: torch.Tensor,
        terms: torch.Tensor,
        positive: torch.Tensor,
        temperature: float,
        anchors_are_terms: bool,
        anchor_classes: torch.Tensor | None = None,
        term_classes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean over anchors of the cross-entropy between one positive and all other terms.

    Args:
        anchors: Unit rows [A, E].
        terms: Unit rows [T, E].
        positive: Index of the term that each anchor is pulled to, int64 [A].
        temperature: Divisor of the similarities.
        anchors_are_terms: Whether anchor i is term i, and so no term of its own sum.
        anchor_classes: Classes of each anchor, int64 [A, K]; with `term_classes`, terms that share
            one with the anchor are left out, except the positive. None leaves nothing out.
        term_classes: Classes of each term, int64 [T, K].
    """
    losses = loss_of_anchors(
        _block_loss,
        anchors,
        positive,
        len(terms),
        terms,
        temperature,
        anchors_are_terms,
        anchor_classes,
        term_classes,
    )
    return losses.mean()


def _block_loss(
        first: int,
        anchors: torch.Tensor,
        positive: torch.Tensor,
        terms: torch.Tensor,
        temperature: float,
        anchors_are_terms: bool,
        anchor_classes: torch.Tensor | None,
        term_classes: torch.Tensor | None,
) -> torch.Tensor:
    """Loss [R] of the anchors from `first` on."""
    similarity = anchors @ terms.T / temperature  # [R, T]
    left_out = torch.zeros_like(similarity, dtype=torch.bool)

    # terms that share a class with the anchor are no negatives
    if anchor_classes is not None and term_classes is not None:
        block_classes = anchor_classes[first:first + len(anchors)]
        for anchor_class in block_classes.unbind(1):
            for term_class in term_classes.unbind(1):
                left_out |= anchor_class[:, None] == term_class

    # nor is the anchor itself; the positive stays in any case
    if anchors_are_terms:
        left_out.diagonal(first).fill_(True)
    left_out.scatter_(1, positive[:, None], False)

    logits = similarity.masked_fill(left_out, -torch.inf)
    return F.cross_entropy(logits, positive, reduction='none')
