"""Optimizers by name: timm's, refused in one line or built; the default is plain SGD."""
from unittest import mock

import pytest
import timm
import torch
from timm.optim import list_optimizers, muon

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.methods import create_method
from timm_longtail.training.optim import create_optimizers
from timm_longtail.utils.errors import UserError

from ..support.runs import make_run

CE = ['--no-recipe', '--model', 'resnet20_cifar', '--method', 'ce']


def test_steps_are_plain_sgd_with_momentum_and_decay():
    args = parse_train_args(['--model', 'resnet20_cifar', '--no-recipe', '--weight-decay', '0.01', '--lr', '0.1'])
    method = create_method('ce', timm.create_model('resnet20_cifar', num_classes=4), [4, 3, 2, 1])
    (optimizer,), _ = create_optimizers(args, method, 10)

    names = ('model.bn1.weight', 'model.fc.bias', 'model.conv1.weight')
    parameters = [dict(method.named_parameters())[name] for name in names]
    expected = [p.detach().clone().double() for p in parameters]
    velocity = [torch.zeros_like(p) for p in expected]
    random = torch.Generator().manual_seed(0)

    # by the formula, in float64
    for _ in range(3):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=random)
            velocity[i] = 0.9 * velocity[i] + p.grad.double() + 0.01 * expected[i]
            expected[i] = expected[i] - 0.1 * velocity[i]
        optimizer.step()

    for p, value in zip(parameters, expected):
        torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('has_bf16, dtype', [(False, torch.float32), (True, torch.bfloat16)])
def test_muon_orthogonalizes_in_a_type_that_the_cpu_computes(has_bf16, dtype, monkeypatch):
    orthogonalize = getattr(muon.zeropower_via_newtonschulz, 'func', muon.zeropower_via_newtonschulz)
    monkeypatch.setattr(muon, 'zeropower_via_newtonschulz', orthogonalize)
    monkeypatch.setattr('timm_longtail.training.optim.cpu_has_bf16', lambda: has_bf16)
    options = ['--opt', 'muon', '--lr', '1', '--momentum', '0', '--weight-decay', '0']
    method = create_method('ce', timm.create_model('resnet20_cifar', num_classes=4), [4, 3, 2, 1])
    (optimizer,), _ = create_optimizers(parse_train_args([*CE, *options]), method, 10)

    weight = method.model.layer1[0].conv1.weight
    before = weight.detach().clone()
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()

    # the rate of a matrix of 16 rows and 144 columns: 0.2 sqrt(144)
    coefficients = muon._COEFFICIENTS['quintic']
    update = orthogonalize(weight.grad.flatten(1), 5, coefficients, dtype=dtype).view_as(weight)
    assert torch.equal(weight.detach(), before.add(update.to(weight), alpha=-0.2 * 144 ** 0.5))


@pytest.mark.parametrize('opt', ['lookahead_adamw', 'lookahead_momentum', 'adafactor', 'lamb', 'lion', 'nadam'])
def test_optimizers_of_another_kind_take_a_step(opt):
    """What is accepted runs in the loop: through Accelerate, with the state that a checkpoint holds."""
    _, run = make_run('ce', '--opt', opt)
    (optimizer,) = run.optimizers
    before = torch.cat([p.detach().flatten() for p in run.method.parameters()])
    views, target, index = next(iter(run.loaders[0]))
    run.accelerator.backward(run.task((views, target, index))['loss'])
    optimizer.step()
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in run.method.parameters()]))
    assert optimizer.state_dict()['param_groups']


def test_every_optimizer_of_timm_is_refused_in_one_line_or_built():
    method = mock.Mock(phases=('main',))
    for opt in list_optimizers():
        method.param_groups.return_value = [{'params': [torch.zeros(2, 2, requires_grad=True)]}]
        try:
            args = parse_train_args([*CE, '--opt', opt])
        except UserError as e:
            assert str(e).startswith(f'--opt {opt}') and '\n' not in str(e)
        else:
            assert len(create_optimizers(args, method, 10)[0]) == 1
