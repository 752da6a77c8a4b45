"""The contracts that timm asks of a model, over all registered ones, and those of branches."""
import hashlib
import math

import pytest
import timm
import torch
from timm.models import group_parameters, load_pretrained, save_for_hf
from torch import nn

from timm_longtail.errors import UserError
from timm_longtail.layers import CosineLinear, projection_mlp
from timm_longtail.models import attach_branches, deployed_state_dict
from timm_longtail.models.resnet_cifar import PadShortcut

MODELS = timm.list_models(module=['resnet_cifar', 'two_branch'])
TWO_BRANCH = timm.list_models(module='two_branch')
every_model = pytest.mark.parametrize('name', MODELS)
every_two_branch = pytest.mark.parametrize('name', TWO_BRANCH)

# millions of parameters in the ResNet paper (table 6, ten classes) and, for width 64, of GLMC's network with 100
PUBLISHED_MILLIONS = {
    ('resnet20_cifar', 10): '0.27', ('resnet32_cifar', 10): '0.46', ('resnet44_cifar', 10): '0.66',
    ('resnet56_cifar', 10): '0.85', ('resnet110_cifar', 10): '1.7', ('resnet32_w64_cifar', 100): '7.4',
    ('bcl_resnet20', 10): '0.27', ('bcl_resnet32', 10): '0.46',
}
# sha256 over the names and shapes of the state dict with 100 classes: published weights must load for ever
FROZEN_STATE_DICTS = {
    'resnet20_cifar': '685622159b76bed0', 'resnet32_cifar': '602319cffeb7b4a8', 'resnet44_cifar': 'de2c1e1e29724e8c',
    'resnet56_cifar': '6c3e771952054436', 'resnet110_cifar': '5e6efdc7ca4a5e5d',
    'resnet32_w64_cifar': '5c1dea2506438d93',
    'bcl_resnet20': 'a9e65f31fc19aeed', 'bcl_resnet32': 'b41f9c50dc7b74a5',
}


def build(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def images(batch_size=2, in_chans=3, size=32):
    return torch.randn(batch_size, in_chans, size, size, generator=torch.Generator().manual_seed(1))


def pooled(model, x):
    return model.forward_head(model.forward_features(x), pre_logits=True)


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@every_model
def test_forward(name, caplog):
    model = build(name).eval()
    assert 'No pretrained configuration' not in caplog.text
    for batch_size in (1, 2):
        logits = model(images(batch_size))
        assert logits.shape == (batch_size, 100) and logits.isfinite().all()
    features = model.forward_features(images())
    assert features.shape == (2, model.num_features, *model.default_cfg['pool_size'])
    assert torch.equal(model.fc(pooled(model, images())), model(images()))
    assert model(images(size=48)).shape == (2, 100)  # sizes are not fixed


@every_model
def test_every_parameter_has_a_gradient(name):
    model = build(name, num_classes=7, drop_rate=0.1).train()
    model(images()).mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every_model
def test_gradient_checkpointing_changes_nothing(name):
    grads = []
    for enable in (False, True):
        model = build(name, num_classes=7)
        model.set_grad_checkpointing(enable)
        (model(images()).square().mean() + model.forward_intermediates(images())[0].mean()).backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@every_model
def test_reset_classifier(name):
    model = build(name, global_pool='max').eval()
    kind, before = type(model.get_classifier()), pooled(model, images())
    model.reset_classifier(5)
    assert model.num_classes == 5 and type(model.get_classifier()) is kind
    assert model.get_classifier().weight.shape == (5, model.head_hidden_size)
    assert torch.equal(pooled(model, images()), before) and not model.fc.training  # pooling is kept
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(images()), before)
    model.reset_classifier(0, '')
    assert torch.equal(model(images()), model.forward_features(images()))
    assert build(name, num_classes=0, global_pool='')(images()).shape == (2, model.num_features, 8, 8)
    model.to('meta', torch.float64).reset_classifier(3, 'catavgmax')
    weight = model.get_classifier().weight
    assert (weight.shape, weight.device.type, weight.dtype) == ((3, 2 * model.num_features), 'meta', torch.float64)


