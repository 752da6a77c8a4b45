"""Closed forms against loops written from the papers, and a positive control.

Loops: Kang et al., ICLR 2020 (tau-normalisation, nearest mean), Menon et al., ICLR 2021 (logit adjustment).
"""
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from timm_longtail.data.loaders.features import FeatureLoader
from timm_longtail.data.samplers import create_sampler
from timm_longtail.methods import Method, create_method
from timm_longtail.models import FeatureClassifier
from timm_longtail.retraining.closed_form import TAUS, logit_adjust, nearest_class_mean, tau_normalize
from timm_longtail.utils.errors import UserError

from .data import COUNTS, C, D, Data, N, make_data


@pytest.fixture(scope='module')
def data() -> Data:
    return make_data()


@pytest.mark.parametrize('tau', [0.0, 0.7, 1.0, 2.0])
def test_tau_norm(data, tau):
    head, x, _ = data
    logits = tau_normalize(head, tau)(x)

    for i in range(N):
        for c in range(C):
            weight = head.weight[c].tolist()
            product = sum(a * b for a, b in zip(weight, x[i].tolist()))
            norm = math.sqrt(sum(a * a for a in weight))
            assert logits[i, c].item() == pytest.approx(product / norm ** tau, abs=1e-5)


def test_tau_norm_at_its_ends(data):
    head, x, _ = data

    plain, normalised = tau_normalize(head, 0.0), tau_normalize(head, 1.0)
    assert torch.equal(plain.weight, head.weight)
    assert plain.bias.abs().sum() == 0
    assert torch.allclose(normalised.weight.norm(dim=1), torch.ones(C))

    # an untrained row stays 0
    empty = nn.Linear(D, C)
    nn.init.zeros_(empty.weight)
    assert tau_normalize(empty, 1.0)(x).abs().sum() == 0


def test_the_grid_is_the_published_one():
    assert len(TAUS) == 21
    for step, tau in enumerate(TAUS):
        assert tau == pytest.approx(step / 10)


def test_logit_adjust(data):
    head, x, _ = data
    raw, adjusted = head(x), logit_adjust(head, COUNTS, tau=1.5)(x)

    for i in range(N):
        for c in range(C):
            expected = raw[i, c].item() - 1.5 * math.log(COUNTS[c] / sum(COUNTS))
            assert adjusted[i, c].item() == pytest.approx(expected, abs=1e-5)


def test_logit_adjust_changes_nothing_without_strength_or_for_equal_classes(data):
    head, x, _ = data
    raw = head(x)

    assert torch.equal(logit_adjust(head, COUNTS, tau=0.0)(x), raw)
    assert torch.equal(logit_adjust(head, [7] * C)(x).argmax(1), raw.argmax(1))


def distances(x: torch.Tensor, target: torch.Tensor, metric: str) -> torch.Tensor:
    """The loop: each image to each class mean, [N, C]."""
    rows = list(x)
    if metric == 'centred':
        centre = sum(rows) / len(rows)
        rows = [F.normalize(row - centre, dim=0) for row in rows]

    result = torch.empty(len(rows), C)
    for c in range(C):
        members = [row for row, t in zip(rows, target) if t == c]
        mean = sum(members) / len(members)
        for i, row in enumerate(rows):
            if metric != 'l2':
                result[i, c] = 1 - (row @ mean) / (row.norm() * mean.norm())
            else:
                result[i, c] = (row - mean).square().sum()
    return result


@pytest.mark.parametrize('metric', ['l2', 'cosine', 'centred'])
def test_nearest_class_mean(data, metric):
    """One linear layer, whose logits are the cosines times a length that all classes share, or the distances."""
    _, x, target = data
    head = nearest_class_mean(x, target, C, metric)
    assert type(head) is nn.Linear

    logits, expected = head(x).detach().double(), distances(x.double(), target, metric)
    assert torch.equal(logits.argmax(1), expected.argmin(1))
    if metric == 'l2':
        # the softmax over -d^2 / 2: what differs is shared by the classes
        torch.testing.assert_close(
            logits.softmax(1), (-expected / 2).softmax(1), atol=1e-5, rtol=1e-5, check_dtype=False)
    else:
        centre = x.double().mean(dim=0) if metric == 'centred' else 0
        lengths = (x - centre).norm(dim=1, keepdim=True)
        torch.testing.assert_close(logits / lengths, 1 - expected, atol=1e-5, rtol=1e-4, check_dtype=False)


def test_nearest_class_mean_refuses(data):
    _, x, target = data
    with pytest.raises(UserError, match='class 5 has no images'):
        nearest_class_mean(x, target, C + 1)
    with pytest.raises(UserError, match='one of l2, cosine, centred'):
        nearest_class_mean(x, target, C, 'l1')


# ------------------------------------------------------------------------------------------------ positive control

def gaussians(counts: list[int], means: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features of unit variance around class means [C, D]; returns them, [N, D], and their classes [N]."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return means[target] + torch.randn(len(target), means.shape[1], generator=generator), target


def trained(method: Method, sampler: str, x: torch.Tensor, target: torch.Tensor, epochs: int = 60) -> nn.Module:
    """Train the classifier of a method by SGD with a cosine schedule; returns it."""
    loader = FeatureLoader(x, target, create_sampler(sampler, target.tolist(), epochs), 256)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)

    for epoch in range(epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            method(batch)['loss'].backward()
            optimizer.step()
            optimizer.zero_grad()
        schedule.step()
    return method.model.get_classifier()


def test_positive_control_on_gaussians():
    """Gaussian classes of unit variance: the rule of balanced classes is the nearest mean, w_c = mu_c, b = -|mu_c|^2/2.

    Joint training learns the rule of the training prior; logit adjustment and cRT come near that of balanced classes.
    """
    means = 1.5 * torch.eye(4, 6)
    x, target = gaussians([6000, 2000, 400, 80], means, seed=1)
    test_x, test_target = gaussians([5000] * 4, means, seed=2)

    def accuracy(head: nn.Module) -> float:
        return 100 * (head(test_x).argmax(1) == test_target).double().mean().item()

    bayes = nn.Linear(6, 4)
    bayes.weight.data, bayes.bias.data = means, -means.square().sum(1) / 2
    best = accuracy(bayes)

    counts = torch.bincount(target).tolist()
    joint = trained(create_method('linear', FeatureClassifier(nn.Linear(6, 4)), counts), 'instance', x, target)
    assert accuracy(joint) < best - 15
    assert accuracy(logit_adjust(joint, counts)) > best - 1.5
    assert accuracy(nearest_class_mean(x, target, 4)) > best - 1.5

    crt = trained(create_method('crt', FeatureClassifier(joint), counts), 'class_balanced', x, target)
    assert accuracy(crt) > best - 3
