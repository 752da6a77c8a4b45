"""Cross-entropy with soft labels, re-weighted by class

Paper: `Global and Local Mixture Consistency Cumulative Learning for Long-tailed Visual Recognitions`
    - Fei Du, Peng Yang, Qi Jia, Fengtao Nan, Xiaoting Chen, Yun Yang, CVPR 2023
    - https://arxiv.org/abs/2305.08661

Implemented from the formula. Shapes: B batch, C classes.
"""
import torch

from ..utils.errors import UserError
from ._common import full_precision


@full_precision
def soft_cross_entropy(
        logits: torch.Tensor,
        target: torch.Tensor,
        class_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy against soft labels whose classes are weighted, and which are not normalised again.

        L = -1/B sum_i sum_c w_c y_ic log softmax(f(x_i))_c

    So a label of rare classes counts for more than one image. The mean is over the batch, not over
    the weights.

    Args:
        logits: Class scores [B, C].
        target: Soft labels [B, C].
        class_weight: Weight w of each class, [C]; None is 1 for every class.

    Returns:
        Scalar, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit.
    """
    if target.shape != logits.shape:
        raise UserError(
            f'expected logits and target [B, C], got {[*logits.shape]} and {[*target.shape]}')
    if class_weight is not None and class_weight.shape != logits.shape[1:]:
        raise UserError(
            f'expected {logits.shape[1]} class weights, one a column of logits, '
            f'got {[*class_weight.shape]}')

    target = target.to(logits.dtype)
    if class_weight is not None:
        target = target * class_weight.to(logits.dtype)  # w_c y_ic

    log_p = logits.log_softmax(1)
    return -(target * log_p).sum(1).mean()
