"""Focal loss

Paper: `Focal Loss for Dense Object Detection`
    - Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár, ICCV 2017
    - https://arxiv.org/abs/1708.02002

Implemented from the paper's equation (4) with the softmax probability of the target, as long-tailed classification uses
it; the paper, and Cui et al. (CVPR 2019, https://arxiv.org/abs/1901.05555), take a sigmoid of each class.
Shapes: B batch, C classes.
"""
import torch

from ..errors import UserError
from ._common import full_precision, reduce_rows
from ._logits import check_logits, row_weight


@full_precision
def focal_loss(
        logits: torch.Tensor,
        target: torch.Tensor,
        gamma: float = 2.0,
        weight: torch.Tensor | None = None,
        reduction: str = 'mean',
) -> torch.Tensor:
    """Cross-entropy that counts less for rows that are already right.

        L_i = -(1 - p_i)^gamma log p_i,    p_i = softmax(logits_i)[y_i]

    Args:
        logits: Class scores [B, C].
        target: Class ids, int64 [B].
        gamma: Focusing; 0 is plain cross-entropy.
        weight: Of each class [C]; the mean is then sum(w l) / sum(w), as in PyTorch.
        reduction: 'mean' and 'sum' over rows, 'none' for [B].

    Returns:
        Scalar, or [B] with reduction 'none', in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, a negative gamma, an unknown reduction.
    """
    check_logits(logits, target, weight)
    if not gamma >= 0:
        raise UserError(f'gamma must be at least 0, got {gamma}')
    column = target[:, None]
    log_prob = logits.log_softmax(1).gather(1, column).squeeze(1)
    # log(1 - p) from the scores of the other classes: 1 - p is 0 for a row that is sure, where a power has no gradient.
    # The lowest finite number, not -inf: a class alone keeps a finite gradient
    others = logits.scatter(1, column, torch.finfo(logits.dtype).min)
    log_rest = others.logsumexp(1) - logits.logsumexp(1)
    loss = -(gamma * log_rest).exp() * log_prob
    return reduce_rows(loss, reduction, row_weight(weight, logits, target))
