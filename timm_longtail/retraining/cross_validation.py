"""Cross-validation on a long tail: folds, balanced accuracy with its standard error, and the
one-standard-error rule.

Shapes: N images, C classes, K folds, R repeats.
"""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..utils import rng
from ..utils.errors import UserError

__all__ = [
    'ALWAYS_TRAINED',
    'Accuracy',
    'Split',
    'cross_validation',
    'corrected_recalls',
    'difference',
    'mean_accuracy',
    'mean_recall',
    'hold_out',
    'overall_accuracy',
    'stratified_folds',
    'variance_factor',
]

ALWAYS_TRAINED = -1
"""Fold of an image that is never held out: the only one of its class."""


def stratified_folds(
        targets: Sequence[int],
        num_folds: int,
        seed: int = 0,
        repeat: int = 0,
) -> np.ndarray:
    """Deal the images of each class over the folds in turn, as cards are dealt.

    A class with n >= K images has n / K of them in each fold, up to one. A class with 1 < n < K
    images rotates: each of its images is held out once, in a fold of its own, and the other n - 1
    are then trained on; in the other folds all n are. The image of a class that has one only is
    always trained on, and its class is not measured. Dealing goes on where the class before has
    ended, so that the folds are of one size, up to one image.

    Args:
        targets: Class of each image [N].
        num_folds: K, at least 2.
        seed: Seed of the order within each class.
        repeat: Which time the images are dealt; each has an order of its own.

    Returns:
        Fold of each image, int64 [N]; `ALWAYS_TRAINED` for the only image of a class.

    Raises:
        UserError: Fewer than two folds, or no class with two images.
    """
    if num_folds < 2:
        raise UserError(f'cross-validation needs two folds or more, got {num_folds}')

    targets = np.asarray(targets)
    random = rng.generator(seed, epoch=repeat, purpose='folds')
    folds = np.full(len(targets), ALWAYS_TRAINED, np.int64)
    dealt = 0
    for label in np.unique(targets):
        rows = random.permutation(np.flatnonzero(targets == label))
        if len(rows) == 1:
            continue
        folds[rows] = (dealt + np.arange(len(rows))) % num_folds
        dealt += len(rows)

    if dealt == 0:
        raise UserError('cross-validation needs a class with two images or more: each class here has one')
    return folds


@dataclass(frozen=True)
class Split:
    """One division of the training images.

    Attributes:
        fit: Rows that classifiers are fitted on, int64.
        measure: Rows that they are measured on, int64; none of them in `fit`.
    """
    fit: torch.Tensor
    measure: torch.Tensor


def cross_validation(
        targets: Sequence[int],
        num_folds: int = 5,
        num_repeats: int = 1,
        seed: int = 0,
) -> list[Split]:
    """Return the splits of a repeated, stratified K-fold cross-validation; each repeat deals again.

    Args:
        targets: Class of each image [N].
        num_folds: K. No more are made than the largest class has images.
        num_repeats: R.
        seed: Seed of the folds.

    Returns:
        K R splits. In each repeat every image is measured once, but for the only image of a class.
    """
    largest = int(np.bincount(np.asarray(targets)).max())
    num_folds = min(num_folds, max(largest, 2))

    splits: list[Split] = []
    for repeat in range(num_repeats):
        splits += _splits_of(stratified_folds(targets, num_folds, seed, repeat))
    return splits


def _splits_of(folds: np.ndarray) -> Iterator[Split]:
    for fold in range(folds.max() + 1):
        is_measured = folds == fold
        if is_measured.any():
            fit, measure = (np.flatnonzero(mask) for mask in (~is_measured, is_measured))
            yield Split(torch.from_numpy(fit), torch.from_numpy(measure))


def hold_out(num_trained: int, num_held: int) -> list[Split]:
    """Return the one split of images that a model was trained on and of others, held out, that
    follow them.

    Args:
        num_trained: Images that were trained on, which come first.
        num_held: Images that were held out.
    """
    return [Split(torch.arange(num_trained), torch.arange(num_trained, num_trained + num_held))]


