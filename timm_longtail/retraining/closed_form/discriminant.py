"""Linear discriminant analysis with a shrunk covariance (Friedman, JASA 1989, equation 18, shared
by all classes).

Shapes: N images, C classes, D width of the features.
"""
from collections.abc import Iterator, Sequence

import torch

from ...utils.errors import UserError

__all__ = ['linear_discriminants']


@torch.no_grad()
def linear_discriminants(
        features: torch.Tensor,
        targets: torch.Tensor,
        num_classes: int,
        shrinkages: Sequence[float],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Fit a Gaussian of one covariance S to the classes, and yield the classifier of balanced
    classes.

    With the means mu_c, S = sum_i (x_i - mu_{y_i}) (x_i - mu_{y_i})^T / N and its shrunk form S_s =
    (1 - s) S + s (tr S / D) I, class c has the weight S_s^-1 mu_c and the bias -mu_c^T S_s^-1 mu_c
    / 2. The frequent classes tell how features vary, and the rare ones need a mean only. s = 1 is
    the nearest class mean.

    Args:
        features: Training features [N, D].
        targets: Class of each image, int64 [N].
        num_classes: C.
        shrinkages: Values of s, each in (0, 1].

    Yields:
        Weight [C, D] and bias [C], float64, a pair for each shrinkage.

    Raises:
        UserError: A shrinkage outside (0, 1], or a class without features.
    """
    wide = features.double()
    counts = torch.bincount(targets, minlength=num_classes)
    if not (counts > 0).all():
        raise UserError(f'linear discriminant: class {int((counts > 0).int().argmin())} has no images')

    # means, from the centre of all images: less is lost to rounding
    centre = wide.mean(dim=0)
    wide = wide - centre

    # of fewer images than dimensions all lies in their span, a basis of which is much smaller
    width, basis = wide.shape[1], None
    if len(wide) < width:
        basis = torch.linalg.qr(wide.T).Q  # [D, N]
        wide = wide @ basis

    means = wide.new_zeros(num_classes, wide.shape[1]).index_add_(0, targets, wide) / counts[:, None]

    residuals = wide - means[targets]
    covariance = residuals.T @ residuals / len(residuals)
    variances, axes = torch.linalg.eigh(covariance)
    variances = variances.clamp(min=0)
    mean_variance = variances.sum() / width
    on_axes = means @ axes  # [C, D], or [C, N] in the span

    for shrinkage in shrinkages:
        if not 0 < shrinkage <= 1:
            raise UserError(f'linear discriminant: the shrinkage is in (0, 1], got {shrinkage}')

        shrunk = (1 - shrinkage) * variances + shrinkage * mean_variance
        weight = (on_axes / shrunk) @ axes.T
        if basis is not None:
            weight = weight @ basis.T
        bias = -(on_axes.square() / shrunk).sum(dim=1) / 2 - weight @ centre
        yield weight, bias
