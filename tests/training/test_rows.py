"""Rows of results: their columns and files, and that each committed row can be run again from a commit."""
import json
from argparse import Namespace
from functools import cache
from pathlib import Path
from unittest.mock import ANY

import pytest

from timm_longtail.config.recipe import find_recipe
from timm_longtail.training import outputs, provenance
from timm_longtail.training.rows import published_columns, read_row, results_path, row_path
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import write_json
from timm_longtail.utils.output_lock import release_folder
from tools import result_tables

from ..support.history import ROOT, needs_history, tree_hashes
from ..support.runs import digits, make_run

ROWS = sorted(ROOT.glob('results/*.json'))

# the columns of a row are a file format: README tables and later issues read them
PROTOCOL = {
    'tag', 'model', 'method', 'method_kwargs', 'dataset', 'imbalance_factor', 'subset_hash', 'subset_order',
    'original_order', 'class_counts', 'shot_counts', 'seed', 'data_seed', 'val_fraction', 'epochs',
    'global_batch_size', 'mixed_precision', 'num_processes', 'command', 'environment',
}
# since the first rows
ADDED = {'hub_id', 'imbalance_profile', 'img_size', 'pretrained', 'initial_checkpoint', 'resident',
         'dataset_name', 'sampler', 'epoch_length', 'experiment', 'model_kwargs', 'tune', 'head', 'init_classifier',
         'tta'}
PROTOCOL |= ADDED
CODE = {'recipe', 'tree_hash', 'dirty'}
COST = {'epochs_trained', 'images_seen', 'forward_passes', 'seconds', 'train_seconds_per_epoch', 'peak_rss_gb'}
ADDED |= {'epochs_trained'}
METRICS = {'all', 'many', 'medium', 'few', 'balanced', 'worst_class', 'macro_f1', 'ece', 'loss', 'num_images'}
VOTE = {'ece', 'loss'}  # no probabilities
UNMEASURED = {'moco': VOTE, 'pnda': VOTE, 'rais': {'many', 'medium', 'few', 'macro_f1', 'class_correct'}}


# ------------------------------------------------------------------------------------------------ columns

def test_a_row_has_these_columns():
    _, run = make_run('ce')
    run.history = [{'epoch': 0, 'train_seconds': 2.0}, {'epoch': 1, 'train_seconds': 4.0}]
    protocol, code = outputs._protocol_columns(run, digits()), provenance.code_state()
    cost = outputs._cost_columns(run)
    assert (protocol.keys(), code.keys(), cost.keys()) == (PROTOCOL, CODE, COST)
    assert json.loads(json.dumps(protocol)) == {**protocol, 'model_kwargs': ANY}  # plain types only, but for tuples
    assert cost['images_seen'] == 2 * 64 and cost['forward_passes'] == 128 and cost['train_seconds_per_epoch'] == 3.0
    assert protocol['environment'].keys() >= {'device', 'device_type', 'threads', 'python', 'torch', 'timm'}
    assert code['tree_hash'] == provenance.working_tree_hash() and protocol['class_counts'] == digits().class_counts


@pytest.mark.parametrize('start, published', [
    ('', ''), ('/home/me/weights.pth', 'weights.pth'), ('/home/me/RUN/export', 'RUN'), ('output/RUN/export', 'RUN')])
def test_an_export_holds_the_last_names_of_paths(start, published):
    row = {
        'tag': 'x', 'command': 'python train.py --data-dir /home/me/photos', 'initial_checkpoint': start, 'seed': 0,
        'environment': {'device_type': 'cpu', 'device': 'this one'}}

    assert published_columns(row, ('tag', 'command', 'initial_checkpoint')) == {
        'tag': 'x', 'command': 'python train.py --data-dir photos', 'initial_checkpoint': published,
        'device_type': 'cpu'}
    assert 'initial_checkpoint' not in published_columns(row, ('tag', 'command'))

    for typed, name in (('/home/me/third', 'third'), ('third', 'third'), (None, None)):
        assert published_columns({**row, 'experiment': typed}, ('experiment',))['experiment'] == name


# ------------------------------------------------------------------------------------------------ committed rows

@cache
def history():
    return tree_hashes({json.loads(path.read_text()).get('recipe') for path in ROWS})


@pytest.mark.parametrize('path', ROWS, ids=lambda path: path.stem)
def test_committed_rows_are_whole(path):
    row = json.loads(path.read_text())
    columns = PROTOCOL | CODE | COST | {'last', 'best', 'found', 'train'}
    assert columns - ADDED - {'found', 'train'} <= row.keys() - {'peak_device_gb'} <= columns
    assert row['dirty'] is False
    assert len(row['tree_hash']) == 64 and int(row['tree_hash'], 16) >= 0

    metrics = METRICS - UNMEASURED.get(row['method'], set())
    assert row['last'].keys() >= metrics and row['best'].keys() >= metrics | {'epoch', 'selected_by'}
    if 'class_correct' not in UNMEASURED.get(row['method'], ()):
        assert len(row['last']['class_correct']) == len(row['class_counts']) == len(row['shot_counts'])
        assert row['last']['all'] == pytest.approx(
            100 * sum(row['last']['class_correct']) / sum(row['last']['class_total']), rel=1e-9)

    names = [row['tag'], row['model'], row['method'], row.get('experiment')]
    assert path.stem == f'{".".join(filter(None, names))}.e{row["epochs"]}.s{row["seed"]}'
    assert row['recipe'] is None or find_recipe(row['recipe']).is_file()
    assert '/root/' not in row['command'] and '/home/' not in row['command']


