"""`compare`: what it chooses by, writes, exports and refuses."""
import copy
import csv
import io
import json
import re
import shutil
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import save_file

from timm_longtail.cli import compare, train
from timm_longtail.cli.compare_training import _batch_size
from timm_longtail.export import load_exported
from timm_longtail.retraining import source
from timm_longtail.retraining.compared import choose_classes
from timm_longtail.retraining.representation import Representation
from timm_longtail.utils.errors import UserError

from ..support.data_sets import write_classes
from ..support.exports import edit_provenance, read_config

COUNTS = {'ant': 14, 'bee': 9, 'cow': 4}
FITTED = ['ncm_l2', 'ncm_cosine', 'ncm_centred', 'lda', 'logistic', 'crt']


def run(*options: object) -> dict:
    """Run the command in this process; returns the content of `compare.json`."""
    AcceleratorState._reset_state(reset_partial_state=False)
    words = [str(option) for option in options]
    compare.main(words)
    return json.loads((Path(words[words.index('--output') + 1]) / 'compare.json').read_text())


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('photos')
    write_classes(folder / 'train', COUNTS)
    write_classes(folder / 'val', dict.fromkeys(COUNTS, 5))
    return folder


@pytest.fixture(scope='module')
def options(photos, tmp_path_factory) -> list[object]:
    """Options of a small model with weights of its own, on the photos, with a cache of features."""
    folder = tmp_path_factory.mktemp('model')
    torch.manual_seed(0)
    save_file(timm.create_model('resnet10t').state_dict(), folder / 'weights.safetensors')
    return ['resnet10t', '--initial-checkpoint', folder / 'weights.safetensors', '--dataset', 'folder',
            '--data-dir', photos, '--img-size', 32, '-j', 0, '--feature-cache', folder / 'cache', '--repeats', 1]


@pytest.fixture(scope='module')
def compared(options, tmp_path_factory) -> tuple[Path, dict, str]:
    """A comparison of all classifiers: its folder, the content of `compare.json` and what it printed."""
    folder = tmp_path_factory.mktemp('compared') / 'first'
    with redirect_stdout(io.StringIO()) as printed:
        content = run(*options, '--output', folder)
    return folder, content, printed.getvalue()


def without_figures(monkeypatch):
    monkeypatch.setattr(compare, 'draw_comparison', lambda *_: None)


def test_all_are_measured_and_the_one_chosen_is_exported(compared, photos):
    folder, content, printed = compared

    assert [row['name'] for row in content['rows']] == FITTED
    assert f'Use {content["chosen"]}, ' in printed
    assert "left out: joint, logit_adjust, tau_norm: the model's own classifier has 1000 classes, the data 3" in printed
    assert 'classes with fewer images than folds, each image held out once: 1' in printed
    for row in content['rows']:
        every, error = row['cv_groups']['all']
        cells = rf'{every:.1f} ± {error:.1f} \| +{row["cv"]:.1f} ± {row["cv_se"]:.1f} '
        assert re.search(rf'\| {row["name"]} +\| +{cells}', printed)
        for name in ('all', 'balanced'):
            low, high = row['intervals'][name]
            assert low <= row['test_figures'][name] <= high
            assert f' {row["test_figures"][name]:.1f} [{low:.1f}, {high:.1f}] ' in printed

    # stock timm loads it, and it counts as the table says
    model, config = load_exported(folder / 'export')
    chosen = next(row for row in content['rows'] if row['name'] == content['chosen'])
    assert type(model.get_classifier()) is torch.nn.Linear
    about = config['timm_longtail']
    assert about['method'] == content['chosen']
    for name in ('class_accuracy', 'confusion'):
        assert Image.open(folder / f'{name}.png').format == 'PNG'
    assert about['method_kwargs']['temperature'] == chosen['temperature']
    assert about['metrics']['ece_before'] == chosen['test_figures']['ece_before']
    assert about['metrics']['expected']['balanced'] == chosen['cv']
    assert about['note'] == 'chosen by cross-validation'
    assert about['metrics']['class_correct'] == chosen['test_figures']['class_correct']
    assert str(photos) not in json.dumps(config)


