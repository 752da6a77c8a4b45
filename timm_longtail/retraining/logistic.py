"""Multinomial logistic regression with an L2 penalty, by L-BFGS, warm-started along a path of penalties.

The objective is scikit-learn's, whose `C` it shares, so that values carry over:

    C sum_i w_i CE(W x_i + b + a, y_i) + |W|^2 / 2,

with the weights w_i = 1 and the offsets a = 0 of logistic regression; the bias b is not penalised. Here it is divided
by C sum_i w_i, which makes it a mean, as float32 wants it.

An iteration is two products of [N, D] with [D, C]. Everything is left to torch, since these products are all that
costs, and on a GPU they are two orders of magnitude faster than on a CPU.

Shapes: N images, C classes, D width of the features.
"""
from collections.abc import Iterator, Sequence

import torch
from torch.nn import functional as F

from ..utils.errors import UserError

__all__ = ['fit_logistic', 'logistic_path']

_MAX_ITERATIONS = 1000


def logistic_path(
        features: torch.Tensor,
        targets: torch.Tensor,
        num_classes: int,
        path: Sequence[float],
        class_weights: torch.Tensor | None = None,
        offsets: torch.Tensor | None = None,
        tolerance: float = 1e-7,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Fit a classifier for each strength of the penalty, each from where the one before it ended.

    Args:
        features: Features of norm about 1, float32 or float64 [N, D]: the penalty means what it does at that scale.
        targets: Class of each image, int64 [N], on the same device.
        num_classes: C.
        path: Strengths `C`, increasing: the weaker penalties, which take longer, start near their end.
        class_weights: Weight of the images of each class [C]; None is 1.
        offsets: Added to the logits while training, [C]; None is 0. The log prior makes this balanced softmax.
        tolerance: Largest entry of the gradient, of the mean, at which a fit ends.

    Yields:
        Weight [C, D] and bias [C], a pair for each strength.

    Raises:
        UserError: A strength that is not positive.
    """
    device, dtype = features.device, features.dtype
    if class_weights is None:
        class_weights = torch.ones(num_classes)
    class_weights = class_weights.to(device, dtype)
    offsets = torch.zeros(num_classes) if offsets is None else offsets
    offsets = offsets.to(device, dtype)

    total = float(class_weights[targets].double().sum())
    weight = torch.zeros(num_classes, features.shape[1], device=device, dtype=dtype, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, dtype=dtype, requires_grad=True)
    for strength in path:
        if not strength > 0:
            raise UserError(f'the strength C of a logistic regression is positive, got {strength}')
        _minimise(features, targets, weight, bias, class_weights, offsets, 1 / (strength * total), tolerance)
        yield weight.detach().clone(), bias.detach().clone()


def _minimise(
        features: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        class_weights: torch.Tensor,
        offsets: torch.Tensor,
        penalty: float,
        tolerance: float,
):
    """Move weight [C, D] and bias [C] to the minimum of the mean loss and `penalty` |W|^2 / 2."""
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, max_eval=2 * _MAX_ITERATIONS, tolerance_grad=tolerance,
        tolerance_change=1e-9, history_size=20, line_search_fn='strong_wolfe')

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight, bias + offsets)  # [N, C]
        # a mean over the weights of the images, as torch has it
        loss = F.cross_entropy(logits, targets, class_weights) + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)


def fit_logistic(
        features: torch.Tensor,
        targets: torch.Tensor,
        num_classes: int,
        strength: float,
        **options,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit one classifier: weight [C, D] and bias [C].

    Args:
        features: See `logistic_path`, as all that follows.
        targets: Classes, int64 [N].
        num_classes: C.
        strength: Strength `C`.
        **options: `class_weights`, `offsets`, `tolerance`.
    """
    return next(logistic_path(features, targets, num_classes, [strength], **options))
