"""A set that is too large to choose on is chosen on a part of its classes; what is kept is of all of them."""
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from timm_longtail.data import LongTailDataset, create_dataset
from timm_longtail.retraining.compare import calibrate, choose, compare_families, finish, lead
from timm_longtail.retraining.compared import Compared, choose_classes
from timm_longtail.retraining.families import FAMILIES, Family, LinearRule, TrainingFeatures
from timm_longtail.retraining.representation import Features

COUNTS = [12, 40, 20, 8, 6, 25, 4, 3, 10, 2]
C, D = len(COUNTS), 16
SIZE = sum(COUNTS) * D * C

# from the most to the least frequent: 1 5 2 0 8 3 4 6 7 9
EVERY_THIRD = [5, 6, 8]


def features_of(counts: list[int], seed: int, width: int = D) -> Features:
    """Return features around a mean of each class; the means are the same for every seed.

    All beyond the first D columns are zero.
    """
    means = torch.randn(C, D, generator=torch.Generator().manual_seed(0))
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    noise = torch.randn(len(targets), D, generator=torch.Generator().manual_seed(seed))
    values = nn.functional.pad(means[targets] + noise, (0, width - D))
    return Features(values, targets, torch.arange(len(targets)), counts)


def representation_of(
        counts: list[int] = COUNTS,
        held: Features | None = None,
        width: int = D,
) -> SimpleNamespace:
    train_set, held_out = (SimpleNamespace(num_classes=len(counts), shot_counts=counts, hash=name, order=0)
                           for name in ('train', 'held out'))
    return SimpleNamespace(
        train=features_of(counts, seed=1, width=width), held=held, seen=False, head=nn.Linear(width, len(counts)),
        train_set=train_set, held_out=held_out, trained_model=SimpleNamespace(name='model'),
        accelerator=SimpleNamespace(device=torch.device('cpu')), stage_1_sampler=lambda: None)


def compared_of(largest: float, held: Features | None = None, **options) -> Compared:
    representation = representation_of(held=held)
    return Compared('model', representation, classes=choose_classes([representation], largest), **options)


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


def test_models_of_any_width_are_measured_on_the_same_classes():
    """The part is that of the widest one. What says nothing in the wide features leaves both equally good."""
    narrow, wide = representation_of(), representation_of(width=4 * D)
    classes = choose_classes([narrow, wide], SIZE)
    assert classes.tolist() == choose_classes([wide, narrow], SIZE).tolist()

    models = [Compared('model', representation, 3, classes=classes) for representation in (narrow, wide)]

    assert [model.trial.classes.tolist() for model in models] == [classes.tolist()] * 2
    assert len(classes) == C // 2
    first, second = (next(compare_families(model, {'ncm_l2': FAMILIES['ncm_l2']})) for model in models)
    assert first.balanced == second.balanced
    assert lead(first, second) == (0, 0)


def test_results_on_other_classes_are_not_compared():
    results = [
        next(compare_families(compared, {'ncm_l2': FAMILIES['ncm_l2']}))
        for compared in (compared_of(SIZE), chosen_on_part())
    ]

    with pytest.raises(ValueError, match='different classes'):
        choose(results)
    with pytest.raises(ValueError, match='different classes'):
        lead(*results)


@pytest.mark.parametrize('counts, classes', [
    ([20], [0]),
    ([5, 1, 1, 1], [0, 1, 2, 3]),
    ([5, 1, 1, 4, 1, 1], [0, 3]),
    ([9, 1, 8, 7, 1, 6], [2, 5]),
])
def test_a_part_is_of_two_classes_or_more_that_are_measured(counts, classes):
    assert choose_classes([representation_of(counts)], largest=1).tolist() == classes


def test_a_class_that_one_model_has_seen_one_image_of_is_in_no_part():
    full, damaged = representation_of([9, 8, 7, 6]), representation_of([9, 8, 7, 6])
    keeps = torch.ones(30, dtype=torch.bool)
    keeps[:8] = False  # of class 0
    damaged.train = Features(*(part[keeps] for part in (damaged.train.values, damaged.train.targets,
                                                        damaged.train.index)), [9, 8, 7, 6])

    assert choose_classes([full, damaged], largest=1).tolist() == [1, 2, 3]
    assert choose_classes([full], largest=1).tolist() == [1, 3]


