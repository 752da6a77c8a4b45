"""Multinomial logistic regression with an L2 penalty, by L-BFGS, warm-started along a path of
penalties.

The objective is scikit-learn's, whose `C` it shares, so that values carry over:

    C sum_i w_i CE(W x_i + b, y_i) + |W|^2 / 2,

where the bias b is not penalised. Here it is divided by C sum_i w_i, which makes it a mean, as
float32 wants it. Since the bias is free, balanced softmax, which adds the log prior to the logits
while training, ends at the same weights and at the bias less the log prior: it is this fit,
adjusted for the prior with tau = 1.

Features of a network vary a thousand times as much along some axes as along others, and the rows
of rare classes have a thousandth of the curvature of others. So features are centred and turned
into their principal axes, which moves no minimum, and each weight is measured in units of the
curvature along its axis: half the iterations on features of an ImageNet network.

An iteration is two products of [N, D] with [D, C]. Everything is left to torch, since these
products are all that costs, and on a GPU they are two orders of magnitude faster than on a CPU.

Shapes: N images, C classes, D width of the features.
"""
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from ..utils.errors import UserError

__all__ = ['fit_logistic', 'logistic_path', 'principal_axes']

_logger = logging.getLogger(__name__)

_MAX_ITERATIONS = 1000
_MAX_LOGITS = 2 ** 26
"""Logits that are held at once."""

_LARGE = 2e10
"""N D C from which on a fit begins on a part of the images."""

_COARSE = 8
"""One image of so many is in that part."""


def principal_axes(features: torch.Tensor) -> torch.Tensor:
    """Return the principal axes of features [N, D] as the columns of an orthogonal matrix [D, D].

    Where they cannot be found, as it happens with few images of many features, the axes are those
    of the features themselves.
    """
    centred = (features - features.mean(dim=0)).double()
    identity = torch.eye(features.shape[1], dtype=torch.float64, device=features.device)
    try:
        axes = torch.linalg.eigh(centred.T @ centred).eigenvectors
    except torch.linalg.LinAlgError:
        return identity.to(features.dtype)

    # the solver may also fail without a word
    is_orthogonal = bool((axes.T @ axes - identity).abs().max() < 1e-6)
    return (axes if is_orthogonal else identity).to(features.dtype)