def test_a_large_set_is_chosen_on_a_part_of_its_classes(options, tmp_path, monkeypatch, capsys):
    without_figures(monkeypatch)
    monkeypatch.setattr(compare, 'choose_classes', partial(choose_classes, largest=1))
    counts = {'ant': 12, 'bee': 10, 'cow': 8, 'dog': 6, 'elk': 5, 'fox': 4}
    write_classes(tmp_path / 'photos' / 'train', counts)
    write_classes(tmp_path / 'photos' / 'val', dict.fromkeys(counts, 3))
    place = options.index('--data-dir') + 1
    words = [*options[:place], tmp_path / 'photos', *options[place + 1:]]

    content = run(*words, '--classifiers', 'ncm_l2', 'logistic', '--output', tmp_path / 'out')

    printed = capsys.readouterr().out
    assert 'settings are chosen on 2 of the 6 classes' in printed
    assert 'classes with fewer images than folds' not in printed  # as one of those left out has
    assert ' on one fold of all classes.' in content['recommendation']
    assert re.search(r'(above|below) it on the part of the classes', content['recommendation'])
    for row in content['rows']:
        assert row['cv_classes'] == 2
        assert len(row['test_figures']['class_total']) == 6
        assert (row['cv_all_classes'] is not None) == (row['name'] == content['chosen'])
    assert '5 folds, 2 of the 6 classes' in (tmp_path / 'out' / 'report.html').read_text()


def test_weights_that_cannot_be_downloaded_may_come_from_a_file(monkeypatch, tmp_path):
    def refuse(*_):
        raise UserError('no network')
    monkeypatch.setattr(source, 'load_model', refuse)

    with pytest.raises(UserError, match='no network; --initial-checkpoint takes weights from a file'):
        run('resnet10t', '--dataset', 'digits_lt', '--output', tmp_path)


def test_images_that_cannot_be_read_leave_the_report_whole(options, photos, tmp_path, capsys):
    """One is missing in the training and one in the test images; the predictions are those of the others."""
    damaged = tmp_path / 'photos'
    shutil.copytree(photos, damaged)
    for image in (damaged / 'train' / 'ant' / '03.png', damaged / 'val' / 'ant' / '01.png'):
        image.write_bytes(b'')
    place = options.index('--data-dir') + 1
    words = [*options[:place], damaged, *options[place + 1:], '--classifiers', 'ncm_l2', 'lda', '--skip-bad-images']

    # features are computed in the first call, and found in the second one
    for folder in (tmp_path / 'first', tmp_path / 'second'):
        content = run(*words, '--output', folder)

        rows = list(csv.DictReader((folder / 'predictions.csv').open()))
        names = [f'{name}/{number:02d}.png' for name in COUNTS for number in range(5)]
        names.remove('ant/01.png')
        chosen = next(row for row in content['rows'] if row['name'] == content['chosen'])
        assert [row['image'] for row in rows] == names
        assert all(row['image'].startswith(row['target_name']) for row in rows)
        assert sum(row['target'] == row['predicted'] for row in rows) == sum(chosen['test_figures']['class_correct'])

        # the other classifier's predictions are not saved, which is no fault
        page = (folder / 'report.html').read_text()
        assert 'were not saved' not in page
        assert 'saved for the classifier that was chosen alone' in page
        assert 'Comparison of 2 classifiers' in page and 'nearest class mean' in page
        assert 'The test images had no part in the choice' in page
        assert 'features of 26 images, 3 classes of 13 to 4, and of 14 test images' in capsys.readouterr().out


def test_the_second_call_computes_no_features(compared, options, tmp_path, monkeypatch):
    first = copy.deepcopy(compared[1])
    without_figures(monkeypatch)

    def refuse(*_):
        raise AssertionError('images were read')
    monkeypatch.setattr(Representation, 'loader', refuse)
    second = run(*options, '--output', tmp_path / 'second')

    # what is read from a file lies otherwise in memory, which decides the last digits of losses
    for row, other in zip(first['rows'], second['rows'], strict=True):
        found, again = row.pop('test_figures'), other.pop('test_figures')
        assert found['class_correct'] == again['class_correct']
        assert found['loss'] == pytest.approx(again['loss'], rel=1e-5)
    assert second == first


def test_test_labels_have_no_part_in_the_choice(compared, options, photos, tmp_path, monkeypatch):
    """With the test images of classes exchanged, all but the test figures stays."""
    _, clean, _ = compared
    without_figures(monkeypatch)
    poisoned = tmp_path / 'poisoned'
    poisoned.mkdir()
    (poisoned / 'train').symlink_to(photos / 'train')
    write_classes(poisoned / 'val', {'cow': 5, 'ant': 5, 'bee': 5})
    place = options.index('--data-dir') + 1
    other = [*options[:place], poisoned, *options[place + 1:]]

    wrong = run(*other, '--output', tmp_path / 'out')

    assert clean['chosen'] == wrong['chosen']
    assert clean['recommendation'] == wrong['recommendation']
    tested = {'test', 'test_figures', 'intervals'}
    for first, second in zip(clean['rows'], wrong['rows']):
        assert {k: v for k, v in first.items() if k not in tested} == {
            k: v for k, v in second.items() if k not in tested}


