"""Families of linear classifiers: closed forms against loops, and folding into one linear layer."""
import gc
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from timm_longtail.models.layers import CosineLinear
from timm_longtail.retraining import families
from timm_longtail.retraining.closed_form import nearest_class_mean
from timm_longtail.retraining.closed_form.discriminant import linear_discriminants
from timm_longtail.retraining.families import FAMILIES, LinearRule, TrainingFeatures
from timm_longtail.retraining.logistic import fit_logistic, principal_axes
from timm_longtail.utils.errors import UserError

COUNTS = [40, 15, 6, 2]
C, D = len(COUNTS), 5


def create_features(length: float = 50.0, head: nn.Module | None = None) -> tuple[torch.Tensor, TrainingFeatures]:
    """Return features as a backbone gives them, and divided by their mean norm."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.repeat_interleave(torch.arange(C), torch.tensor(COUNTS))
    values = torch.rand(C, D, generator=generator)[targets] + 0.2 * torch.randn(len(targets), D, generator=generator)
    values *= length
    representation = SimpleNamespace(
        train_set=SimpleNamespace(num_classes=C), trained_model=SimpleNamespace(name='model'), head=head,
        accelerator=SimpleNamespace(device=torch.device('cpu')))
    return values, TrainingFeatures.create(values, targets, representation)


def test_features_are_divided_by_their_mean_norm():
    values, data = create_features()

    assert data.values.norm(dim=1).mean() == pytest.approx(1)
    torch.testing.assert_close(data.values * data.scale, values)


def test_features_that_are_all_zero_are_refused():
    _, data = create_features()
    with pytest.raises(UserError, match='model: all features are zero'):
        TrainingFeatures.create(torch.zeros(4, D), torch.arange(4), data.representation)


def test_rows_of_rows():
    values, data = create_features()
    rows, chosen = torch.tensor([5, 0, 41, 60]), torch.tensor([2, 1])

    taken = data.take(rows).take(chosen)

    torch.testing.assert_close(taken.values * data.scale, values[[41, 0]])
    assert taken.targets.tolist() == [1, 0]


@pytest.mark.parametrize('name, copies', [('lda', 0), ('logistic', 1), ('crt', 1)])
def test_copies_of_a_fold_that_are_held_between_the_steps(name, copies):
    _, data = create_features()
    folds = [torch.arange(first, len(data.targets)) for first in (1, 2, 3)]  # no other tensor has as many rows
    paths = [FAMILIES[name].rules(data.take(rows)) for rows in folds]
    for path in paths:
        next(path)

    gc.collect()
    tensors = [one for one in gc.get_objects() if type(one) is torch.Tensor and one.ndim == 2]
    for rows in folds:
        assert sum(len(one) == len(rows) for one in tensors) == copies


@pytest.mark.parametrize('name', [name for name, family in FAMILIES.items() if not family.own])
def test_axes_are_found_once_and_only_where_they_are_needed(name, monkeypatch):
    found = []

    def noted(values: torch.Tensor) -> torch.Tensor:
        found.append(values)
        return principal_axes(values)

    monkeypatch.setattr(families, 'principal_axes', noted)
    _, data = create_features()
    for rows in (torch.arange(63), torch.arange(1, 63)):
        next(FAMILIES[name].rules(data.take(rows)))

    needs_axes = name in ('logistic', 'crt')
    assert len(found) == int(needs_axes)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_features_that_are_not_finite_are_refused(value):
    values, data = create_features()
    values[3, 1] = value
    with pytest.raises(UserError, match='model: features are not finite'):
        TrainingFeatures.create(values, data.targets, data.representation)


@pytest.mark.parametrize('name', [name for name, family in FAMILIES.items() if not family.own])
def test_what_a_family_gives_folds_into_one_linear_layer(name):
    """Scale, prior and temperature are in the weights: logits on the features as they are, and so predictions."""
    values, data = create_features()
    rule = next(FAMILIES[name].rules(data)).adjusted(0.7, data.log_prior)

    layer = rule.folded(data.scale, temperature=3.0)

    assert type(layer) is nn.Linear
    assert layer.weight.dtype == torch.float32
    logits = rule.logits(data.values)
    torch.testing.assert_close(layer(values), logits / 3, rtol=1e-4, atol=1e-4)
    assert torch.equal(layer(values).argmax(dim=1), logits.argmax(dim=1))


@pytest.mark.parametrize('name', [name for name, family in FAMILIES.items() if not family.own])
def test_predictions_do_not_depend_on_the_length_of_features(name):
    short, long = (create_features(length)[1] for length in (0.5, 60.0))

    first, second = (next(FAMILIES[name].rules(data)) for data in (short, long))

    assert torch.equal(first.logits(short.values).argmax(1), second.logits(long.values).argmax(1))


def test_the_adjustment_takes_the_log_prior_off():
    _, data = create_features()
    rule = LinearRule(torch.zeros(C, D), torch.ones(C), {'C': 1.0})

    adjusted = rule.adjusted(2.0, data.log_prior)

    expected = [1 - 2 * math.log(count / sum(COUNTS)) for count in COUNTS]
    assert adjusted.bias.tolist() == pytest.approx(expected)
    assert adjusted.options == {'C': 1.0, 'tau': 2.0}


def test_logistic_regression_is_that_on_the_features_as_they_are():
    _, data = create_features()
    part = data.take(torch.arange(10, 60))
    rule = next(FAMILIES['logistic'].rules(part, first=3))

    weight, bias = fit_logistic(part.values, part.targets, C, rule.options['C'], tolerance=1e-6)
    expected = F.linear(data.values, weight, bias)
    torch.testing.assert_close(rule.logits(data.values).softmax(1), expected.softmax(1), atol=0.01, rtol=0)


@pytest.mark.parametrize('metric', ['l2', 'cosine'])
def test_nearest_means_predict_as_the_closed_forms(metric):
    values, data = create_features()
    rule = next(FAMILIES[f'ncm_{metric}'].rules(data))

    expected = nearest_class_mean(values, data.targets, C, metric)(values)

    assert torch.equal(rule.folded(data.scale)(values).argmax(1), expected.argmax(1))


def test_the_centred_cosine_is_linear():
    """W (x - mu) with unit rows, against the loop over cosines."""
    values, data = create_features()
    layer = next(FAMILIES['ncm_centred'].rules(data)).folded(data.scale)

    centre = values.mean(dim=0)
    centred = [F.normalize(row - centre, dim=0) for row in values]
    for row, logits in zip(values, layer(values)):
        cosines = []
        for label in range(C):
            members = [one for one, target in zip(centred, data.targets) if target == label]
            direction = sum(members) / len(members)
            cosines.append(float(F.cosine_similarity(row - centre, direction, dim=0)))
        length = float((row - centre).norm()) / data.scale
        assert logits.tolist() == pytest.approx([length * cosine for cosine in cosines], abs=1e-4)


def test_discriminants_are_shrunk_distances():
    """Of two classes the nearer mean wins, by the Mahalanobis distance of the shrunk covariance."""
    _, data = create_features()
    wide = data.values.double()
    shrinkage = 0.3
    (weight, bias), = linear_discriminants(wide, data.targets, C, [shrinkage])

    means = torch.stack([wide[data.targets == label].mean(dim=0) for label in range(C)])
    residuals = wide - means[data.targets]
    covariance = residuals.T @ residuals / len(wide)
    shrunk = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / D * torch.eye(D, dtype=torch.float64)
    for row, logits in zip(wide, F.linear(wide, weight, bias)):
        distances = torch.stack([(row - mean) @ torch.linalg.solve(shrunk, row - mean) for mean in means])
        torch.testing.assert_close(logits.softmax(0), (-distances / 2).softmax(0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('images, width', [(12, 30), (30, 12)])
def test_discriminants_of_few_or_many_images(images, width):
    """Weight S^-1 mu and bias -mu S^-1 mu / 2, by the inverse of the whole covariance."""
    features = torch.randn(images, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    targets = torch.arange(images) % 3
    (weight, bias), = linear_discriminants(features, targets, 3, [0.2])

    means = torch.stack([features[targets == label].mean(dim=0) for label in range(3)])
    residuals = features - means[targets]
    covariance = residuals.T @ residuals / images
    inverse = (0.8 * covariance + 0.2 * covariance.trace() / width * torch.eye(width, dtype=torch.float64)).inverse()
    expected = F.linear(features, means @ inverse, -((means @ inverse) * means).sum(dim=1) / 2)
    torch.testing.assert_close(F.linear(features, weight, bias).softmax(1), expected.softmax(1))


@pytest.mark.parametrize('width', [3, 30])
@pytest.mark.parametrize('copies', [1, 3])
def test_without_variance_within_classes_discriminants_are_the_nearest_mean(width, copies):
    """One image of each class, or the same one several times, whose mean may be rounded."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(7, width, generator=generator)
    targets = torch.arange(7).repeat(copies)
    (weight, bias), = linear_discriminants(means[targets], targets, 7, [0.3])

    images = torch.randn(50, width, generator=generator, dtype=torch.float64)
    nearest = torch.cdist(images, means.double()).argmin(dim=1)
    assert torch.equal(F.linear(images, weight, bias).argmax(dim=1), nearest)


@pytest.mark.parametrize('shrinkage, classes, words', [
    (0.0, C, r'in \(0, 1\], got 0.0'),
    (0.5, C + 1, f'class {C} has no images'),
])
def test_discriminants_refuse(shrinkage, classes, words):
    _, data = create_features()
    with pytest.raises(UserError, match=words):
        next(linear_discriminants(data.values, data.targets, classes, [shrinkage]))


@pytest.mark.parametrize('head', [nn.Linear(D, C), CosineLinear(D, C)], ids=['linear', 'cosine'])
def test_the_own_classifier_predicts_as_it_did(head):
    values, data = create_features(head=head)
    layer = next(FAMILIES['joint'].rules(data)).folded(data.scale)

    assert torch.equal(layer(values).argmax(1), head(values).argmax(1))
