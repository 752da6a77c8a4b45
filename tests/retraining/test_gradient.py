"""Methods that retrain a classifier, against loops written from the papers; and the options that they train with.

Loops: Kang et al., ICLR 2020 (LWS), Alshammari et al., CVPR 2022 (MaxNorm).
"""
from argparse import Namespace
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data.loaders.features import FeatureLoader
from timm_longtail.data.samplers import create_sampler
from timm_longtail.methods import Method, create_method
from timm_longtail.models import FeatureClassifier, replace_classifier, tune_model
from timm_longtail.models.layers import CosineLinear
from timm_longtail.retraining.classifiers import TRAINED
from timm_longtail.retraining.gradient import train_options
from timm_longtail.training.loop import fit
from timm_longtail.training.options import resolve_options
from timm_longtail.utils.errors import UserError

from ..support.reference import margins
from ..support.runs import make_run
from .data import COUNTS, C, D, Data, N, make_data


@pytest.fixture(scope='module')
def data() -> Data:
    return make_data()


def representation(num_images: int = 1000, **given) -> SimpleNamespace:
    """Return as much of a `Representation` as the options are built from, with the defaults of `retrain.py`."""
    args = Namespace(
        epochs=None, weight_decay=None, batch_size=128, seed=3, workers=None, skip_bad_images=False,
        validation_batch_size=256)
    vars(args).update(given)
    return SimpleNamespace(
        args=args,
        accelerator=SimpleNamespace(num_processes=1, device=torch.device('cpu')),
        train_set=range(num_images),
        trained_model=SimpleNamespace(name='resnet20_cifar'),
    )


@pytest.mark.parametrize('name', TRAINED)
def test_options_are_those_that_the_command_line_would_give(name):
    given = representation(epochs=7, weight_decay=0.01, workers=2, validation_batch_size=64)

    options = train_options(name, given, 0.3, {'view': 'flip'})

    typed = parse_train_args([
        '--model', 'resnet20_cifar', '--method', name, '--method-kwargs', 'view=flip', '--no-recipe', '--seed', '3',
        '-b', '128', '-vb', '64', '-j', '2', '--epochs', '7', '--val-interval', '7', '--lr', '0.3',
        '--weight-decay', '0.01'])
    expected = resolve_options(typed, given.accelerator)
    assert vars(options) == vars(expected.replace(no_recipe=False))


@pytest.mark.parametrize('name, epochs, lr, weight_decay', [
    ('crt', 10, 0.1, 5e-4), ('lws', 10, 0.1, 5e-4), ('max_norm', 10, 0.01, 0.1), ('linear', 30, 0.5, 0.0),
])
def test_options_that_are_not_given_are_those_of_the_method(name, epochs, lr, weight_decay):
    options = train_options(name, representation(num_images=40), None, {})

    assert (options.epochs, options.lr, options.weight_decay) == (epochs, lr, weight_decay)
    assert options.batch_size == 40  # no larger than the data


# ------------------------------------------------------------------------------------------------ methods

def steps(method: Method, x: torch.Tensor, target: torch.Tensor, num_steps: int = 3, lr: float = 0.1):
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
    weight, bias = head.weight.detach(), head.bias.detach()
    method = create_method('lws', FeatureClassifier(head), COUNTS, tau=tau)
    assert [name for name, p in method.named_parameters() if p.requires_grad] == ['scale']

    scale = torch.tensor([1 / weight[c].norm().item() ** tau for c in range(C)], requires_grad=True)
    torch.testing.assert_close(method.scale.detach(), scale.detach())

    # the loop: gradient descent on the scales alone
    for _ in range(3):
        rows = []
        for row in x:
            rows.append(torch.stack([scale[c] * (weight[c] @ row + bias[c]) for c in range(C)]))
        gradient, = torch.autograd.grad(F.cross_entropy(torch.stack(rows), target), scale)
        scale = (scale - 0.1 * gradient).detach().requires_grad_()

    steps(method, x, target)
    torch.testing.assert_close(method.scale.detach(), scale.detach(), atol=1e-6, rtol=1e-6)
    folded = method.model.get_classifier()
    torch.testing.assert_close(folded(x), scale * head(x), atol=1e-5, rtol=1e-5)  # the bias is scaled too


