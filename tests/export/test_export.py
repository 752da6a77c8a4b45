"""Exported folders: exact to reload, complete, plain to stock timm; and every folder of hub/ as it would be pushed."""
import getpass
import hashlib
import json
import os
import socket
import sys
from pathlib import Path
from threading import Thread

import pytest
import timm
import torch
from accelerate.utils import extract_model_from_parallel
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from timm.models import PretrainedCfg
from torch import nn

from timm_longtail.data import create_dataset, create_loader
from timm_longtail.evaluation.evaluators import LongTailEvaluator
from timm_longtail.export import card
from timm_longtail.export import folder as export
from timm_longtail.export.card import write_card
from timm_longtail.export.deploy import deploy, unwrap
from timm_longtail.export.folder import export_model
from timm_longtail.export.loading import load_exported
from timm_longtail.export.metadata import model_name
from timm_longtail.export.replacing import lock_folder
from timm_longtail.models import attach_branches
from timm_longtail.training.loop import evaluate
from timm_longtail.training.outputs import finish
from timm_longtail.training.provenance import code_state
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.version import __version__

from ..support import forks
from ..support.runs import digits, make_run

ROOT = Path(__file__).parents[2]
FILES = ['README.md', 'config.json', 'model.safetensors']
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NAMES = [f'class {c}' for c in range(10)]
METRICS = {'all': 61.25, 'many': 80.5, 'medium': 55.0, 'few': 12.345678}
PROVENANCE = {
    'tag': 'digits_lt_if20', 'method': 'bcl', 'dataset': 'digits_lt', 'imbalance_factor': 20.0, 'seed': 3,
    'data_seed': 4, 'subset_hash': 'abcdef012345', 'subset_order': 'file', 'command': 'python train.py --seed 3',
    'class_counts': list(range(10, 0, -1)), 'metrics': METRICS,
}


