"""`retrain.py`: what it makes, writes, chooses by and refuses; exports that count as the table says."""
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from timm_longtail.cli import retrain, train, validate
from timm_longtail.cli.entry import run_main
from timm_longtail.data import create_dataset
from timm_longtail.retraining.testing import load_evaluation_data
from timm_longtail.retraining.trained_model import TrainedModel, load_checkpoint, load_export

from ..data.test_sources import write_classes
from ..support.exports import edit_provenance, read_config
from ..support.runs import LINEAR, SMALL, TINY

FIGURES = {'weight_norms.png', 'class_accuracy.png', 'confusion.png', 'tau_curve.png', 'sampling.png'}


def train_one(output: Path, name: str, *options: str) -> Path:
    """Train a tiny network for three epochs; returns its output folder."""
    AcceleratorState._reset_state(reset_partial_state=False)
    train.main([
        '--dataset', 'digits_lt', '--no-recipe', '--method', 'ce', '-b', '64', '--epochs', '3', *SMALL,
        '--output', str(output), '--experiment', name, *options,
    ])
    return output / name


def retrained(capsys, monkeypatch, *options, figures: bool = False) -> tuple[str, dict[str, Any], Path]:
    """Run `retrain.py` in this process; returns what it printed, the content of `metrics.json`, and its folder.

    Figures, which take longer than most classifiers, are drawn where they are asked for.
    """
    if not figures:
        monkeypatch.setattr(retrain, 'draw_figures', lambda *_: None)
    argv = [str(option) for option in options]
    monkeypatch.setattr(sys, 'argv', ['retrain.py', *argv])
    AcceleratorState._reset_state(reset_partial_state=False)
    capsys.readouterr()
    retrain.main(argv)

    printed = capsys.readouterr().out
    folder = Path(re.search('^output: (.*)$', printed, re.M).group(1))
    return printed, json.loads((folder / 'metrics.json').read_text()), folder


def refused(capsys, *options) -> str:
    """Run `retrain.py` in this process; it must end in one line, which is returned."""
    AcceleratorState._reset_state(reset_partial_state=False)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: retrain.main([str(option) for option in options]))
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def assert_counts_as_the_table_says(capsys, folder: Path, row: dict[str, Any], name: str, *options: str):
    """Fail unless `validate.py` counts the images of the export of a classifier as the row does."""
    metrics = row['classifiers'][name]
    capsys.readouterr()
    validate.main(['--model', f'local-dir:{folder}/{name}/export', *options])
    expected = f'{sum(metrics["class_correct"])} of {metrics["num_images"]} images correct'
    assert expected in capsys.readouterr().out, name


def copy_of(export: Path, folder: Path, **provenance) -> Path:
    """Return a copy of an export that says something else of its training."""
    folder.mkdir()
    for name in ('config.json', 'model.safetensors'):
        (folder / name).write_bytes((export / name).read_bytes())
    edit_provenance(folder, **provenance)
    return folder


@pytest.fixture(scope='module')
def stage_1(tmp_path_factory) -> Path:
    """A short run with a linear classifier and a hold-out."""
    output = tmp_path_factory.mktemp('stage_1')
    return train_one(output, 'run', *TINY, *LINEAR, '--val-fraction', '0.2', '--sampler', 'sqrt')


@pytest.fixture(scope='module')
def cosine(tmp_path_factory) -> Path:
    """A short run with a cosine classifier and no hold-out."""
    return train_one(tmp_path_factory.mktemp('cosine'), 'run', *TINY)


NAMES = [
    'joint', 'crt', 'lws', 'max_norm', 'linear', 'tau_norm', 'ncm_l2', 'ncm_cosine', 'ncm_centred', 'logit_adjust',
]


def test_all_classifiers(stage_1, tmp_path, capsys, monkeypatch):
    printed, row, folder = retrained(
        capsys, monkeypatch, stage_1, '--epochs', '2', '--output', tmp_path, figures=True)

    assert list(row['classifiers']) == NAMES
    for name in NAMES:
        assert re.search(rf'\| {name} +\| +{row["classifiers"][name]["all"]:.2f} ', printed), name
        low, high = row['classifiers'][name]['intervals']['all']
        assert f'{name}: 95 % intervals over test images: All {low:.1f}-{high:.1f}, ' in printed
    assert {path.name for path in folder.glob('*.png')} >= FIGURES

    # what is known of stage 1, and the prior that it saw
    assert {'sampler': 'sqrt', 'method': 'ce', 'source': 'run'}.items() <= row['stage_1'].items()
    assert row['val_fraction'] == 0.2
    assert sum(row['class_counts']) < sum(row['shot_counts'])
    assert row['classifiers']['logit_adjust']['options'] == {'tau': 1.0, 'prior': 'sqrt'}

    # before: the figures of stage 1
    last = json.loads((stage_1 / 'metrics.json').read_text())['last']
    assert row['classifiers']['joint']['class_correct'] == last['class_correct']

    # after: exports that count as the table says
    for name in NAMES[1:]:
        assert_counts_as_the_table_says(capsys, folder, row, name)
        with open(folder / name / 'per_class.csv') as f:
            correct = sum(int(line['correct']) for line in csv.DictReader(f))
        assert correct == sum(row['classifiers'][name]['class_correct']), name


