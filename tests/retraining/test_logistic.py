"""Logistic regression against scikit-learn, and what warm starts, weights and offsets are."""
from dataclasses import dataclass
from types import SimpleNamespace
from weakref import WeakSet

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from timm_longtail.retraining import logistic
from timm_longtail.retraining.logistic import fit_logistic, logistic_path, principal_axes
from timm_longtail.utils.errors import UserError

COUNTS = [60, 25, 8, 3]
C, D = len(COUNTS), 6
TIGHT = 1e-7  # the strength divides the curvature: tests that compare weights ask for more than predictions need


@pytest.fixture(scope='module')
def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    targets = torch.repeat_interleave(torch.arange(C), torch.tensor(COUNTS))
    means = 0.5 * torch.randn(C, D, generator=generator, dtype=torch.float64)
    features = means[targets] + 0.4 * torch.randn(len(targets), D, generator=generator, dtype=torch.float64)
    return features, targets


def separable() -> tuple[torch.Tensor, torch.Tensor]:
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([20, 6, 2]))
    noise = torch.randn(len(targets), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return 5 * torch.eye(3, dtype=torch.float64)[targets] + 0.1 * noise, targets


def assert_as_scikit_learn(features, targets, strength, dtype, **options):
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=10000, **options).fit(features, targets)

    class_weights = None
    if options.get('class_weight') == 'balanced':
        counts = torch.bincount(targets).double()
        class_weights = len(targets) / (len(counts) * counts)
    weight, bias = fit_logistic(
        features.to(dtype), targets, int(targets.max()) + 1, strength, class_weights=class_weights, tolerance=TIGHT)

    # a constant in all logits is free
    centred = bias.double() - bias.double().mean()
    torch.testing.assert_close(weight.double(), torch.from_numpy(expected.coef_), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        centred, torch.from_numpy(expected.intercept_ - expected.intercept_.mean()), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('strength', [0.1, 10.0, 1000.0])
def test_as_scikit_learn(data, strength):
    assert_as_scikit_learn(*data, strength, torch.float64)


def test_as_scikit_learn_in_single_precision(data):
    assert_as_scikit_learn(*data, 1.0, torch.float32)


def test_as_scikit_learn_where_classes_are_separable():
    assert_as_scikit_learn(*separable(), 1.0, torch.float64)


def test_as_scikit_learn_with_balanced_class_weights(data):
    assert_as_scikit_learn(*data, 3.0, torch.float64, class_weight='balanced')


def test_a_path_ends_where_each_fit_of_its_own_ends(data):
    features, targets = data
    path = [0.1, 1.0, 10.0]

    for strength, (weight, _) in zip(path, logistic_path(features, targets, C, path, tolerance=TIGHT)):
        alone, _ = fit_logistic(features, targets, C, strength, tolerance=TIGHT)
        torch.testing.assert_close(weight, alone, atol=1e-4, rtol=1e-4)


def test_balanced_softmax_is_the_adjustment_for_the_prior(data):
    """The log prior that is added while training is taken back by the free bias: minimum of one, minimum of both."""
    features, targets = data
    log_prior = (torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)).log()
    weight, bias = fit_logistic(features, targets, C, 10.0, tolerance=TIGHT)
    bias = (bias - log_prior).requires_grad_()
    weight.requires_grad_()

    logits = F.linear(features, weight, bias)
    balanced_softmax = 10.0 * F.cross_entropy(logits + log_prior, targets, reduction='sum')
    (balanced_softmax + weight.square().sum() / 2).backward()

    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def test_the_gradient_at_the_end_is_zero(data):
    features, targets = data
    weight, bias = (value.requires_grad_() for value in fit_logistic(features, targets, C, 5.0, tolerance=TIGHT))

    loss = 5.0 * F.cross_entropy(F.linear(features, weight, bias), targets, reduction='sum')
    (loss + weight.square().sum() / 2).backward()

    assert weight.grad.abs().max() < 1e-3
    assert bias.grad.abs().max() < 1e-3


def test_every_fit_of_a_path_ends_near_its_minimum():
    """Within ten times the tolerance, for the class that is farthest from it.

    At the weak penalties the images of a class are fitted, and its curvature is a thousandth of what it was.
    """
    counts = torch.tensor([200, 100, 50, 25, 12, 6, 4, 3])
    num_classes, width = len(counts), 32
    targets = torch.repeat_interleave(torch.arange(num_classes), counts)

    # the classes overlap at first, and are told apart in the end
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(num_classes, width, generator=generator, dtype=torch.float64)
    features = means[targets] + 0.4 * torch.randn(len(targets), width, generator=generator, dtype=torch.float64)
    features /= features.norm(dim=1).mean()

    def logits_of(**options) -> torch.Tensor:
        class_weights = len(targets) / (num_classes * counts)
        path = logistic_path(features, targets, num_classes, [10.0, 100.0, 1e3, 1e4], class_weights, **options)
        logits = torch.stack([F.linear(features, weight, bias) for weight, bias in path])  # [path, N, C]
        return logits - logits.mean(dim=2, keepdim=True)  # a constant in all logits is free

    error = (logits_of() - logits_of(tolerance=TIGHT)).square().mean(dim=1).sqrt()  # [path, C]
    assert error.max() < 10 * 2e-2


