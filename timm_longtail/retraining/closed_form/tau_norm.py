"""Tau-normalised classifier.

Kang et al., ICLR 2020, https://arxiv.org/abs/1910.09217, section 4.3.

Shapes: C classes, D width of the features.
"""
import torch
from torch import nn

from ...models.layers import linear_classifier
from ..classifier import Classifier
from ..representation import Representation

__all__ = ['TAUS', 'fit_tau_norm', 'tau_normalize']

TAUS = tuple(round(0.1 * step, 1) for step in range(21))
"""The published grid: 0, 0.1, …, 2."""

# figures of each tau that are kept
_CURVE = ('balanced', 'many', 'medium', 'few')


@torch.no_grad()
def tau_normalize(linear: nn.Linear, tau: float) -> nn.Linear:
    """Divide each class weight by a power of its norm: w_c / |w_c|^tau (equation 10), without bias.

    Training on a long tail gives frequent classes longer weights. tau = 0 keeps the weights, tau =
    1 makes all of one length.

    Args:
        linear: Trained classifier, weight [C, D]; stays as it is.
        tau: Exponent, usually chosen in [0, 1] on a hold-out.
    """
    weight = linear.weight.double()
    norms = weight.norm(dim=1, keepdim=True)  # [C, 1]
    norms = norms.clamp_min(torch.finfo(torch.float32).tiny)  # an untrained row stays 0
    return linear_classifier(weight / norms ** tau).to(linear.weight)


def fit_tau_norm(representation: Representation) -> list[Classifier]:
    """Choose tau by balanced accuracy on the hold-out; never on the test set.

    Args:
        representation: Model, whose classifier is normalised, and data.
    """
    head, held = representation.head, representation.held

    # without a hold-out the curve is shown, and nothing is chosen by it
    measured_on = held or representation.test
    curve = {}
    for tau in TAUS:
        metrics = measured_on.evaluate(tau_normalize(head, tau))
        curve[tau] = {key: metrics[key] for key in _CURVE}

    if held is None:
        tau, curve_on = 1.0, 'test set'
        note = 'tau = 1: there is no hold-out to choose it by (--val-fraction at stage 1)'
    else:
        tau, curve_on = max(TAUS, key=lambda value: curve[value]['balanced']), 'hold-out'
        note = (
            f'tau = {tau:g}, chosen by balanced accuracy on the hold-out, {len(held.targets)} images')

    return [
        Classifier(
            'tau_norm',
            tau_normalize(head, tau),
            options={'tau': tau},
            note=note,
            curve=curve,
            curve_on=curve_on,
        ),
    ]