def test_an_export_says_what_it_was_retrained_from(stage_1, tmp_path, capsys, monkeypatch):
    _, _, folder = retrained(
        capsys, monkeypatch, stage_1, '--classifier', 'crt', '--epochs', '1', '--output', tmp_path)
    export = folder / 'crt' / 'export'

    provenance = read_config(export)['timm_longtail']
    assert provenance['method'] == 'crt'
    assert provenance['stage_1']['sampler'] == 'sqrt'
    assert str(tmp_path) not in json.dumps(provenance)

    card = (export / 'README.md').read_text()
    assert '- Representation: that of `run`, trained by `ce` for ' in card
    assert f'{provenance["stage_1"]["command"]}\n{provenance["command"]}\n' in card
    assert 'last epoch' not in card


def test_tau_is_chosen_on_the_hold_out(stage_1, tmp_path, capsys, monkeypatch):
    printed, row, _ = retrained(capsys, monkeypatch, stage_1, '--classifier', 'tau-norm', '--output', tmp_path)

    tau, curve = row['classifiers']['tau_norm']['options']['tau'], row['classifiers']['tau_norm']['curve']
    assert f'tau = {tau:g}, chosen by balanced accuracy on the hold-out, ' in printed
    assert len(curve) == 21
    assert curve[f'{tau}']['balanced'] == max(figures['balanced'] for figures in curve.values())


def test_without_a_hold_out_nothing_is_chosen(stage_1, tmp_path, capsys, monkeypatch):
    whole = create_dataset('digits_lt', 'train').hash
    copy = copy_of(stage_1 / 'export', tmp_path / 'copy', val_fraction=0.0, subset_hash=whole)

    printed, row, folder = retrained(
        capsys, monkeypatch, f'local-dir:{copy}', '--classifier', 'tau-norm', '--output', tmp_path)

    assert row['classifiers']['tau_norm']['options'] == {'tau': 1.0}
    assert 'there is no hold-out to choose it by' in printed
    assert len(re.findall(r'\| tau [0-9.]+', printed)) == 21
    config = read_config(folder / 'tau_norm' / 'export')
    assert config['timm_longtail']['stage_1']['source'] == 'copy'
    assert str(tmp_path) not in json.dumps(config)


def test_the_hold_out_of_stage_1_is_known_by_its_images(stage_1, tmp_path, capsys, monkeypatch):
    """However the data is named: what stage 1 was trained on is not held out, what it held out is not trained on."""
    source = f'local-dir:{stage_1 / "export"}'
    printed, row, _ = retrained(
        capsys, monkeypatch, source, '--dataset', 'digits_lt', '--classifier', 'ncm', '--output', tmp_path)
    assert row['val_fraction'] == 0.2 and sum(row['class_counts']) < sum(row['shot_counts'])
    assert 'trained by ce on these images' in printed
    words = refused(capsys, source, '--dataset', 'digits_lt', '--val-fraction', '0.1', '--output', tmp_path)
    assert 'stage 1 held out 0.2' in words
    words = refused(capsys, source, '--imbalance-factor', '50', '--output', tmp_path)
    assert 'the model was trained with 20.0; name the data by --dataset' in words


def test_training_on_images_repeats(stage_1, tmp_path, capsys, monkeypatch):
    rows = []
    for name in ('a', 'b'):
        _, row, _ = retrained(
            capsys, monkeypatch, stage_1, '--classifier', 'crt', '--features', 'augmented', '--epochs', '1',
            '--output', tmp_path / name)
        rows.append(row['classifiers']['crt'])

    assert rows[0]['loss'] == rows[1]['loss']
    assert rows[0]['class_correct'] == rows[1]['class_correct']