def held_out_of(held: LongTailDataset) -> Compared:
    """Return a comparison on a hold-out of real images."""
    features = features_of(held.class_counts, seed=2)
    representation = representation_of(held=features)
    representation.held_out = held
    return Compared('model', representation)


def test_two_hold_outs_of_one_size_are_of_other_images():
    train_set = create_dataset('digits_lt', 'train')
    first, again, other = (held_out_of(train_set.hold_out(0.2, seed)[1]) for seed in (0, 0, 1))
    results = [next(compare_families(one, {'ncm_l2': FAMILIES['ncm_l2']})) for one in (first, again, other)]

    accuracy, same, another = (result.accuracy for result in results)

    assert torch.equal(accuracy.targets, another.targets)
    assert accuracy.images == same.images != another.images
    assert lead(results[0], results[1]) == (0, 0)
    assert lead(results[0], results[2])[1] > 0


def test_an_image_that_one_model_lacks_is_told_from_others():
    whole, without_one = representation_of(), representation_of()
    train = without_one.train
    train.values, train.targets, train.index = train.values[1:], train.targets[1:], train.index[1:]
    models = [Compared('model', representation) for representation in (whole, without_one)]

    first, second = (next(compare_families(model, {'ncm_l2': FAMILIES['ncm_l2']})) for model in models)

    assert first.accuracy.images != second.accuracy.images
    assert models[0].images_of(torch.arange(1, 6)) == models[1].images_of(torch.arange(5))


def test_the_folds_of_a_repeat_are_let_go_before_the_next():
    compared = compared_of(SIZE, num_folds=3, num_repeats=4)
    held, most = weakref.WeakSet(), 0

    def fit(data: TrainingFeatures, path: tuple[float, ...]):
        nonlocal most
        held.add(data.targets)  # the values are copied where they are used
        most = max(most, len(held))
        for setting in path:
            yield LinearRule(setting * torch.ones(C, data.values.shape[1]), torch.zeros(C), {'setting': setting})

    result, = compare_families(compared, {'toy': Family('toy', fit, path=(1.0, 2.0, 3.0))})

    assert most == 3
    assert len(result.accuracy.correct) == sum(COUNTS)


def test_repeats_are_averaged_image_by_image():
    twice = compared_of(SIZE, num_folds=3, num_repeats=2)
    family = {'lda': FAMILIES['lda']}

    result, = compare_families(twice, family)

    # by hand, one setting
    path = FAMILIES['lda'].path
    expected = torch.zeros(sum(COUNTS), dtype=torch.float64)
    for split in twice.splits:
        rules = list(twice.candidates(FAMILIES['lda'], twice.data.take(split.fit)))
        rule, = rules[path.index(result.options['shrinkage'])]
        predicted = rule.logits(twice.data.values[split.measure]).argmax(dim=1)
        expected[split.measure] += (predicted == twice.data.targets[split.measure]).double() / 2
    assert torch.equal(result.accuracy.correct, expected)


def test_a_path_goes_on_where_getting_worse_may_be_chance():
    """Two images of twenty are more than the error of a hold-out, and less than that of five folds."""
    values = torch.tensor([1.0] * 18 + [2.0] * 2 + [3.0] * 20)[:, None]
    representation = representation_of([20, 20])
    representation.train = Features(values, torch.arange(40) // 20, torch.arange(40), [20, 20])
    reached = set()

    def fit(data: TrainingFeatures, path: tuple[float, ...]):
        for threshold in path:
            reached.add(threshold)
            weight, bias = torch.tensor([[0.0], [data.scale]]), torch.tensor([0.0, -threshold])
            yield LinearRule(weight, bias, {'threshold': threshold})

    path = (2.5, 1.9, 1.8, 1.7, 1.6)
    result, = compare_families(Compared('model', representation), {'toy': Family('toy', fit, path)})

    assert result.options == {'threshold': 2.5}
    assert reached == set(path)


@pytest.mark.parametrize('name', ['logistic', 'crt'])
def test_the_best_strength_of_features_that_are_much_alike_is_within_the_path(name):
    """What tells the images apart is a hundredth of the length that features are divided by."""
    representation = representation_of()
    representation.train.values += 100

    result, = compare_families(Compared('model', representation), {name: FAMILIES[name]})

    assert result.position < len(FAMILIES[name].path) - 1
