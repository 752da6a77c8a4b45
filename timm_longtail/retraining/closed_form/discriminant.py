"""Linear discriminant analysis with a shrunk covariance (Friedman, JASA 1989, equation 18, shared
by all classes).

Shapes: N images, C classes, D width of the features.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ...utils.errors import UserError

__all__ = ['linear_discriminants']


_ROUNDING = 1e-24
"""Share of the mean square of the features below which a variance is rounding."""


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
    the nearest class mean, and so is what features without variance within classes come to.

    Args:
        features: Training features [N, D]; they are not kept while classifiers are taken.
        targets: Class of each image, int64 [N].
        num_classes: C.
        shrinkages: Values of s, each in (0, 1].

    Returns:
        Iterator over weight [C, D] and bias [C], float64, a pair for each shrinkage.

    Raises:
        UserError: A shrinkage outside (0, 1], or a class without features.
    """
    for shrinkage in shrinkages:
        if not 0 < shrinkage <= 1:
            raise UserError(f'linear discriminant: the shrinkage is in (0, 1], got {shrinkage}')

    return _shrunk(_Gaussians.fit(features, targets, num_classes), shrinkages)


@dataclass
class _Gaussians:
    """Class means and their common covariance, along its principal axes: K of them, D or the span of N images.

    Attributes:
        centre: Mean of all features [D].
        means: Means of the classes from the centre, along the axes [C, K].
        variances: Variances within classes along the axes [K].
        mean_variance: Mean of the variances over all D dimensions.
        axes: Principal axes as columns [D, K].
    """
    centre: torch.Tensor
    means: torch.Tensor
    variances: torch.Tensor
    mean_variance: torch.Tensor
    axes: torch.Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, features: torch.Tensor, targets: torch.Tensor, num_classes: int) -> '_Gaussians':
        """Fit to features [N, D]; see `linear_discriminants`."""
        counts = torch.bincount(targets, minlength=num_classes)
        if not (counts > 0).all():
            raise UserError(f'linear discriminant: class {int((counts > 0).int().argmin())} has no images')

        # means, from the centre of all images: less is lost to rounding
        wide = features.double()
        width = wide.shape[1]
        centre = wide.mean(dim=0)
        wide = wide - centre

        # of fewer images than dimensions all lies in their span, a basis of which is much smaller
        basis = None
        if len(wide) < width:
            basis = torch.linalg.qr(wide.T).Q  # [D, N]
            wide = wide @ basis

        means = wide.new_zeros(num_classes, wide.shape[1]).index_add_(0, targets, wide) / counts[:, None]

        residuals = wide - means[targets]
        covariance = residuals.T @ residuals / len(residuals)
        variances, axes = torch.linalg.eigh(covariance)
        variances = variances.clamp(min=0)
        mean_variance = variances.sum() / width
        if mean_variance <= _ROUNDING * wide.square().sum(dim=1).mean() / width:
            # any equal ones make the nearest class mean
            variances, mean_variance = torch.ones_like(variances), torch.ones_like(mean_variance)

        on_axes = means @ axes
        if basis is not None:
            axes = basis @ axes
        return cls(centre, on_axes, variances, mean_variance, axes)


@torch.no_grad()
def _shrunk(gaussians: _Gaussians, shrinkages: Sequence[float]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the classifier of each shrinkage."""
    for shrinkage in shrinkages:
        variances = (1 - shrinkage) * gaussians.variances + shrinkage * gaussians.mean_variance
        weight = (gaussians.means / variances) @ gaussians.axes.T
        bias = -(gaussians.means.square() / variances).sum(dim=1) / 2 - weight @ gaussians.centre
        yield weight, bias