def test_a_cosine_classifier(cosine, tmp_path, capsys, monkeypatch):
    printed, row, folder = retrained(capsys, monkeypatch, cosine, '--epochs', '1', '--output', tmp_path)

    assert list(row['classifiers']) == ['joint', 'crt', 'linear', 'ncm_l2', 'ncm_cosine', 'ncm_centred']
    assert 'left out: tau_norm: it rescales the class weights, and a cosine classifier has no bias' in printed
    for name in ('crt', 'ncm_l2', 'ncm_cosine', 'ncm_centred'):
        assert_counts_as_the_table_says(capsys, folder, row, name)
    assert 'cosine classifier has no bias' in refused(capsys, cosine, '--classifier', 'lws', '--output', tmp_path)


@pytest.mark.parametrize('options, changed_part', [
    (['--bn', 'train'], 'running_'),
    (['--tune', 'last_block', '--view', 'flip'], 'layer3.'),
])
def test_on_images(options, changed_part, stage_1, tmp_path, capsys, monkeypatch):
    """What changes more than the classifier is measured and exported as a whole."""
    _, row, folder = retrained(
        capsys, monkeypatch, stage_1, '--classifier', 'crt', '--features', 'augmented', '--epochs', '1', *options,
        '--output', tmp_path)
    assert_counts_as_the_table_says(capsys, folder, row, 'crt')

    before = load_export(f'local-dir:{stage_1}/export').model.state_dict()
    after = load_export(f'local-dir:{folder}/crt/export').model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert 'fc.weight' in changed
    assert any(changed_part in name for name in changed)
    assert 'conv1.weight' not in changed


@pytest.fixture(scope='module')
def self_supervised(tmp_path_factory) -> Path:
    """A short run that has no classifier, with a hold-out."""
    output = tmp_path_factory.mktemp('moco')
    return train_one(
        output, 'run', *TINY, *LINEAR, '--method', 'moco', '--val-fraction', '0.2', '--epochs', '1')


def test_neighbours_vote_for_a_self_supervised_model(self_supervised, capsys):
    last = json.loads((self_supervised / 'metrics.json').read_text())['last']
    assert sum(last['class_correct']) > 0

    capsys.readouterr()
    validate.main(['--model', f'local-dir:{self_supervised}/export'])

    assert f'{sum(last["class_correct"])} of {last["num_images"]} images correct' in capsys.readouterr().out


@pytest.mark.parametrize('factor, held_out', [(20, 0.2), (10, 0)])
def test_all_images_vote_but_those_held_out_in_training(factor, held_out, self_supervised):
    """Of the data that the model was trained on; of other data nothing was held out."""
    options = ['--model', 'x', '--dataset', 'digits_lt', '--imbalance-factor', str(factor)]
    args = validate.create_parser().parse_args(options)
    bank = load_evaluation_data(args, load_export(f'local-dir:{self_supervised}/export')).train_set

    whole = create_dataset('digits_lt', 'train', imbalance_factor=factor)
    expected = whole.hold_out(held_out, 0)[0] if held_out else whole
    assert len(bank) == len(expected)


def test_classifiers_of_a_self_supervised_model(self_supervised, tmp_path, capsys, monkeypatch):
    """Those that need no trained classifier are made; of several learning rates the best is taken."""
    options = (self_supervised, '--output', tmp_path, '--epochs', '2', '--classifier')
    printed, row, folder = retrained(capsys, monkeypatch, *options, 'linear', 'ncm', '--lr', '50', '0.1')

    assert row['classifiers'].keys() == {'linear', 'ncm_l2', 'ncm_cosine', 'ncm_centred'}
    chosen = row['classifiers']['linear']
    assert chosen['note'] == 'lr = 0.1 of 50, 0.1, chosen by balanced accuracy on the hold-out'
    assert chosen['options']['lr'] == 0.1
    found = dict(re.findall(r'linear, lr (\S+): balanced accuracy (\S+)', printed))
    assert float(found['0.1']) > float(found['50'])
    assert load_export(f'local-dir:{folder}/linear/export').model.num_classes == 10

    line = refused(capsys, *options, 'tau-norm')
    assert line.endswith('tau_norm: it rescales the class weights of the trained classifier, and this model has none')


def test_a_rate_may_be_chosen_on_the_test_set(self_supervised, tmp_path, capsys, monkeypatch):
    options = (self_supervised, '--output', tmp_path, '--epochs', '2', '--classifier', 'linear', '--choose-lr-on-test')
    printed, row, _ = retrained(capsys, monkeypatch, *options, '--lr', '50', '0.1')

    chosen = row['classifiers']['linear']
    assert chosen['note'].endswith('chosen by balanced accuracy on the test set')
    assert f'lr 0.1: balanced accuracy {chosen["balanced"]:.2f}' in printed
    assert 'nothing to choose from' in refused(capsys, *options)


