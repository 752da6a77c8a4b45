"""Post-hoc logit adjustment (Menon et al., ICLR 2021, https://arxiv.org/abs/2007.07314, section 4.1).

Shapes: C classes, D width of the features.
"""
from collections.abc import Sequence

import torch
from torch import nn

from ...models.layers import linear_classifier

__all__ = ['logit_adjust']


@torch.no_grad()
def logit_adjust(linear: nn.Linear, class_counts: Sequence[float] | torch.Tensor, tau: float = 1.0) -> nn.Linear:
    """Subtract the log of the class prior from the logits: b_c - tau log pi_c (equation 9).

    Where the logits are the log-posteriors of the training distribution, tau = 1 gives those of balanced classes.

    Args:
        linear: Classifier trained without an adjustment, weight [C, D]; stays as it is.
        class_counts: Training images of each class [C], all positive; pi is their share.
        tau: Strength.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device=linear.weight.device)
    bias = torch.zeros_like(counts) if linear.bias is None else linear.bias.double()
    return linear_classifier(linear.weight, bias - tau * (counts / counts.sum()).log()).to(linear.weight)