def test_several_models_are_compared(compared, photos, tmp_path, monkeypatch, capsys):
    """Rows are named by model; a classifier is not measured on the images that it was trained on."""
    export = compared[0] / 'export'
    without_figures(monkeypatch)
    capsys.readouterr()

    content = run(
        export, f'local-dir:{export}', '--dataset', 'folder', '--data-dir', photos, '-j', 0, '--feature-cache', '',
        '--classifiers', 'joint', 'ncm_l2', '--output', tmp_path / 'both')

    assert [row['name'] for row in content['rows']] == ['first (1)/ncm_l2', 'first (2)/ncm_l2']
    assert content['rows'][0]['cv'] == content['rows'][1]['cv']
    assert 'left out: joint: it was trained on the images that it would be measured on' in capsys.readouterr().out
    assert 'all figures but those of the test set are too high' in content['recommendation']


def test_trained_methods_stand_beside_the_classifiers(options, tmp_path, monkeypatch, capsys):
    """Each is trained without the hold-out, for as many images, and its own classifier is one of the rows."""
    without_figures(monkeypatch)
    content = run(
        *options, '--classifiers', 'joint', 'ncm_l2', '--train', 'ce', 'glmc', '--train-epochs', 2,
        '--train-args', '-b 8 --lr 0.01', '--val-fraction', 0.25, '--output', tmp_path)

    names = [row['name'] for row in content['rows']]
    assert names == [
        'resnet10t/ncm_l2', 'train/ce/joint', 'train/ce/ncm_l2', 'train/glmc/joint', 'train/glmc/ncm_l2']
    assert {row['measured_on'] for row in content['rows']} == {'hold-out'}
    assert not any(row['optimistic'] for row in content['rows'])

    # glmc has two streams
    rows = [json.loads((tmp_path / 'train' / name / 'metrics.json').read_text()) for name in ('ce', 'glmc')]
    assert [row['epochs'] for row in rows] == [2, 1]
    assert rows[0]['images_seen'] == rows[1]['images_seen']
    assert [sum(row['class_counts']) for row in rows] == [sum(COUNTS.values()) - 6] * 2

    # all are on the hold-out, and are said to be
    assert read_config(tmp_path / 'export')['timm_longtail']['note'] == 'chosen on the hold-out'
    assert '| hold-out ' in capsys.readouterr().out

    with pytest.raises(UserError, match='train/ce is there already; name another --output'):
        run(*options, '--train', 'ce', '--output', tmp_path)


def test_a_model_that_is_called_as_a_method_stays_beside_it(compared, photos, tmp_path, monkeypatch):
    """The set has fewer images than a batch of `train`."""
    without_figures(monkeypatch)
    shutil.copytree(compared[0] / 'export', tmp_path / 'ce')
    edit_provenance(tmp_path / 'ce', subset_hash='0' * 12)  # of other images

    content = run(
        tmp_path / 'ce', '--dataset', 'folder', '--data-dir', photos, '-j', 0, '--feature-cache', '',
        '--classifiers', 'ncm_l2', '--train', 'ce', '--train-epochs', 1, '--val-fraction', 0.25,
        '--output', tmp_path / 'out')

    assert [row['name'] for row in content['rows']] == ['ce/ncm_l2', 'train/ce/ncm_l2']
    metrics = json.loads((tmp_path / 'out' / 'train' / 'ce' / 'metrics.json').read_text())
    assert metrics['images_seen'] == sum(COUNTS.values()) - 6


@pytest.mark.parametrize('num_images, typed, words', [
    (127, [], ['--batch-size', '127']),
    (128, [], []),
    (20, ['--global-batch-size', '16'], []),
])
def test_a_small_set_is_one_batch(num_images, typed, words):
    assert _batch_size(num_images, typed) == words


def test_a_model_that_has_seen_the_images_is_left_aside(compared, photos, tmp_path, monkeypatch):
    without_figures(monkeypatch)
    seen, unseen = (shutil.copytree(compared[0] / 'export', tmp_path / name) for name in ('seen', 'unseen'))
    edit_provenance(unseen, subset_hash='0' * 12)  # of other images

    content = run(
        seen, unseen, '--dataset', 'folder', '--data-dir', photos, '-j', 0, '--feature-cache', '',
        '--classifiers', 'ncm_l2', '--repeats', 1, '--output', tmp_path / 'out')

    assert [row['optimistic'] for row in content['rows']] == [True, False]
    assert content['chosen'] == 'unseen/ncm_l2'
    assert content['recommendation'].endswith(
        'Left aside, measured on images that the model was trained on: seen.')