@pytest.mark.parametrize('method, has_classes', [('ce', True), ('rais', False), (None, True), ('unheard of', True)])
def test_outputs_may_be_no_classes(method, has_classes):
    model = timm.create_model('resnet20_cifar', num_classes=4)
    assert TrainedModel(model, 'resnet20_cifar', Mock(), {'method': method}).has_classes == has_classes


def test_a_checkpoint_is_a_source_too(stage_1, tmp_path, capsys, monkeypatch):
    assert load_checkpoint(stage_1).provenance['val_fraction'] == 0.2

    _, row, _ = retrained(
        capsys, monkeypatch, stage_1 / 'model_best.pth.tar', '--classifier', 'ncm', '--output', tmp_path)

    assert row['val_fraction'] == 0.2
    assert 'joint' in row['classifiers']


def test_a_stock_model_on_photographs(tmp_path, capsys, monkeypatch):
    """A timm model with other classes, a folder of files: cRT, linear and the nearest mean; stock timm loads it."""
    photos = tmp_path / 'photos'
    write_classes(photos / 'train', {'cat': 8, 'dog': 5, 'owl': 3})
    write_classes(photos / 'val', {'cat': 2, 'dog': 2, 'owl': 2})
    torch.manual_seed(0)
    save_file(timm.create_model('resnet10t').state_dict(), tmp_path / 'weights.safetensors')

    printed, row, folder = retrained(
        capsys, monkeypatch, 'resnet10t', '--initial-checkpoint', tmp_path / 'weights.safetensors',
        '--dataset', 'folder', '--data-dir', photos, '--img-size', '32', '-b', '8', '--epochs', '2', '-j', '0',
        '--output', tmp_path / 'out')

    assert list(row['classifiers']) == NAMES[1:]
    assert 'not exported' not in printed
    assert row['classifiers']['logit_adjust']['note'] == 'adjusts a linear classifier that was fitted to this data'

    model = timm.create_model(f'local-dir:{folder}/crt/export', pretrained=True)
    assert type(model).__module__ == 'timm.models.resnet'
    assert model.num_classes == 3
    assert model.pretrained_cfg['input_size'] == (3, 32, 32)
    assert model.pretrained_cfg['license'] == ''  # of these weights nothing is known
    assert_counts_as_the_table_says(
        capsys, folder, row, 'crt', '--dataset', 'folder', '--data-dir', str(photos), '-j', '0')


@pytest.mark.parametrize('options, words', [
    (['RUN', '--classifier', 'cert'], "unknown classifier 'cert'; did you mean crt"),
    (['RUN', '--bn', 'train'], 'act on images: add --features augmented'),
    (['RUN', '--classifier', 'crt', 'lws', '--classifier-kwargs', 'tau=1'], 'for one classifier that is trained'),
    (['RUN', '--classifier', 'lws', '--classifier-kwargs', 'tua=1'], "no option 'tua'; did you mean tau? it takes tau"),
    (['RUN', '--val-fraction', '0.1'], 'stage 1 held out 0.2'),
    (['RUN', '--epochs', '0'], '--epochs must be in [1, 1000000], got 0'),
    (['RUN', '--classifier', 'crt', '--classifier-kwargs', 'bn=train'], 'bn is an option of its own, --bn'),
    (['nosuch', '--dataset', 'digits_lt'], "unknown model 'nosuch'"),
    (['resnet18'], 'does not say what it is for: add --dataset'),
    (['output/nosuch'], 'output/nosuch: no such file or folder'),
    (['local-dir:nosuch'], 'nosuch is not an exported model'),
    (['EMPTY'], 'no checkpoint in this folder'),
])
def test_refusals(stage_1, tmp_path, capsys, options, words):
    places = {'RUN': stage_1, 'EMPTY': tmp_path}
    assert words in refused(capsys, *[places.get(option, option) for option in options], '--output', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_other_data_than_stage_1_had(stage_1, tmp_path, capsys):
    copy = copy_of(stage_1 / 'export', tmp_path / 'copy', subset_hash='0' * 12)
    words = refused(capsys, copy, '--classifier', 'ncm', '--output', tmp_path / 'out')
    assert 'has other training images' in words and 'than the model was trained on (000000000000)' in words
