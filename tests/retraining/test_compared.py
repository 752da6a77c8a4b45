"""A set that is too large to choose on is chosen on a part of its classes; what is kept is of all of them."""
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from timm_longtail.retraining.compare import calibrate, compare_families, finish
from timm_longtail.retraining.compared import Compared
from timm_longtail.retraining.families import FAMILIES
from timm_longtail.retraining.representation import Features

COUNTS = [12, 40, 20, 8, 6, 25, 4, 3, 10, 2]
C, D = len(COUNTS), 16
SIZE = sum(COUNTS) * D * C

# from the most to the least frequent: 1 5 2 0 8 3 4 6 7 9
EVERY_THIRD = [5, 6, 8]


def features_of(counts: list[int], seed: int) -> Features:
    """Return features around a mean of each class; the means are the same for every seed."""
    means = torch.randn(C, D, generator=torch.Generator().manual_seed(0))
    targets = torch.repeat_interleave(torch.arange(C), torch.tensor(counts))
    noise = torch.randn(len(targets), D, generator=torch.Generator().manual_seed(seed))
    return Features(means[targets] + noise, targets, torch.arange(len(targets)), COUNTS)


def compared_of(largest: float, held: Features | None = None, **options) -> Compared:
    representation = SimpleNamespace(
        train=features_of(COUNTS, seed=1), held=held, seen=False, head=nn.Linear(D, C),
        train_set=SimpleNamespace(num_classes=C, shot_counts=COUNTS), trained_model=SimpleNamespace(name='model'),
        accelerator=SimpleNamespace(device=torch.device('cpu')), stage_1_sampler=lambda: None)
    return Compared('model', representation, largest=largest, **options)


def chosen_on_part(**options) -> Compared:
    """A ninth of what the whole asks for: every third class."""
    return compared_of(SIZE / 9, num_folds=3, **options)


def test_a_set_that_is_small_enough_is_its_own_trial():
    compared = compared_of(SIZE)

    assert not compared.chooses_on_part
    assert compared.trial.data is compared.data
    assert compared.trial.splits is compared.splits
    assert compared.trial.classes.tolist() == list(range(C))


def test_a_part_has_every_kth_class_with_all_of_its_images():
    compared = chosen_on_part()
    trial = compared.trial

    assert compared.chooses_on_part
    assert trial.classes.tolist() == EVERY_THIRD
    assert torch.bincount(trial.data.targets).tolist() == [COUNTS[label] for label in EVERY_THIRD]
    assert trial.data.num_classes == 3

    is_kept = torch.isin(compared.data.targets, trial.classes)
    assert torch.equal(trial.data.values, compared.data.values[is_kept])
    assert torch.equal(trial.classes[trial.data.targets], compared.data.targets[is_kept])


def test_a_part_is_divided_as_the_whole_is():
    compared = chosen_on_part(num_repeats=2)
    kept = torch.isin(compared.data.targets, compared.trial.classes).nonzero()[:, 0]

    assert compared.trial.num_repeats == 1
    assert len(compared.trial.splits) == len(compared.splits) // 2 == 3
    for part, whole in zip(compared.trial.splits, compared.splits):
        assert set(kept[part.fit].tolist()) == set(whole.fit.tolist()) & set(kept.tolist())
        assert set(kept[part.measure].tolist()) == set(whole.measure.tolist()) & set(kept.tolist())


def test_a_part_of_a_hold_out_is_held_out():
    held = features_of([count // 2 for count in COUNTS], seed=2)
    compared = compared_of(SIZE / 6, held=held)  # with half as many images again
    split, = compared.trial.splits

    assert torch.bincount(compared.trial.data.targets[split.fit]).tolist() == [25, 4, 10]
    assert torch.bincount(compared.trial.data.targets[split.measure]).tolist() == [12, 2, 5]


@pytest.mark.parametrize('name', FAMILIES)
def test_a_classifier_chosen_on_a_part_is_of_all_classes(name):
    compared = chosen_on_part()

    result, = compare_families(compared, {name: FAMILIES[name]})
    finish(result)
    calibrate(result)

    # measured on the part, by the numbers of the whole; then once on a fold of all classes
    assert result.accuracy.targets.unique().tolist() == EVERY_THIRD
    assert result.rule.weight.shape == (C, D)
    measured = compared.splits[0].measure
    assert torch.equal(result.complete.targets, compared.data.targets[measured])
    assert result.expected == result.complete.of_classes()
    assert result.temperature > 0


def test_the_own_classifier_of_a_part_has_its_rows():
    compared = chosen_on_part()
    head, data = compared.representation.head, compared.trial.data

    rule = next(FAMILIES['joint'].rules(data))

    expected = head(data.values * data.scale)[:, EVERY_THIRD]
    torch.testing.assert_close(rule.logits(data.values), expected)


def test_a_setting_is_fitted_again_without_those_before_it():
    """The path is a way to a minimum, which does not depend on it."""
    compared = compared_of(SIZE)
    family, values = FAMILIES['logistic'], compared.data.values
    path = list(compared.candidates(family, compared.data))

    alone = next(compared.candidates(family, compared.data, first=4))

    for rule, expected in zip(alone, path[4], strict=True):
        assert rule.options == expected.options
        probabilities, expected = (one.logits(values).softmax(dim=1) for one in (rule, expected))
        torch.testing.assert_close(probabilities, expected, atol=0.02, rtol=0)
