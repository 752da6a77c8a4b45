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
    """Pull a query to its key, and its rotated keys near or away as the image has it.

        L_i = -1/|P_i| sum_{p in P_i} log( exp(q_i.p / t) / sum_{a in P_i or N_i} exp(q_i.a / t) )

    The queue is in every N_i. Where rotations are positive, P_i is the key and its R rotations; elsewhere it is the key
    alone, and its rotations are in N_i. All terms are in one denominator either way.

    Args:
        query: Rows [B, E], L2-normalised by the caller, as all rows here.
        key: Of the same images, [B, E].
        rotated_keys: The keys of their rotations, [B, R, E]; R may be 0.
        rotation_positive: Whose rotations are positives, bool [B].
        queue: Keys of other images, [K, E].
        temperature: Divides the similarities, t above.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, or a temperature that is not positive.
    """
    _check(query, key, rotated_keys, rotation_positive, queue, temperature)
    own = torch.cat((key[:, None], rotated_keys), dim=1)  # [B, 1 + R, E]
    own_logits = (own @ query[:, :, None]).squeeze(2) / temperature  # [B, 1 + R]
    log_denominator = torch.cat((own_logits, query @ queue.T / temperature), dim=1).logsumexp(1)
    mean_positive = torch.where(rotation_positive, own_logits.mean(1), own_logits[:, 0])
    return (log_denominator - mean_positive).mean()


def _check(query, key, rotated_keys, rotation_positive, queue, temperature):
    rows = query.shape[:1]
    shapes = [query.shape, key.shape, rotated_keys.shape, rotation_positive.shape, queue.shape]
    fits = query.ndim == 2 and key.shape == query.shape and rotated_keys.ndim == 3 and queue.ndim == 2
    if not fits or not rotated_keys.shape[:1] == rotation_positive.shape == rows or not (
            rotated_keys.shape[2:] == queue.shape[1:] == query.shape[1:]):
        raise UserError('expected query [B, E], key [B, E], rotated keys [B, R, E], flags [B], queue [K, E], got '
                        f'{", ".join(str([*shape]) for shape in shapes)}')
    if rotation_positive.dtype != torch.bool:
        raise UserError(f'expected flags of type bool, got {rotation_positive.dtype}')
    if not temperature > 0:
        raise UserError(f'temperature must be positive, got {temperature}')
