"""Accuracy on test sets with another class distribution, as SADE evaluates it.

Y. Zhang, B. Hooi, L. Hong, J. Feng, `Self-Supervised Aggregation of Diverse Experts for
Test-Agnostic Long-Tailed Recognition`, NeurIPS 2022, https://arxiv.org/abs/2107.09249, section 5:
test sets with a long tail of the same classes as in training (forward), with equal classes, and
with a long tail in the opposite order (backward).

The test set itself is not cut: the accuracy of each class is weighted by its share, which is the
mean over all cuts.

Shapes: C classes, N images.
"""
from collections.abc import Sequence

import torch

from .priors import log_ratio

__all__ = ['SHIFTS', 'known_prior_accuracies', 'shifted_accuracies', 'shifted_prior']

RATIOS = (50, 25, 10, 5, 2)
"""Largest over smallest class of the shifted test sets."""

SHIFTS = (
    *(f'forward_{ratio}' for ratio in RATIOS),
    'uniform',
    *(f'backward_{ratio}' for ratio in RATIOS[::-1]),
)
"""Names of the test distributions, from the training set's own order to the opposite one."""


def shifted_prior(name: str, shot_counts: Sequence[int]) -> torch.Tensor:
    """Return the share of each class in a shifted test set, float64 [C].

    Shares fall exponentially from the first class to the last, classes in the order of their
    training images: p_r is proportional to ratio^(-r / (C - 1)).

    Args:
        name: One of `SHIFTS`.
        shot_counts: Training images of each class [C].
    """
    num_classes = len(shot_counts)
    direction, _, ratio = name.partition('_')
    if direction == 'uniform' or num_classes == 1:
        return torch.full((num_classes,), 1 / num_classes, dtype=torch.float64)

    counts = torch.as_tensor([int(count) for count in shot_counts])
    order = torch.argsort(counts, descending=True, stable=True)
    if direction == 'backward':
        order = order.flip(0)
    rank = torch.arange(num_classes, dtype=torch.float64)
    shares = torch.empty(num_classes, dtype=torch.float64)
    shares[order] = float(ratio) ** (-rank / (num_classes - 1))
    return shares / shares.sum()


def shifted_accuracies(
        class_correct: Sequence[int],
        class_total: Sequence[int],
        shot_counts: Sequence[int],
) -> dict[str, float | None]:
    """Return the accuracy in percent under each test distribution, by its name.

    Args:
        class_correct: Correct test images of each class [C].
        class_total: Test images of each class [C]; one without any is left out.
        shot_counts: Training images of each class [C].
    """
    total = torch.as_tensor(class_total, dtype=torch.float64)
    recall = torch.as_tensor(class_correct, dtype=torch.float64) / total.clamp(min=1)
    return {name: _weighted(recall, total, shifted_prior(name, shot_counts)) for name in SHIFTS}


def known_prior_accuracies(
        log_probs: torch.Tensor,
        targets: torch.Tensor,
        shot_counts: Sequence[int],
        log_prior: torch.Tensor,
) -> dict[str, float | None]:
    """Return the same where each test distribution is known: logits are shifted by the ratio of the priors.

    Args:
        log_probs: Log probabilities of the classes, float [N, C].
        targets: Class of each image, int64 [N].
        shot_counts: Training images of each class [C].
        log_prior: Log prior that the probabilities follow [C].

    Raises:
        UserError: A class that does not occur under the prior that the probabilities follow.
    """
    num_classes = len(shot_counts)
    total = torch.bincount(targets, minlength=num_classes).double()

    accuracies = {}
    for name in SHIFTS:
        prior = shifted_prior(name, shot_counts)
        shift = log_ratio(prior.log(), log_prior).to(log_probs)
        predicted = (log_probs + shift).argmax(dim=1)
        correct = torch.bincount(targets[predicted == targets], minlength=num_classes).double()
        accuracies[name] = _weighted(correct / total.clamp(min=1), total, prior)
    return accuracies


def _weighted(recall: torch.Tensor, total: torch.Tensor, prior: torch.Tensor) -> float | None:
    """Return the mean of class accuracies in percent, weighted by a prior, over classes with test images."""
    weights = prior * (total > 0)
    if not weights.any():
        return None
    return 100 * float((weights * recall).sum() / weights.sum())
