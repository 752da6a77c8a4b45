"""Bootstrap intervals of accuracies: what another draw of as many test images would have given.

Shapes: M test images, C classes, B bootstrap draws.
"""
from collections.abc import Sequence

import torch

from ..data.longtail import shot_groups

__all__ = ['bootstrap_intervals']


def bootstrap_intervals(
        class_correct: Sequence[int],
        class_total: Sequence[int],
        shot_counts: Sequence[int],
        coverage: float = 0.95,
        num_draws: int = 2000,
        seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Return percentile intervals of the accuracies, in percent.

    Images are drawn again with replacement within each class, so that a class keeps its number of
    test images. How many of the n images drawn were classified correctly is then binomial, of n and
    the observed share, and no images need to be drawn. The intervals tell the error of the test
    set, not that of the training; a class that is always right, or never, adds nothing to them.

    Args:
        class_correct: Correct test images of each class [C].
        class_total: Test images of each class [C].
        shot_counts: Training images of each class [C], which define the groups.
        coverage: Share of the draws inside an interval.
        num_draws: B.
        seed: Seed of the draws.

    Returns:
        Lower and upper end of `all`, `balanced`, `many`, `medium` and `few`; None for a group
        without test images.
    """
    correct = torch.as_tensor(class_correct, dtype=torch.float64)
    total = torch.as_tensor(class_total, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    share = (correct / total.clamp(min=1)).expand(num_draws, -1).contiguous()  # [B, C]
    counts = total.expand(num_draws, -1).contiguous()
    drawn = torch.binomial(counts, share, generator=generator)
    recall = drawn / total.clamp(min=1)

    groups = {'balanced': list(range(len(total))), **shot_groups(shot_counts)}
    intervals: dict[str, tuple[float, float] | None] = {}
    intervals['all'] = _interval(drawn.sum(dim=1) / total.sum().clamp(min=1), coverage)
    for name, classes in groups.items():
        measured = [label for label in classes if total[label] > 0]
        intervals[name] = _interval(recall[:, measured].mean(dim=1), coverage) if measured else None
    return intervals


def _interval(values: torch.Tensor, coverage: float) -> tuple[float, float]:
    ends = torch.tensor([(1 - coverage) / 2, (1 + coverage) / 2], dtype=values.dtype)
    low, high = (100 * torch.quantile(values, ends)).tolist()
    return low, high
