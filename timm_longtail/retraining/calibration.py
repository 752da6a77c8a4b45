"""Temperature of a classifier (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599), each class
weighing the same.

Shapes: N images, C classes.
"""
import math

import torch
from torch.nn import functional as F

__all__ = ['class_balanced_ece', 'fit_temperature']

_NUM_BINS = 15
_LOG_RANGE = (math.log(1e-4), math.log(1e4))
_GOLDEN = (math.sqrt(5) - 1) / 2


@torch.no_grad()
def fit_temperature(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the T at which the cross-entropy of logits / T is least; the mean is taken over
    classes.

    The cross-entropy is convex in 1 / T, and so has one minimum in log T, which a golden section
    finds. T lies in [1e-4, 1e4]: where all images are classified correctly, the best T is 0.

    Args:
        logits: Of images that the classifier was not fitted on [N, C].
        targets: Class of each image, int64 [N].
    """
    logits = logits.double()
    weights = _image_weights(targets, logits.shape[1])

    def loss(log_temperature: float) -> float:
        losses = F.cross_entropy(logits / math.exp(log_temperature), targets, reduction='none')
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
