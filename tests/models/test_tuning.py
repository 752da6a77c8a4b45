"""Tunings: what they train, where they start, and the model that they are published as."""
import importlib.util
import math

import pytest
import timm
import torch
from torch import nn

from timm_longtail.export import export_model, load_exported
from timm_longtail.export.deploy import deploy
from timm_longtail.methods import create_method
from timm_longtail.models import attach_branches, set_classifier, tune_model
from timm_longtail.models.adapters import AdaptedBlock, AdaptedEvaBlock, adapters_of, default_bottleneck
from timm_longtail.models.heads import set_head
from timm_longtail.models.layers import CosineLinear
from timm_longtail.models.tuning import (
    check_added,
    frozen_digest,
    frozen_names,
    load_trained_state_dict,
    trained_state_dict,
)
from timm_longtail.training.weights import load_initial_weights
from timm_longtail.utils.errors import UserError

VIT, ROPE_VIT = 'vit_tiny_patch16_224', 'vit_small_patch16_rope_224'  # of `Block` and of `EvaBlock`
TINY = {'img_size': 16, 'patch_size': 8, 'depth': 2, 'embed_dim': 32, 'num_heads': 2}
NUM_CLASSES = 20
COUNTS = list(range(NUM_CLASSES, 0, -1))

has_peft = importlib.util.find_spec('peft') is not None
ADDED = ['adaptformer', pytest.param('lora', marks=pytest.mark.skipif(not has_peft, reason='needs peft'))]


def vit(name: str = VIT, **kwargs) -> nn.Module:
    """Build a small vision transformer of timm, with values that no layer starts at."""
    torch.manual_seed(0)
    model = timm.create_model(name, **{**TINY, 'num_classes': NUM_CLASSES, **kwargs})
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def trained_names(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def disturb(model: nn.Module):
    """Change all that is trained, as training would."""
    torch.manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.2 * torch.randn_like(parameter))


# ------------------------------------------------------------------------------------------- what is trained

@pytest.mark.parametrize('num_classes, millions', [(100, 0.101), (365, 0.175), (1000, 0.618), (8142, 4.75)])
def test_adapters_of_a_base_model_have_the_published_size(num_classes, millions):
    model = timm.create_model('vit_base_patch16_224', num_classes=num_classes, device='meta')

    tune_model(model, 'adaptformer')

    size = sum(parameter.numel() for adapter in adapters_of(model) for parameter in adapter.parameters())
    assert round(size / 1e6, 2 if millions > 1 else 3) == millions
    classifier = {f'head.{name}' for name, _ in model.head.named_parameters()}
    assert {name for name in trained_names(model) if '.adapter.' not in name} == classifier


@pytest.mark.parametrize('num_classes, num_blocks, width', [
    (2, 12, 1), (23, 12, 1), (24, 12, 1), (47, 12, 1), (48, 12, 2), (100, 12, 4), (1000, 24, 16), (1000, 12, 32)])
def test_the_width_of_the_adapters_follows_the_classes(num_classes, num_blocks, width):
    assert default_bottleneck(num_classes, num_blocks) == width


@pytest.mark.parametrize('tuning, parts', [
    ('classifier', {'head.'}),
    ('bias', {'head.', 'blocks.0.', 'blocks.1.', 'patch_embed.', 'norm.'}),
    ('last_block', {'head.', 'blocks.1.', 'norm.'}),
    ('adaptformer(bottleneck=3)', {'head.', 'blocks.0.adapter.', 'blocks.1.adapter.'}),
    pytest.param('lora(r=2, layers="qkv,fc1")', {
        f'blocks.{block}.{layer}.lora_' for block in (0, 1) for layer in ('attn.qkv', 'mlp.fc1')} | {'head.'},
        marks=pytest.mark.skipif(not has_peft, reason='needs peft')),
])
def test_what_a_tuning_trains(tuning, parts):
    model = attach_branches(vit(), 'bcl')

    tune_model(model, tuning)

    names = trained_names(model)
    branches = {name for name in names if name.startswith('branches.')}
    assert len(branches) == len(list(model.branches.parameters()))
    for part in parts:
        assert any(name.startswith(part) for name in names), part
    assert all(name.startswith(tuple(parts)) for name in names - branches)
    assert tuning != 'bias' or all(name.endswith('bias') or name == 'head.weight' for name in names - branches)
    assert frozen_names(model) == {name for name, _ in model.named_parameters()} - names
    assert trained_state_dict(model).keys() == names - branches


