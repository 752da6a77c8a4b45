"""Confusion: counted as scikit-learn counts it, and its rates between groups of classes."""
import functools

import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn

from timm_longtail.data.longtail import head_tail_groups, shot_groups
from timm_longtail.evaluation import evaluators
from timm_longtail.evaluation.confusion import confusion_rate
from timm_longtail.utils.errors import UserError

from ..support.predictions import FEW, MANY, MEDIUM, SHOT_COUNTS, close, evaluate, filled, predictions


@pytest.mark.parametrize('batch_size', [1, 64, 300])
def test_confusion_agrees_with_scikit_learn(batch_size):
    logits, target = predictions()
    evaluator = filled(logits, target, batch_size=batch_size, confusion=True)
    confusion = evaluator.confusion_matrix()
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == confusion_matrix(target, logits.argmax(dim=1), labels=range(10)).tolist()

    metrics = evaluator.compute()
    assert confusion.diag().tolist() == metrics['class_correct']
    assert confusion.sum(dim=1).tolist() == metrics['class_total']
    assert metrics == evaluate(logits, target)  # what is written of a run does not grow
    assert torch.equal(evaluator.confusion_matrix(), confusion)


def test_confusion_of_all_processes(monkeypatch):
    evaluator = filled(*predictions(), confusion=True)
    reduced = []
    monkeypatch.setattr(evaluators, 'all_reduce_sum', lambda value: reduced.append(value.numel()) or value.mul_(2))
    assert torch.equal(evaluator.confusion_matrix(), 2 * evaluator.confusion_matrix(reduce=False))
    assert torch.equal(evaluator.confusion_matrix(), 2 * evaluator.confusion_matrix(reduce=False))
    assert reduced == [100, 100]

    evaluator.compute()
    assert reduced.count(100) == 2  # the figures do not send the confusion


def test_confusion_is_forgotten_at_the_start_and_is_zero_without_images():
    evaluator = filled(*predictions(), confusion=True)
    evaluator.start(nn.Identity(), None)
    assert evaluator.confusion_matrix().tolist() == [[0] * 10] * 10
    evaluator.add(torch.eye(10)[[3]], torch.tensor([8]))
    assert evaluator.confusion_matrix().nonzero().tolist() == [[8, 3]]


def test_confusion_is_counted_on_request_only():
    evaluator = filled(*predictions())
    assert 'confusion' not in evaluator._sums
    with pytest.raises(UserError, match='confusion=True'):
        evaluator.confusion_matrix()


def test_confusion_rate_in_loops():
    confusion = filled(*predictions(), confusion=True).confusion_matrix().tolist()

    assert confusion_rate(confusion, SHOT_COUNTS) > 10
    for source, rows in (('many', MANY), ('medium', MEDIUM), ('few', FEW)):
        total = 0
        for target, columns in (('many', MANY), ('medium', MEDIUM), ('few', FEW)):
            taken = sum(confusion[i][j] for i in rows for j in columns)
            images = sum(confusion[i][j] for i in rows for j in range(10))
            rate = confusion_rate(confusion, SHOT_COUNTS, source, target)
            assert rate == close(100 * taken / images)
            total += rate
        assert total == close(100)


def test_few_to_many_is_the_confusion_rate():
    evaluator = filled(*predictions(), confusion=True, batch_size=7)
    metrics, confusion = evaluator.compute(), evaluator.confusion_matrix()
    assert metrics['few_to_many'] == close(confusion_rate(confusion, SHOT_COUNTS))
    inclusive = functools.partial(shot_groups, few_inclusive=True)
    assert metrics['few_to_many_inclusive'] == close(confusion_rate(confusion, SHOT_COUNTS, groups=inclusive))
    assert metrics['few_to_many_inclusive'] != metrics['few_to_many']


@pytest.mark.parametrize('counts', [[50, 50], [500, 500]])
def test_few_to_many_without_one_of_the_groups(counts):
    metrics = evaluate(torch.eye(2), torch.tensor([0, 1]), counts)
    assert metrics['few_to_many'] is metrics['few_to_many_inclusive'] is None


def test_confusion_rate_in_closed_form():
    counts = [10, 500, 50]  # Few, Many, Medium: not in order
    confusion = [[5, 3, 2], [1, 98, 1], [0, 4, 6]]
    assert confusion_rate(confusion, counts) == close(30)
    assert confusion_rate(torch.tensor(confusion), torch.tensor(counts)) == close(30)
    assert confusion_rate(confusion, counts, 'many', 'few') == close(1)
    assert confusion_rate(confusion, counts, 'few', 'few') == close(50)
    # Tail holds two classes of 10 images
    assert confusion_rate(confusion, counts, 'tail', 'head', head_tail_groups) == close(100 * (3 + 4) / 20)


def test_confusion_rate_that_does_not_exist_is_none():
    assert confusion_rate([[0, 0], [3, 4]], [10, 500]) is None  # no image of a Few class
    assert confusion_rate([[1, 2], [3, 4]], [50, 500]) is None  # no Few class
    assert confusion_rate([[1, 2], [3, 4]], [50, 10]) is None  # no Many class: 0 would praise the model


@pytest.mark.parametrize('confusion, names, words', [
    ([[1, 2], [3, 4]], ('tail', 'many'), "unknown group 'tail'"),
    ([[1, 2], [3, 4]], ('few', 'head'), "unknown group 'head'"),
    ([[1, 2, 3], [3, 4, 5]], ('few', 'many'), r'square, got \[2, 3\]'),
])
def test_confusion_rate_refuses(confusion, names, words):
    with pytest.raises(UserError, match=words):
        confusion_rate(confusion, [500, 10], *names)
