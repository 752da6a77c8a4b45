"""Focal loss

Paper: `Focal Loss for Dense Object Detection`
    - Tsung-Yi Lin, Priya Goyal, Ross Girshick, Kaiming He, Piotr Dollár, ICCV 2017
    - https://arxiv.org/abs/1708.02002

Implemented from the paper's equation (4) with the softmax probability of the target, as long-tailed
classification uses it; the paper, and Cui et al. (CVPR 2019, https://arxiv.org/abs/1901.05555),
take a sigmoid of each class.
Shapes: B batch, C classes.
"""
import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ._common import full_precision, reduce_rows
from ._logits import check_logits, row_weight


@full_precision
def focal_loss(
        logits: torch.Tensor,
        target: torch.Tensor,
        gamma: float = 2.0,
        weight: torch.Tensor | None = None,
        reduction: str = 'mean',
        inner_weight: bool = False,
) -> torch.Tensor:
    """Cross-entropy that counts less for rows that are already right.

        L_i = -(1 - p_i)^gamma log p_i,            p_i = softmax(logits_i)[y_i]
        L_i = -(1 - p_i^w)^gamma w log p_i,        with `inner_weight`, w the weight of class y_i

    The second form is that of LDAM's code (Cao et al., NeurIPS 2019,
    https://github.com/kaidic/LDAM-DRW), which takes p from the weighted cross-entropy: a heavy
    class also counts as less right.

    Args:
        logits: Class scores [B, C].
        target: Class ids, int64 [B].
        gamma: Strength of the focusing; 0 is plain cross-entropy.
        weight: Weight of each class, [C]; the mean is then sum(w l) / sum(w), as in PyTorch.
        reduction: 'mean' or 'sum' over rows, 'none' for [B].
        inner_weight: Whether the weight is in p too; the mean is then over the rows, whatever
            their weights.

    Returns:
        Scalar, or [B] with reduction 'none', in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, a negative gamma, an unknown reduction.
    """
    check_logits(logits, target, weight)
    if not gamma >= 0:
        raise UserError(f'gamma must be at least 0, got {gamma}')

    column = target[:, None]
    row_weights = row_weight(weight, logits, target)

    # scores of the other classes; not -inf, so that the gradient is finite where there are none
    lowest = torch.finfo(logits.dtype).min
    others = logits.scatter(1, column, lowest).logsumexp(1)  # [B]

    if inner_weight:
        # -log p as softplus, and 1 - p^w as expm1: both keep their digits where p is close to 1
        cross_entropy = F.softplus(others - logits.gather(1, column).squeeze(1))
        if row_weights is not None:
            cross_entropy = row_weights * cross_entropy
        rest = -torch.expm1(-cross_entropy)

        # a power has no gradient at 0
        rest = rest.clamp(min=torch.finfo(rest.dtype).tiny)
        return reduce_rows(rest ** gamma * cross_entropy, reduction)

    # log(1 - p) from the other classes: 1 - p rounds to 0, where a power has no gradient
    log_prob = logits.log_softmax(1).gather(1, column).squeeze(1)
    log_rest = others - logits.logsumexp(1)
    loss = -(gamma * log_rest).exp() * log_prob
    return reduce_rows(loss, reduction, row_weights)
