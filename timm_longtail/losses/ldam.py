"""Label-distribution-aware margin loss

Paper: `Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss`
    - Kaidi Cao, Colin Wei, Adrien Gaidon, Nikos Arechiga, Tengyu Ma, NeurIPS 2019
    - https://arxiv.org/abs/1906.07413

Implemented from the paper's formulation: margins C / n_c^(1/4) enforced on the cosines of a
normalised classifier. Giving the largest margin instead of C, and the scale of 30, are the authors'
code, https://github.com/kaidic/LDAM-DRW.
Shapes: B batch, C classes.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ._common import full_precision, reduce_rows
from ._logits import check_logits, is_target_class, log_prior, row_weight


@full_precision
def ldam_loss(
        logits: torch.Tensor,
        target: torch.Tensor,
        class_counts: Sequence[float] | torch.Tensor,
        max_margin: float = 0.5,
        scale: float = 30.0,
        weight: torch.Tensor | None = None,
        reduction: str = 'mean',
) -> torch.Tensor:
    """Cross-entropy of scaled cosines in which the target's is lowered by a margin, wider for rarer classes.

        L_i = -log softmax(s (f(x_i) - m_{y_i} e_{y_i}))[y_i]
        m_c = max_margin (min_k n_k / n_c)^(1/4)

    Args:
        logits: Cosines between feature and class weights [B, C], not scaled.
        target: Class ids, int64 [B].
        class_counts: Training images of each class [C], all positive: list, array or tensor. Pass a
            tensor on the device of logits in a training loop: its values are then not read, so no
            step waits for the device.
        max_margin: Margin of the rarest class; 0 leaves cross-entropy.
        scale: Factor of cosines and margins, s above.
        weight: Weight of each class, [C]; the mean is then sum(w l) / sum(w), as in PyTorch.
        reduction: 'mean' or 'sum' over rows, 'none' for [B].

    Returns:
        Scalar, or [B] with reduction 'none', in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, counts that are not positive (checked on the CPU only),
            a scale that is not positive, an unknown reduction.
    """
    check_logits(logits, target, weight)
    if not scale > 0:
        raise UserError(f'scale must be positive, got {scale}')

    # m_c: the ratio of counts is that of the priors
    log_pi = log_prior(class_counts, logits)
    margin = max_margin * ((log_pi.min() - log_pi) / 4).exp()  # [C]

    lowered = logits - margin * is_target_class(target, len(margin))
    loss = F.cross_entropy(scale * lowered, target, reduction='none')
    return reduce_rows(loss, reduction, row_weight(weight, logits, target))
