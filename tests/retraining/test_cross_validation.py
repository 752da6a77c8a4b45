"""Folds on a long tail, standard errors, and the comparison of two classifiers on the same images."""
import math

import numpy as np
import pytest
import torch

from timm_longtail.retraining.cross_validation import (
    ALWAYS_TRAINED,
    Accuracy,
    corrected_recalls,
    cross_validation,
    difference,
    hold_out,
    mean_accuracy,
    overall_accuracy,
    stratified_folds,
    variance_factor,
)
from timm_longtail.utils.errors import UserError

COUNTS = [50, 23, 8, 4, 2, 1]
TARGETS = np.repeat(np.arange(len(COUNTS)), COUNTS)


def fold_sizes(folds: np.ndarray, label: int) -> list[int]:
    return [int((folds[label == TARGETS] == fold).sum()) for fold in range(5)]


@pytest.mark.parametrize('seed', [0, 1])
def test_each_class_is_dealt_evenly(seed):
    folds = stratified_folds(TARGETS, 5, seed)

    for label, count in enumerate(COUNTS[:-1]):
        sizes = fold_sizes(folds, label)
        assert sum(sizes) == count
        assert max(sizes) - min(sizes) <= 1

    totals = np.bincount(folds[folds >= 0])
    assert totals.max() - totals.min() <= 1


def test_the_only_image_of_a_class_is_never_held_out():
    folds = stratified_folds(TARGETS, 5)

    assert set(folds[TARGETS == 5]) == {ALWAYS_TRAINED}


def test_folds_follow_the_seed():
    first = stratified_folds(TARGETS, 5, seed=3)

    assert np.array_equal(first, stratified_folds(TARGETS, 5, seed=3))
    assert not np.array_equal(first, stratified_folds(TARGETS, 5, seed=4))


def test_no_repeat_of_a_seed_is_that_of_another_seed():
    dealt = [stratified_folds(TARGETS, 5, seed, repeat) for seed in range(3) for repeat in range(3)]

    assert len({folds.tobytes() for folds in dealt}) == 9


def test_the_largest_seed_has_repeats():
    assert len(cross_validation(TARGETS, num_folds=2, num_repeats=2, seed=2 ** 32 - 1)) == 4


@pytest.mark.parametrize('repeats', [1, 3])
def test_every_image_is_measured_once_a_repeat_and_by_classifiers_that_know_its_class(repeats):
    splits = cross_validation(TARGETS, 5, repeats)

    times = np.zeros(len(TARGETS), int)
    for split in splits:
        assert not set(split.fit.tolist()) & set(split.measure.tolist())
        assert len(split.fit) + len(split.measure) == len(TARGETS)
        assert set(TARGETS[split.fit]) == set(range(len(COUNTS)))
        times[split.measure] += 1
    assert np.array_equal(times, np.where(TARGETS == 5, 0, repeats))


def test_a_class_with_few_images_trains_on_all_but_one():
    for split in cross_validation(TARGETS, 5):
        num_fitted = int((TARGETS[split.fit] == 3).sum())
        assert num_fitted in (3, 4)


def test_no_more_folds_than_the_largest_class_has_images():
    assert len(cross_validation([0, 0, 0, 1, 1], num_folds=10)) == 3


@pytest.mark.parametrize('targets, num_folds, words', [
    ([0, 1, 2], 5, 'each class here has one'),
    ([0, 0, 1], 1, 'two folds or more, got 1'),
])
def test_what_cannot_be_divided_is_refused(targets, num_folds, words):
    with pytest.raises(UserError, match=words):
        stratified_folds(targets, num_folds)


def test_a_hold_out_is_one_split():
    split, = hold_out(3, 2)

    assert split.fit.tolist() == [0, 1, 2]
    assert split.measure.tolist() == [3, 4]


def accuracy(correct: list[float], targets: list[int], images: str = 'the same') -> Accuracy:
    return Accuracy(torch.tensor(correct, dtype=torch.float64), torch.tensor(targets), images)


def test_balanced_accuracy_and_its_error_by_hand():
    mean, error = accuracy([1, 1, 0, 1, 1], [0, 0, 0, 0, 2]).of_classes()

    # class 0: 3 of 4, class 1: nothing measured, class 2: 1 of 1
    first, second = (3 + 1) / (4 + 2), (1 + 1) / (1 + 2)
    variance = first * (1 - first) / 4 + second * (1 - second) / 1
    assert mean == pytest.approx(100 * (3 / 4 + 1) / 2)
    assert error == pytest.approx(100 * math.sqrt(variance) / 2)


def test_the_mean_of_repeats_is_that_of_each_image():
    first, second = accuracy([1, 0, 1], [0, 0, 1]), accuracy([0, 0, 1], [0, 0, 1])

    mean = mean_accuracy([first, second])

    assert mean.correct.tolist() == [0.5, 0, 1]
    assert (mean.targets.tolist(), mean.images) == ([0, 0, 1], first.images)
    with pytest.raises(ValueError, match='different images'):
        mean_accuracy([first, accuracy([0, 0, 1], [0, 0, 1], 'others')])


def test_the_share_of_all_images_and_its_error_by_hand():
    recall, count = torch.tensor([0.75, 0.5, 1.0], dtype=torch.float64), torch.tensor([4.0, 0, 1], dtype=torch.float64)

    mean, error = overall_accuracy(recall, count)

    # 3 of 4 and 1 of 1
    first, second = (3 + 1) / (4 + 2), (1 + 1) / (1 + 2)
    variance = (4 * first * (1 - first) + second * (1 - second)) / 5 ** 2
    assert mean == pytest.approx(100 * 4 / 5)
    assert error == pytest.approx(100 * math.sqrt(variance))
    assert overall_accuracy(recall, torch.zeros_like(count)) is None