@pytest.mark.parametrize('path', ROWS, ids=lambda path: path.stem)
def test_committed_rows_come_from_a_commit(path):
    needs_history()
    row = json.loads(path.read_text())
    assert row['tree_hash'] in history()[row['recipe']], 'no commit of this repository has the code of this row'


@pytest.mark.parametrize('path', sorted((ROOT / 'results' / 'retrained').glob('*.json')), ids=lambda path: path.stem)
def test_committed_rows_of_classifiers(path):
    """They come from a commit, and stand on a row of stage 1 that is there: its `joint` has the same counts."""
    needs_history()
    row = json.loads(path.read_text())
    assert row['dirty'] is False and row['tree_hash'] in history()[None]
    assert '/' not in row['stage_1']['source'] and '/root/' not in row['command'] + row['stage_1']['command']
    stages = [json.loads(other.read_text()) for other in ROWS]
    stage_1, = (other for other in stages if other['command'] == row['stage_1']['command'])
    if 'joint' in row['classifiers']:  # MoCo has no classes
        assert row['classifiers']['joint']['class_correct'] == stage_1['last']['class_correct']
    assert 'joint' in row['classifiers'] or stage_1['method'] in UNMEASURED
    for name, metrics in row['classifiers'].items():
        assert metrics['all'] == pytest.approx(
            100 * sum(metrics['class_correct']) / sum(metrics['class_total']), rel=1e-9), name


# ------------------------------------------------------------------------------------------------ files

ROW = json.loads(ROWS[0].read_text())


@pytest.mark.parametrize('content, words', [
    (b'', 'is damaged or not a row of results'), (b'{"tag": ', 'is damaged or not a row of results'),
    (b'[]', 'is not a row of results: it holds no object'), (b'\xff\xfe', 'is not a row of results: it is not UTF-8'),
    (b'{}', 'is not a row of results: it has no tag'),
    (json.dumps({k: v for k, v in ROW.items() if k != 'last'}).encode(), 'is not a row of results: it has no last'),
])
def test_a_damaged_row_is_named(content, words, tmp_path, monkeypatch):
    path = tmp_path / 'row.json'
    path.write_bytes(content)
    (tmp_path / 'retrained').mkdir()
    monkeypatch.setattr(result_tables, 'RESULTS', tmp_path)
    for read in (lambda: read_row(path), result_tables.published_table, result_tables.short_table):
        with pytest.raises(UserError, match=words) as raised:
            read()
        assert str(path) in str(raised.value) and '\n' not in str(raised.value)

    path.rename(tmp_path / 'retrained' / 'row.json')
    with pytest.raises(UserError, match='retrained/row.json is '):
        result_tables.retrained_table()


def with_results(folder):
    """Return what names the row of a run, `--results` among it."""
    return Namespace(
        model='hf-hub:me/resnet20', method='ce', epochs=2, seed=3, experiment=None, recipe=None, results=str(folder))


@pytest.mark.parametrize('experiment, recipe, name', [
    (None, None, 'digits_lt_if20.resnet20.ce.e2.s3'),
    ('mine', 'recipes/resnet32_cifar.ce-sqrt.cifar100_lt_if100.yaml', 'digits_lt_if20.resnet20.ce.mine.e2.s3'),
    (None, 'recipes/resnet32_cifar.ce-sqrt.cifar100_lt_if100.yaml', 'digits_lt_if20.resnet20.ce.sqrt.e2.s3'),
    (None, 'recipes/resnet32_cifar.cifar100_lt_if100.yaml', 'digits_lt_if20.resnet20.ce.e2.s3'),
])
def test_a_row_is_named_by_data_model_method_and_variant(experiment, recipe, name, tmp_path):
    args = with_results(tmp_path)
    args.experiment, args.recipe = experiment, recipe

    assert results_path(args, digits()) == tmp_path / f'{name}.json'


def test_names_that_a_row_lacks_are_left_out(tmp_path):
    assert row_path(tmp_path, ('tag', None, '', 'crt'), 's0') == tmp_path / 'tag.crt.s0.json'


@pytest.mark.parametrize('place, reason', [
    ('/proc', ''), ('/proc/1/nowhere', ''), ('FILE', 'File exists|Not a directory'), ('FILE/in', 'Not a directory'),
    ('x' * 300, 'File name too long'), ('a\0b', 'null'), ('READ_ONLY', 'Permission denied'),
])
def test_results_that_could_not_be_written_are_refused(place, reason, tmp_path, monkeypatch):
    (tmp_path / 'FILE').write_text('')
    if place == 'READ_ONLY':  # to root, no folder is
        monkeypatch.setattr(Path, 'touch', lambda path: (_ for _ in ()).throw(PermissionError(13, 'Permission denied')))
    args = with_results(tmp_path / place)
    with pytest.raises(UserError, match=f'--results: cannot write .*{reason}') as raised:
        results_path(args, digits())
    assert '\n' not in str(raised.value) and (tmp_path / 'FILE').read_text() == ''


def test_results_that_can_be_written_leave_their_folder_alone(tmp_path, monkeypatch):
    args = with_results(tmp_path / 'new')
    path = results_path(args, digits())
    assert path.parent == tmp_path / 'new' and not any(path.parent.iterdir())

    # of a run that is refused later on nothing is left
    release_folder()
    assert not path.parent.exists()
    write_json(path, ROW)
    with pytest.raises(UserError, match='is there already'):
        results_path(args, digits())

    monkeypatch.setenv('RANK', '1')  # the row is written by the main process, on its host
    assert results_path(with_results('/proc/nowhere'), digits()).parent == Path('/proc/nowhere')