@pytest.mark.parametrize('limit, is_warned', [(3, True), (1000, False)])
def test_a_fit_that_the_limit_ends_is_told(data, limit, is_warned, monkeypatch, caplog):
    monkeypatch.setattr(logistic, '_MAX_ITERATIONS', limit)

    fit_logistic(*data, C, 10.0)

    assert ('3 iterations at a penalty of 1.0e-03 did not reach the minimum' in caplog.text) == is_warned


def test_a_strength_that_is_not_positive_is_refused(data):
    with pytest.raises(UserError, match='is positive, got 0'):
        fit_logistic(*data, C, 0)


@pytest.mark.parametrize('weight', [1.0, float('inf')])
def test_a_class_without_images_changes_nothing_for_the_others(data, weight):
    """Weights that give each class the same are infinite for one that has no images."""
    features, targets = data
    class_weights = torch.tensor([1.0, 2.0, 3.0, 4.0, weight])

    found, bias = fit_logistic(features, targets, C + 1, 1.0, class_weights=class_weights, tolerance=TIGHT)

    expected, _ = fit_logistic(features, targets, C, 1.0, class_weights=class_weights[:C], tolerance=TIGHT)
    torch.testing.assert_close(found[:C], expected, atol=1e-3, rtol=1e-3)
    assert bias.isfinite().all()
    assert F.linear(features, found, bias).argmax(dim=1).max() < C


@pytest.mark.parametrize('images, width', [(16, 512), (200, 8), (4, 4)])
def test_axes_are_orthogonal_and_uncorrelated(images, width):
    features = torch.rand(images, width, generator=torch.Generator().manual_seed(0)) ** 2

    axes = principal_axes(features).double()

    torch.testing.assert_close(axes.T @ axes, torch.eye(width, dtype=torch.float64), atol=1e-5, rtol=0)
    covariance = ((features - features.mean(dim=0)).double() @ axes).T.cov(correction=0)
    off_diagonal = covariance - covariance.diagonal().diag()
    assert off_diagonal.abs().max() < 1e-5 * covariance.diagonal().max()


@pytest.mark.parametrize('fails', ['error', 'nonsense'])
def test_where_axes_cannot_be_found_those_of_the_features_are_taken(fails, monkeypatch):
    def eigh(matrix):
        if fails == 'error':
            raise torch.linalg.LinAlgError('did not converge')
        return SimpleNamespace(eigenvectors=torch.full_like(matrix, float('nan')))

    monkeypatch.setattr(torch.linalg, 'eigh', eigh)

    assert torch.equal(principal_axes(torch.rand(9, D)), torch.eye(D))


def test_the_minimum_does_not_depend_on_the_axes(data):
    features, targets = data

    weight, _ = fit_logistic(features, targets, C, 10.0, tolerance=TIGHT)

    unturned, _ = fit_logistic(features, targets, C, 10.0, tolerance=TIGHT, turned=True)
    torch.testing.assert_close(weight, unturned, atol=1e-3, rtol=1e-3)


def test_a_large_set_begins_on_a_part_of_the_images(data, monkeypatch):
    features, targets = data
    shuffled = torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))
    features, targets = features[shuffled], targets[shuffled]
    expected, _ = fit_logistic(features, targets, C, 10.0, tolerance=TIGHT)

    parts = []
    minimise = logistic._Problem.minimise

    def noted(problem, *args):
        parts.append((torch.bincount(problem.targets).tolist(), problem.share.tolist()))
        return minimise(problem, *args)

    monkeypatch.setattr(logistic._Problem, 'minimise', noted)
    monkeypatch.setattr(logistic, '_LARGE', 0)
    weight, _ = fit_logistic(features, targets, C, 10.0, tolerance=TIGHT)

    (coarse, coarse_share), (whole, share) = parts
    assert whole == COUNTS and coarse == [8, 4, 1, 1]  # one in eight of 60, 25, 8 and 3
    assert coarse_share == share
    torch.testing.assert_close(weight, expected, atol=1e-3, rtol=1e-3)


@dataclass(eq=False)
class Kept:
    """A tensor that a graph needs for its backward pass."""
    tensor: torch.Tensor


def most_saved(features: torch.Tensor, targets: torch.Tensor) -> int:
    """Fit, and return the most elements that were kept at once for backward passes."""
    alive = WeakSet()
    most = 0

    def pack(tensor: torch.Tensor) -> Kept:
        nonlocal most
        kept = Kept(tensor)
        alive.add(kept)
        most = max(most, sum(one.tensor.numel() for one in alive))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        fit_logistic(features, targets, C, 1.0)
    return most


def test_memory_does_not_grow_with_the_images(data, monkeypatch):
    """Of 96 images or of 960, one chunk of 8 is kept at once: its values, logits, and what all chunks share."""
    monkeypatch.setattr(logistic, '_MAX_LOGITS', 8 * C)
    features, targets = data

    assert most_saved(features.repeat(10, 1), targets.repeat(10)) == most_saved(features, targets)
