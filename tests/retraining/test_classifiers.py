"""Classifiers anew: closed forms and re-training methods against loops written from the papers, and a positive control.

Loops: Kang et al., ICLR 2020 (tau-normalisation, nearest mean, LWS), Menon et al., ICLR 2021 (logit adjustment),
Alshammari et al., CVPR 2022 (MaxNorm).
"""
import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from timm_longtail.data.loaders.features import FeatureLoader
from timm_longtail.data.samplers import create_sampler
from timm_longtail.methods import create_method
from timm_longtail.methods._frozen import _trained_parameters
from timm_longtail.models import FeatureClassifier, replace_classifier
from timm_longtail.models.layers import CosineLinear
from timm_longtail.retraining.closed_form import TAUS, logit_adjust, nearest_class_mean, tau_normalize
from timm_longtail.utils.errors import UserError

from ..support.reference import margins
from ..support.runs import make_run

N, C, D = 60, 5, 8
COUNTS = [30, 15, 8, 5, 2]


@pytest.fixture(scope='module')
def data():
    """A trained-looking classifier, features and their classes."""
    torch.manual_seed(0)
    head = nn.Linear(D, C)
    target = torch.repeat_interleave(torch.arange(C), torch.tensor(COUNTS))
    return head, torch.randn(N, D) + 0.3 * target[:, None], target


# ------------------------------------------------------------------------------------------------ closed forms

@pytest.mark.parametrize('tau', [0.0, 0.7, 1.0, 2.0])
def test_tau_norm(data, tau):
    head, x, _ = data
    logits = tau_normalize(head, tau)(x)
    for i in range(N):
        for c in range(C):
            w = head.weight[c].tolist()
            expected = sum(a * b for a, b in zip(w, x[i].tolist())) / math.sqrt(sum(a * a for a in w)) ** tau
            assert logits[i, c].item() == pytest.approx(expected, abs=1e-5)


def test_tau_norm_at_its_ends(data):
    head, x, _ = data
    assert torch.equal(tau_normalize(head, 0.0).weight, head.weight) and tau_normalize(head, 0.0).bias.abs().sum() == 0
    assert torch.allclose(tau_normalize(head, 1.0).weight.norm(dim=1), torch.ones(C))
    assert TAUS[0] == 0 and TAUS[-1] == 2 and len(TAUS) == 21
    empty = nn.Linear(D, C)
    nn.init.zeros_(empty.weight)
    assert tau_normalize(empty, 1.0)(x).abs().sum() == 0


def test_logit_adjust(data):
    head, x, _ = data
    logits, raw = logit_adjust(head, COUNTS, tau=1.5)(x), head(x)
    for i in range(N):
        for c in range(C):
            expected = raw[i, c].item() - 1.5 * math.log(COUNTS[c] / sum(COUNTS))
            assert logits[i, c].item() == pytest.approx(expected, abs=1e-5)
    assert torch.equal(logit_adjust(head, COUNTS, tau=0.0)(x), raw)
    balanced = logit_adjust(head, [7] * C)(x)
    assert torch.equal(balanced.argmax(1), raw.argmax(1))


def distances(x, target, metric):
    """The loop: each image to each class mean."""
    centre = sum(x) / len(x)
    rows = [F.normalize(row - centre, dim=0) if metric == 'centred' else row for row in x]
    result = torch.empty(len(x), C)
    for c in range(C):
        members = [row for row, t in zip(rows, target) if t == c]
        mean = sum(members) / len(members)
        for i, row in enumerate(rows):
            if metric == 'cosine':
                result[i, c] = 1 - (row @ mean) / (row.norm() * mean.norm())
            else:
                result[i, c] = (row - mean).square().sum()
    return result


@pytest.mark.parametrize('metric', ['l2', 'cosine', 'centred'])
def test_nearest_class_mean(data, metric):
    _, x, target = data
    head = nearest_class_mean(x, target, C, metric)
    expected = distances(x.double(), target, metric)
    logits = head(x).detach().double()
    assert torch.equal(logits.argmax(1), expected.argmin(1))
    if metric == 'cosine':
        torch.testing.assert_close(logits / head.scale, 1 - expected, atol=1e-6, rtol=1e-5, check_dtype=False)
    else:  # the softmax over -d^2 / 2: what differs is shared by the classes
        torch.testing.assert_close(
            logits.softmax(1), (-expected / 2).softmax(1), atol=1e-5, rtol=1e-5, check_dtype=False)
    assert isinstance(head, {'l2': nn.Linear, 'cosine': CosineLinear}.get(metric, nn.Module))


def test_nearest_class_mean_refuses(data):
    _, x, target = data
    with pytest.raises(UserError, match='class 5 has no images'):
        nearest_class_mean(x, target, C + 1)
    with pytest.raises(UserError, match='one of l2, cosine, centred'):
        nearest_class_mean(x, target, C, 'l1')


# ------------------------------------------------------------------------------------------------ methods

