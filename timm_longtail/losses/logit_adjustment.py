"""Logit-adjusted cross-entropy

Paper: `Long-tail learning via logit adjustment`
    - Aditya Krishna Menon, Sadeep Jayasumana, Ankit Singh Rawat, Himanshu Jain, Andreas Veit,
      Sanjiv Kumar, ICLR 2021
    - https://arxiv.org/abs/2007.07314

Implemented from the paper's equation (10). At tau = 1 it is also the loss called balanced softmax.
Shapes: B batch, C classes.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ._common import full_precision
from ._logits import log_prior


@full_precision
def logit_adjusted_cross_entropy(
        logits: torch.Tensor,
        target: torch.Tensor,
        class_counts: Sequence[float] | torch.Tensor,
        tau: float = 1.0,
) -> torch.Tensor:
    """Cross-entropy of logits raised by tau times the log of the class prior, which asks tail classes for a margin.

        L = -1/B sum_i log softmax(f(x_i) + tau log pi)[y_i],    pi_c = n_c / sum_k n_k

    A soft target weighs the log-probabilities of the adjusted logits. Predictions use the raw
    logits.

    Args:
        logits: Class scores [B, C].
        target: Class ids, int64 [B], or class probabilities [B, C].
        class_counts: Training images of each class [C], all positive: list, array or tensor. Pass a
            tensor on the device of logits in a training loop: its values are then not read, so no
            step waits for the device.
        tau: Weight of the prior; 0 is plain cross-entropy.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Not C counts, or one that is not positive (checked on the CPU only).
    """
    if target.ndim == 2:
        target = target.to(logits.dtype)

    adjusted = logits + tau * log_prior(class_counts, logits)
    return F.cross_entropy(adjusted, target)
