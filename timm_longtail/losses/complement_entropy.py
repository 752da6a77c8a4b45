"""Complement entropy

Paper: `Complement Objective Training`
    - Hao-Yun Chen, Pei-Hsin Wang, Chun-Hao Liu, Shih-Chieh Chang, Jia-Yu Pan, Yu-Ting Chen, Wei
      Wei, Da-Cheng Juan, ICLR 2019
    - https://arxiv.org/abs/1903.01182

Implemented from the paper's formulation, with its balancing factor 1 / (C - 1) and the sign turned,
to be minimised.
Shapes: B batch, C classes.
"""
import torch

from ._common import full_precision, mean_over_batch
from ._logits import check_logits, is_target_class


@full_precision
def complement_entropy_loss(
        logits: torch.Tensor,
        target: torch.Tensor,
        mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Negative entropy of the wrong classes among themselves: minimised, no wrong class stands out.

        L = 1 / (B (C - 1)) sum_i sum_{j != y_i} p'_ij log p'_ij,    p'_ij = p_ij / (1 - p_iy)

    It lies between -log(C - 1) / (C - 1) and 0, and is 0 for one class and for two. p' is the
    softmax over the wrong classes' logits, and computed as such: the logit of the right class drops
    out, so 1 - p_iy is never divided by.

    Args:
        logits: Class scores [B, C].
        target: Class ids, int64 [B].
        mask: Rows that count, bool [B]; None counts all. The sum is divided by B all the same, so
            that averages over processes are exact and a batch without such rows gives 0.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit.
    """
    check_logits(logits, target)
    num_classes = logits.shape[1]

    # the lowest finite number, not -inf: there p' is 0 and p' log p' too, not 0 * inf
    lowest = torch.finfo(logits.dtype).min
    wrong_logits = logits.masked_fill(is_target_class(target, num_classes), lowest)
    log_complement = wrong_logits.log_softmax(1)  # log p', [B, C]

    negative_entropy = (log_complement.exp() * log_complement).sum(1)  # [B]
    return mean_over_batch(negative_entropy / max(num_classes - 1, 1), mask)