def test_the_error_of_some_classes():
    figures = accuracy([1, 0, 1, 1], [0, 0, 1, 1])

    assert figures.of_classes([1])[0] == 100
    assert figures.of_classes([1])[1] > 0
    assert figures.of_classes([2]) is None


def test_the_standard_error_is_the_spread_of_repeated_draws():
    """Drawn from known recalls, the estimate of the error is right on average, for classes of 4 images too."""
    random = np.random.default_rng(0)
    recalls, counts = np.array([0.9, 0.6, 0.5, 0.7]), [100, 20, 8, 4]
    targets = np.repeat(np.arange(4), counts)

    means, errors = [], []
    for _ in range(2000):
        drawn = random.random(len(targets)) < recalls[targets]
        mean, error = accuracy(drawn.tolist(), targets.tolist()).of_classes()
        means.append(mean)
        errors.append(error)

    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)


def test_a_difference_on_the_same_images_has_a_smaller_error():
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(4), 50)
    hard = random.random(200) < 0.4
    first = accuracy((~hard).tolist(), targets.tolist())
    second = accuracy((~hard & (np.arange(200) % 25 > 0)).tolist(), targets.tolist())

    gap, error = difference(first, second)

    assert gap == pytest.approx(first.balanced - second.balanced)
    assert 0 < error < 0.5 * math.hypot(first.of_classes()[1], second.of_classes()[1])


def test_a_difference_by_hand():
    better, other = accuracy([1, 1, 1, 0], [0, 0, 1, 1]), accuracy([1, 0, 1, 0], [0, 0, 1, 1])

    # class 0 has the differences 0 and 1, of mean square 1 / 2, over n; class 1 has none
    assert difference(better, other) == pytest.approx((25.0, 100 * math.sqrt(1 / 4) / 2))
    assert difference(better, better) == (0, 0)


def test_a_class_of_one_image_can_be_luck():
    """So can a class of two images that are both right for one classifier alone."""
    targets = [0, 1, 1, 2, 2, 2, 2]
    better, other = accuracy([1, 1, 1, 1, 1, 1, 0], targets), accuracy([0, 0, 0, 1, 1, 1, 0], targets)

    gap, error = difference(better, other)

    assert gap == pytest.approx(100 * 2 / 3)
    assert error == pytest.approx(100 * math.sqrt(1 + 1 / 2) / 3)


def test_equally_good_classifiers_seldom_differ_by_more_than_the_error():
    """One error to one side is passed by a sixth of all draws, on classes of one to four images too."""
    random = np.random.default_rng(0)
    targets = np.repeat(np.arange(20), [1] * 10 + [2] * 6 + [4] * 4)

    num_better = 0
    for _ in range(2000):
        is_hard = random.random(len(targets)) < 0.4
        first, second = (
            accuracy((is_hard ^ (random.random(len(targets)) < 0.2)).tolist(), targets.tolist()) for _ in range(2))
        gap, error = difference(first, second)
        num_better += gap > error + 1e-9

    assert num_better / 2000 < 0.2


@pytest.mark.parametrize('targets', [[0, 1], [0, 0, 1]], ids=['other classes', 'the same classes'])
def test_a_difference_on_other_images_adds_both_errors(targets):
    better, other = accuracy([1, 1, 0], [0, 0, 1]), accuracy([1, 0, 0][:len(targets)], targets, 'others')

    expected = math.hypot(better.of_classes()[1], other.of_classes()[1])
    assert difference(better, other) == pytest.approx((better.balanced - other.balanced, expected))


def test_the_luck_of_the_best_of_many_is_taken_back():
    """Of 60 settings that are all right for 60 % of the images, the best one seems better, and is not."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.repeat_interleave(torch.arange(6), torch.tensor([60, 40, 20, 10, 6, 4]))
    settings = [
        Accuracy((torch.rand(len(targets), generator=generator) < 0.6).double(), targets, 'the same')
        for _ in range(60)]

    best = max(setting.balanced for setting in settings)
    _, recall = corrected_recalls(settings)

    assert best > 70
    assert 100 * recall.mean() == pytest.approx(60, abs=5)


def test_a_setting_that_is_better_by_far_keeps_its_accuracy():
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([40, 20, 8]))
    good = Accuracy((torch.arange(68) % 4 > 0).double(), targets, 'the same')
    bad = Accuracy((torch.arange(68) % 4 == 0).double(), targets, 'the same')

    count, recall = corrected_recalls([bad, good])

    assert count.tolist() == [40, 20, 8]
    assert recall.tolist() == pytest.approx([0.75] * 3, abs=0.05)


def test_of_one_setting_nothing_is_chosen():
    only = accuracy([1, 0, 1, 1], [0, 0, 1, 2])

    _, recall = corrected_recalls([only])

    assert recall.tolist() == [0.5, 1, 1]


@pytest.mark.parametrize('repeats', [1, 3])
def test_the_factor_of_five_folds(repeats):
    """1 + 5 / 4, however often the folds are dealt."""
    splits = cross_validation([0] * 50 + [1] * 50, num_folds=5, num_repeats=repeats)
    assert variance_factor(splits, repeats) == pytest.approx(2.25)


def test_the_factor_of_a_hold_out():
    assert variance_factor(hold_out(80, 20)) == 1.25