@pytest.mark.parametrize('name, parts', [
    ('resnet50', {'layer4.2.', 'fc.'}),
    ('convnext_tiny', {'stages.3.blocks.2.', 'head.norm.', 'head.fc.'}),
    ('swin_tiny_patch4_window7_224', {'layers.3.blocks.1.', 'norm.', 'head.fc.'}),
    ('vit_tiny_patch16_224', {'blocks.11.', 'norm.', 'head.'}),
    ('efficientnet_lite0', {'blocks.6.0.', 'conv_head.', 'bn2.', 'classifier.'}),
    ('davit_tiny', {'stages.3.', 'head.norm.', 'head.fc.'}),  # timm names its stages only
])
def test_the_last_block_is_one_block(name, parts):
    model = tune_model(timm.create_model(name, device='meta'), 'last_block')

    names = {name for name, _ in model.named_parameters()}
    for part in parts:
        assert any(name.startswith(part) for name in names), part
    assert trained_names(model) == {name for name in names if name.startswith(tuple(parts))}


@pytest.mark.skipif(not has_peft, reason='needs peft')
@pytest.mark.parametrize('layers', ['qkv,proj', 'attn.qkv, attn.proj'])
def test_low_rank_updates_are_of_the_blocks(layers):
    model = tune_model(vit(), f'lora(layers="{layers}")')

    expected = {'head.weight', 'head.bias'}
    for block in (0, 1):
        for layer in ('qkv', 'proj'):
            expected |= {f'blocks.{block}.attn.{layer}.lora_{factor}.default.weight' for factor in 'AB'}
    assert trained_names(model) == expected


def test_a_model_that_is_trained_whole_is_left_alone():
    model = vit()
    model.pos_embed.requires_grad_(False)  # as some models of timm have theirs

    tune_model(model, 'all')

    assert trained_names(model) == {name for name, _ in model.named_parameters()} - {'pos_embed'}
    assert frozen_digest(model) is None and trained_state_dict(model).keys() == model.state_dict().keys()


@pytest.mark.parametrize('method', ['ce', 'balanced_softmax', 'bcl', 'glmc'])
def test_any_method_trains_a_part_of_the_model_and_all_of_its_own(method):
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    built = create_method(method, model, COUNTS, tune='classifier')

    group, = built.param_groups(built.phases[0])
    names = {name for name, parameter in built.named_parameters() if any(parameter is p for p in group['params'])}
    own = {name for name, _ in built.named_parameters() if not name.startswith('model.')}
    branches = {f'model.{name}' for name, _ in model.named_parameters() if name.startswith('branches.')}
    assert names == {'model.head.weight', 'model.head.bias'} | branches | own
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in frozen_names(model))


def test_frozen_batch_norm_keeps_its_statistics():
    model = timm.create_model('resnet20_cifar', num_classes=4, layers=(1, 1, 1))
    method = create_method('ce', model, COUNTS[:4], tune='bias').train()
    before = {name: value.clone() for name, value in model.named_buffers()}

    method.features(torch.randn(2, 3, 16, 16))

    assert all(torch.equal(before[name], value) for name, value in model.named_buffers())
    assert model.bn1.bias.requires_grad and not model.bn1.weight.requires_grad and not model.bn1.training


