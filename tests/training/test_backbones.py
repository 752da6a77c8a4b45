"""Any timm backbone: input sizes, weights to start from, layer-wise rates, a folder of photographs to the export."""
import json
import logging
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from timm_longtail.cli import train, validate
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import LongTailDataset, Preprocessing
from timm_longtail.data.images import FileImages
from timm_longtail.export.folder import export_model
from timm_longtail.export.loading import load_exported
from timm_longtail.methods import create_method
from timm_longtail.retraining.trained_model import load_timm_model
from timm_longtail.training.build import check_single_image
from timm_longtail.training.optim import create_optimizers
from timm_longtail.training.weights import choose_preprocessing, create_task_model, load_initial_weights
from timm_longtail.utils.errors import UserError

from ..support import forks
from ..support.runs import TINY, refused

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


OF_THE_WEIGHTS = Preprocessing(
    img_size=48, mean=(0.3, 0.4, 0.5), std=(0.1, 0.2, 0.3), crop_pct=0.8, interpolation='bicubic')
OF_TIMM = Preprocessing(  # of test_vit
    img_size=160, mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.95, interpolation='bicubic')


def write_weights(kind, folder):
    """Write weights of a small ViT, with or without what they say of their input; returns what names them."""
    model = timm.create_model('test_vit', img_size=48)
    about = {'mean': OF_THE_WEIGHTS.mean, 'std': OF_THE_WEIGHTS.std, 'crop_pct': 0.8, 'interpolation': 'bicubic'}
    if kind in ('export', 'output folder', 'weights of an export'):
        export = export_model(model, folder / 'export', input_size=(3, 48, 48), **about)
        return {'export': export, 'output folder': folder}.get(kind, export / 'model.safetensors')
    if kind == 'checkpoint of a run':
        described = {'preprocessing': {**about, 'img_size': 48}}
        torch.save({'state_dict': model.state_dict(), 'about': described}, folder / 'w.pth.tar')
        return folder / 'w.pth.tar'
    if kind == 'beside a config.json of another program':
        (folder / 'config.json').write_text('{"hidden_size": 64}')
    torch.save({'model': timm.create_model('test_vit').state_dict()}, folder / 'w.pth')
    return folder / 'w.pth'


@pytest.mark.parametrize('kind, expected', [
    ('export', OF_THE_WEIGHTS),
    ('output folder', OF_THE_WEIGHTS),
    ('weights of an export', OF_THE_WEIGHTS),
    ('checkpoint of a run', OF_THE_WEIGHTS),
    ('file', OF_TIMM),
    ('beside a config.json of another program', OF_TIMM),
])
def test_images_look_as_the_weights_know_them(kind, expected, tmp_path, messages):
    """One rule for training and for retrain.py: what stands beside the weights, else timm's; what is typed is above."""
    path = write_weights(kind, tmp_path)
    options = ['--model', 'test_vit', '--initial-checkpoint', path]
    assert choose_preprocessing(arguments(*options), stand_in(resident=False)) == expected
    assert messages.messages[-1].startswith(f'input: {expected.img_size}x{expected.img_size}, mean ')
    source = 'the configuration of test_vit' if expected == OF_TIMM else str(tmp_path)
    assert source in messages.messages[-1]

    trained_model = load_timm_model('test_vit', str(path))
    assert trained_model.preprocessing == expected
    assert trained_model.model.patch_embed.img_size == (expected.img_size, expected.img_size)

    typed = choose_preprocessing(
        arguments(*options, '--mean', 0, 0, 0, '--img-size', '32', '--crop-pct', '1'), stand_in(resident=False))
    assert (typed.mean, typed.std, typed.img_size, typed.crop_pct) == ((0, 0, 0), expected.std, 32, 1)
    assert messages.messages[-1].endswith('; typed: --img-size, --mean, --crop-pct')


@pytest.mark.parametrize('field, value', [
    ('mean', [0.5]), ('mean', 'word'), ('std', [0, 1, 1]), ('crop_pct', 7), ('crop_pct', 'all'),
    ('interpolation', 'cubist'), ('input_size', [3, 0, 0]), ('input_size', 'large'), ('input_size', [3, 24.5, 24.5]),
])
def test_an_input_that_cannot_be(field, value, tmp_path):
    path = write_weights('export', tmp_path)
    config = json.loads((path / 'config.json').read_text())
    config['pretrained_cfg'][field] = value
    (path / 'config.json').write_text(json.dumps(config))
    options = arguments('--model', 'test_vit', '--initial-checkpoint', path)
    with pytest.raises(UserError, match='config.json does not describe the images of its model: .') as error:
        choose_preprocessing(options, stand_in(resident=False))
    assert '\n' not in str(error.value)


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


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_that_are_no_numbers_are_refused(value, tmp_path):
    state = timm.create_model('resnet20_cifar').state_dict()
    state['layer2.0.conv1.weight'][3, 1, 0, 0] = value
    save_file(state, tmp_path / 'w.safetensors')
    words = r'w.safetensors: layer2.0.conv1.weight holds NaN or infinity in 1 of 4608 values'
    with pytest.raises(UserError, match=words):
        load_initial_weights(timm.create_model('resnet20_cifar'), tmp_path / 'w.safetensors')