@every_model
@pytest.mark.parametrize('feature_cls', ['getter', 'list'])
def test_features_only(name, feature_cls):
    model = build(name, features_only=True, feature_cls=feature_cls).eval()
    maps, info = model(images()), model.feature_info
    assert [m.shape[1] for m in maps] == info.channels() and len(maps) == 4
    assert [32 // m.shape[-1] for m in maps] == info.reduction() == [1, 1, 2, 4]
    assert not any('fc.' in k or 'branches' in k for k in model.state_dict())


@every_model
def test_forward_intermediates(name):
    model = build(name).eval()
    final, maps = model.forward_intermediates(images())
    assert torch.equal(final, model.forward_features(images())) and torch.equal(final, maps[-1])
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
    listed = timm.create_model(name, features_only=True, feature_cls='list').eval()
    listed.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(maps, listed(images()), rtol=0, atol=0)
    last_two = model.forward_intermediates(images(), indices=2, intermediates_only=True)
    torch.testing.assert_close(last_two, maps[2:], rtol=0, atol=0)
    early, taken = model.forward_intermediates(images(), indices=[0, -3], stop_early=True)
    torch.testing.assert_close([early, *taken], [maps[1], maps[0], maps[1]], rtol=0, atol=0)
    with pytest.raises(AssertionError):
        model.forward_intermediates(images(), output_fmt='NLC')


@every_model
@pytest.mark.parametrize('indices, kept', [([0], [0]), ([1, 2], [1, 2]), (1, [3])])
def test_prune_leaves_no_unused_parameter(name, indices, kept):
    model = build(name).train()
    assert model.prune_intermediate_layers(indices) == kept
    maps = model.forward_intermediates(images(), indices=kept, intermediates_only=True)
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.num_classes == 0 and model(images()).shape[1] == model.num_features == maps[-1].shape[1]


@every_model
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_torchscript_and_fx(name):
    model = build(name).eval()
    torch.testing.assert_close(torch.jit.script(model)(images()), model(images()))
    assert torch.equal(torch.fx.symbolic_trace(model)(images()), model(images()))


@every_model
def test_arguments(name):
    assert build(name, in_chans=1, num_classes=5)(images(in_chans=1)).shape == (2, 5)
    assert isinstance(build(name, cosine_scale=1.0).get_classifier(), CosineLinear)
    with pytest.raises(TypeError):
        build(name, device='meta', not_an_argument=1)
    meta = build(name, device='meta', dtype=torch.float64)
    tensors = [*meta.parameters(), *meta.buffers()]
    assert all(t.device.type == 'meta' for t in tensors)
    assert all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())
    assert meta.bfloat16()(images().to('meta', torch.bfloat16)).dtype == torch.bfloat16


@every_model
def test_configuration(name):
    model = build(name)
    cfg, names = model.pretrained_cfg, model.state_dict().keys()
    assert cfg['architecture'] == name and cfg['input_size'] == (3, 32, 32) and model.in_chans == 3
    assert f'{cfg["first_conv"]}.weight' in names and f'{cfg["classifier"]}.weight' in names
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    assert groups['conv1.weight'] == groups['bn1.weight'] == 0 and len(set(groups.values())) > 3
    assert groups['layer1.0.conv1.weight'] < groups['layer3.2.conv2.weight'] < groups['fc.weight']
    assert model.no_weight_decay() <= set(names)
    assert getattr(model, 'default_method', 'ce') == ('bcl' if name in TWO_BRANCH else 'ce')


@pytest.mark.parametrize('name, num_classes', PUBLISHED_MILLIONS)
def test_published_size(name, num_classes):
    published = PUBLISHED_MILLIONS[name, num_classes]
    count = sum(p.numel() for p in build(name, num_classes=num_classes).parameters())
    assert f'{count / 1e6:.{len(published.split(".")[1])}f}' == published


@every_model
def test_frozen_state_dict(name):
    lines = [f'{k} {tuple(v.shape)}' for k, v in build(name, num_classes=100).state_dict().items()]
    assert hashlib.sha256('\n'.join(lines).encode()).hexdigest()[:16] == FROZEN_STATE_DICTS.get(name)


def test_initialisation():
    model = build('resnet32_w64_cifar')
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
    assert same_state(loaded, model) and torch.equal(loaded(images()), model(images()))
    gray = timm.create_model(source, pretrained=True, in_chans=1, num_classes=5)
    assert torch.equal(gray.conv1.weight, model.conv1.weight.sum(1, keepdim=True))
    assert gray(images(in_chans=1)).shape == (2, 5)
    headless = timm.create_model(source, pretrained=True, num_classes=0).eval()
    assert torch.equal(headless(images()), pooled(model, images())) and not hasattr(headless, 'branches')
    maps = timm.create_model(source, pretrained=True, features_only=True).eval()(images())
    assert torch.equal(maps[-1], model.forward_features(images()))