def logistic_path(
        features: torch.Tensor,
        targets: torch.Tensor,
        num_classes: int,
        path: Sequence[float],
        class_weights: torch.Tensor | None = None,
        tolerance: float = 2e-2,
        turned: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Fit a classifier for each strength of the penalty, each from where the one before it ended.

    Args:
        features: Features of norm about 1, float32 or float64 [N, D]: the penalty means what it
            does at that scale. They are not kept while classifiers are taken.
        targets: Class of each image, int64 [N], on the same device.
        num_classes: C.
        path: Strengths `C`, increasing: the weaker penalties, which take longer, start near their
            end.
        class_weights: Weight of the images of each class [C]; None is 1.
        tolerance: A fit ends where a step to the minimum along any one axis would move the logits
            of any class by less than this, over the root of D; the step is that of the curvature
            at the start of the fit.
        turned: Whether the features are along their principal axes, about, so that these need not
            be computed. Along others a fit takes more iterations to the same minimum.

    Returns:
        Iterator over weight [C, D] and bias [C], a pair for each strength.

    Raises:
        UserError: A strength that is not positive.
    """
    for strength in path:
        if not strength > 0:
            raise UserError(f'the strength C of a logistic regression is positive, got {strength}')
    if class_weights is None:
        class_weights = torch.ones(num_classes)

    axes = None if turned else principal_axes(features)
    problem = _Problem.create(features, targets, class_weights, axes)
    total = float(class_weights.double()[targets.cpu()].sum())
    return problem.minima([1 / (strength * total) for strength in path], tolerance)


@dataclass
class _Problem:
    """Features in coordinates in which they are easy to fit, and their classes.

    Attributes:
        values: Centred features in their axes [N, D].
        targets: Class of each image, int64 [N].
        class_weights: Weight of an image of each class [C]; those of all images sum to 1.
        share: Sum of the weights of the images of each class [C].
        spread: Mean square of the values along each axis [D].
        centre: What was subtracted from the features [D].
        axes: What they were multiplied by [D, D]; None for nothing.
    """
    values: torch.Tensor
    targets: torch.Tensor
    class_weights: torch.Tensor
    share: torch.Tensor
    spread: torch.Tensor
    centre: torch.Tensor
    axes: torch.Tensor | None

    @classmethod
    def create(
            cls,
            features: torch.Tensor,
            targets: torch.Tensor,
            class_weights: torch.Tensor,
            axes: torch.Tensor | None,
    ) -> '_Problem':
        """Centre and turn features [N, D]; see `logistic_path`."""
        counts = torch.bincount(targets, minlength=len(class_weights))
        class_weights = class_weights.to(features).where(counts > 0, 0)  # of no images it may be infinite
        class_weights = class_weights / (counts * class_weights).sum()

        image_weights = class_weights[targets]
        centre = image_weights @ features
        values = features - centre
        if axes is not None:
            values = values @ axes
        spread = image_weights @ values.square()
        return cls(values, targets, class_weights, counts * class_weights, spread, centre, axes)

    def minima(self, penalties: Sequence[float], tolerance: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield weight [C, D] and bias [C] on the features as they were at each penalty; see `minimise`."""
        # what features that say nothing end with: the log prior
        weight = self.values.new_zeros(len(self.share), self.values.shape[1])
        bias = self.share.clamp(min=1e-12).log()

        # most of the way at an eighth of the cost
        if self.values.numel() * len(self.share) > _LARGE:
            weight, bias = self.coarse(_COARSE).minimise(weight, bias, penalties[0], tolerance)

        for penalty in penalties:
            weight, bias = self.minimise(weight, bias, penalty, tolerance)
            yield self.on_features(weight, bias)

    def coarse(self, step: int) -> '_Problem':
        """Return a problem of one image in `step` of each class, one at least; a class weighs what it did."""
        order = self.targets.argsort(stable=True)
        counts = torch.bincount(self.targets, minlength=len(self.share))
        position = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[self.targets[order]]
        rows = order[position % step == 0]

        targets = self.targets[rows]
        kept = torch.bincount(targets, minlength=len(self.share))
        class_weights = self.share / kept.clamp(min=1)
        return replace(self, values=self.values[rows], targets=targets, class_weights=class_weights)

    def chunks(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield values and classes of as many images as the memory has room for the logits of."""
        size = max(1, _MAX_LOGITS // len(self.class_weights))
        return zip(self.values.split(size), self.targets.split(size))

    @torch.no_grad()
    def curvature(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return the mean of p (1 - p) over the images, for the probability p of each class [C].

        That is the second derivative of the loss by a bias. Where all images are fitted it goes to
        zero, which is no unit to measure in, and a thousandth of the first one is returned.
        """
        curvature = torch.zeros_like(bias)
        for values, targets in self.chunks():
            p = F.linear(values, weight, bias).softmax(dim=1)  # [n, C]
            curvature += self.class_weights[targets] @ (p * (1 - p))
        at_first = self.share * (1 - self.share)
        return curvature.maximum(1e-3 * at_first).clamp(min=1e-12)

    def minimise(
            self,
            weight: torch.Tensor,
            bias: torch.Tensor,
            penalty: float,
            tolerance: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return weight [C, D] and bias [C] at the minimum of the mean loss and `penalty` |W|^2 / 2.

        Args:
            weight: Where to start, in the axes.
            bias: Where to start.
            penalty: Strength of the penalty.
            tolerance: See `logistic_path`.
        """
        # the loss has about unit curvature in each of these, so that a gradient is a step to the minimum
        curvature = self.curvature(weight, bias)
        weight_unit = (curvature[:, None] * self.spread + penalty).rsqrt()
        bias_unit = curvature.rsqrt()
        parameters = [(weight / weight_unit).requires_grad_(), (bias / bias_unit).requires_grad_()]

        # a step s moves the logits of a class by s / sqrt(curvature)
        least = float(curvature[self.share > 0].min())
        optimizer = torch.optim.LBFGS(
            parameters,
            max_iter=_MAX_ITERATIONS,
            max_eval=2 * _MAX_ITERATIONS,
            tolerance_grad=tolerance * math.sqrt(least / weight.shape[1]),
            tolerance_change=1e-15,
            history_size=20,
            line_search_fn='strong_wolfe',
        )

        def closure() -> torch.Tensor:
            # leaves of the graph of each chunk, which is freed once its gradient is there
            weight = (parameters[0].detach() * weight_unit).requires_grad_()
            bias = (parameters[1].detach() * bias_unit).requires_grad_()

            total = penalty / 2 * weight.detach().square().sum()
            weight_grad, bias_grad = penalty * weight.detach(), torch.zeros_like(bias)
            for values, targets in self.chunks():
                logits = F.linear(values, weight, bias)  # [n, C]
                loss = F.cross_entropy(logits, targets, self.class_weights, reduction='sum')
                of_weight, of_bias = torch.autograd.grad(loss, (weight, bias))
                total += loss.detach()
                weight_grad += of_weight
                bias_grad += of_bias

            parameters[0].grad = weight_grad * weight_unit
            parameters[1].grad = bias_grad * bias_unit
            return total

        with torch.enable_grad():
            optimizer.step(closure)
        _warn_unfinished(optimizer.state[parameters[0]], penalty)
        return parameters[0].detach() * weight_unit, parameters[1].detach() * bias_unit

    def on_features(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the classifier that gives the same logits on the features as they were."""
        if self.axes is not None:
            weight = weight @ self.axes.T
        return weight, bias - weight @ self.centre


def _warn_unfinished(state: dict[str, Any], penalty: float):
    """Say so where a limit has ended a fit, and not its tolerance."""
    if state['n_iter'] >= _MAX_ITERATIONS or state['func_evals'] >= 2 * _MAX_ITERATIONS:
        _logger.warning(
            f'logistic regression: {state["n_iter"]} iterations at a penalty of {penalty:.1e} did not reach the '
            'minimum; what they reached is taken')


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
        **options: `class_weights`, `tolerance`, `turned`.
    """
    return next(logistic_path(features, targets, num_classes, [strength], **options))
