"""Probabilistic contrastive loss (ProCo)

Paper: `Probabilistic Contrastive Learning for Long-Tailed Visual Recognition`
    - Chaoqun Du, Yulin Wang, Shiji Song, Gao Huang, TPAMI 2024
    - https://arxiv.org/abs/2403.06726

Implemented from the derivation: each class is a von Mises-Fisher (vMF) distribution on the sphere,
and the sums over samples of a class become its expectation, the moment generating function of that
distribution. Of the paper's two forms this is L_in, the one it trains with. The concentration is
the approximation of Banerjee et al. (JMLR 2005), its cap the released code's,
https://github.com/LeapLabTHU/ProCo. Bessel functions follow the NIST handbook,
https://dlmf.nist.gov.
Shapes: B batch (rows, all views of all images), C classes, D width.
"""
import math
from collections.abc import Sequence

import torch

from ..utils.errors import UserError
from ._common import check_embeddings, full_precision
from .logit_adjustment import logit_adjusted_cross_entropy

_LOWEST_ORDER = 30  # from here on the terms below are exact to 1e-12
_NUM_TERMS = 6
_TINY = 1e-20  # its powers in the gradients are finite


@full_precision
def proco_loss(
        embeddings: torch.Tensor,
        target: torch.Tensor,
        means: torch.Tensor,
        class_counts: Sequence[float] | torch.Tensor,
        temperature: float,
        max_concentration: float = 1e5,
) -> torch.Tensor:
    """Supervised contrast with infinitely many samples of every class, drawn from its vMF distribution.

        L_i = -log( pi_y M_y(z_i / t) / sum_k pi_k M_k(z_i / t) )
        M_k(u) = E exp(u.x) = C_D(kappa_k) / C_D(||kappa_k mu_k + u||),    x ~ vMF(mu_k, kappa_k)
        C_D(kappa) = kappa^v / ((2 pi)^(D/2) I_v(kappa)),    v = D/2 - 1

    mu_k is the direction of the mean of a class's embeddings and kappa_k = R (D - R^2) / (1 - R^2),
    R its length. A class that was never seen (a mean of zeros) is uniform on the sphere. Computed
    in float64: kappa reaches 1e5.

    Args:
        embeddings: Rows [B, D], L2-normalised by the caller.
        target: Class ids in [0, C), int64 [B]; the range is not checked, which would wait for the
            device.
        means: Mean of the L2-normalised embeddings of each class [C, D].
        class_counts: Training images of each class [C], all positive; the prior pi.
        temperature: Divisor of the similarities, t above.
        max_concentration: Largest kappa: that of a class with one embedding would be infinite.

    Returns:
        Mean over the batch, in float32 or wider.

    Raises:
        UserError: Shapes that do not fit, a temperature that is not positive, bad class counts.
    """
    check_embeddings(embeddings, target, temperature)
    if means.ndim != 2 or means.shape[1] != embeddings.shape[1]:
        raise UserError(f'expected means [C, {embeddings.shape[1]}], got {[*means.shape]}')

    u = embeddings.double() / temperature  # [B, D]
    means = means.double()
    width = means.shape[1]

    # concentrations as kappa / R, which has no pole at R = 0
    length2 = means.square().sum(1)  # R^2, [C]
    scale = (width - length2) / (1 - length2).clamp(min=_TINY)
    scale = torch.minimum(scale, max_concentration * length2.clamp(min=_TINY).rsqrt())
    kappa2 = scale.square() * length2  # kappa^2

    # ||kappa mu + u||^2, [B, C]
    shifted2 = kappa2 + 2 * (u @ means.T) * scale + u.square().sum(1, keepdim=True)

    # log M: the powers of kappa are in `log_bessel`, and (2 pi)^(D/2) cancels
    order = width / 2 - 1
    logits = log_bessel(order, shifted2) - log_bessel(order, kappa2)
    return logit_adjusted_cross_entropy(logits, target, class_counts).to(embeddings.dtype)


def log_bessel(order: float, square: torch.Tensor) -> torch.Tensor:
    """Return log( I_v(x) / x^v ), the modified Bessel function of the first kind without its zero or pole at x = 0.

    Low orders are reached from higher ones by I_{v-1}(x) = I_{v+1}(x) + (2 v / x) I_v(x), in which
    nothing cancels.

    Args:
        order: Order v of the function, at least -1/2.
        square: Squared argument x^2, float64 of any shape; first derivatives only.
    """
    with torch.no_grad():
        # start high enough for the expansion; the ratio is that of x^-(v+1) I_{v+1} to x^-v I_v
        steps = max(math.ceil(_LOWEST_ORDER - order), 0)
        value = _debye(order + steps, square)
        ratio = (_debye(order + steps + 1, square) - value).exp()

        # and come down to the order that is asked for
        for step in range(steps, 0, -1):
            growth = 2 * (order + step) + square * ratio
            value = value + growth.log()
            ratio = 1 / growth

    # the derivative with respect to x is x times the ratio: all that the backward pass keeps
    return value + ratio / 2 * (square - square.detach())


def _debye(order: float, square: torch.Tensor) -> torch.Tensor:
    """log( I_v(x) / x^v ) by the expansion that is uniform in x, for large v (10.41.3)."""
    root = (order ** 2 + square).sqrt()
    p = order / root

    # sum_k U_k(p) / v^k, by Horner's rule
    terms = torch.zeros_like(root)
    for coefficient in reversed(_debye_coefficients(order)):
        terms = terms * p + coefficient

    return root - order * (order + root).log() - (2 * math.pi * root).log() / 2 + terms.log()


def _debye_coefficients(order: float) -> list[float]:
    """Coefficients of sum_k U_k(p) / v^k in powers of p; U_{k+1} follows from U_k (10.41.9)."""
    term = [1.0]  # U_0
    total = [1.0] + [0.0] * (3 * _NUM_TERMS)

    for _ in range(_NUM_TERMS):
        # U_{k+1} / v^{k+1}, three degrees higher
        following = [0.0] * (len(term) + 3)
        for n, c in enumerate(term):
            following[n + 1] += c / order * (n / 2 + 1 / (8 * (n + 1)))
            following[n + 3] -= c / order * (n / 2 + 5 / (8 * (n + 3)))
        term = following

        for n, c in enumerate(term):
            total[n] += c

    return total