@pytest.mark.parametrize('tuning, is_random', [('classifier', False), ('adaptformer', False), ('last_block', True)])
def test_the_frozen_part_has_no_dropout(tuning, is_random):
    model = vit(drop_path_rate=0.5, proj_drop_rate=0.5, pos_drop_rate=0.5)
    method = create_method('ce', model, COUNTS, tune=tuning).train()
    x = images()

    assert torch.equal(method.features(x), method.features(x)) != is_random
    modes = {module.training for module in model.blocks[1].modules()}
    assert modes == {True} or not is_random
    assert not any(module.training for module in model.blocks[0].mlp.modules())


@pytest.mark.parametrize('name, kwargs', [
    (VIT, TINY),
    ('convnext_atto', {'depths': (1, 1, 1, 1), 'dims': (64, 64, 64, 64)}),
    ('mambaout_femto', {'depths': (1, 1, 1, 1), 'dims': (32, 32, 32, 32)}),  # registers the dropout last
    ('efficientnet_lite0', {}),  # has it as a function
])
def test_the_dropout_of_the_classifier_is_on(name, kwargs):
    model = timm.create_model(name, num_classes=NUM_CLASSES, drop_rate=0.9, **kwargs)
    method = create_method('ce', model, COUNTS, tune='classifier').train()
    torch.manual_seed(0)
    x = images() if name == VIT else torch.randn(3, 3, 64, 64)

    features, features_in_eval_mode = method.features(x), method.eval().features(x)

    assert 0.7 < (features == 0).float().mean() < 1
    assert (features_in_eval_mode == 0).float().mean() < 0.3  # behind a ReLU, some are


def beit() -> nn.Module:
    return timm.create_model('beit_base_patch16_224', num_classes=NUM_CLASSES, **TINY)


def test_biases_of_queries_and_values_are_biases():
    model = tune_model(beit(), 'bias')
    trained = {name.rpartition('.')[2] for name in trained_names(model)}
    assert trained == {'bias', 'q_bias', 'v_bias', 'weight'}  # that of the classifier
    assert not model.blocks[0].attn.relative_position_bias_table.requires_grad


@pytest.mark.parametrize('tuning', ADDED)
def test_what_is_added_is_used(tuning):
    model = tune_model(vit(), tuning)
    model.train()

    check_added(model, 16)

    assert model.training and all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.skipif(not has_peft, reason='needs peft')
def test_a_layer_that_is_passed_by_is_refused():
    model = tune_model(beit(), 'lora')
    with pytest.raises(UserError, match=r'tuning lora: Beit does not use blocks.0.attn.qkv.lora_A.* passes by'):
        check_added(model, 16)
    check_added(tune_model(beit(), 'lora(layers="proj,fc1,fc2")'), 16)


def test_other_tensors_are_not_loaded():
    model = tune_model(vit(), 'adaptformer')
    state = trained_state_dict(model)
    del state['head.bias']
    with pytest.raises(UserError, match='not those that are trained of a VisionTransformer: head.bias'):
        load_trained_state_dict(model, state)


# -------------------------------------------------------------------------------------------------- adapters

@pytest.mark.parametrize('tuning', ADDED)
@pytest.mark.parametrize('options', [
    {},
    {'init_values': 0.1, 'qk_norm': True, 'global_pool': 'avg'},
    {'name': ROPE_VIT},
    {'name': ROPE_VIT, 'init_values': None},
])
def test_what_is_added_starts_as_nothing(tuning, options):
    model = vit(**options).eval()
    before = model(images())

    tune_model(model, tuning)

    assert torch.equal(model(images()), before)
    disturb(model)
    assert not torch.allclose(model(images()), before)