def test_the_weights_of_a_published_checkpoint(tmp_path, messages):
    """As DeiT, MAE and Swin write them: under `model`, beside the options of their run."""
    donor = timm.create_model('vit_tiny_patch16_224', depth=2, num_classes=3)
    torch.save({'model': donor.state_dict(), 'epoch': 299, 'args': Namespace(lr=0.1)}, tmp_path / 'deit.pth')
    model = create_task_model(arguments(*VIT, '--initial-checkpoint', tmp_path / 'deit.pth'), 3)
    assert torch.equal(model.head.weight, donor.head.weight)
    assert f'tensors from {tmp_path / "deit.pth"} (model); ' in messages.messages[-1]


@pytest.fixture(scope='module')
def bird_export(tmp_path_factory):
    """An export of a network of three classes, with the weights and the bias of its classifier."""
    model = timm.create_model('resnet20_cifar', num_classes=3, layers=(1, 1, 1), channels=(4, 4, 8))
    torch.nn.init.normal_(model.get_classifier().bias)
    folder = tmp_path_factory.mktemp('birds') / 'export'
    export_model(model, folder, class_names=['auk', 'bee-eater', 'crow'])
    return folder, model.get_classifier()


@pytest.mark.parametrize('option', ['--model', '--initial-checkpoint'])
@pytest.mark.parametrize('classes, rows', [
    (['auk', 'bee-eater', 'crow'], [0, 1, 2]),
    (['crow', 'auk', 'bee-eater'], [2, 0, 1]),
    (['auk', 'bee-eater', 'dove'], None),
])
def test_a_classifier_follows_the_names_of_its_classes(option, classes, rows, bird_export, messages):
    folder, classifier = bird_export
    options = ['--model', f'local-dir:{folder}', '--pretrained']
    if option == '--initial-checkpoint':
        small = ['--model-kwargs', 'layers=(1,1,1)', 'channels=(4,4,8)']
        options = ['--model', 'resnet20_cifar', *small, '--initial-checkpoint', folder]
    model = create_task_model(arguments(*options), 3, 32, classes)

    own = model.get_classifier()
    if rows is None:
        assert not (own.weight == classifier.weight).any()
        assert 'classifier: starts anew, since the weights know other classes (auk, bee-eater, crow)' in (
            messages.messages[-1])
    else:
        assert torch.equal(own.weight, classifier.weight[rows]) and torch.equal(own.bias, classifier.bias[rows])


@pytest.mark.parametrize('tune, is_said', [('classifier', True), ('all', False)])
def test_frozen_weights_that_a_file_lacks_are_named(tune, is_said, tmp_path, messages):
    torch.save(timm.create_model('vit_tiny_patch16_224', depth=1, num_classes=3).state_dict(), tmp_path / 'small.pth')
    create_task_model(arguments(*VIT, '--tune', tune, '--initial-checkpoint', tmp_path / 'small.pth'), 3)
    words = '--tune classifier keeps most of the weights as they are, and 12 of 32 of them are random'
    assert any(words in message for message in messages.messages) == is_said


@pytest.mark.parametrize('kwargs, words', [
    ('num_classes=3', '--model-kwargs num_classes: the data set and --pretrained decide'),
    ('in_chans=1', '--model-kwargs in_chans=1: images have 3 channels'),
    ('pretrained=True', '--model-kwargs pretrained: the data set and --pretrained decide'),
    ('checkpoint_path=x', '--model-kwargs checkpoint_path: use --initial-checkpoint'),
    ('features_only=True', '--model-kwargs features_only: a classifier is trained'),
    ('depht=3', "unexpected keyword argument 'depht'"),
    ('layers=3', '--model resnet20_cifar with '),
    ('channels=(1,)', '--model resnet20_cifar with '),
])
def test_options_of_the_model_that_contradict(kwargs, words):
    with pytest.raises(UserError) as error:
        args = arguments('--model', 'resnet20_cifar', '--model-kwargs', kwargs)
        choose_preprocessing(args, stand_in())
        create_task_model(args, 10)
    assert words in str(error.value) and '\n' not in str(error.value)


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

    # the rate of each parameter
    name_of = {id(p): name for name, p in method.named_parameters()}
    rates = {name_of[id(p)]: group['lr'] for group in optimizer.param_groups for p in group['params']}
    assert set(rates) == {name for name, _ in method.named_parameters()}
    assert optimizer.param_groups[0]['lr'] == pytest.approx(0.05)  # the highest layer first: what the log shows
    head = 'fc' if backbone == 'resnet20_cifar' else 'head'
    assert all(rate == pytest.approx(0.05) for name, rate in rates.items() if name.startswith((
        f'model.{head}', 'model.branches')))

    # from layer to layer by a power of the factor
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


