"""Priors of classes as logarithms, and what another prior adds to logits.

Shapes: C classes.
"""
from collections.abc import Sequence

import numpy as np
import torch

from ..utils.errors import UserError

__all__ = ['log_prior', 'log_ratio']


def log_prior(prior: Sequence[float] | np.ndarray | torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the share of each class, float64 [C]; -inf for a class that does not occur.

    Args:
        prior: Weight of each class [C], such as its number of images.

    Raises:
        UserError: A weight that is negative or not finite, or none above 0.
    """
    weights = torch.as_tensor(prior, dtype=torch.float64)
    if not weights.isfinite().all() or (weights < 0).any() or not weights.sum() > 0:
        raise UserError('a prior has a weight of at least 0 for each class, and one above 0')
    return (weights / weights.sum()).log()


def log_ratio(target: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Return what is added to logits that follow one prior, for those of another one: float64 [C].

    A class that does not occur under the target gets -inf, whatever the model has learned of it.

    Args:
        target: Log prior that is asked for [C].
        learned: Log prior that the logits follow [C].

    Raises:
        UserError: A class that occurs under the target, and does not in what the model has learned:
            no logit says anything about it.
    """
    occurs = target > -torch.inf
    unknown = occurs & (learned == -torch.inf)
    if unknown.any():
        label = int(unknown.nonzero()[0, 0])
        raise UserError(
            f'class {label} does not occur in the distribution that the model has learned, and does in the one that '
            'is asked for: the prior of the model needs a weight above 0 for it')
    return torch.where(occurs, target - learned, -torch.inf)