@dataclass
class Accuracy:
    """How often each image was classified correctly, and what follows for classes.

    Attributes:
        correct: Share of the times that an image was measured in which it was classified correctly,
            float64 [M].
        targets: Class of each of these images, int64 [M].
        images: What tells these images in this order from any others, such as a digest.
    """
    correct: torch.Tensor
    targets: torch.Tensor
    images: str

    def of_classes(self, classes: Sequence[int] | None = None) -> tuple[float, float] | None:
        """Return the mean recall of some classes in percent, and its standard error; None where
        none was measured.

        Classes are fixed and their images are drawn. The squared error of a mean over classes is
        the sum of the squared errors of their recalls, over the squared number of classes. That of
        a recall r of n images is p (1 - p) / n, where p = (n r + 1) / (n + 2) is Laplace's estimate:
        4 correct of 4 are not known without error. Repeats make n no larger. What another draw of
        the images that are fitted would change is not in it.

        Args:
            classes: Classes to average over; None takes all. One without measured images is left
                out.
        """
        count, recall = class_means(self.correct, self.targets)
        return mean_recall(recall, count, classes)

    @property
    def balanced(self) -> float:
        """Mean recall of all classes that were measured, in percent."""
        count, recall = class_means(self.correct, self.targets)
        return 100 * float(recall[count > 0].mean())


def mean_accuracy(repeats: Sequence[Accuracy]) -> Accuracy:
    """Return the accuracy over several measurements of the same images.

    Args:
        repeats: One or more; of each image the mean is taken.

    Raises:
        ValueError: They are of different images.
    """
    first = repeats[0]
    if any(other.images != first.images for other in repeats):
        raise ValueError('accuracies of different images have no mean')

    correct = torch.stack([accuracy.correct for accuracy in repeats]).mean(dim=0)
    return Accuracy(correct, first.targets, first.images)