def steps(method, x, target, num_steps=3, lr=0.1):
    """Plain gradient descent through the method's own forward and `after_step`."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=lr)
    for _ in range(num_steps):
        method(((x,), target, torch.arange(len(target))))['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step('main')


@pytest.mark.parametrize('tau', [0.0, 1.0])
def test_lws_trains_one_scale_a_class(data, tau):
    head, x, target = data
    method = create_method('lws', FeatureClassifier(head), COUNTS, tau=tau)
    scale = torch.tensor([1 / head.weight[c].norm().item() ** tau for c in range(C)], requires_grad=True)
    torch.testing.assert_close(method.scale.detach(), scale.detach())
    for _ in range(3):
        logits = torch.stack([torch.stack([s * (head.weight[c].detach() @ row + head.bias[c].detach())
                                           for c, s in enumerate(scale)]) for row in x])
        gradient, = torch.autograd.grad(F.cross_entropy(logits, target), scale)
        scale = (scale - 0.1 * gradient).detach().requires_grad_()
    steps(method, x, target)
    torch.testing.assert_close(method.scale.detach(), scale.detach(), atol=1e-6, rtol=1e-6)
    folded = method.model.get_classifier()
    torch.testing.assert_close(folded(x), scale * head(x), atol=1e-5, rtol=1e-5)  # the bias is scaled too
    assert [n for n, p in method.named_parameters() if p.requires_grad] == ['scale']


def class_balanced_loss(kind, logits, target):
    """The loops: of a row the weight of its class, then PyTorch's cross-entropy of it, or binary of all classes."""
    balance = [(1 - 0.9999) / (1 - 0.9999 ** n) for n in COUNTS]
    weights = torch.tensor([b * C / sum(balance) for b in balance])
    if kind == 'bce':
        return margins.softmax_binary_cross_entropy(logits, target, weights)
    return sum(weights[t] * F.cross_entropy(row[None], t[None]) for row, t in zip(logits, target)) / N


@pytest.mark.parametrize('loss', ['bce', 'ce'])
def test_max_norm_projects_class_weights_into_a_ball(data, loss):
    head, x, target = data
    norms = head.weight.norm(dim=1)
    method = create_method('max_norm', FeatureClassifier(head), COUNTS, loss=loss)
    radius = norms.min() + 0.1 * (norms.max() - norms.min())
    torch.testing.assert_close(method.radius, radius.detach())

    weight, bias = head.weight.detach().clone().requires_grad_(), head.bias.detach().clone().requires_grad_()
    logits = torch.stack([weight @ row + bias for row in x])
    gradient, _ = torch.autograd.grad(class_balanced_loss(loss, logits, target), (weight, bias))
    stepped = weight.detach() - 0.1 * gradient
    expected = torch.stack([row * min(1, radius.item() / row.norm().item()) for row in stepped])
    steps(method, x, target, num_steps=1)
    torch.testing.assert_close(method.model.fc.weight.detach(), expected, atol=1e-6, rtol=1e-5)
    assert method.model.fc.weight.norm(dim=1).max() <= radius * (1 + 1e-6)


def test_the_released_loss_of_max_norm_is_its_default(data):
    head, x, target = data
    losses = [create_method('max_norm', FeatureClassifier(head), COUNTS, **options)(((x,), target, None))['loss']
              for options in ({}, {'loss': 'bce'}, {'loss': 'ce'})]
    assert losses[0] == losses[1] < losses[2]
    with pytest.raises(UserError, match="max_norm: loss is one of bce, ce, got 'focal'"):
        create_method('max_norm', FeatureClassifier(head), COUNTS, loss='focal')


@pytest.mark.parametrize('name', ['crt', 'linear'])
def test_a_fresh_classifier(data, name):
    head, x, target = data
    method = create_method(name, FeatureClassifier(head), COUNTS)
    assert not torch.equal(method.model.fc.weight, head.weight)
    assert method.sampler == ('class_balanced' if name == 'crt' else 'instance')
    loss = method(((x,), target, target))['loss']
    torch.testing.assert_close(loss, F.cross_entropy(method.model.fc(x), target))
    cosine = create_method(name, FeatureClassifier(CosineLinear(D, C, 20.0)), COUNTS)
    assert isinstance(cosine.model.fc, CosineLinear) and cosine.model.fc.scale == 20.0


@pytest.mark.parametrize('name', ['lws', 'max_norm'])
def test_a_cosine_classifier_is_refused(name):
    with pytest.raises(UserError, match='CosineLinear do not depend on their length'):
        create_method(name, FeatureClassifier(CosineLinear(D, C)), COUNTS)


def model_and_method(**kwargs):
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=C, layers=(1, 1, 1))
    return model, create_method('crt', model, COUNTS, **kwargs)


