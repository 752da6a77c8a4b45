"""Figures that are asked for at the end of a run: top 5, ranking, reliability, other class distributions."""
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import nn

from timm_longtail.evaluation.evaluators import LongTailEvaluator
from timm_longtail.evaluation.shifted_priors import (
    SHIFTS,
    known_prior_accuracies,
    shifted_accuracies,
    shifted_prior,
)
from timm_longtail.utils.errors import UserError

from ..support.predictions import SHOT_COUNTS, close, evaluate, predictions


def full(logits: torch.Tensor, target: torch.Tensor, shot_counts=SHOT_COUNTS, batch_size: int = 64):
    """Return an evaluator that kept all scores, and its full figures."""
    evaluator = LongTailEvaluator(shot_counts)
    evaluator.keeps_scores = True
    evaluator.start(nn.Identity(), lambda: iter(()))
    for x, y in zip(logits.split(batch_size), target.split(batch_size)):
        evaluator.update(nn.Identity(), x, y)
    return evaluator, evaluator.full_figures()


# ------------------------------------------------------------------------------------------ figures

def test_top_5_agrees_with_a_loop():
    logits, target = predictions()
    logits[::7] = logits[::7].round()  # with ties, of which the first class counts
    num_right = 0
    for row, label in zip(logits, target):
        order = sorted(range(10), key=lambda c: (-row[c], c))
        num_right += label in order[:5]
    assert evaluate(logits, target)['top5'] == close(100 * num_right / len(target))


def test_top_5_of_five_classes_says_nothing():
    logits, target = predictions(num_classes=5)
    assert evaluate(logits, target, SHOT_COUNTS[:5])['top5'] is None


def test_ranking_agrees_with_scikit_learn():
    logits, target = predictions()
    probabilities = logits.double().softmax(dim=1)

    _, figures = full(logits, target)

    auroc = roc_auc_score(target, probabilities, multi_class='ovr', average='macro')
    assert figures['macro_auroc'] == pytest.approx(100 * auroc, abs=1e-4)
    precision = average_precision_score(nn.functional.one_hot(target, 10), probabilities, average='macro')
    assert figures['macro_ap'] == pytest.approx(100 * precision, abs=1e-4)


def test_ranking_leaves_out_classes_without_images():
    logits, target = predictions()
    target[target == 9] = 0

    _, figures = full(logits, target)

    areas = [roc_auc_score(target == c, logits.log_softmax(dim=1)[:, c]) for c in range(9)]
    assert figures['macro_auroc'] == pytest.approx(100 * sum(areas) / 9, abs=1e-4)
    _, figures = full(logits, torch.zeros_like(target))
    assert figures['macro_auroc'] is None and figures['macro_ap'] is None


def test_a_vote_of_nothing_is_ranked_last():
    logits = torch.tensor([[0., -torch.inf], [-torch.inf, 0.], [-1., -0.5]])
    evaluator = LongTailEvaluator([5, 5])
    evaluator._is_bad = lambda output: output.isnan().any(dim=1)  # as of a vote of neighbours
    evaluator.keeps_scores = True
    evaluator.add(logits, torch.tensor([0, 1, 1]))
    assert evaluator.full_figures()['macro_auroc'] == 100


def test_bins_are_those_of_the_calibration_error():
    logits, target = predictions()
    figures = evaluate(logits, target)

    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    gap = 0.0
    for number in range(15):
        rows = (confidence * 15).long() == number
        count = int(rows.sum())
        assert figures['bin_total'][number] == count
        assert figures['bin_correct'][number] == int((predicted == target)[rows].sum())
        if count == 0:
            assert figures['bin_confidence'][number] is None
            continue
        assert figures['bin_confidence'][number] == close(float(confidence[rows].mean()))
        gap += abs(figures['bin_correct'][number] - count * figures['bin_confidence'][number])
    assert figures['ece'] == pytest.approx(100 * gap / len(target))


def test_the_full_figures_are_those_of_compute_and_more():
    logits, target = predictions()
    evaluator, figures = full(logits, target)

    plain = evaluate(logits, target, batch_size=300)
    assert {name: figures[name] for name in plain} == plain
    assert figures.keys() - plain.keys() == {'intervals', 'shifted', 'macro_auroc', 'macro_ap'}
    low, high = figures['intervals']['balanced']
    assert low < figures['balanced'] < high

    # kept for one evaluation
    evaluator.keeps_scores = False
    evaluator.start(nn.Identity(), lambda: iter(()))
    evaluator.add(logits, target)
    assert 'macro_auroc' not in evaluator.full_figures()
    with pytest.raises(UserError, match='no scores were kept'):
        evaluator.scores()


# ------------------------------------------------------------------------ other class distributions

@pytest.mark.parametrize('ratio', [50, 2])
def test_a_shifted_prior_falls_exponentially(ratio):
    counts = [5, 500, 50]
    forward = shifted_prior(f'forward_{ratio}', counts)
    assert forward.sum() == close(1)
    assert forward[1] / forward[0] == close(ratio)
    assert forward[1] / forward[2] == close(ratio ** 0.5)

    backward = shifted_prior(f'backward_{ratio}', counts)
    assert backward[[0, 2, 1]].tolist() == pytest.approx(forward[[1, 2, 0]].tolist())
    assert shifted_prior('uniform', counts).tolist() == [1 / 3] * 3


def test_accuracies_are_those_of_drawn_test_sets():
    logits, target = predictions(num_images=3000)
    figures = evaluate(logits, target)
    shifted = shifted_accuracies(figures['class_correct'], figures['class_total'], SHOT_COUNTS)

    assert [*shifted] == [*SHIFTS] and shifted['uniform'] == close(figures['balanced'])
    correct = logits.argmax(dim=1) == target
    weights = shifted_prior('backward_25', SHOT_COUNTS) / torch.bincount(target)
    drawn = torch.multinomial(
        weights[target], 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    assert shifted['backward_25'] == pytest.approx(100 * float(correct[drawn].double().mean()), abs=0.5)


def test_classes_without_images_have_no_weight():
    shifted = shifted_accuracies([3, 0, 1], [4, 0, 2], [100, 50, 5])
    shares = shifted_prior('forward_10', [100, 50, 5])
    assert shifted['forward_10'] == close(float(100 * (0.75 * shares[0] + 0.5 * shares[2]) / (shares[0] + shares[2])))
    assert set(shifted_accuracies([0], [0], [3]).values()) == {None}


def test_a_known_prior_shifts_the_logits():
    logits, target = predictions()
    log_probs = logits.double().log_softmax(dim=1)
    learned = torch.tensor(SHOT_COUNTS, dtype=torch.float64).log()

    known = known_prior_accuracies(log_probs, target, SHOT_COUNTS, learned)

    total = torch.bincount(target, minlength=10)
    for name in ('forward_50', 'uniform', 'backward_5'):
        prior = shifted_prior(name, SHOT_COUNTS)
        predicted = (log_probs.exp() * prior / learned.exp()).argmax(dim=1)
        accuracy = sum(prior[c] * ((predicted == c) & (target == c)).sum() / total[c] for c in range(10))
        assert known[name] == pytest.approx(100 * float(accuracy))

    # a prior that is the model's own shifts nothing
    own = shifted_prior('forward_50', SHOT_COUNTS).log()
    figures = evaluate(logits, target)
    unshifted = shifted_accuracies(figures['class_correct'], figures['class_total'], SHOT_COUNTS)
    assert known_prior_accuracies(log_probs, target, SHOT_COUNTS, own)['forward_50'] == close(unshifted['forward_50'])
