"""The one-standard-error rule: what theory or experience names stays, unless another is better by more than chance."""
from types import SimpleNamespace

import pytest
import torch

from timm_longtail.retraining.compare import Result, Setting, choose, choose_setting, contenders
from timm_longtail.retraining.cross_validation import Accuracy, class_means
from timm_longtail.retraining.families import FAMILIES
from timm_longtail.utils.errors import UserError

# two classes of 20 images
TARGETS = torch.arange(2).repeat_interleave(20)


def accuracy(*right: int) -> Accuracy:
    """Return an accuracy of which the first images of each class are right, so many."""
    correct = torch.zeros(2, 20, dtype=torch.float64)
    for row, number in zip(correct, right):
        row[:number] = 1
    return Accuracy(correct.flatten(), TARGETS, 'the same')


def setting(tau: float, *right: int) -> Setting:
    return Setting(0, {'C': 1.0, 'tau': tau}, accuracy(*right))


def test_the_usual_strength_stays_where_another_is_better_by_chance():
    """One image more of 40: 2.5 ± 2.5 points."""
    settings = [setting(0.5, 10, 10), setting(1.0, 12, 12), setting(1.0, 13, 12), setting(1.5, 13, 13)]

    chosen, rivals = choose_setting(settings, usual_tau=1.0)

    assert chosen is settings[2]
    assert rivals == settings[1:3]


def test_a_strength_that_is_better_by_far_is_taken():
    settings = [setting(1.0, 10, 10), setting(1.5, 20, 18)]
    assert choose_setting(settings, usual_tau=1.0) == (settings[1], settings)


def test_folds_that_share_images_tell_less():
    """Three images more of 40: 7.5 ± 4.3 points, or ± 13 where the squared error is nine times as large."""
    settings = [setting(1.0, 12, 12), setting(1.5, 15, 12)]

    assert choose_setting(settings, 1.0)[0] is settings[1]
    assert choose_setting(settings, 1.0, factor=9.0)[0] is settings[0]


@pytest.mark.parametrize('usual_tau', [None, 0.0])
def test_without_a_usual_strength_the_best_is_taken(usual_tau):
    settings = [setting(1.0, 12, 12), setting(1.5, 13, 12)]
    assert choose_setting(settings, usual_tau) == (settings[1], settings)


def result(name: str, *right: int, model: str = 'a') -> Result:
    """Return the result of a family; one model is one object."""
    found = accuracy(*right)
    return Result(name, FAMILIES[name], MODELS[model], {}, found, *class_means(found.correct, TARGETS), 0)


def model(is_optimistic: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        representation=SimpleNamespace(train_set=SimpleNamespace(shot_counts=[20, 20])), variance_factor=1.0,
        trial=SimpleNamespace(classes=torch.arange(2)), is_optimistic=is_optimistic)


MODELS = {'a': model(), 'b': model(), 'seen': model(is_optimistic=True)}


@pytest.mark.parametrize('lda, chosen', [((13, 12), 'logistic'), ((16, 16), 'lda'), ((5, 5), 'logistic')])
def test_another_family_must_be_better_than_logistic_regression(lda, chosen):
    results = [result('ncm_l2', 12, 11), result('lda', *lda), result('logistic', 12, 12), result('crt', 12, 12)]
    assert choose(results).name == chosen


def test_without_logistic_regression_the_best_is_taken():
    results = [result('ncm_l2', 12, 12), result('lda', 13, 12)]
    assert choose(results) is results[1]


def test_of_several_models_the_best_one_is_taken_first():
    results = [result('logistic', 12, 12), result('logistic', 14, 12, model='b'), result('crt', 14, 13, model='b')]
    assert choose(results) is results[1]


def test_what_a_model_has_seen_is_chosen_only_where_there_is_nothing_else():
    seen = [result('logistic', 20, 20, model='seen'), result('lda', 20, 19, model='seen')]
    honest = [result('ncm_l2', 12, 12), result('lda', 13, 12)]

    assert choose([*seen, *honest]) is honest[1]
    assert contenders([*seen, *honest]) == honest
    assert choose(seen) is seen[0]


def test_there_must_be_something_to_choose_from():
    with pytest.raises(UserError, match='no classifier to choose from'):
        choose([])
