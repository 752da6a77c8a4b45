"""Multinomial logistic regression with an L2 penalty, by L-BFGS, warm-started along a path of
penalties.

The objective is scikit-learn's, whose `C` it shares, so that values carry over:

    C sum_i w_i CE(W x_i + b, y_i) + |W|^2 / 2,

where the bias b is not penalised. Here it is divided by C sum_i w_i, which makes it a mean, as
float32 wants it. Since the bias is free, balanced softmax, which adds the log prior to the logits
while training, ends at the same weights and at the bias less the log prior: it is this fit,
adjusted for the prior with tau = 1.

An iteration is two products of [N, D] with [D, C]. Everything is left to torch, since these
products are all that costs, and on a GPU they are two orders of magnitude faster than on a CPU.

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
        tolerance: float = 1e-2,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Fit a classifier for each strength of the penalty, each from where the one before it ended.

    Args:
        features: Features of norm about 1, float32 or float64 [N, D]: the penalty means what it
            does at that scale.
        targets: Class of each image, int64 [N], on the same device.
        num_classes: C.
        path: Strengths `C`, increasing: the weaker penalties, which take longer, start near their
            end.
        class_weights: Weight of the images of each class [C]; None is 1.
        tolerance: Largest entry of the gradient at which a fit ends, as a share of what the images
            of the rarest class can add to it: an absolute one would be met before a class with 4 of
            100,000 images is fitted at all.

    Yields:
        Weight [C, D] and bias [C], a pair for each strength.

    Raises:
        UserError: A strength that is not positive.
    """
    device, dtype = features.device, features.dtype
    if class_weights is None:
        class_weights = torch.ones(num_classes)
    class_weights = class_weights.to(device, dtype)

    total = float(class_weights[targets].double().sum())
    counts = torch.bincount(targets, minlength=num_classes)
    rarest = float((counts * class_weights)[counts > 0].min()) / total
    gradient = tolerance * rarest / features.shape[1] ** 0.5

    weight = torch.zeros(num_classes, features.shape[1], device=device, dtype=dtype, requires_grad=True)
    bias = torch.zeros(num_classes, device=device, dtype=dtype, requires_grad=True)
    for strength in path:
        if not strength > 0:
            raise UserError(f'the strength C of a logistic regression is positive, got {strength}')
        _minimise(features, targets, weight, bias, class_weights, 1 / (strength * total), gradient)
        yield weight.detach().clone(), bias.detach().clone()


def _minimise(
        features: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        class_weights: torch.Tensor,
        penalty: float,
        gradient: float,
):
    """Move weight [C, D] and bias [C] to the minimum of the mean loss and `penalty` |W|^2 / 2.

    Ends where no entry of the gradient is above `gradient`.
    """
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_MAX_ITERATIONS, max_eval=2 * _MAX_ITERATIONS, tolerance_grad=gradient,
        tolerance_change=1e-12, history_size=20, line_search_fn='strong_wolfe')

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logits = F.linear(features, weight, bias)  # [N, C]
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
        **options: `class_weights`, `tolerance`.
    """
    return next(logistic_path(features, targets, num_classes, [strength], **options))
