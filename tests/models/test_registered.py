"""Registered models: their configuration, published sizes and weights, and where they start from."""
import hashlib
import math

import pytest
import timm
import torch
from timm.models import group_parameters, save_for_hf
from torch import nn

from timm_longtail.models.layers import CosineLinear
from timm_longtail.models.resnet_cifar import PadShortcut

from ..support.networks import (
    MODELS,
    REDUCTIONS,
    TWO_BRANCH,
    build,
    every_model,
    images,
    pooled,
    same_state,
    whole,
)

# millions of parameters in the ResNet paper (table 6, ten classes); for width 64 of GLMC's network with 100, for the
# four stages behind a small stem of the usual CIFAR code, for ImageNet less the 1000 biases that BCL's cosine lacks
PUBLISHED_MILLIONS = {
    ('resnet20_cifar', 10): '0.27', ('resnet32_cifar', 10): '0.46', ('resnet44_cifar', 10): '0.66',
    ('resnet56_cifar', 10): '0.85', ('resnet110_cifar', 10): '1.7', ('resnet32_w64_cifar', 100): '7.4',
    ('bcl_resnet20', 10): '0.27', ('bcl_resnet32', 10): '0.46',
    ('resnet18_cifar', 100): '11.22', ('resnet50_cifar', 100): '23.71',
    ('bcl_resnet50', 1000): '25.556', ('bcl_resnext50_32x4d', 1000): '25.028',
    ('glmc_resnet20', 10): '0.27', ('glmc_resnet32', 10): '0.46', ('glmc_resnet32_w64', 100): '7.4',
    ('glmc_resnet50', 1000): '25.557', ('glmc_resnext50_32x4d', 1000): '25.029',
}
# sha256 over the names and shapes of the state dict with 100 classes: published weights must load for ever
FROZEN_STATE_DICTS = {
    'resnet20_cifar': '685622159b76bed0', 'resnet32_cifar': '602319cffeb7b4a8', 'resnet44_cifar': 'de2c1e1e29724e8c',
    'resnet56_cifar': '6c3e771952054436', 'resnet110_cifar': '5e6efdc7ca4a5e5d',
    'resnet32_w64_cifar': '5c1dea2506438d93',
    'resnet18_cifar': 'ee1180e50912bf57', 'resnet50_cifar': '0590d08db9df7d4e',
    'bcl_resnet20': 'a9e65f31fc19aeed', 'bcl_resnet32': 'b41f9c50dc7b74a5',
    'bcl_resnet50': '60032e7c3e868777', 'bcl_resnext50_32x4d': 'dba989903e585d8c',
    'glmc_resnet20': '685622159b76bed0', 'glmc_resnet32': '602319cffeb7b4a8', 'glmc_resnet32_w64': '5c1dea2506438d93',
    'glmc_resnet50': 'b100851ffa1f84cd', 'glmc_resnext50_32x4d': 'ac7ec672e0bf4d3f',
}


@every_model
def test_configuration(name):
    model = whole(name, device='meta')
    cfg, names = model.pretrained_cfg, model.state_dict().keys()
    assert cfg['architecture'] == name and model.in_chans == 3

    size = 224 if REDUCTIONS[name][-1] == 32 else 32
    assert cfg['input_size'] == (3, size, size) and cfg['pool_size'] == (size // REDUCTIONS[name][-1],) * 2
    assert model.num_classes == cfg['num_classes']
    assert f'{cfg["first_conv"]}.weight' in names and f'{cfg["classifier"]}.weight' in names

    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert groups['conv1.weight'] == groups['bn1.weight'] == 0 and len(set(groups.values())) > 3
    assert groups['layer1.0.conv1.weight'] < groups['layer3.1.conv2.weight'] < groups['fc.weight']
    assert not hasattr(model, 'no_weight_decay') or model.no_weight_decay() <= set(names)  # timm's ResNet has none
    assert getattr(model, 'default_method', 'ce') == (name.split('_')[0] if name in TWO_BRANCH else 'ce')


@pytest.mark.parametrize('name, num_classes', PUBLISHED_MILLIONS)
def test_published_size(name, num_classes):
    published = PUBLISHED_MILLIONS[name, num_classes]
    count = sum(p.numel() for p in whole(name, num_classes=num_classes, device='meta').parameters())
    assert f'{count / 1e6:.{len(published.split(".")[1])}f}' == published


@every_model
def test_frozen_state_dict(name):
    lines = [f'{k} {tuple(v.shape)}' for k, v in whole(name, num_classes=100, device='meta').state_dict().items()]
    assert hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16] == FROZEN_STATE_DICTS.get(name)