def test_the_best_epoch_of_a_run_was_chosen_on_the_hold_out(photos, tmp_path, monkeypatch, capsys):
    without_figures(monkeypatch)
    AcceleratorState._reset_state(reset_partial_state=False)
    train.main([
        '--model', 'resnet10t', '--img-size', '32', '--dataset', 'folder', '--data-dir', str(photos), '-b', '8',
        '--epochs', '1', '-j', '0', '--no-recipe', '--val-fraction', '0.25', '--method', 'ce',
        '--output', str(tmp_path), '--experiment', 'run'])
    capsys.readouterr()

    for name, is_warned_of in [('model_best.pth.tar', True), ('checkpoint-last.pth.tar', False)]:
        run(tmp_path / 'run' / name, '--classifiers', 'ncm_l2', '-j', 0, '--feature-cache', '',
            '--output', tmp_path / 'out')
        assert ('this epoch was chosen on the hold-out' in capsys.readouterr().out) == is_warned_of


def test_test_images_that_cannot_be_read_end_the_command_before_the_choice(options, photos, tmp_path, monkeypatch):
    damaged = tmp_path / 'photos'
    shutil.copytree(photos, damaged)
    for image in (damaged / 'val').glob('*/*.png'):
        image.write_bytes(b'')
    place = options.index('--data-dir') + 1
    words = [*options[:place], damaged, *options[place + 1:], '--skip-bad-images', '--output', tmp_path / 'out']

    def refuse(*_, **__):
        raise AssertionError('classifiers were fitted')
    monkeypatch.setattr(compare, 'compare_families', refuse)

    with pytest.raises(UserError, match='none of the 15 images of .* could be read'):
        run(*words)


def test_the_calibration_error_is_balanced_on_both_sets(compared):
    """The line and the export have the errors of the model that is exported, by its logits."""
    folder, content, printed = compared
    chosen = next(row for row in content['rows'] if row['name'] == content['chosen'])
    rows = list(csv.DictReader((folder / 'predictions.csv').open()))

    # five test images of each class: every image weighs the same
    confidence = torch.tensor([float(row['confidence']) for row in rows], dtype=torch.float64)
    is_correct = torch.tensor([row['target'] == row['predicted'] for row in rows], dtype=torch.float64)
    bins = (confidence * 15).long().clamp(max=14)
    gaps = torch.zeros(15, dtype=torch.float64).index_add_(0, bins, (is_correct - confidence) / len(rows))

    expected = 100 * float(gaps.abs().sum())
    assert chosen['test_figures']['balanced_ece'] == pytest.approx(expected, abs=0.01)
    before, after = chosen['cv_ece']
    test_before = chosen['test_figures']['balanced_ece_before']
    assert (f'balanced calibration error {before:.1f} before and {after:.1f} after on the images measured, '
            f'{test_before:.1f} and {expected:.1f} on the test set') in printed


@pytest.mark.parametrize('sources, labels', [
    (['resnet18', 'resnet34'], ['resnet18', 'resnet34']),
    (['.'], [Path.cwd().name]),
    (['/home/ada/bcl/export', 'local-dir:ce'], ['bcl', 'ce']),
    (['/home/ada/old/bcl/export', '/home/ada/new/bcl'], ['old/bcl', 'new/bcl']),
    (['bcl/checkpoint-last.pth.tar', 'bcl/model_best.pth.tar'], ['checkpoint-last.pth.tar', 'model_best.pth.tar']),
    (['/home/ada/bcl', 'local-dir:/home/ada/bcl'], ['bcl (1)', 'bcl (2)']),
])
def test_models_are_called_apart_without_folders_of_the_machine(sources, labels):
    assert compare._labels(sources) == labels


@pytest.mark.parametrize('words, message', [
    (['resnet18', 'resnet34', '--dataset', 'digits_lt', '--train', 'ce'], '--train is for one model'),
    (['resnet18', '--dataset', 'digits_lt', '--train', 'ce', 'bcl', 'ce'], '--train: a method is named twice'),
    (['resnet18', '--dataset', 'digits_lt', '--train-args', '--lr 1'], '--train-args: for --train METHOD'),
    (['resnet18', '--dataset', 'digits_lt', '--train', 'cee'], "unknown method 'cee'; did you mean ce"),
    (['resnet18', '--classifiers', 'ncm'], "unknown classifier 'ncm'; did you mean ncm_l2"),
    (['resnet18', 'resnet34', '--initial-checkpoint', 'x'], '--initial-checkpoint is for one model'),
    (['resnet18', 'resnet18', '--dataset', 'digits_lt'], 'a model is named twice'),
    (['resnet18'], 'does not say what it is for: add --dataset'),
    (['resnet18', '--folds', '1'], '--folds must be'),
    (['resnet18', '--dataset', 'digits_lt', '--train', 'ce', '--train-args', '--lr "1'], '--train-args --lr "1: No '),
])
def test_refusals(words, message, tmp_path):
    AcceleratorState._reset_state(reset_partial_state=False)
    with pytest.raises(UserError, match=re.escape(message)):
        compare.main([*words, '--output', str(tmp_path / 'out')])
