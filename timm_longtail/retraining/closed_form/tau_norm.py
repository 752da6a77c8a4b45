"""Tau-normalised classifier (Kang et al., ICLR 2020, https://arxiv.org/abs/1910.09217, section 4.3).

Shapes: C classes, D width of the features.
"""
import torch
from torch import nn

from ...models.layers import linear_classifier

__all__ = ['TAUS', 'tau_normalize']

TAUS = tuple(round(0.1 * step, 1) for step in range(21))
"""The published grid: 0, 0.1, …, 2."""


@torch.no_grad()
def tau_normalize(linear: nn.Linear, tau: float) -> nn.Linear:
    """Divide each class weight by a power of its norm: w_c / |w_c|^tau (equation 10). The bias is dropped: it is 0.

    Training on a long tail gives frequent classes longer weights. tau = 0 keeps the weights, tau = 1 makes all of one
    length.

    Args:
        linear: Trained classifier, weight [C, D]; stays as it is.
        tau: Exponent, usually chosen in [0, 1] on a hold-out.
    """
    weight = linear.weight.double()
    norms = weight.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)  # an untrained row stays 0
    return linear_classifier(weight / norms ** tau).to(linear.weight)
