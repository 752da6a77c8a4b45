"""Classifiers of `retrain` on features of a model that was trained elsewhere."""
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from timm_longtail.retraining.classifiers import make_classifiers
from timm_longtail.retraining.compare import calibrate, compare_families, finish
from timm_longtail.retraining.compared import Compared
from timm_longtail.retraining.cross_validated import CROSS_VALIDATED
from timm_longtail.retraining.representation import Features, Representation

COUNTS = [120, 60, 25, 10, 5, 3]
C, D = len(COUNTS), 16


def features_of(counts: list[int], seed: int) -> Features:
    """Return features around a mean of each class, which overlap; the means are the same for every seed."""
    means = 0.5 * torch.randn(C, D, generator=torch.Generator().manual_seed(0))
    targets = torch.repeat_interleave(torch.arange(C), torch.tensor(counts))
    noise = torch.randn(len(targets), D, generator=torch.Generator().manual_seed(seed))
    return Features(means[targets] + noise, targets, torch.arange(len(targets)), counts)


@pytest.fixture
def representation() -> Representation:
    """A model without a classifier of its own, and features of its images."""
    args = Namespace(epochs=None, lr=None, weight_decay=None, classifier_kwargs={}, features='cached')
    train_set = SimpleNamespace(num_classes=C, class_counts=COUNTS, shot_counts=COUNTS, hash='train', order=0)
    created = Representation(
        args, SimpleNamespace(device=torch.device('cpu')),
        trained_model=SimpleNamespace(name='model', has_classes=False), train_set=train_set, test_set=train_set)
    created.train = features_of(COUNTS, seed=1)
    return created


def test_what_is_adjusted_is_the_classifier_before_its_temperature(representation):
    """Logits that a temperature has divided are of another prior than that of the images."""
    compared = Compared('model', representation)
    result, = compare_families(compared, {'linear': CROSS_VALIDATED['linear']})
    finish(result)
    calibrate(result)
    assert result.temperature > 2

    adjusted, = make_classifiers('logit_adjust', representation)

    expected = result.rule.adjusted(1.0, compared.data.log_prior).folded(compared.data.scale)
    values = features_of([50] * C, seed=2).values
    torch.testing.assert_close(adjusted.module(values), expected(values), atol=1e-3, rtol=1e-3)
    assert torch.equal(adjusted.module(values).argmax(dim=1), expected(values).argmax(dim=1))


@pytest.mark.parametrize('name', ['linear', 'crt'])
def test_what_is_fitted_by_itself_is_calibrated(representation, name):
    made, = make_classifiers(name, representation)

    result, = compare_families(Compared('model', representation), {name: CROSS_VALIDATED[name]})
    finish(result)
    calibrate(result)
    torch.testing.assert_close(made.module.weight, result.module.weight)
    assert made.options == {**result.options, 'temperature': result.temperature}
