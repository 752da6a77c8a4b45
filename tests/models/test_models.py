"""The contracts that timm asks of a model, over all registered ones, and those of branches."""
import hashlib
import math

import pytest
import timm
import torch
from timm.models import group_parameters, load_pretrained, save_for_hf
from torch import nn

from timm_longtail.methods import create_method
from timm_longtail.models import attach_branches, deployed_state_dict
from timm_longtail.models.layers import CosineLinear, projection_mlp
from timm_longtail.models.resnet_cifar import PadShortcut
from timm_longtail.utils.errors import UserError

TWO_BRANCH = timm.list_models(module=['two_branch', 'two_branch_resnet'])
# strides of the maps, by file
REDUCTIONS = {
    name: reductions for module, reductions in {
        'resnet_cifar': [1, 1, 2, 4], 'two_branch': [1, 1, 2, 4],
        'resnet_small': [1, 1, 2, 4, 8], 'two_branch_resnet': [2, 4, 8, 16, 32],
    }.items() for name in timm.list_models(module=module)
}
MODELS = list(REDUCTIONS)
every_model = pytest.mark.parametrize('name', MODELS)
every_two_branch = pytest.mark.parametrize('name', TWO_BRANCH)
every_bcl = pytest.mark.parametrize('name', [name for name in TWO_BRANCH if name.startswith('bcl')])
every_glmc = pytest.mark.parametrize('name', [name for name in TWO_BRANCH if name.startswith('glmc')])

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
# hidden and output width of BCL's MLPs, width of GLMC's layers: the papers' for ImageNet, else those for CIFAR
BRANCH_SIZES = {'bcl_resnet50': (2048, 1024), 'bcl_resnext50_32x4d': (2048, 1024)}
GLMC_WIDTHS = {'glmc_resnet50': 256, 'glmc_resnext50_32x4d': 256}


