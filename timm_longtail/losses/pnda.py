"""Contrast with a queue, rotations of an image being positives or negatives

Paper: `Rethinking Rotation in Self-Supervised Contrastive Learning: Adaptive Positive or Negative Data Augmentation`
    - Atsuyuki Miyai, Qing Yu, Daiki Ikami, Go Irie, Kiyoharu Aizawa, WACV 2023
    - https://arxiv.org/abs/2210.12681

Implemented from equation (5). Without rotations it is the loss of MoCo (He et al., CVPR 2020,
https://arxiv.org/abs/1911.05722, equation (1)).
Shapes: B batch, R rotations of a key, K keys in the queue, E width.
"""
import torch

from ..utils.errors import UserError
from ._common import full_precision


@full_precision
def pnda_loss(
        query: torch.Tensor,
        key: torch.Tensor,
        rotated_keys: torch.Tensor,
        rotation_positive: torch.Tensor,
        queue: torch.Tensor,
        temperature: float,
) -> torch.Tensor:
    """Pull a query to its key; pull the rotated keys, or push them away, as each image demands.

        L_i = -1/|P_i| sum_{p in P_i} log( exp(q_i.p / t) / sum_{a in P_i or N_i} exp(q_i.a / t) )

    The queue is in every N_i. Where rotations are positive, P_i is the key and its R rotations;
    elsewhere it is the key alone, and its rotations are in N_i. All terms are in one denominator
    either way.

    Args:
        query: Embeddings of the queries [B, E], L2-normalised by the caller as all others here.
        key: Embeddings of other views of the same images, [B, E].
        rotated_keys: Embeddings of the rotated keys, [B, R, E]; R may be 0.
        rotation_positive: Flags of the images whose rotations are positives, bool [B].
        queue: Embeddings of other images, [K, E].
        temperature: Divisor of the similarities, t above.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, or a temperature that is not positive.
    """
    _check_shapes(query, key, rotated_keys, rotation_positive, queue)
    if rotation_positive.dtype != torch.bool:
        raise UserError(f'expected flags of type bool, got {rotation_positive.dtype}')
    if not temperature > 0:
        raise UserError(f'temperature must be positive, got {temperature}')

    # q_i.a / t of the key and its rotations, and of the queue
    own = torch.cat((key[:, None], rotated_keys), dim=1)  # [B, 1 + R, E]
    own_logits = (own @ query[:, :, None]).squeeze(2) / temperature  # [B, 1 + R]
    queue_logits = query @ queue.T / temperature  # [B, K]

    log_denominator = torch.cat((own_logits, queue_logits), dim=1).logsumexp(1)
    mean_positive = torch.where(rotation_positive, own_logits.mean(1), own_logits[:, 0])
    return (log_denominator - mean_positive).mean()


def _check_shapes(
        query: torch.Tensor,
        key: torch.Tensor,
        rotated_keys: torch.Tensor,
        rotation_positive: torch.Tensor,
        queue: torch.Tensor,
):
    """Raise a `UserError` unless the shapes are those that `pnda_loss` documents."""
    tensors = (query, key, rotated_keys, rotation_positive, queue)

    # sizes can be compared where the numbers of dimensions are right
    fits = [tensor.ndim for tensor in tensors] == [2, 2, 3, 1, 2]
    if fits:
        batch_size, width = query.shape
        fits = (
            key.shape == (batch_size, width)
            and rotated_keys.shape[0] == batch_size
            and rotated_keys.shape[2] == width
            and len(rotation_positive) == batch_size
            and queue.shape[1] == width
        )

    if not fits:
        found = ', '.join(str([*tensor.shape]) for tensor in tensors)
        raise UserError(
            f'expected query [B, E], key [B, E], rotated keys [B, R, E], flags [B], queue [K, E], '
            f'got {found}')
