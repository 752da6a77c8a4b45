"""Any timm backbone: input sizes, weights to start from, layer-wise rates, a folder of photographs to the export."""
import json
import logging

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

import train
from timm_longtail.cli import parse_train_args
from timm_longtail.data import LongTailDataset
from timm_longtail.data.encoded import FileImages
from timm_longtail.errors import UserError
from timm_longtail.methods import create_method
from timm_longtail.optim import create_optimizers
from timm_longtail.weights import choose_preprocessing, create_task_model, load_initial_weights

from . import forks

VIT = ['--model', 'vit_tiny_patch16_224', '--model-kwargs', 'depth=2']
CONVNEXT = ['--model', 'convnext_atto', '--model-kwargs', 'depths=(1,1,1,1)']
BACKBONES = {'vit': VIT, 'convnext': CONVNEXT}


def arguments(*options):
    return parse_train_args(['--no-recipe', '--method', 'bcl', *map(str, options)])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """A folder of photographs of three classes, 12, 8 and 4 of them to train on; the classes differ in colour."""
    root = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    for split, counts in (('train', (12, 8, 4)), ('test', (4, 4, 4))):
        for label, count in enumerate(counts):
            folder = root / split / ('crow', 'fox', 'newt')[label]
            folder.mkdir(parents=True)
            for number in range(count):
                size = random.integers(40, 90, 2)
                pixels = random.integers(0, 100, (*size, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / f'{number}.jpg')
    return root


def stand_in(resident=True, side=32):
    images = torch.zeros(3, 3, side, side, dtype=torch.uint8) if resident else None
    return LongTailDataset(
        name='x', split='train', images=images, encoded=None if resident else FileImages('.', ['a', 'b', 'c']),
        targets=np.arange(3), class_names=list('abc'), mean=(0.1,) * 3, std=(0.2,) * 3, indices=np.arange(3),
        source_names=list('abc'))


# ------------------------------------------------------------------------------------------------ input

@pytest.mark.parametrize('options, resident, size, mean, crop_pct', [
    (CONVNEXT, True, 32, 0.1, 1.0),  # images in memory: their own size
    (VIT, True, 224, 0.1, 1.0),  # but for a model of one size
    ([*VIT, 'img_size=48'], True, 48, 0.1, 1.0),
    ([*CONVNEXT, '--pretrained'], True, 224, 0.485, 1.0),
    (CONVNEXT, False, 224, 0.1, 0.875),
    ([*VIT, '--pretrained'], False, 224, 0.5, 0.9),
    ([*CONVNEXT, '--img-size', '64', '--crop-pct', '0.9', '--mean', '0', '0', '0'], False, 64, 0, 0.9),
    (['--model', 'bcl_resnet20'], False, 32, 0.1, 0.875),
])
def test_what_becomes_of_an_image(options, resident, size, mean, crop_pct):
    found = choose_preprocessing(arguments(*options), stand_in(resident))
    assert (found.img_size, found.mean[0], found.crop_pct) == (size, mean, crop_pct)


@pytest.mark.parametrize('size', [32, 64])
def test_a_model_of_one_size_is_built_for_the_size_asked_for(size):
    model = create_task_model(arguments(*VIT), 3, size)
    assert model(torch.zeros(1, 3, size, size)).shape == (1, 3)
    assert create_task_model(arguments(*VIT), 3).patch_embed.img_size == (224, 224)


# ------------------------------------------------------------------------------------------------ weights

@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.INFO, logger='timm_longtail')
    return caplog


@pytest.mark.parametrize('backbone', BACKBONES)
@pytest.mark.parametrize('suffix', ['.safetensors', '.pth'])
def test_weights_of_another_number_of_classes(backbone, suffix, tmp_path, messages):
    args = arguments(*BACKBONES[backbone], '--initial-checkpoint', tmp_path / f'w{suffix}')
    donor = timm.create_model(args.model, num_classes=7, **args.model_kwargs)
    state = {k: v.clone() for k, v in donor.state_dict().items()}
    state['extra.weight'] = torch.zeros(2)
    if suffix == '.pth':
        torch.save({'state_dict': {f'module.{k}': v for k, v in state.items()}}, args.initial_checkpoint)
    else:
        save_file(state, args.initial_checkpoint)
    model = create_task_model(args, 3, 224)
    head = 'head' if backbone == 'vit' else 'head.fc'
    for name, value in model.state_dict().items():
        assert torch.equal(value, donor.state_dict()[name]) != name.startswith(f'{head}.'), name
    line = messages.records[-1].message
    count = len(donor.state_dict())
    assert f'{count - 2} of {count} tensors' in line
    assert f'of another shape: {head}.bias, {head}.weight; missing: none; unexpected: extra.weight' in line


def test_position_embeddings_are_resized(tmp_path, messages):
    args = arguments(*VIT, '--initial-checkpoint', tmp_path / 'w.safetensors')
    save_file(timm.create_model(args.model, num_classes=3, depth=2).state_dict(), args.initial_checkpoint)
    model = create_task_model(args, 3, 64)
    assert model.pos_embed.shape[1] == 17 and 'missing: none; unexpected: none' in messages.records[-1].message