def whole(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


NARROW = {4: {'layers': (1, 1, 1), 'channels': (8, 16, 32)}, 5: {'layers': (1,) * 4, 'channels': (16, 32, 48, 64)}}


def build(name, **kwargs):
    """Build a model, ours narrow and with one block in each stage: most contracts do not depend on the size."""
    return whole(name, **{**NARROW.get(len(REDUCTIONS.get(name, ())), {}), **kwargs})


def images(model=None, batch_size=2, in_chans=3, size=None):
    size = size or side(model)
    return torch.randn(batch_size, in_chans, size, size, generator=torch.Generator().manual_seed(1))


def side(model):
    """Return a small side that the model takes: two pixels of its last map for the ImageNet stem."""
    return 64 if model is not None and model.default_cfg['input_size'][1] == 224 else 32


def last_map(model):
    """Return the shape of the last map of such an image."""
    pixels = model.default_cfg['pool_size'][0] * side(model) // model.default_cfg['input_size'][1]
    return (2, model.num_features, pixels, pixels)


def pooled(model, x):
    return model.forward_head(model.forward_features(x), pre_logits=True)


def shapes(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def same_state(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@every_model
def test_forward(name, caplog):
    model = whole(name).eval()
    assert 'No pretrained configuration' not in caplog.text
    num_classes = model.default_cfg['num_classes']
    for batch_size in (1, 2):
        logits = model(images(model, batch_size))
        assert logits.shape == (batch_size, num_classes) and logits.isfinite().all()
    x = images(model)
    assert model.forward_features(x).shape == last_map(model)
    assert torch.equal(model.fc(pooled(model, x)), model(x))
    assert model(images(size=48)).shape == (2, num_classes)  # sizes are not fixed


@every_model
def test_every_parameter_has_a_gradient(name):
    model = build(name, num_classes=7, drop_rate=0.1).train()
    model(images(model)).mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


@every_model
def test_gradient_checkpointing_changes_nothing(name):
    grads = []
    for enable in (False, True):
        model = build(name, num_classes=7)
        model.set_grad_checkpointing(enable)
        x = images(model)
        (model(x).square().mean() + model.forward_intermediates(x)[0].mean()).backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@every_model
def test_reset_classifier(name):
    model = build(name, global_pool='max').eval()
    x = images(model)
    kind, before = type(model.get_classifier()), pooled(model, x)
    model.reset_classifier(5)
    assert model.num_classes == 5 and type(model.get_classifier()) is kind
    assert model.get_classifier().weight.shape == (5, model.head_hidden_size)
    assert torch.equal(pooled(model, x), before) and not model.fc.training  # pooling is kept
    model.reset_classifier(0)
    assert model.num_classes == 0 and torch.equal(model(x), before)
    model.reset_classifier(0, '')
    assert torch.equal(model(x), model.forward_features(x))
    assert build(name, num_classes=0, global_pool='')(x).shape == last_map(model)
    model.to('meta', torch.float64).reset_classifier(3, 'catavgmax')
    weight = model.get_classifier().weight
    assert (weight.shape, weight.device.type, weight.dtype) == ((3, 2 * model.num_features), 'meta', torch.float64)


@every_model
@pytest.mark.parametrize('feature_cls', ['getter', 'list'])
def test_features_only(name, feature_cls):
    model = build(name, features_only=True, feature_cls=feature_cls).eval()
    x = images(model)
    maps, info = model(x), model.feature_info
    assert [m.shape[1] for m in maps] == info.channels()
    assert [x.shape[-1] // m.shape[-1] for m in maps] == info.reduction() == REDUCTIONS[name]
    assert not any('fc.' in k or 'branches' in k for k in model.state_dict())


@every_model
def test_forward_intermediates(name):
    model = build(name).eval()
    x = images(model)
    final, maps = model.forward_intermediates(x)
    assert torch.equal(final, model.forward_features(x)) and torch.equal(final, maps[-1])
    assert [m.shape[1] for m in maps] == [info['num_chs'] for info in model.feature_info]
    listed = build(name, features_only=True, feature_cls='list').eval()
    listed.load_state_dict(model.state_dict(), strict=False)
    torch.testing.assert_close(maps, listed(x), rtol=0, atol=0)
    last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
    torch.testing.assert_close(last_two, maps[-2:], rtol=0, atol=0)
    early, taken = model.forward_intermediates(x, indices=[0, -3], stop_early=True)
    torch.testing.assert_close([early, *taken], [maps[-3], maps[0], maps[-3]], rtol=0, atol=0)
    with pytest.raises(AssertionError):
        model.forward_intermediates(x, output_fmt='NLC')


@every_model
@pytest.mark.parametrize('indices, kept', [([0], [0]), ([1, 2], [1, 2]), (1, [-1])])
def test_prune_leaves_no_unused_parameter(name, indices, kept):
    model = build(name).train()
    x = images(model)
    assert model.prune_intermediate_layers(indices) == [i % len(REDUCTIONS[name]) for i in kept]
    maps = model.forward_intermediates(x, indices=kept, intermediates_only=True)
    sum(m.sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.num_classes == 0 and model(x).shape[1] == model.num_features == maps[-1].shape[1]


@every_model
@pytest.mark.filterwarnings('ignore:.*torch.jit')
def test_torchscript_and_fx(name):
    model = build(name).eval()
    x = images(model)
    torch.testing.assert_close(torch.jit.script(model)(x), model(x))
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


@every_model
def test_arguments(name):
    grey = build(name, in_chans=1, num_classes=5)
    assert grey(images(grey, in_chans=1)).shape == (2, 5)
    assert isinstance(build(name, cosine_scale=1.0).get_classifier(), CosineLinear)
    with pytest.raises(TypeError):
        build(name, device='meta', not_an_argument=1)
    meta = build(name, device='meta', dtype=torch.float64)
    tensors = [*meta.parameters(), *meta.buffers()]
    assert all(t.device.type == 'meta' for t in tensors)
    assert all(t.dtype == torch.float64 for t in tensors if t.is_floating_point())
    assert meta.bfloat16()(images(meta).to('meta', torch.bfloat16)).dtype == torch.bfloat16


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


@every_two_branch
def test_one_checkpoint_serves_both_builds(name, tmp_path):
    full, plain = build(name, branches=True).eval(), build(name).eval()
    assert torch.equal(full(images(full)), plain(images(full)))  # branches draw their weights last
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
        load_pretrained(plain, dict(plain.pretrained_cfg, state_dict=broken), num_classes=plain.num_classes)


@every_bcl
def test_branches_of_bcl(name):
    model = build(name, branches=True).eval()
    assert isinstance(model.get_classifier(), CosineLinear) and model.get_classifier().scale == 30
    hidden, out = BRANCH_SIZES.get(name, (512, 128))
    for mlp in model.branches.values():
        weights = [tuple(p.shape) for p in mlp.parameters() if p.ndim == 2]
        assert weights == [(hidden, model.num_features), (out, hidden)]
    assert model.branches['prototype'](model.get_classifier().weight).shape == (model.num_classes, out)
    sized = attach_branches(build(name, device='meta'), 'bcl', hidden_features=32, out_features=None)
    assert [p.shape[0] for p in sized.branches['projector'].parameters() if p.ndim == 2] == [32, out]


@every_glmc
def test_branches_of_glmc(name):
    model = build(name, branches=True).eval()
    width, out, classes = model.num_features, GLMC_WIDTHS.get(name, 128), model.num_classes
    layers = {
        'classifier.weight': (classes, width), 'classifier.bias': (classes,), 'projector.weight': (out, width),
        'projector.bias': (out,), 'predictor.weight': (out, out), 'predictor.bias': (out,),
    }
    assert shapes(model.branches) == layers
    assert type(model.fc) is nn.Linear and not torch.equal(model.fc.weight, model.branches['classifier'].weight)
    sized = attach_branches(build(name, device='meta'), 'glmc', out_features=32)
    assert sized.branches['projector'].weight.shape == (32, width)
    assert sized.branches['predictor'].weight.shape == (32, 32)
    cosine = build(name, branches=True, cosine_scale=16.)
    assert isinstance(cosine.branches['classifier'], CosineLinear) and cosine.branches['classifier'].scale == 16
    model.reset_classifier(7)  # both classifiers are new; the other branches stay
    assert shapes(model.branches) == {**layers, 'classifier.weight': (7, width), 'classifier.bias': (7,)}


@every_two_branch
def test_branches_that_no_longer_fit_are_removed(name):
    model = build(name, branches=True).eval()
    before = {k: v.clone() for k, v in model.branches.state_dict().items() if not k.startswith('classifier')}
    model.reset_classifier(7)
    assert before and not any(m.training for m in model.modules())
    assert all(torch.equal(model.branches.state_dict()[k], v) for k, v in before.items())
    model.reset_classifier(0)
    assert not any(k.startswith('branches') for k in model.state_dict())
    assert not hasattr(build(name, branches=True, num_classes=0), 'branches')
    wide = build(name, branches=True)
    wide.reset_classifier(7, 'catavgmax')
    assert not hasattr(wide, 'branches')  # they no longer fit the features


@every_two_branch
def test_the_method_attaches_branches_of_the_models_size(name):
    plain, full = build(name, num_classes=3, device='meta'), build(name, num_classes=3, branches=True, device='meta')
    create_method(plain.default_method, plain, [3, 2, 1])
    assert shapes(plain) == shapes(full)
    narrow = create_method(
        plain.default_method, build(name, num_classes=3, device='meta'), [3, 2, 1], out_features=8).model
    last = list(shapes(full.branches['projector']))[-2]
    assert shapes(narrow.branches['projector'])[last] == (8, shapes(full.branches['projector'])[last][1])


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


@pytest.mark.parametrize('name, kwargs', [('vit_tiny_patch16_224', {'img_size': 32}), ('convnext_atto', {})])
def test_attach_glmc_to_any_backbone(name, kwargs):
    model = build(name, num_classes=6, **kwargs).eval()
    before, keys = model(images()), model.state_dict().keys()
    branches = attach_branches(model, 'glmc', out_features=16).branches
    assert torch.equal(model(images()), before) and deployed_state_dict(model).keys() == keys
    features = pooled(model, images())
    assert branches['classifier'](features).shape == (2, 6)
    assert branches['predictor'](branches['projector'](features)).shape == (2, 16)


@pytest.mark.parametrize('kind', ['bcl', 'glmc'])
def test_attach_places_modules_like_the_model(kind):
    model = attach_branches(build('resnet20_cifar', device='meta', dtype=torch.bfloat16).eval(), kind)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}
    assert not any(m.training for m in model.modules())
    modules = {'predictor': nn.Linear(64, 8), 'scale': projection_mlp(8, 8, 8)}
    model = attach_branches(build('resnet20_cifar', num_classes=0, dtype=torch.float64), modules)
    assert list(model.branches) == list(modules) and model.branches['scale'][0].weight.dtype == torch.float64


@pytest.mark.parametrize('name, kwargs, kind, message', [
    ('resnet20_cifar', {}, 'blc', "unknown kind of branches 'blc'; did you mean bcl"),
    ('resnet20_cifar', {'num_classes': 0}, 'bcl', 'no classes'),
    ('bcl_resnet20', {'branches': True}, 'bcl', r'branches already \(projector, prototype\)'),
    ('glmc_resnet20', {'branches': True}, 'bcl', r'branches already \(classifier, projector, predictor\)'),
    ('resnet20_cifar', {'num_classes': 0}, 'glmc', 'no classes'),
    ('resnetv2_50', {}, 'glmc', 'has Conv2d'),
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