def class_means(values: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the number of images and the mean of their values in each class, float64 [C].

    Args:
        values: A value for each image, float64 [M].
        targets: Class of each image, int64 [M].
    """
    count = torch.bincount(targets).double()
    total = torch.zeros_like(count).index_add_(0, targets, values)
    return count, total / count.clamp(min=1)


def mean_recall(
        recall: torch.Tensor,
        count: torch.Tensor,
        classes: Sequence[int] | None = None,
) -> tuple[float, float] | None:
    """Return the mean of some recalls in percent, and its standard error, as `Accuracy.of_classes`.

    Args:
        recall: Recall of each class, float64 [C].
        count: Images that it was measured on, float64 [C].
        classes: Classes to average over; None takes all.
    """
    chosen = _measured(count, classes)
    if len(chosen) == 0:
        return None

    count, recall = count[chosen], recall[chosen]
    p = (count * recall + 1) / (count + 2)
    variance = (p * (1 - p) / count).sum() / len(chosen) ** 2
    return 100 * float(recall.mean()), 100 * math.sqrt(float(variance))


def overall_accuracy(recall: torch.Tensor, count: torch.Tensor) -> tuple[float, float] | None:
    """Return the share of images that were classified correctly in percent, and its standard error.

    The recall of a class errs as in `Accuracy.of_classes`, and weighs as many images as it has.

    Args:
        recall: Recall of each class, float64 [C].
        count: Images that it was measured on, float64 [C].
    """
    total = float(count.sum())
    if total == 0:
        return None

    p = (count * recall + 1) / (count + 2)
    variance = (count * p * (1 - p)).sum() / total ** 2
    return 100 * float(count @ recall) / total, 100 * math.sqrt(float(variance))


def _measured(count: torch.Tensor, classes: Sequence[int] | None) -> torch.Tensor:
    """Return which of some classes have images, as rows of `count`."""
    if classes is None:
        classes = range(len(count))
    rows = [label for label in classes if label < len(count) and count[label] > 0]
    return torch.tensor(rows, dtype=torch.int64)


def variance_factor(splits: Sequence[Split], num_repeats: int = 1) -> float:
    """Return by how much the squared error of a difference is larger than images alone tell.

    Classifiers of different folds are fitted on nearly the same images, and what they have in
    common is in no spread between the images that are measured: 1 + J n2 / n1, for J folds of n2
    measured and n1 fitted images (Nadeau and Bengio, Machine Learning 2003,
    https://doi.org/10.1023/A:1024068626366). That is 2.25 of five folds.

    Args:
        splits: All splits.
        num_repeats: How many repeats they are of; each measures every image once.
    """
    ratios = [len(split.measure) / len(split.fit) for split in splits]
    return 1 + sum(ratios) / num_repeats


def difference(better: Accuracy, other: Accuracy, factor: float = 1.0) -> tuple[float, float]:
    """Return by how much one balanced accuracy is above another in percent, and the standard error
    of that.

    Two classifiers that were measured on the same images err on the same hard ones. The error of
    their difference is that of the mean difference over the images, class by class, which is much
    less than that of either accuracy.

    The error is the one that there would be if both were equally good (McNemar, Psychometrika 1947,
    https://doi.org/10.1007/BF02295996): an image on which they differ counts whole, whichever of
    them is right there. The spread around the mean that was found would be 0 for a class of one
    image, and nothing would then be luck.

    Args:
        better: Accuracy of one classifier.
        other: Accuracy of another. Where it was measured on other images, the squared errors of
            both are added.
        factor: Factor of the squared error, see `variance_factor`.
    """
    gap = better.balanced - other.balanced
    if better.images != other.images:
        (_, first), (_, second) = better.of_classes(), other.of_classes()
        return gap, math.sqrt(factor) * math.hypot(first, second)

    differences = better.correct - other.correct  # in [-1, 1]
    count, square = class_means(differences.square(), better.targets)

    is_measured = count > 0
    variance = square[is_measured] / count[is_measured]
    return gap, 100 * math.sqrt(factor * float(variance.sum())) / len(variance)


def corrected_recalls(
        settings: Sequence[Accuracy],
        num_draws: int = 300,
        seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the recalls to expect of the best of several settings, without the luck of having been chosen.

    The best of many accuracies on the same images is too high: it was chosen for fitting these. So
    images are drawn again with replacement within each class, the setting that is best on those
    drawn is measured on those that were not, and recalls are averaged over the draws (Tsamardinos
    et al., Machine Learning 2018, https://doi.org/10.1007/s10994-018-5714-4).

    Args:
        settings: Accuracies of all settings on the same images.
        num_draws: Draws.
        seed: Seed of the draws.

    Returns:
        Images measured and recall of each class, float64 [C].
    """
    first = settings[0]
    count, recall = class_means(first.correct, first.targets)
    if len(settings) == 1:
        return count, recall

    # class after class, so that image i is replaced by one of the `size[i]` from `start[i]` on
    order = first.targets.argsort(stable=True)
    targets = first.targets[order]
    correct = torch.stack([setting.correct for setting in settings])[:, order]  # [S, M]
    size = count[targets]
    start = (count.cumsum(0) - count)[targets]

    generator = torch.Generator().manual_seed(seed)
    total, right = torch.zeros_like(count), torch.zeros_like(count)
    for _ in range(num_draws):
        random = torch.rand(len(targets), generator=generator, dtype=torch.float64)
        drawn = torch.bincount((start + random * size).long(), minlength=len(targets))

        # the best on those drawn, on those that were not
        best = (correct @ (drawn / size)).argmax()
        is_left_out = (drawn == 0).double()
        total.index_add_(0, targets, is_left_out)
        right.index_add_(0, targets, correct[best] * is_left_out)

    # the image of a class that has one is in every draw
    return count, torch.where(total > 0, right / total.clamp(min=1), recall)