def test_initialisation():
    model = whole('resnet32_w64_cifar')
    for weight, fan_in in ((model.layer3[1].conv1.weight, 9 * 256), (model.fc.weight, 256)):
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.05)  # Kaiming, on the head too
    assert model.layer3[4].bn2.weight.eq(1).all()

    x = images(in_chans=16)
    padded = PadShortcut(16, 32, stride=2)(x)
    assert torch.equal(padded[:, 8:24], x[:, :, ::2, ::2])
    assert padded.shape == (2, 32, 16, 16) and not padded[:, :8].any() and not padded[:, 24:].any()


@pytest.mark.parametrize('name, kwargs', [(n, {}) for n in MODELS] + [(n, {'branches': True}) for n in TWO_BRANCH])
def test_hub_round_trip(name, kwargs, tmp_path):
    model = build(name, num_classes=10, **kwargs).eval()
    save_for_hf(model, tmp_path, safe_serialization=True)
    source = f'local-dir:{tmp_path}'
    loaded = timm.create_model(source, pretrained=True).eval()
    x = images(model)
    assert same_state(loaded, model) and torch.equal(loaded(x), model(x))

    gray = timm.create_model(source, pretrained=True, in_chans=1, num_classes=5)
    assert torch.equal(gray.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
    assert gray(images(gray, in_chans=1)).shape == (2, 5)

    headless = timm.create_model(source, pretrained=True, num_classes=0).eval()
    assert torch.equal(headless(x), pooled(model, x)) and not hasattr(headless, 'branches')

    maps = timm.create_model(source, pretrained=True, features_only=True).eval()(x)
    assert torch.equal(maps[-1], model.forward_features(x))


@pytest.mark.parametrize('name', timm.list_models(module='two_branch_resnet'))
def test_starts_from_timms_weights(name):
    stock, model = whole(name.partition('_')[2]), whole(name, num_classes=7)
    missing, unexpected = model.load_state_dict(
        {k: v for k, v in stock.state_dict().items() if not k.startswith('fc.')}, strict=False)
    assert (missing, unexpected) == ([f'fc.{k}' for k in model.fc.state_dict()], [])
    x = images(model)
    assert torch.equal(model.eval().forward_features(x), stock.eval().forward_features(x))


def test_a_stem_for_small_images():
    model, stock = whole('resnet18_cifar', num_classes=10), whole('resnet18', num_classes=10)
    differ = {k for k, v in stock.state_dict().items() if model.state_dict()[k].shape != v.shape}
    assert differ == {'conv1.weight'} and model.state_dict().keys() == stock.state_dict().keys()
    assert model.conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.1)  # timm's, over the output

    dilated = build('resnet18_cifar', output_stride=2)
    assert dilated.forward_features(images()).shape == (2, 64, 16, 16)
    assert [info['reduction'] for info in dilated.feature_info] == [1, 1, 2, 2, 2]

    model.reset_classifier(4)
    assert type(model.fc) is nn.Linear

    cosine = build('resnet18_cifar', cosine_scale=1.0)
    cosine.reset_classifier(4)
    assert isinstance(cosine.fc, CosineLinear) and cosine.fc.scale == 1
