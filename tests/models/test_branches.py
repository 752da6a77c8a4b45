"""Branches: what the two-branch models build, and what can be attached to any backbone."""
import pytest
import timm
import torch
from timm.models import load_pretrained, save_for_hf
from torch import nn

from timm_longtail.methods import create_method
from timm_longtail.models import attach_branches, deployed_state_dict
from timm_longtail.models.layers import CosineLinear, projection_mlp
from timm_longtail.utils.errors import UserError

from ..support.networks import TWO_BRANCH, build, every_two_branch, images, pooled, same_state, shapes

every_bcl = pytest.mark.parametrize('name', [name for name in TWO_BRANCH if name.startswith('bcl')])
every_glmc = pytest.mark.parametrize('name', [name for name in TWO_BRANCH if name.startswith('glmc')])

# hidden and output width of BCL's MLPs, width of GLMC's layers: the papers' for ImageNet, else those for CIFAR
BRANCH_SIZES = {'bcl_resnet50': (2048, 1024), 'bcl_resnext50_32x4d': (2048, 1024)}
GLMC_WIDTHS = {'glmc_resnet50': 256, 'glmc_resnext50_32x4d': 256}


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