@every_two_branch
def test_one_checkpoint_serves_both_builds(name, tmp_path):
    full, plain = build(name, branches=True).eval(), build(name).eval()
    assert torch.equal(full(images()), plain(images()))  # branches draw their weights last
    assert same_state(full, build(name, branches=True))
    plain.load_state_dict(deployed_state_dict(full), strict=True)
    nn.init.zeros_(full.fc.weight)
    save_for_hf(full, tmp_path / 'full', safe_serialization=True)
    save_for_hf(plain, tmp_path / 'plain', safe_serialization=True)
    bare = timm.create_model(f'local-dir:{tmp_path}/full', pretrained=True, branches=False)
    assert not hasattr(bare, 'branches') and not bare.fc.weight.any()
    torch.manual_seed(0)
    grown = timm.create_model(f'local-dir:{tmp_path}/plain', pretrained=True, branches=True)
    assert same_state(grown.branches, full.branches) and torch.equal(grown.fc.weight, plain.fc.weight)
    broken = deployed_state_dict(plain)
    del broken['fc.weight']
    with pytest.raises(RuntimeError, match='fc.weight'):  # the filter forgives branches only
        load_pretrained(plain, dict(plain.pretrained_cfg, state_dict=broken), num_classes=100)


@every_two_branch
def test_branches_of_a_registered_model(name):
    model = build(name, branches=True).eval()
    assert isinstance(model.get_classifier(), CosineLinear) and model.get_classifier().scale == 30
    assert [tuple(p.shape) for p in model.branches['projector'].parameters() if p.ndim == 2] == [(512, 64), (128, 512)]
    assert model.branches['prototype'](model.get_classifier().weight).shape == (100, 128)
    model.reset_classifier(7)
    assert hasattr(model, 'branches') and not any(m.training for m in model.modules())
    model.reset_classifier(0)
    assert not any(k.startswith('branches') for k in model.state_dict())
    assert not hasattr(build(name, branches=True, num_classes=0), 'branches')
    wide = build(name, branches=True)
    wide.reset_classifier(7, 'catavgmax')
    assert not hasattr(wide, 'branches')  # they no longer fit the features


@pytest.mark.parametrize('name, kwargs', [('vit_tiny_patch16_224', {'img_size': 32}), ('convnext_atto', {})])
def test_attach_to_any_backbone(name, kwargs):
    model = build(name, num_classes=6, **kwargs).eval()
    before, keys = model(images()), model.state_dict().keys()
    assert attach_branches(model, 'bcl', hidden_features=32, out_features=16) is model
    assert torch.equal(model(images()), before) and deployed_state_dict(model).keys() == keys
    model.train()
    features, weight = pooled(model, images()), model.get_classifier().weight
    embeddings = model.branches['projector'](features), model.branches['prototype'](weight)
    assert [tuple(e.shape) for e in embeddings] == [(2, 16), (6, 16)]
    embeddings[1].square().sum().backward()
    assert weight.grad.any()


def test_attach_places_modules_like_the_model():
    model = attach_branches(build('resnet20_cifar', device='meta', dtype=torch.bfloat16).eval(), 'bcl')
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}
    assert not any(m.training for m in model.modules())
    modules = {'predictor': nn.Linear(64, 8), 'scale': projection_mlp(8, 8, 8)}
    model = attach_branches(build('resnet20_cifar', num_classes=0, dtype=torch.float64), modules)
    assert list(model.branches) == list(modules) and model.branches['scale'][0].weight.dtype == torch.float64


@pytest.mark.parametrize('name, kwargs, kind, message', [
    ('resnet20_cifar', {}, 'blc', "unknown kind of branches 'blc'; did you mean bcl"),
    ('resnet20_cifar', {'num_classes': 0}, 'bcl', 'no classes'),
    ('bcl_resnet20', {'branches': True}, 'bcl', r'branches already \(projector, prototype\)'),
    ('deit_tiny_distilled_patch16_224', {'img_size': 32}, 'bcl', 'has Linear, Linear'),
    ('resnetv2_50', {}, 'bcl', 'has Conv2d'),
])
def test_attach_refuses(name, kwargs, kind, message):
    model = build(name, device='meta', **kwargs)
    keys = model.state_dict().keys()
    with pytest.raises(UserError, match=message):
        attach_branches(model, kind)
    assert model.state_dict().keys() == keys


@pytest.mark.parametrize('kind_or_modules, sizes', [('bcl', {'width': 3}), ({'head': nn.ReLU()}, {'out_features': 8})])
def test_attach_refuses_unknown_sizes(kind_or_modules, sizes):
    with pytest.raises(TypeError):
        attach_branches(build('resnet20_cifar'), kind_or_modules, **sizes)