def test_weights_of_another_model_are_refused(tmp_path):
    path = tmp_path / 'w.safetensors'
    save_file(timm.create_model('convnext_atto', num_classes=3).state_dict(), path)
    with pytest.raises(UserError, match=r'none of its \d+ tensors fits ResNetCifar; it has .*, the model bn1') as error:
        load_initial_weights(timm.create_model('resnet20_cifar'), path)
    assert '\n' not in str(error.value)
    # names of BatchNorm's counters agree everywhere: they are no weights
    save_file({'bn1.num_batches_tracked': torch.tensor(3)}, path)
    with pytest.raises(UserError, match='none of its 1 tensors'):
        load_initial_weights(timm.create_model('resnet20_cifar'), path)


def test_no_pretrained_weights():
    with pytest.raises(UserError, match='No pretrained weights exist for'):
        create_task_model(arguments('--model', 'resnet20_cifar', '--pretrained'), 3, 32)


# ------------------------------------------------------------------------------------------------ rates

@pytest.mark.parametrize('backbone', [*BACKBONES, 'resnet20_cifar'])
def test_layers_decay(backbone):
    options = BACKBONES.get(backbone, ['--model', backbone])
    args = arguments(*options, '--layer-decay', '0.5', '--lr', '0.1', '--sched', 'cosine', '--epochs', '10')
    method = create_method('bcl', create_task_model(args, 3, 224), [3, 2, 1])
    (optimizer,), (scheduler,) = create_optimizers(args, method, 5)
    scheduler.step(5)
    name_of = {id(p): name for name, p in method.named_parameters()}
    rates = {name_of[id(p)]: group['lr'] for group in optimizer.param_groups for p in group['params']}
    assert set(rates) == {name for name, _ in method.named_parameters()}
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.05)  # the highest layer first: what the log shows
    head = 'fc' if backbone == 'resnet20_cifar' else 'head'
    assert all(rate == pytest.approx(0.05) for name, rate in rates.items() if name.startswith((
        f'model.{head}', 'model.branches')))
    order = {
        'vit': ('patch_embed.proj', 'blocks.0.attn.qkv', 'blocks.1.attn.qkv'),
        'convnext': ('stem.0', 'stages.1.blocks.0.mlp.fc1', 'stages.2.blocks.0.mlp.fc1'),
        'resnet20_cifar': ('conv1', 'layer1.0.conv1', 'layer1.1.conv1'),
    }
    low, middle, high = (rates[f'model.{name}.weight'] for name in order[backbone])
    assert low < middle < high <= 0.05
    for ratio in (high / middle, middle / low):
        assert np.log2(ratio) == pytest.approx(round(np.log2(ratio)))


@pytest.mark.parametrize('schedule', ['none', 'constant', 'cosine'])
def test_layers_decay_under_every_schedule(schedule):
    args = arguments(*CONVNEXT, '--layer-decay', '0.5', '--sched', schedule, '--warmup-epochs', '2')
    method = create_method('ce', create_task_model(args, 3), [3, 2, 1])
    (optimizer,), (scheduler,) = create_optimizers(args, method, 5)
    for epoch in (0, 1, 4):
        if scheduler is not None:
            scheduler.step(epoch)
        rates = [group['lr'] for group in optimizer.param_groups]
        assert rates == pytest.approx([rates[0] * group['lr_scale'] for group in optimizer.param_groups])
        assert schedule != 'none' or rates[0] == 0.1


def test_without_layer_decay_there_is_one_group():
    args = arguments(*CONVNEXT)
    (optimizer,), _ = create_optimizers(args, create_method('ce', create_task_model(args, 3), [3, 2, 1]), 5)
    assert len(optimizer.param_groups) == 1


# ------------------------------------------------------------------------------------------------ the whole way

_LOAD = '''
import json, sys
import timm, torch
assert 'timm_longtail' not in sys.modules
model = timm.create_model('local-dir:' + sys.argv[1], pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
print(json.dumps({'output': model(torch.full((1, *config['input_size']), 0.3)).tolist(), 'crop': config['crop_pct'],
                  'ours': 'timm_longtail' in sys.modules}))
'''


@pytest.mark.script
@pytest.mark.parametrize('backbone', BACKBONES)
def test_a_folder_of_photographs_to_an_export_that_stock_timm_loads(backbone, photos, tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=False)
    weights = tmp_path / 'w.safetensors'
    options = BACKBONES[backbone]
    args = arguments(*options)
    save_file(timm.create_model(args.model, **args.model_kwargs).state_dict(), weights)
    train.main([
        *options, '--initial-checkpoint', str(weights), '--layer-decay', '0.7', '--method', 'bcl', '--no-recipe',
        '--dataset', 'folder', '--data-dir', str(photos), '--img-size', '64', '--workers', '1', '-b', '8',
        '--method-kwargs', 'views=("rand","sim","sim")', '--epochs', '1', '--opt', 'adamw', '--lr', '1e-4',
        '--output', str(tmp_path), '--experiment', 'run'])
    printed = capsys.readouterr().out
    assert '24 images, 3 classes of 12 to 4 (imbalance factor 3)' in printed and 'cropped to 64x64' in printed
    metrics = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    assert metrics['last']['class_total'] == [4, 4, 4] and metrics['img_size'] == 64
    export = str(tmp_path / 'run' / 'export')
    done = forks.run('-c', _LOAD, export, server=forks.stock())
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    model = timm.create_model(f'local-dir:{export}', pretrained=True).eval()
    assert not loaded['ours'] and loaded['crop'] == 0.875
    torch.testing.assert_close(torch.tensor(loaded['output']), model(torch.full((1, 3, 64, 64), 0.3)))
