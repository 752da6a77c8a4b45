"""Binary cross-entropy of a softmax

Second stage of the released code of `Long-Tailed Recognition via Weight Balancing`
    - Shaden Alshammari, Yu-Xiong Wang, Deva Ramanan, Shu Kong, CVPR 2022
    - https://arxiv.org/abs/2203.14197, https://github.com/ShadeAlsha/LTR-weight-balancing

Implemented from what that code computes: a common port of the class-balanced loss (Cui et al., CVPR
2019, https://arxiv.org/abs/1901.05555), whose paper has the cross-entropy of the softmax instead.
Shapes: B batch, C classes.
"""
import torch

from ._common import full_precision
from ._logits import check_logits, is_target_class, row_weight


@full_precision
def softmax_binary_cross_entropy(
        logits: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy of each class's probability, averaged over images and classes.

        L = -1/(B C) sum_i w_{y_i} ( log p_{i y_i} + sum_{j != y_i} log(1 - p_ij) )
        p_i = softmax(logits_i)

    It is about C times smaller than the cross-entropy, which matters beside weight decay. PyTorch's
    own binary cross-entropy takes probabilities and bounds their logarithms at -100; here they are
    exact.

    Args:
        logits: Class scores [B, C].
        target: Class ids, int64 [B].
        weight: Weight of each class, [C]; a row has that of its target, and the mean is over rows,
            whatever their weights.

    Returns:
        Scalar, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit.
    """
    check_logits(logits, target, weight)
    log_p = logits.log_softmax(1)

    # log(1 - p) from p, except for the largest, which may be 1
    largest = logits.argmax(1, keepdim=True)  # [B, 1]
    log_rest = torch.log1p(-log_p.exp().scatter(1, largest, 0))

    # there from the scores of the other classes
    lowest = torch.finfo(logits.dtype).min
    others = logits.scatter(1, largest, lowest).logsumexp(1, keepdim=True)
    log_rest = log_rest.scatter(1, largest, others - logits.logsumexp(1, keepdim=True))

    is_target = is_target_class(target, logits.shape[1])
    rows = -torch.where(is_target, log_p, log_rest).mean(1)  # [B]

    row_weights = row_weight(weight, logits, target)
    if row_weights is not None:
        rows = row_weights * rows
    return rows.mean()
