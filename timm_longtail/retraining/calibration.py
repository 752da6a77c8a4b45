"""Temperature of a classifier (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599), each class
weighing the same, fitted to targets short of certainty (Platt, Probabilistic Outputs for Support
Vector Machines, 1999, section 2.2).

Shapes: N images, C classes.
"""
import math

import torch
from torch.nn import functional as F

from ..utils.errors import UserError

__all__ = ['class_balanced_ece', 'fit_temperature']

_NUM_BINS = 15
_LOG_RANGE = (math.log(1e-4), math.log(1e4))
_GOLDEN = (math.sqrt(5) - 1) / 2


@torch.no_grad()
def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the T at which the cross-entropy of logits / T is least; the mean is taken over
    classes.

    Where all images are classified correctly, T would be 0, and the classifier certain of its next
    mistake. But n correct images of n tell of a chance of (n + 1) / (n + 2) by Laplace's rule. That
    is the target of the true class, and the others share the rest. T is one number for all classes,
    so n is the number of all images: the effective one, as images of rare classes weigh more.

    The cross-entropy is convex in 1 / T, and so has one minimum in log T, which a golden section
    finds in [1e-4, 1e4].

    Args:
        logits: Of images that the classifier was not fitted on [N, C].
        targets: Class of each image, int64 [N].

    Raises:
        UserError: Logits that are not finite.
    """
    if not logits.isfinite().all():
        raise UserError('calibration: the logits of the classifier are not finite')

    logits = logits.double()
    num_classes = logits.shape[1]
    weights = _image_weights(targets, num_classes)

    # torch gives the true class a part of what it takes off, too
    num_effective = 1 / float(weights.square().sum())
    rest = 1 / (num_effective + 2)
    smoothing = rest * num_classes / max(num_classes - 1, 1)

    def loss(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        losses = F.cross_entropy(scaled, targets, reduction='none', label_smoothing=smoothing)
        return float(losses @ weights)

    low, high = _LOG_RANGE
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    while high - low > 1e-4:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2)


@torch.no_grad()
def class_balanced_ece(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the expected calibration error in percent, of 15 bins, each class weighing the same.

    Args:
        logits: [N, C].
        targets: Class of each image, int64 [N].
    """
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    weights = _image_weights(targets, logits.shape[1])

    gaps = weights * ((predicted == targets).double() - confidence)
    bins = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    return 100 * float(gaps.new_zeros(_NUM_BINS).index_add_(0, bins, gaps).abs().sum())


def _image_weights(targets: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return weights of the images that give each class that is there the same, and sum to 1, float64 [N]."""
    counts = torch.bincount(targets, minlength=num_classes).double()
    return 1 / (counts[targets] * (counts > 0).sum())
