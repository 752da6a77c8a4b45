"""`validate.py`: exports, checkpoints, timm models; the tables it writes; what it refuses."""
import csv
import json
import shutil

import pytest
import timm
import torch
from accelerate.state import AcceleratorState

import train
import validate
from timm_longtail import candidates
from timm_longtail.errors import UserError
from timm_longtail.exported import seal

from .runs import TINY
from .test_sources import write_classes


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The output folder of a short run with a moving average, which differs from the weights."""
    AcceleratorState._reset_state(reset_partial_state=False)
    output = tmp_path_factory.mktemp('run')
    train.main([*TINY, '--dataset', 'digits_lt', '--no-recipe', '--method', 'ce', '-b', '64', '--epochs', '1',
                '--model-ema', '--model-ema-decay', '0.5', '--output', str(output), '--experiment', 'run'])
    return output / 'run'


def printed_count(capsys, *options):
    capsys.readouterr()
    validate.main([str(option) for option in options])
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.endswith('images correct')
    return int(line.split()[0]), int(line.split()[2])


def expected(run):
    last = json.loads((run / 'metrics.json').read_text())['last']
    return sum(last['class_correct']), last['num_images']


@pytest.mark.parametrize('source', ['export', 'checkpoint-last.pth.tar', 'model_best.pth.tar'])
def test_the_counts_of_the_run(run, source, capsys):
    options = ['--checkpoint', run / source] if source != 'export' else ['--model', f'local-dir:{run / source}']
    assert printed_count(capsys, *options) == expected(run)
    assert printed_count(capsys, *options, '-b', '7', '--dataset', 'digits_lt') == expected(run)


def test_predictions_and_classes(run, tmp_path, capsys):
    correct, total = printed_count(
        capsys, '--model', f'local-dir:{run / "export"}', '--predictions', tmp_path / 'p.csv',
        '--per-class', tmp_path / 'c.csv')
    with open(tmp_path / 'p.csv') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == total and len({row['image'] for row in rows}) == total
    assert sum(row['target'] == row['predicted'] for row in rows) == correct
    assert all(0.1 <= float(row['confidence']) <= 1 for row in rows)
    model = timm.create_model(f'local-dir:{run / "export"}', pretrained=True).eval()
    from timm_longtail.data import create_dataset
    test_set = create_dataset('digits_lt', 'test')
    images = (test_set.images[:9].float() / 255 - test_set.mean[0]) / test_set.std[0]
    with torch.no_grad():
        first = model(images).argmax(1)
    assert [int(row['predicted']) for row in rows[:9]] == first.tolist()
    with open(tmp_path / 'c.csv') as f:
        classes = list(csv.DictReader(f))
    per_class = json.loads((run / 'metrics.json').read_text())['last']['class_correct']
    assert [int(row['correct']) for row in classes] == per_class
    assert [row['group'] for row in classes][::9] == ['many', 'few']


def test_several_models_in_one_table(run, tmp_path, capsys):
    """A checkpoint, the same run's export, and figures of both."""
    other = tmp_path / 'other'
    shutil.copytree(run / 'export', other / 'export')
    validate.main(['--model', f'local-dir:{run / "export"}', f'local-dir:{other / "export"}', '--figures',
                   str(tmp_path / 'figures')])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('|')[1].strip() for line in lines[2:4]] == ['run', 'other']
    assert lines[2].split('|')[2:] == lines[3].split('|')[2:]
    assert lines[4].removeprefix('run: ') == lines[5].removeprefix('other: ')
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == {'class_accuracy.png', 'confusion.png'}


def test_models_of_other_data_are_not_compared(run, tmp_path):
    shutil.copytree(run / 'export', tmp_path / 'export')
    config = json.loads((tmp_path / 'export' / 'config.json').read_text())
    config['timm_longtail']['shot_counts'][0] += 1
    (tmp_path / 'export' / 'config.json').write_text(json.dumps(config))
    seal(tmp_path / 'export')
    with pytest.raises(UserError, match='one test set'):
        validate.main(['--model', f'local-dir:{run / "export"}', f'local-dir:{tmp_path / "export"}'])


def test_a_timm_model_takes_its_groups_from_the_training_split(capsys, monkeypatch):
    """Stock timm with weights from a file: the groups are those of the data set that is named."""
    monkeypatch.setattr(
        candidates, 'create_timm_model', lambda name, pretrained: timm.create_model(name, num_classes=10))
    capsys.readouterr()
    validate.main(['--model', 'resnet20_cifar', '--pretrained', '--dataset', 'digits_lt'])
    table = capsys.readouterr().out.splitlines()
    assert 'n/a' not in table[2] and '355 images' in table[3]


@pytest.mark.parametrize('options, message', [
    ([], 'say what to evaluate'),
    (['--model', 'resnet18'], 'resnet18 has no weights: add --pretrained'),
    (['--model', 'resnet81', '--pretrained'], "unknown model 'resnet81'"),
    (['--model', 'local-dir:/nowhere'], '/nowhere is not an exported model: no config.json in it'),
    (['--model', 'hf-hub:no such name'], 'cannot load hf-hub:no such name'),
    (['--checkpoint', '/nowhere.pth.tar'], 'no checkpoint at /nowhere.pth.tar'),
    (['--model', 'local-dir:RUN/export', '--dataset', 'digit_lt'], "unknown data set 'digit_lt'"),
    (['--checkpoint', 'RUN/model_best.pth.tar', '--model', 'resnet32_cifar'], 'is of resnet20_cifar, not of'),
    (['--checkpoint', 'RUN/args.yaml'], 'is truncated or is not a checkpoint'),
    (['--model', 'local-dir:RUN/export', '-b', '0'], 'batch size must be at least 1'),
    (['--model', 'local-dir:RUN/export', '--predictions', '/nowhere/p.csv'], 'cannot write /nowhere/p.csv'),
    (['--checkpoint', 'RUN', 'RUN', '--predictions', 'RUN/p.csv'], 'RUN/p.csv is for one model'),
    (['--checkpoint', 'RUN', 'RUN'], 'a model is named twice'),
])
def test_bad_input(run, options, message):
    with pytest.raises(UserError, match='.*') as error:
        validate.main([option.replace('RUN', str(run)) for option in options])
    assert message.replace('RUN', str(run)) in str(error.value) and '\n' not in str(error.value)


def test_classes_of_other_names(run, tmp_path):
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {str(name): 1 for name in (*range(9), 'ten')})
    with pytest.raises(UserError, match="has other classes than the model: 'ten' where it has '9'"):
        validate.main(['--model', f'local-dir:{run / "export"}', '--dataset', 'folder', '--data-dir', str(tmp_path)])


def test_a_model_of_other_classes(run, tmp_path):
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'cat': 3, 'dog': 2, 'owl': 1})
    with pytest.raises(UserError, match='has 3 classes, the model 10'):
        validate.main(['--model', f'local-dir:{run / "export"}', '--dataset', 'folder', '--data-dir', str(tmp_path)])