def build(name='bcl_resnet20', seed=0, **kwargs):
    """A model whose every parameter and BatchNorm statistic is away from its initial value."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **dict(dict(num_classes=10), **kwargs))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def images(in_chans=3, size=32):
    return torch.randn(2, in_chans, size, size, generator=torch.Generator().manual_seed(1))


def load(folder, **kwargs):
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()


def config(folder):
    return json.loads((folder / 'config.json').read_text())


def assert_bit_equal(model, loaded, x=None):
    x = images() if x is None else x
    own = {name: value for name, value in model.state_dict().items() if not name.startswith('branches.')}
    assert own.keys() == loaded.state_dict().keys()
    assert not [name for name, value in own.items() if not torch.equal(value, loaded.state_dict()[name])]
    with torch.no_grad():
        assert torch.equal(model.eval()(x), loaded(x))


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """A trained `bcl_resnet20` with its branches, and the folder it was exported to."""
    model = attach_branches(build(), 'bcl')
    folder = tmp_path_factory.mktemp('export') / 'export'
    path = export_model(model, folder, PROVENANCE, MEAN, STD, (3, 32, 32), NAMES)
    assert path == folder
    return model, folder


def test_folder_is_what_is_pushed_and_reloads_bit_for_bit(exported):
    model, folder = exported
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert list(folder.parent.iterdir()) == [folder]  # no temporary folder stays
    assert_bit_equal(model, load(folder))
    loaded, read = load_exported(folder)
    assert_bit_equal(model, loaded)
    assert not loaded.training and read == config(folder)


def test_the_model_is_left_as_it_was():
    model = attach_branches(build(), 'bcl').to(torch.float64).train()
    deployed = deploy(model)
    assert model.training and 'projector' in model.branches and next(model.parameters()).dtype == torch.float64
    assert not deployed.training and not hasattr(deployed, 'branches')
    assert {value.dtype for value in deployed.parameters()} == {torch.float32}
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.buffers(), deployed.buffers()))


def test_a_model_built_with_branches_is_exported_without(tmp_path):
    model = build('bcl_resnet20', branches=True)
    assert hasattr(model, 'branches') and model._model_args['branches'] is True
    folder = export_model(model, tmp_path / 'export')
    assert 'branches' not in config(folder).get('model_args', {})
    loaded = load(folder)
    assert not hasattr(loaded, 'branches')
    assert_bit_equal(model, loaded)
    assert hasattr(load(folder, branches=True), 'branches')  # asked for, they are there, for further training


def test_a_channels_last_model(tmp_path):
    model = build().to(memory_format=torch.channels_last)
    folder = export_model(model, tmp_path / 'export')
    loaded = load(folder)
    assert loaded.conv1.weight.is_contiguous()
    assert not [k for k, v in model.state_dict().items() if not torch.equal(v, loaded.state_dict()[k])]
    with torch.no_grad():
        assert torch.allclose(model(images()), loaded(images()), atol=1e-5)
        assert torch.equal(model.to(memory_format=torch.contiguous_format)(images()), loaded(images()))


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
        assert 'timm_longtail' not in (folders[-1] / 'README.md').read_text().split('## Use')[1].split('## ')[0]
    done = forks.run('-c', _RELOAD, torch.get_num_threads(), *folders, cwd=tmp_path, server=forks.stock())
    assert done.returncode == 0, done.stderr


def test_config_says_where_the_model_comes_from(exported):
    _, folder = exported
    content = config(folder)
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
    cfg = PretrainedCfg(**config(folder)['pretrained_cfg'])
    assert not cfg.has_weights and cfg.hf_hub_id is None and cfg.license == 'mit' and cfg.tag == 'digits_lt_if20'
    assert tuple(cfg.input_size) == (3, 32, 32) and tuple(cfg.mean) == MEAN


def test_card_parses_and_has_the_four_metrics(exported):
    _, folder = exported
    card = ModelCard.load(folder / 'README.md')
    assert card.data.library_name == 'timm' and card.data.license == 'apache-2.0'
    assert card.data.pipeline_tag == 'image-classification' and 'long-tailed' in card.data.tags
    assert card.data.model_name == 'bcl_resnet20.digits_lt_if20'
    results = {result.metric_name: result for result in card.data.eval_results}
    labels = {'Top-1 (all)': 'all', 'Many-shot': 'many', 'Medium-shot': 'medium', 'Few-shot': 'few'}
    assert {name: result.metric_value for name, result in results.items()} == {
        label: round(METRICS[key], 4) for label, key in labels.items()}
    assert {result.dataset_name for result in results.values()} == {'digits_lt'}
    assert {result.metric_type for result in results.values()} == {'accuracy'}
    for part in ('| last epoch |  61.25 |  80.50 |  55.00 |  12.35 |', 'imbalance factor 20,',
                 'subset hash `abcdef012345`', 'data seed 4, training seed 3', 'import timm_longtail',
                 'python train.py --seed 3', 'Method: `bcl`', '55 images: 10 of the largest class, 1 of the smallest',
                 'https://arxiv.org/abs/2207.09052'):
        assert part in card.content, part


@pytest.mark.parametrize('architecture, method, name', [
    ('bcl_resnet20', 'bcl', 'bcl_resnet20.digits_lt_if20'), ('bcl_resnet20', 'crt', 'bcl_resnet20.crt.digits_lt_if20'),
    ('resnet20_cifar', 'ce', 'resnet20_cifar.digits_lt_if20'), ('resnet18', 'ce', 'resnet18.digits_lt_if20'),
    ('resnet20_cifar', 'pc_comp', 'resnet20_cifar.pc_comp.digits_lt_if20'),
])
def test_an_export_is_called_by_its_method_where_that_is_not_the_default(architecture, method, name):
    assert model_name({'architecture': architecture, 'timm_longtail': {**PROVENANCE, 'method': method}}) == name
    assert model_name({'architecture': architecture, 'timm_longtail': {}}) == architecture


def test_card_of_an_empty_group_and_of_no_metrics(tmp_path):
    folder = export_model(build(), tmp_path / 'a', {**PROVENANCE, 'metrics': {**METRICS, 'few': None}})
    card = ModelCard.load(folder / 'README.md')
    assert [result.metric_name for result in card.data.eval_results] == ['Top-1 (all)', 'Many-shot', 'Medium-shot']
    assert '|    n/a |' in card.content
    card = ModelCard.load(export_model(build(), tmp_path / 'b') / 'README.md')
    assert not card.data.eval_results and '## Result' not in card.content and '## Training' not in card.content
    assert 'None' not in card.content and '## Citation' not in card.content


@pytest.mark.parametrize('method, num_classes, metrics, said', [
    ('moco', 0, METRICS, ['| vote of neighbours |', 'The 200 nearest training images vote', 'model.num_features']),
    ('rais', 4, {'all': 61.25}, ['61.25 % of the rotations of the test images are told', 'with 4 outputs', '# [1, 4]']),
])
def test_card_of_a_model_that_was_trained_without_classes(method, num_classes, metrics, said, tmp_path):
    model = timm.create_model('resnet20_cifar', num_classes=num_classes)
    provenance = {**PROVENANCE, 'method': method, 'metrics': metrics}
    card = ModelCard.load(export_model(model, tmp_path / 'a', provenance) / 'README.md')
    assert not card.data.eval_results and 'An image classifier' not in card.content
    assert card.data.pipeline_tag == 'image-feature-extraction'
    for part in [*said, 'trained without their classes']:
        assert part in card.content, part


def test_a_folder_that_stands_there_is_replaced(tmp_path):
    folder = tmp_path / 'export'
    (folder / 'sub').mkdir(parents=True)
    (folder / 'stale.bin').write_text('of another model')
    model = build(seed=2)
    export_model(model, folder)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert_bit_equal(model, load(folder))
    other = build(seed=3)
    export_model(other, folder)
    assert_bit_equal(other, load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_what_a_killed_export_left_is_removed_and_other_folders_are_not(tmp_path):
    left, others = tmp_path / '.export.abc.tmp', [tmp_path / 'export.old', tmp_path / 'export.tmp']
    for path in (left, *others):
        path.mkdir()
        (path / 'config.json').write_text('{}')
    lives = tmp_path / '.export.def.tmp'
    lives.mkdir()
    descriptor = lock_folder(lives)  # of a process that goes on
    export_model(build(), tmp_path / 'export')
    assert sorted(tmp_path.iterdir()) == sorted([lives, tmp_path / 'export', *others])
    os.close(descriptor)


@pytest.mark.parametrize('failing', ['weights', 'card', 'first rename', 'second rename'])
def test_a_failure_leaves_the_old_folder(failing, tmp_path, monkeypatch):
    folder = tmp_path / 'export'
    old = build(seed=2)
    export_model(old, folder)
    failed = []

    def fail(*args, **kwargs):
        failed.append(failing)
        raise OSError('no space left on device')

    moved = []

    def fail_at_the_end(source, target, original=os.replace):
        if Path(target) == folder and not failed and len(moved) == (failing == 'second rename'):
            fail()
        moved.extend([source] if Path(source) == folder else [])
        original(source, target)

    with monkeypatch.context() as patch:
        if failing == 'weights':
            patch.setattr('safetensors.torch.save_file', fail)
        elif failing == 'card':
            patch.setattr(export, 'write_card', fail)
        else:
            patch.setattr(os, 'replace', fail_at_the_end)
        with pytest.raises(UserError, match='cannot write .*export: no space left'):
            export_model(build(seed=3), folder)
    assert failed == [failing]
    assert_bit_equal(old, load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_a_card_that_cannot_be_written_leaves_the_old_one(exported, monkeypatch):
    _, folder = exported
    before = (folder / 'README.md').read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(card, 'model_card', lambda config: 'another card')
        patch.setattr(os, 'replace', lambda *paths: (_ for _ in ()).throw(OSError('no space left on device')))
        with pytest.raises(UserError, match='cannot write .*README.md: no space left'):
            write_card(folder)
    (folder / 'README.md.tmp').unlink()
    assert (folder / 'README.md').read_bytes() == before


def test_exports_to_one_folder_at_once_are_whole(tmp_path):
    """The last one stands there, and none of them has failed."""
    models, errors = [build(seed=seed, layers=(1, 1, 1)) for seed in range(4)], []

    def write(model):
        try:
            for _ in range(3):
                export_model(model, tmp_path / 'export')
        except BaseException as e:
            errors.append(e)

    threads = [Thread(target=write, args=[model]) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    loaded, _ = load_exported(tmp_path / 'export')
    assert any(torch.equal(loaded.fc.weight, model.fc.weight) for model in models)
    assert [path.name for path in tmp_path.iterdir()] == ['export']


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
    (tmp_path / 'file').write_text('mine')
    with pytest.raises(UserError, match='cannot write .*file'):
        export_model(build(), tmp_path / 'file')
    assert (tmp_path / 'file').read_text() == 'mine'


class Wrapper(nn.Module):
    """What DistributedDataParallel and moving averages look like: the model is their `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def compiled(model):
    return torch.compile(model, backend='eager')


def compiled_in_parts(model):
    model.layer1 = compiled(model.layer1)
    return model


def in_mixed_precision(model):
    """What Accelerate makes of a model: its forward is another's, which remembers the first."""
    model._original_forward = model.forward
    model.forward = lambda images: model._original_forward(images).half()
    return model


@pytest.mark.parametrize('wrap', [
    compiled, Wrapper, lambda model: Wrapper(compiled(model)), lambda model: compiled(Wrapper(model)),
    lambda model: Wrapper(Wrapper(model)), compiled_in_parts, in_mixed_precision, nn.DataParallel,
    lambda model: compiled(Wrapper(in_mixed_precision(model))),
])
def test_a_wrapped_model_is_exported_as_what_it_wraps(wrap, tmp_path):
    plain, wrapped = build(), wrap(build())
    before = list(wrapped.state_dict())
    assert_bit_equal(plain, load(export_model(wrapped, tmp_path / 'export')))
    assert_bit_equal(plain, deploy(wrapped))
    assert list(wrapped.state_dict()) == before


def test_the_same_model_is_unwrapped_as_by_accelerate():
    model = build()
    assert unwrap(compiled(Wrapper(model))) is model
    assert extract_model_from_parallel(compiled(model), keep_torch_compile=False) is unwrap(compiled(model))


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
    with pytest.raises(UserError, match=f'not exported: {name} holds 1 values that are not finite, of '):
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
        card.main([str(folder)])
        assert load_exported(folder)[1]['timm_longtail']['seed'] == 4
    else:
        with pytest.raises(UserError, match=words):  # weights of another training are not made right
            card.main([str(folder)])


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
    assert config(home / 'export')['timm_longtail']['recipe'] == 'mine.yaml'


def measure(model, content):
    """Return the figures of an exported model on the test set that its config names."""
    provenance = content['timm_longtail']
    test_set = create_dataset(provenance['dataset'], 'test')
    cfg = content['pretrained_cfg']
    loader = create_loader(
        test_set, ('eval',), batch_size=256, training=False, mean=cfg['mean'], std=cfg['std'])
    return evaluate(model, loader, LongTailEvaluator(provenance['shot_counts']))


def allowed(device_type, num_images):
    """Return how many images may be told otherwise: CPUs round by their instructions, which turns a near tie or two."""
    return (0.0002 if device_type == 'cpu' else 0.001) * num_images


def assert_reproduces(folder):
    """Fail unless a folder is whole, and its model has the counts that its config and its card state."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    model, content = load_exported(folder)
    stated = content['timm_longtail']['metrics']
    metrics = measure(model, content)
    differing = sum(abs(a - b) for a, b in zip(metrics['class_correct'], stated['class_correct'], strict=True))
    assert differing <= allowed(content['timm_longtail']['device_type'], stated['num_images'])
    assert metrics['class_total'] == stated['class_total']
    shown = {result.metric_name: result.metric_value
             for result in ModelCard.load(folder / 'README.md').data.eval_results}
    assert shown['Top-1 (all)'] == round(stated['all'], 4)
    assert stated['all'] == pytest.approx(100 * sum(stated['class_correct']) / stated['num_images'], rel=1e-9)


def test_something_is_released():
    assert list(ROOT.glob('hub/*'))


@pytest.mark.parametrize('folder', sorted(ROOT.glob('hub/*')), ids=lambda folder: folder.name)
def test_hub_folders(folder):
    content = config(folder)
    provenance = content['timm_longtail']
    assert folder.name == model_name(content)
    if provenance['dataset'] != 'digits_lt' and not os.environ.get('TIMM_LONGTAIL_DATA'):
        pytest.skip(f'{provenance["dataset"]} is not here: set TIMM_LONGTAIL_DATA')
    assert_reproduces(folder)


def test_hub_folders_may_differ_by_rounding_alone():
    assert 0 < allowed('cpu', 10_000) <= 2 < allowed('cuda', 10_000) <= 10
    assert allowed('cpu', 355) < 1  # the digits


def test_the_test_of_hub_folders_can_fail(tmp_path):
    model = build(layers=(1, 1, 1), channels=(8, 16, 32))
    provenance = {**PROVENANCE, 'shot_counts': [10] * 10, 'device_type': 'cpu'}
    arguments = dict(mean=MEAN, std=STD, input_size=(3, 32, 32), class_names=NAMES)
    content = config(export_model(model, tmp_path / 'export', provenance, **arguments))
    provenance['metrics'] = measure(load(tmp_path / 'export'), content)
    assert_reproduces(export_model(model, tmp_path / 'export', provenance, **arguments))

    for device_type, wrong in (('cpu', 1), ('cuda', 1 + provenance['metrics']['num_images'] // 1000)):
        metrics = {**provenance['metrics'], 'class_correct': list(provenance['metrics']['class_correct'])}
        metrics['class_correct'][0] += wrong
        altered = {**provenance, 'metrics': metrics, 'device_type': device_type}
        export_model(model, tmp_path / 'export', altered, **arguments)
        with pytest.raises(AssertionError, match='differing|assert [0-9]+ <='):
            assert_reproduces(tmp_path / 'export')
    (tmp_path / 'export' / 'events.out').write_text('')
    with pytest.raises(AssertionError):
        assert_reproduces(tmp_path / 'export')