# ------------------------------------------------------------------------------------------------ batches of one image

@pytest.mark.parametrize('method, kwargs, size, fits', [
    ('ce', {}, 32, True),
    ('ce', {}, 4, False),  # a map of one pixel
    ('bcl', {}, 4, True),  # one forward of three views
    ('crt', {}, 4, True),  # its backbone takes no statistics
    ('crt', {'bn': 'train'}, 4, False),
])
def test_a_batch_of_one_image(method, kwargs, size, fits):
    model = timm.create_model('resnet20_cifar', num_classes=3, layers=(1, 1, 1))
    built = create_method(method, model, [3, 2, 1], **kwargs)
    before = {name: value.clone() for name, value in built.state_dict().items()}
    batch = (torch.zeros(1, 3, size, size),) * len(built.views), torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    if fits:
        check_single_image(built, size)
        assert all(torch.equal(before[name], value) for name, value in built.state_dict().items())
        assert built.train()(batch)['loss'].isfinite()
    else:
        with pytest.raises(UserError, match='batch size must be at least 2 for models with BatchNorm'):
            check_single_image(built, size)
        with pytest.raises(ValueError, match='more than 1 value per channel'):
            built.train()(batch)


def test_one_image_at_a_time_is_refused_before_anything_is_written(tmp_path, capsys, monkeypatch):
    line = refused(capsys, monkeypatch, *TINY, '--no-recipe', '--method', 'ce', '--dataset', 'digits_lt', '-b', '1',
                   '--img-size', '4', '--output', tmp_path / 'output')
    assert 'batch size must be at least 2' in line and not (tmp_path / 'output').exists()


def test_bcl_of_one_class():
    with pytest.raises(UserError, match='bcl compares classes and needs two or more'):
        create_method('bcl', timm.create_model('resnet20_cifar', num_classes=1), [8])


# ------------------------------------------------------------------------------------------------ exports as models

@pytest.mark.script
@pytest.mark.parametrize('pretrained', [False, True])
def test_an_export_is_a_model_to_train(pretrained, tmp_path, capsys):
    """From random weights or its own: it trains, exports, is evaluated from either, and resumes."""
    def run(*options):
        AcceleratorState._reset_state(reset_partial_state=False)
        train.main(['--dataset', 'digits_lt', '--no-recipe', '--method', 'ce', '-b', '64', '--img-size', '16',
                    '--output', str(tmp_path), '--experiment', 'run', '--lr', '0', *options])
    kwargs = dict(layers=(1, 1, 1), channels=(8, 16, 32))
    export = export_model(timm.create_model('resnet20_cifar', num_classes=10, **kwargs), tmp_path / 'first')
    options = ['--model', f'local-dir:{export}', '--epochs', '1', *(['--pretrained'] if pretrained else [])]
    run(*options)
    run(*options, '--resume', 'auto')
    assert 'complete: nothing left to train' in capsys.readouterr().out

    (weights, config), (first, _) = load_exported(tmp_path / 'run' / 'export'), load_exported(export)
    assert config['architecture'] == 'resnet20_cifar'
    same = torch.equal(weights.state_dict()['conv1.weight'], first.state_dict()['conv1.weight'])
    assert same == pretrained  # the learning rate is 0
    for path in export.iterdir():  # a checkpoint knows its architecture, wherever that came from
        path.unlink()
    validate.main(['--checkpoint', str(tmp_path / 'run')])
    assert 'resnet20_cifar' in capsys.readouterr().out


@pytest.mark.script
@pytest.mark.parametrize('config', [None, '', '{}', '[]', '{"architecture": "resnet0"}', '{"architecture": 3}'])
def test_a_folder_that_is_no_export(config, tmp_path, capsys, monkeypatch):
    if config is not None:
        (tmp_path / 'config.json').write_text(config)
    line = refused(capsys, monkeypatch, '--model', f'local-dir:{tmp_path}', '--no-recipe', '--dataset', 'digits_lt')
    assert f'--model local-dir:{tmp_path}' in line


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

    # a process without this package loads it and computes the same
    export = str(tmp_path / 'run' / 'export')
    done = forks.run('-c', _LOAD, export, server=forks.stock())
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    model = timm.create_model(f'local-dir:{export}', pretrained=True).eval()
    assert not loaded['ours'] and loaded['crop'] == timm.get_pretrained_cfg(args.model).crop_pct
    torch.testing.assert_close(torch.tensor(loaded['output']), model(torch.full((1, 3, 64, 64), 0.3)))
