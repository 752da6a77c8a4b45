"""Binary cross-entropy of a softmax

Second stage of the released code of `Long-Tailed Recognition via Weight Balancing`
    - Shaden Alshammari, Yu-Xiong Wang, Deva Ramanan, Shu Kong, CVPR 2022
    - https://arxiv.org/abs/2203.14197, https://github.com/ShadeAlsha/LTR-weight-balancing

Implemented from what that code computes: a common port of the class-balanced loss (Cui et al., CVPR 2019,
https://arxiv.org/abs/1901.05555), whose paper has the cross-entropy of the softmax instead.
Shapes: B batch, C classes.
"""
import torch

from ._common import full_precision
from ._logits import check_logits, row_weight


@full_precision
def softmax_binary_cross_entropy(
        logits: torch.Tensor,
        target: torch.Tensor,
        weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy of each class's probability, averaged over images and classes.

        L = -1/(B C) sum_i w_{y_i} ( log p_{i y_i} + sum_{j != y_i} log(1 - p_ij) ),    p_i = softmax(logits_i)

    It is about C times smaller than the cross-entropy, which matters beside weight decay. PyTorch's own binary
    cross-entropy takes probabilities and bounds their logarithms at -100; here they are exact.

    Args:
        logits: Class scores [B, C].
        target: Class ids, int64 [B].
        weight: Of each class [C]; a row has that of its target, and the mean is over rows whatever they weigh.

    Returns:
        Scalar, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit.
    """
    check_logits(logits, target, weight)
    log_p = logits.log_softmax(1)

    # log(1 - p) from p, but for the largest, which may be 1: there from the scores of the other classes
    largest = logits.argmax(1, keepdim=True)
    others = logits.scatter(1, largest, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
    log_rest = torch.log1p(-log_p.exp().scatter(1, largest, 0))
    log_rest = log_rest.scatter(1, largest, others - logits.logsumexp(1, keepdim=True))

    is_target = target[:, None] == torch.arange(logits.shape[1], dtype=target.dtype, device=target.device)
    rows = -torch.where(is_target, log_p, log_rest).mean(1)  # [B]
    row_weights = row_weight(weight, logits, target)
    return rows.mean() if row_weights is None else (row_weights * rows).mean()
