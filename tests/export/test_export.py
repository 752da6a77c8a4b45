"""Exported folders: exact to reload, complete, plain to stock timm; and what cannot be exported."""
import getpass
import hashlib
import json
import socket
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import PretrainedCfg
from torch import nn

from timm_longtail.export.__main__ import main as update_folders
from timm_longtail.export.folder import export_model
from timm_longtail.export.loading import load_exported
from timm_longtail.models import attach_branches
from timm_longtail.training.outputs import finish
from timm_longtail.training.provenance import code_state
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.version import __version__

from ..support import forks
from ..support.exports import (
    FILES,
    MEAN,
    METRICS,
    NAMES,
    PROVENANCE,
    STD,
    assert_bit_equal,
    build,
    images,
    load,
    read_config,
)
from ..support.runs import digits, make_run


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A trained `bcl_resnet20` with its branches, and the folder it was exported to."""
    model = attach_branches(build(), 'bcl')
    folder = tmp_path_factory.mktemp('export') / 'export'
    path = export_model(model, folder, PROVENANCE, MEAN, STD, (3, 32, 32), NAMES)
    assert path == folder
    return model, folder


def test_others_can_read_all_files_that_they_can_read_one_of(exported):
    _, folder = exported
    (folder.parent / 'new').touch()
    mode = (folder.parent / 'new').stat().st_mode
    (folder.parent / 'new').unlink()

    assert {path.stat().st_mode for path in folder.iterdir()} == {mode}


def test_folder_is_what_is_pushed_and_reloads_bit_for_bit(exported):
    model, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert list(folder.parent.iterdir()) == [folder]  # no temporary folder stays
    assert_bit_equal(model, load(folder))
    loaded, read = load_exported(folder)
    assert_bit_equal(model, loaded)
    assert not loaded.training and read == read_config(folder)


@pytest.mark.parametrize('kwargs', [
    dict(in_chans=1, num_classes=5), dict(cosine_scale=16.0), dict(cosine_scale=None), dict(layers=(1, 1, 1)),
])
def test_the_arguments_of_the_model_are_kept(kwargs, tmp_path):
    model = build(**kwargs)
    loaded = load(export_model(model, tmp_path / 'export'))
    assert_bit_equal(model, loaded, images(kwargs.get('in_chans', 3)))


def test_a_classifier_that_was_replaced_is_kept(tmp_path):
    model = build()
    model.reset_classifier(7)
    loaded = load(export_model(model, tmp_path / 'export', class_names=NAMES[:7]))
    assert loaded.num_classes == 7
    assert_bit_equal(model, loaded)


def test_loads_with_other_classes_channels_and_as_features(exported):
    model, folder = exported
    own = model.state_dict()
    other = load(folder, num_classes=5)
    assert other(images()).shape == (2, 5)
    assert all(torch.equal(v, own[k]) for k, v in other.state_dict().items() if k != 'fc.weight')

    grey = load(folder, in_chans=1)
    assert torch.allclose(grey.conv1.weight, own['conv1.weight'].sum(dim=1, keepdim=True))
    assert torch.equal(grey.fc.weight, own['fc.weight'])

    maps = load(folder, features_only=True)(images())
    expected = model.forward_intermediates(images(), indices=[0, 1, 2, 3], intermediates_only=True)
    assert len(maps) == 4 and all(torch.equal(a, b) for a, b in zip(maps, expected))
    assert torch.equal(maps[-1], model.forward_features(images()))


_RELOAD = '''
import sys
import timm, torch
torch.set_num_threads(int(sys.argv[1]))  # equal bits need equal threads
for folder in sys.argv[2:]:
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    saved = torch.load(f'{folder}.pt', weights_only=True)
    with torch.no_grad():
        assert torch.equal(model(saved['images']), saved['logits']), folder
    assert list(model.pretrained_cfg['mean']) == [.1, .2, .3], folder
assert 'timm_longtail' not in sys.modules
'''


@pytest.mark.script
def test_stock_timm_loads_a_backbone_with_a_linear_head(tmp_path):
    folders = []
    for name in ('convnext_atto', 'resnet18'):
        model = attach_branches(build(name, seed=1), 'bcl')
        x = images(size=64)
        folders.append(export_model(model, tmp_path / name, PROVENANCE, MEAN, STD, (3, 64, 64), NAMES))
        with torch.no_grad():
            torch.save({'images': x, 'logits': model(x)}, f'{folders[-1]}.pt')
        # how to load it, before how to predict with this package
        usage = (folders[-1] / 'README.md').read_text().split('## Use')[1].split('With timm_longtail')[0]
        assert 'timm.create_model' in usage and 'timm_longtail' not in usage
    done = forks.run('-c', _RELOAD, torch.get_num_threads(), *folders, cwd=tmp_path, server=forks.stock())
    assert done.returncode == 0, done.stderr


def test_config_says_where_the_model_comes_from(exported):
    _, folder = exported
    content = read_config(folder)
    assert content['architecture'] == 'bcl_resnet20' and content['num_classes'] == 10
    digest = hashlib.sha256((folder / 'model.safetensors').read_bytes()).hexdigest()
    weights = {'sha256': digest, 'dtype': 'float32'}
    assert content['timm_longtail'] == {'version': __version__, **PROVENANCE, 'weights': weights}
    assert content['label_names'] == NAMES
    cfg = PretrainedCfg(**content['pretrained_cfg'])  # an unknown key would raise
    assert tuple(cfg.mean) == MEAN and tuple(cfg.std) == STD and tuple(cfg.input_size) == (3, 32, 32)
    assert cfg.num_classes == 10 and cfg.license == 'apache-2.0' and cfg.tag == 'digits_lt_if20'
    assert not cfg.has_weights  # no link to weights of another training
    assert 'label_names' not in content['pretrained_cfg']


def test_metadata_of_pretrained_weights_does_not_survive(tmp_path):
    model = timm.create_model('resnet18', num_classes=1000)  # the classes of its pretrained weights
    assert model.pretrained_cfg['hf_hub_id']
    folder = export_model(model, tmp_path / 'export', PROVENANCE, MEAN, STD, (3, 32, 32), license='mit')
    cfg = PretrainedCfg(**read_config(folder)['pretrained_cfg'])
    assert not cfg.has_weights and cfg.hf_hub_id is None and cfg.license == 'mit' and cfg.tag == 'digits_lt_if20'
    assert tuple(cfg.input_size) == (3, 32, 32) and tuple(cfg.mean) == MEAN


def test_what_is_no_export_is_refused(tmp_path):
    with pytest.raises(UserError, match='only a model built by timm.create_model can be exported'):
        export_model(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), tmp_path / 'export')
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match='is not an exported model: no config.json in it'):
        load_exported(tmp_path)
    with pytest.raises(UserError, match='is not an exported model: no config.json in it'):
        load_exported(tmp_path / 'nowhere')
    (tmp_path / 'config.json').write_text('{}')
    with pytest.raises(UserError, match='is not an exported model: no model.safetensors in it'):
        load_exported(tmp_path)


@pytest.mark.parametrize('cfg', [
    {'architecture': 'bcl_resnet20'}, {'architecture': 'bcl_resnet20', 'license': 'mit', 'mean': [0., 0., 0.]},
    PretrainedCfg(architecture='bcl_resnet20', input_size=(3, 32, 32)),
])
def test_a_pretrained_cfg_that_was_replaced(cfg, tmp_path):
    model = build()
    model.pretrained_cfg = cfg
    assert_bit_equal(model, load(export_model(model, tmp_path / 'export')))
    assert model.pretrained_cfg is cfg


@pytest.mark.parametrize('cfg, words', [
    (None, 'does not say its architecture'), ({}, 'does not say its architecture'),
    ({'architecture': 'bcl_resnet21'}, "unknown architecture 'bcl_resnet21'"),
])
def test_a_pretrained_cfg_that_says_too_little(cfg, words, tmp_path):
    model = build()
    model.pretrained_cfg = cfg
    with pytest.raises(UserError, match=words):
        export_model(model, tmp_path / 'export')
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('names, words', [
    (NAMES[:2], 'class_names holds 2 names, and the model has 10 classes'),
    ([*NAMES, 'one more'], 'class_names holds 11 names, and the model has 10 classes'),
    ([], 'class_names holds 0 names'),
    ([*NAMES[:9], NAMES[3]], "class_names: classes 3 and 9 are both called 'class 3'"),
    ([*NAMES[:9], 9], 'class_names: that of class 9 is 9, expected a text'),
    ([*NAMES[:9], None], 'class_names: that of class 9 is None, expected a text'),
    ([*NAMES[:9], b'nine'], "class_names: that of class 9 is b'nine', expected a text"),
    ('0123456789', "class_names is '0123456789', expected a list of 10 names"),
    (5, 'class_names is 5, expected a list of 10 names'),
])
def test_names_that_do_not_fit_the_classes(names, words, tmp_path):
    with pytest.raises(UserError, match=words) as raised:
        export_model(build(), tmp_path / 'export', class_names=names)
    assert '\n' not in str(raised.value) and not any(tmp_path.iterdir())


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['fc.weight', 'layer1.0.bn1.running_var'])
def test_weights_that_are_not_finite(value, name, tmp_path):
    model = build()
    model.state_dict()[name].view(-1)[1] = value
    with pytest.raises(UserError, match=f'not exported: {name} holds NaN or infinity in 1 of '):
        export_model(model, tmp_path / 'export')
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize('name, words', [
    ('config.json', 'config.json is damaged, or was edited'), ('model.safetensors', 'is damaged, or of another model'),
])
def test_an_export_that_was_changed_is_not_loaded(name, words, tmp_path):
    folder = export_model(build(), tmp_path / 'export', PROVENANCE)
    if name == 'config.json':
        (folder / name).write_text((folder / name).read_text().replace('"seed": 3', '"seed": 4'))
    else:
        save_file({k: v + 1 if k == 'fc.weight' else v for k, v in load_file(folder / name).items()}, folder / name)
    load(folder)  # timm does not ask
    with pytest.raises(UserError, match=words):
        load_exported(folder)
    if name == 'config.json':
        update_folders([str(folder)])
        assert load_exported(folder)[1]['timm_longtail']['seed'] == 4
    else:
        with pytest.raises(UserError, match=words):  # weights of another training are not made right
            update_folders([str(folder)])


@pytest.mark.parametrize('provenance, words', [
    ({'metrics': 5}, 'metrics is 5, expected an object'), ({'seed': object()}, 'provenance cannot be written as JSON'),
    ({'metrics': {'many': 'x', 'all': 1.}}, 'damaged or not a config'),
])
def test_a_provenance_that_cannot_be_written(provenance, words, tmp_path):
    with pytest.raises(UserError, match=words):
        export_model(build(), tmp_path / 'export', provenance)
    assert not any(tmp_path.iterdir())


def test_figures_that_are_not_finite_are_null(tmp_path):
    metrics = {**METRICS, 'loss': float('nan'), 'few': float('inf')}
    text = (export_model(build(), tmp_path / 'a', {**PROVENANCE, 'metrics': metrics}) / 'config.json').read_text()
    found = json.loads(text, parse_constant=pytest.fail)['timm_longtail']['metrics']
    assert found['loss'] is None and found['few'] is None and found['all'] == METRICS['all']


def test_an_export_does_not_say_whose_machine_it_was_made_on(tmp_path, monkeypatch):
    """Options, recipe and command with absolute paths; the account and the host are in none of the files."""
    home = tmp_path / 'home' / 'somebody'
    (home / 'recipes').mkdir(parents=True)
    recipe = home / 'recipes' / 'mine.yaml'
    recipe.write_text('epochs: 2\n')
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setattr(sys, 'argv', [
        'train.py', '-c', str(recipe), f'--data-dir={home}/client X/photos', '--output', str(home), '--results',
        '/results', '--dataset', f'packed:{home}/digits.safetensors', '--method-kwargs', f'x=["{home}/a", "{home}/b"]'])
    _, run = make_run('ce', '--output', str(home))
    run.output_dir = home
    run.history = [{'epoch': 0, 'train_seconds': 1.0}]
    run.best = {'epoch': 0, 'eval_all': 10.0}
    run.options = run.options.replace(
        initial_checkpoint=str(home / 'start' / 'weights.pth'), method_kwargs={'queue': f'{home}/queue.pt'})
    finish(run, digits(), digits(), code_state(str(recipe)))

    published = ''.join((home / 'export' / name).read_text() for name in ('config.json', 'README.md'))
    for private in (str(tmp_path), 'somebody', 'client X', '/home', '/results', socket.gethostname()):
        assert private not in published, private
    if len(getpass.getuser()) > 4:  # `root` is a word of many
        assert getpass.getuser() not in published
    assert read_config(home / 'export')['timm_longtail']['recipe'] == 'mine.yaml'
