"""The figures of the evaluator against scikit-learn and against loops."""
import warnings

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score
from torch import nn

from timm_longtail.evaluation.evaluators import LongTailEvaluator
from timm_longtail.evaluation.tables import GROUPS

from ..support.predictions import (
    FEW,
    FEW_INCLUSIVE,
    MANY,
    MEDIUM,
    MEDIUM_INCLUSIVE,
    SHOT_COUNTS,
    close,
    evaluate,
    predictions,
)


def class_accuracies(logits, target):
    """Percent right of each class that has images, in loops."""
    right, total = {}, {}
    for row, label in zip(logits.tolist(), target.tolist()):
        total[label] = total.get(label, 0) + 1
        right[label] = right.get(label, 0) + (row.index(max(row)) == label)
    return {label: 100 * right[label] / total[label] for label in total}


def calibration_error(logits, target, num_bins=15):
    """Expected calibration error of Guo et al. in percent: sum over bins of share * |accuracy - confidence|."""
    probabilities = torch.softmax(logits.double(), dim=1)
    error = 0.0
    for b in range(num_bins):
        confidences, hits = [], []
        for p, label in zip(probabilities, target.tolist()):
            confidence = float(p.max())
            if b / num_bins <= confidence < (b + 1) / num_bins or (b == num_bins - 1 and confidence == 1):
                confidences.append(confidence)
                hits.append(int(p.argmax()) == label)
        if hits:
            gap = abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
            error += len(hits) / len(target) * gap

    return 100 * error


@pytest.mark.parametrize('seed', [0, 1])
def test_agrees_with_scikit_learn(seed):
    logits, target = predictions(seed=seed)
    predicted = logits.argmax(dim=1)
    metrics = evaluate(logits, target)

    assert 0 < metrics['all'] < 100
    assert metrics['all'] == close(100 * accuracy_score(target, predicted))
    assert metrics['balanced'] == close(100 * balanced_accuracy_score(target, predicted))
    assert metrics['macro_f1'] == close(100 * f1_score(target, predicted, average='macro'))
    assert metrics['loss'] == pytest.approx(float(nn.functional.cross_entropy(logits.double(), target)), rel=1e-8)


@pytest.mark.parametrize('scale', [0.3, 1.5, 400.0])  # from timid to confidences of exactly 1
def test_agrees_with_loops(scale):
    logits, target = predictions(scale=scale)
    metrics = evaluate(logits, target)
    accuracy = class_accuracies(logits, target)

    def mean(classes):
        return close(sum(accuracy[c] for c in classes) / len(classes))

    assert metrics['class_accuracy'] == [close(accuracy[c]) for c in range(10)]
    assert metrics['many'] == mean(MANY)
    assert metrics['medium'] == mean(MEDIUM)
    assert metrics['few'] == mean(FEW)
    assert metrics['medium_inclusive'] == mean(MEDIUM_INCLUSIVE)
    assert metrics['few_inclusive'] == mean(FEW_INCLUSIVE)
    assert metrics['balanced'] == mean(range(10))
    assert metrics['worst_class'] == close(min(accuracy.values()))
    assert metrics['ece'] == pytest.approx(calibration_error(logits, target), rel=1e-9)
    assert metrics['num_images'] == len(target)
    assert metrics['class_total'] == [int((target == c).sum()) for c in range(10)]
    assert sum(metrics['class_correct']) == int((logits.argmax(dim=1) == target).sum())


@pytest.mark.parametrize('count, group, inclusive', [
    (101, 'many', 'many'), (100, 'medium', 'medium'), (21, 'medium', 'medium'),
    (20, 'medium', 'few'), (19, 'few', 'few'),
])
def test_group_of_a_class_at_the_limits(count, group, inclusive):
    # one class, one image, right: its group is the one that is not empty
    metrics = evaluate(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), [count])
    assert {name for name in GROUPS if metrics[name] is not None} == {group}
    other = {name.removesuffix('_inclusive') for name in ('many', 'medium_inclusive', 'few_inclusive')
             if metrics[name] is not None}
    assert other == {inclusive}


def test_empty_group_is_none_and_not_zero():
    logits, target = predictions(num_classes=3)
    metrics = evaluate(logits, target, [300, 200, 50])
    assert metrics['few'] is None and metrics['few_inclusive'] is None
    assert metrics['many'] is not None and metrics['medium'] == metrics['medium_inclusive']


def test_classes_absent_from_the_test_are_left_out():
    logits, target = predictions()
    kept = (target != 9) & (target != 4)
    logits, target = logits[kept], target[kept]
    predicted = logits.argmax(dim=1)
    assert {4, 9} & set(predicted.tolist())  # they are still predicted

    metrics = evaluate(logits, target)
    accuracy = class_accuracies(logits, target)
    seen = sorted(accuracy)
    assert metrics['class_accuracy'][4] is None and metrics['class_accuracy'][9] is None
    assert metrics['class_total'][4] == metrics['class_correct'][9] == 0
    assert metrics['few'] == close(accuracy[8])
    assert metrics['medium'] == close(sum(accuracy[c] for c in (2, 3, 5, 6, 7)) / 5)
    assert metrics['worst_class'] == close(min(accuracy.values()))

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # scikit-learn remarks on the predicted classes that have no image
        assert metrics['balanced'] == close(100 * balanced_accuracy_score(target, predicted))

    assert metrics['macro_f1'] == close(100 * f1_score(target, predicted, labels=seen, average='macro'))


def test_a_group_whose_classes_have_no_test_image_is_none():
    logits, target = predictions()
    kept = target < 8
    metrics = evaluate(logits[kept], target[kept])
    assert metrics['few'] is None
    assert metrics['few_inclusive'] is not None


def test_a_class_that_is_never_right():
    target = torch.tensor([0, 0, 1])
    metrics = evaluate(nn.functional.one_hot(torch.tensor([0, 0, 0]), 2).float(), target, [200, 10])
    assert metrics['worst_class'] == 0.0 and metrics['few'] == 0.0 and metrics['many'] == 100.0
    assert metrics['macro_f1'] == close((100 * 2 * 2 / 5 + 0) / 2)


def test_no_image_gives_none_everywhere():
    metrics = LongTailEvaluator(SHOT_COUNTS).compute()
    for name in ('all', *GROUPS, 'balanced', 'worst_class', 'macro_f1', 'ece', 'loss'):
        assert metrics[name] is None
    assert metrics['num_images'] == 0


@pytest.mark.parametrize('shot_counts', [SHOT_COUNTS, torch.tensor(SHOT_COUNTS), torch.tensor(SHOT_COUNTS).numpy()])
def test_shot_counts_of_any_kind(shot_counts):
    logits, target = predictions()
    assert evaluate(logits, target, shot_counts) == evaluate(logits, target)