@pytest.mark.parametrize('bn', ['eval', 'train'])
def test_the_backbone_stays_as_it_is(bn):
    """With `bn='train'` its BatchNorm drifts, and nothing else does."""
    model, method = model_and_method(bn=bn)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    method.train()
    steps(method, torch.randn(16, 3, 32, 32), torch.arange(16) % C)
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    statistics = {k for k in before if 'running_' in k or 'num_batches' in k}
    assert changed == {'fc.weight', 'fc.bias'} | (statistics if bn == 'train' else set())
    assert method.eval().training is False and not model.bn1.training


def test_how_much_is_trained():
    trained = {}
    for train in ('classifier', 'last_block', 'all'):
        model, method = model_and_method(train=train)
        trained[train] = {name for name, p in model.named_parameters() if p.requires_grad}
        method.train()
        assert model.bn1.training is (train == 'all') and model.layer3[0].bn1.training is (train != 'classifier')
    assert trained['classifier'] == {'fc.weight', 'fc.bias'}
    assert all(name.startswith(('layer3.', 'fc.')) for name in trained['last_block'])
    assert any(name.startswith('layer3.') for name in trained['last_block'])
    assert trained['all'] == {name for name, _ in model.named_parameters()}
    with pytest.raises(UserError, match="'train' is one of classifier, last_block, all"):
        model_and_method(train='head')
    with pytest.raises(UserError, match="'bn' is one of eval, train"):
        model_and_method(bn='frozen')


@pytest.mark.parametrize('name, prefixes', [
    ('convnext_atto', ('stages.3.', 'head.norm.', 'head.fc.')),
    ('swin_tiny_patch4_window7_224', ('layers.3.', 'norm.', 'head.fc.')),
    ('vit_tiny_patch16_224', ('blocks.11.', 'norm.', 'head.')),
    ('mobilenetv3_small_050', ('blocks.5.', 'conv_head.', 'classifier.')),
])
def test_the_last_block_of_other_networks(name, prefixes):
    model = timm.create_model(name, num_classes=C, device='meta')
    trained = _trained_parameters(model, 'last_block')
    names = [name for name, p in model.named_parameters() if id(p) in trained]
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in names), prefix
    assert all(name.startswith(prefixes) for name in names)


def test_a_run_keeps_the_frozen_part_in_eval_mode():
    """Evaluation between two epochs sets the whole model to training mode; the next epoch must set it right."""
    _, run = make_run('crt')
    before = run.method.model.bn1.running_mean.clone()
    from timm_longtail.training.loop import fit
    fit(run, 2)
    assert torch.equal(run.method.model.bn1.running_mean, before)


# ------------------------------------------------------------------------------------------------ models and loaders

def test_replace_classifier():
    model = timm.create_model('resnet20_cifar', num_classes=C)
    head = nn.Linear(64, 7)
    assert replace_classifier(model, head).get_classifier() is head and model.num_classes == 7
    cosine = CosineLinear(64, 7, 12.0)
    assert replace_classifier(model, cosine).fc is cosine and model._model_args['cosine_scale'] == 12.0
    stock = timm.create_model('resnet18', num_classes=C)
    with pytest.raises(ValueError, match='ResNet has no cosine classifier'):
        replace_classifier(stock, CosineLinear(512, C))
    with pytest.raises(ValueError, match='no classifier of the kind Identity'):
        replace_classifier(stock, nn.Identity())


def test_feature_loader():
    features, targets = torch.randn(40, D), torch.arange(40) % C
    once = list(FeatureLoader(features, targets, None, 16))
    assert torch.equal(torch.cat([x for (x,), _, _ in once]), features) and [len(t) for _, t, _ in once] == [16, 16, 8]
    sampler = create_sampler('class_balanced', targets.tolist(), 5)
    loader = FeatureLoader(features, targets, sampler, 16)
    loader.set_epoch(3)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for (x,), target, index in batches:
        assert torch.equal(x, features[index]) and torch.equal(target, targets[index])
    loader.set_epoch(3, start_batch=1)
    assert torch.equal(next(iter(loader))[2], batches[1][2])


# ------------------------------------------------------------------------------------------------ positive control

def gaussians(counts, means, seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return means[target] + torch.randn(len(target), means.shape[1], generator=generator), target


def trained(method, sampler, x, target, epochs=60):
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

    def accuracy(head):
        return 100 * (head(test_x).argmax(1) == test_target).double().mean().item()
    bayes = nn.Linear(6, 4)
    bayes.weight.data, bayes.bias.data = means, -means.square().sum(1) / 2
    counts = torch.bincount(target).tolist()
    joint = trained(create_method('linear', FeatureClassifier(nn.Linear(6, 4)), counts), 'instance', x, target)
    crt = trained(create_method('crt', FeatureClassifier(joint), counts), 'class_balanced', x, target)
    best = accuracy(bayes)
    assert accuracy(logit_adjust(joint, counts)) > best - 1.5
    assert accuracy(crt) > best - 3
    assert accuracy(nearest_class_mean(x, target, 4)) > best - 1.5
    assert accuracy(joint) < best - 15