def class_balanced_loss(kind: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
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

    # the loop: one step, then each row back into the ball
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
    losses = []
    for options in ({}, {'loss': 'bce'}, {'loss': 'ce'}):
        method = create_method('max_norm', FeatureClassifier(head), COUNTS, **options)
        losses.append(method(((x,), target, None))['loss'])
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


@pytest.mark.parametrize('name', ['crt', 'linear'])
def test_a_fresh_classifier_is_of_the_same_kind(name):
    cosine = create_method(name, FeatureClassifier(CosineLinear(D, C, 20.0)), COUNTS)
    assert isinstance(cosine.model.fc, CosineLinear) and cosine.model.fc.scale == 20.0


@pytest.mark.parametrize('name', ['lws', 'max_norm'])
def test_a_cosine_classifier_is_refused(name):
    with pytest.raises(UserError, match='CosineLinear do not depend on their length'):
        create_method(name, FeatureClassifier(CosineLinear(D, C)), COUNTS)


def model_and_method(**kwargs) -> tuple[nn.Module, Method]:
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
    for tune in ('classifier', 'last_block', 'all'):
        model, method = model_and_method(tune=tune)
        trained[tune] = {name for name, p in model.named_parameters() if p.requires_grad}
        method.train()
        assert model.bn1.training is (tune == 'all') and model.layer3[0].bn1.training is (tune != 'classifier')
    assert trained['classifier'] == {'fc.weight', 'fc.bias'}
    assert all(name.startswith(('layer3.', 'fc.')) for name in trained['last_block'])
    assert any(name.startswith('layer3.') for name in trained['last_block'])
    assert trained['all'] == {name for name, _ in model.named_parameters()}
    with pytest.raises(UserError, match="unknown tuning 'head'"):
        model_and_method(tune='head')
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
    tune_model(model, 'last_block')
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for prefix in prefixes:
        assert any(name.startswith(prefix) for name in names), prefix
    assert all(name.startswith(prefixes) for name in names)


def test_a_run_keeps_the_frozen_part_in_eval_mode():
    """Evaluation between two epochs sets the whole model to training mode; the next epoch must set it right."""
    _, run = make_run('crt')
    before = run.method.model.bn1.running_mean.clone()

    fit(run, 2)

    assert torch.equal(run.method.model.bn1.running_mean, before)


# ------------------------------------------------------------------------------------------------ models and loaders

def test_replace_classifier():
    model = timm.create_model('resnet20_cifar', num_classes=C)

    head = nn.Linear(64, 7)
    assert replace_classifier(model, head).get_classifier() is head
    assert model.num_classes == 7

    cosine = CosineLinear(64, 7, 12.0)
    assert replace_classifier(model, cosine).fc is cosine
    assert model._model_args['cosine_scale'] == 12.0


def test_a_classifier_that_the_architecture_cannot_hold_is_refused():
    stock = timm.create_model('resnet18', num_classes=C)
    with pytest.raises(ValueError, match='ResNet has no cosine classifier'):
        replace_classifier(stock, CosineLinear(512, C))
    with pytest.raises(ValueError, match='no classifier of the kind Identity'):
        replace_classifier(stock, nn.Identity())


def test_a_feature_loader_without_a_sampler_shows_each_feature_once():
    features, targets = torch.randn(40, D), torch.arange(40) % C

    batches = list(FeatureLoader(features, targets, None, 16))

    assert [len(target) for _, target, _ in batches] == [16, 16, 8]
    assert torch.equal(torch.cat([x for (x,), _, _ in batches]), features)


def test_a_feature_loader_with_a_sampler_leaves_the_rest_of_an_epoch_out_and_can_be_resumed():
    features, targets = torch.randn(40, D), torch.arange(40) % C
    sampler = create_sampler('class_balanced', targets.tolist(), 5)
    loader = FeatureLoader(features, targets, sampler, 16)
    loader.set_epoch(3)

    batches = list(loader)
    assert len(batches) == len(loader) == 2
    for (x,), target, index in batches:
        assert torch.equal(x, features[index])
        assert torch.equal(target, targets[index])

    loader.set_epoch(3, start_batch=1)
    assert torch.equal(next(iter(loader))[2], batches[1][2])