def by_loops(
        block: AdaptedBlock | AdaptedEvaBlock,
        x: torch.Tensor,
        angles: torch.Tensor | None = None,
        is_seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return a block's output [N, D] for one image, token by token and head by head.

    Args:
        block: The block.
        x: Tokens [N, D].
        angles: What pairs of numbers of a query or a key are turned by, [N - 1, half the width of a
            head]; the first token is not turned.
        is_seen: Whether token i attends to token j, bool [N, N].
    """
    def norm(layer: nn.LayerNorm, row: torch.Tensor) -> torch.Tensor:
        centred = row - row.mean()
        return layer.weight * centred / (centred.square().mean() + layer.eps).sqrt() + layer.bias

    def turned(row: torch.Tensor, token: int) -> torch.Tensor:
        if angles is None or token == 0:
            return row
        row = row.clone()
        for pair, angle in enumerate(angles[token - 1]):
            first, second = row[2 * pair].clone(), row[2 * pair + 1].clone()
            row[2 * pair] = angle.cos() * first - angle.sin() * second
            row[2 * pair + 1] = angle.sin() * first + angle.cos() * second
        return row

    attn, adapter = block.attn, block.adapter
    gamma_1, gamma_2 = (getattr(block, name, torch.ones(1)) for name in ('gamma_1', 'gamma_2'))
    num_tokens, dim = x.shape
    width = dim // attn.num_heads
    tokens = [attn.qkv.weight @ norm(block.norm1, row) + attn.qkv.bias for row in x]

    attended = torch.zeros_like(x)
    for head in range(attn.num_heads):
        part = slice(head * width, (head + 1) * width)
        query, key, value = ([token[i * dim:(i + 1) * dim][part] for token in tokens] for i in range(3))
        for i in range(num_tokens):
            seen = [j for j in range(num_tokens) if is_seen is None or is_seen[i, j]]
            scores = torch.stack([turned(query[i], i) @ turned(key[j], j) / math.sqrt(width) for j in seen])
            weights = scores.exp() / scores.exp().sum()
            attended[i, part] = sum(weight * value[j] for weight, j in zip(weights, seen, strict=True))

    output = torch.zeros_like(x)
    for i in range(num_tokens):
        h = x[i] + gamma_1 * (attn.proj.weight @ attended[i] + attn.proj.bias)
        hidden = block.mlp.fc1.weight @ norm(block.norm2, h) + block.mlp.fc1.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        mlp = block.mlp.fc2.weight @ hidden + block.mlp.fc2.bias

        middle = adapter.down.weight @ norm(adapter.norm, h) + adapter.down.bias
        added = adapter.up.weight @ middle.clamp(min=0) + adapter.up.bias
        output[i] = h + gamma_2 * mlp + adapter.scale * added
    return output


@torch.no_grad()
def test_a_block_is_its_equation():
    model = tune_model(vit().double(), 'adaptformer(bottleneck=5)')
    disturb(model)
    block = model.blocks[0].eval()
    x = torch.randn(4, 32, dtype=torch.float64)

    torch.testing.assert_close(block(x[None])[0], by_loops(block, x))


@torch.no_grad()
def test_a_block_with_rotary_positions_is_its_equation():
    model = tune_model(vit(ROPE_VIT).double(), 'adaptformer(bottleneck=5)')
    disturb(model)
    block = model.blocks[0].eval()
    x, angles = torch.randn(4, 32, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64)
    rope = torch.cat([angles.sin(), angles.cos()], dim=-1).repeat_interleave(2, dim=-1)
    is_seen = torch.rand(4, 4) < 0.7
    is_seen.fill_diagonal_(True)

    output = block(x[None], rope=rope, attn_mask=is_seen)[0]

    torch.testing.assert_close(output, by_loops(block, x, angles, is_seen))
    causal = block(x[None], rope=rope, is_causal=True)[0]
    torch.testing.assert_close(causal, by_loops(block, x, angles, torch.ones(4, 4, dtype=torch.bool).tril()))


@pytest.mark.parametrize('build, tuning, words', [
    (lambda: timm.create_model('resnet20_cifar', layers=(1, 1, 1)), 'adaptformer',
     "adaptformer needs a vision transformer of timm's Block or EvaBlock, and ResNetCifar has no blocks; "
     r'take lora\(layers=...\), bias or last_block'),
    (lambda: beit(), 'adaptformer', r'has blocks of the kind beit.Block; take lora\(layers=...\)'),
    (lambda: timm.create_model('vit_tiny_patch16_224', block_fn=timm.models.vision_transformer.ResPostBlock, **TINY),
     'adaptformer', 'has blocks of the kind vision_transformer.ResPostBlock'),
    (lambda: timm.create_model('adaptformer', backbone=VIT, bottleneck=4, **TINY), 'adaptformer(bottleneck=3)',
     r'has adapters of bottleneck=4 already, and cannot be tuned by adaptformer\(bottleneck=3\)'),
    (lambda: vit(num_classes=0), 'adaptformer', r'VisionTransformer has no classes .*: adaptformer\(bottleneck=16\)'),
    (lambda: timm.create_model('levit_128s', device='meta'), 'classifier', 'Levit.* has no single classifier'),
    (lambda: timm.create_model('deit_tiny_distilled_patch16_224', device='meta'), 'bias', 'has no single classifier'),
    (lambda: tune_model(vit(), 'bias'), 'classifier', 'is tuned by bias already, and cannot be by classifier'),
    (lambda: timm.create_model('cait_xxs24_224', device='meta'), 'last_block', 'Cait does not say what its blocks are'),
    (vit, 'adapter', "unknown tuning 'adapter'; did you mean adaptformer"),
    (vit, 'adaptformer(bottleneck=0)', 'bottleneck must be in'),
    (vit, 'lora(8)', r"cannot read the tuning 'lora\(8\)'; write a name, or name\(argument=value\)$"),
    (vit, 'adaptformer(width=3)', 'tuning adaptformer takes bottleneck'),
])
def test_refused_in_one_line(build, tuning, words):
    with pytest.raises(UserError, match=words):
        tune_model(build(), tuning)


def test_lora_says_which_package_is_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)

    with pytest.raises(UserError, match='tuning lora needs the package peft: pip install'):
        tune_model(vit(), 'lora')


def test_auto_is_the_default():
    by_default, by_name = tune_model(vit(), 'adaptformer'), tune_model(vit(), 'adaptformer(bottleneck=auto)')

    assert trained_names(by_default) == trained_names(by_name)
    assert adapters_of(by_name)[0].down.out_features == default_bottleneck(NUM_CLASSES, 2)
    assert tune_model(by_default, 'adaptformer(bottleneck=auto)') is by_default


# ---------------------------------------------------------------------------------------------------- export

@pytest.mark.parametrize('backbone', [VIT, ROPE_VIT])
@pytest.mark.parametrize('head', ['linear', 'cosine(scale=20)'])
def test_adapters_are_an_architecture_of_their_own(head, backbone, tmp_path):
    model = tune_model(set_head(vit(backbone), head), 'adaptformer').eval()
    disturb(model)

    loaded, config = load_exported(export_model(model, tmp_path / 'export'))

    assert config['architecture'] == 'adaptformer' and config['model_args']['backbone'] == backbone
    assert torch.equal(loaded.eval()(images()), model(images()))
    built = timm.create_model('adaptformer', **config['model_args'])
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert isinstance(built.get_classifier(), nn.Linear if head == 'linear' else CosineLinear)

    # what is published can be published again, and is trained whole unless it is tuned
    again, config_again = load_exported(export_model(loaded, tmp_path / 'again'))
    assert config_again['model_args'] == config['model_args']
    assert torch.equal(again.eval()(images()), model(images()))
    assert trained_names(deploy(model)) == {name for name, _ in model.named_parameters()}


def test_adapters_of_an_export_are_trained_further(tmp_path):
    model = tune_model(vit(), 'adaptformer(bottleneck=3)').eval()
    disturb(model)
    folder = export_model(model, tmp_path / 'export')

    again = tune_model(timm.create_model(f'local-dir:{folder}', pretrained=True), 'adaptformer').eval()

    assert trained_names(again) == trained_names(model)
    assert torch.equal(again(images()), model(images()))
    disturb(again)
    loaded, config = load_exported(export_model(again, tmp_path / 'again'))
    assert config['architecture'] == 'adaptformer' and config['model_args']['bottleneck'] == 3
    assert torch.equal(loaded.eval()(images()), again(images()))


def test_adapters_of_a_file_are_not_left_out(tmp_path):
    model = tune_model(vit(), 'adaptformer(bottleneck=3)')
    disturb(model)
    folder = export_model(model, tmp_path / 'export')
    path = folder / 'model.safetensors'

    words = rf'blocks.0.adapter.*VisionTransformer has none: .* use --model local-dir:{folder} --pretrained'
    with pytest.raises(UserError, match=words):
        load_initial_weights(vit(), path)

    other = tune_model(vit(), 'adaptformer(bottleneck=3)')
    load_initial_weights(other, path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.skipif(not has_peft, reason='needs peft')
def test_low_rank_updates_are_merged_into_a_model_of_timm(tmp_path):
    model = tune_model(vit(), 'lora(r=4, alpha=8, layers="qkv,proj,fc1,fc2")').eval()
    disturb(model)
    with torch.no_grad():
        expected = model(images())

    folder = export_model(model, tmp_path / 'export')

    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    assert type(loaded.blocks[0].attn.qkv) is nn.Linear
    assert loaded.state_dict().keys() == vit().state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not has_peft, reason='needs peft')
def test_lora_names_layers_that_are_not_there():
    words = 'tuning lora: the blocks of VisionTransformer have no linear layer query; they have fc1, fc2, proj, qkv'
    with pytest.raises(UserError, match=words):
        tune_model(vit(), 'lora(layers="qkv,query")')


# ---------------------------------------------------------------------------------------------------- heads

@pytest.mark.parametrize('name, kwargs', [
    ('vit_tiny_patch16_224', TINY),
    ('convnext_atto', {'depths': (1, 1, 1, 1), 'dims': (8, 8, 8, 8)}),
    ('resnet20_cifar', {'layers': (1, 1, 1)}),
])
def test_any_model_takes_a_cosine_classifier(name, kwargs, tmp_path):
    model = timm.create_model(name, num_classes=4, **kwargs)
    x = torch.randn(2, 3, 64, 64) if name == 'convnext_atto' else images()

    set_head(model, 'cosine')

    head = model.eval().get_classifier()
    assert isinstance(head, CosineLinear) and head.scale == 25 and model(x).shape == (len(x), 4)
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    cosines = torch.nn.functional.cosine_similarity(features[:, None], head.weight[None], dim=-1)
    torch.testing.assert_close(model(x), 25 * cosines)

    loaded, config = load_exported(export_model(model, tmp_path / 'export'))
    assert torch.equal(loaded.eval()(x), model(x))
    own = 'resnet20_cifar' if name == 'resnet20_cifar' else 'cosine_classifier'
    assert config['architecture'] == own and config['model_args']['cosine_scale'] == 25


def test_a_fresh_classifier_is_of_the_same_kind():
    model = set_head(vit(), 'cosine(scale=7)')
    before = model.head.weight.clone()

    create_method('crt', model, COUNTS)

    assert isinstance(model.head, CosineLinear) and model.head.scale == 7
    assert not torch.equal(model.head.weight, before) and model.head.weight.requires_grad


def test_a_cosine_classifier_can_become_linear_again(tmp_path):
    model = set_classifier(set_head(vit(), 'cosine'), None).eval()

    loaded, _ = load_exported(export_model(model, tmp_path / 'export'))

    assert isinstance(loaded.head, nn.Linear)
    assert torch.equal(loaded.eval()(images()), model(images()))


@pytest.mark.parametrize('text, words', [
    ('cosin', "unknown head 'cosin'; did you mean cosine"),
    ('cosine(scale=0)', 'scale must be in'),
    ('linear(scale=3)', 'head linear takes no arguments'),
])
def test_a_head_is_refused_in_one_line(text, words):
    with pytest.raises(UserError, match=words):
        set_head(vit(), text)
