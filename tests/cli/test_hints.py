"""The command that train, retrain and compare end with runs as it stands, and finds the same figures."""
import json
import re
import shlex
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from timm_longtail.cli import compare, retrain, train, validate

from ..support.data_sets import write_classes
from ..support.runs import LINEAR, SMALL

MODEL = ['--model', 'resnet20_cifar', *LINEAR]
TEST = 3


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> list[str]:
    """Options that name a folder of images; its name has a space, as such folders have, and a split of its own."""
    folder = tmp_path_factory.mktemp('hints') / 'my photos'
    write_classes(folder / 'train', {'ant': 9, 'bee': 6, 'cow': 4})
    write_classes(folder / 'shown', dict.fromkeys(('ant', 'bee', 'cow'), TEST))
    return ['--dataset', 'folder', '--data-dir', str(folder), '--test-split', 'shown']


def run(main, *options: object):
    AcceleratorState._reset_state(reset_partial_state=False)
    main([str(option) for option in options])


@pytest.fixture(scope='module')
def trained(photos, tmp_path_factory) -> Path:
    """Output folder of a short run, which the other commands start from."""
    output = tmp_path_factory.mktemp('runs')
    run(train.main, *MODEL, *SMALL, *photos, '--method', 'ce', '--epochs', 1, '-b', 8, '-j', 0, '--no-recipe',
        '--output', output, '--experiment', 'run')
    return output / 'run'


def found_again(printed: str, capsys) -> str:
    """Run the last hint in this process; returns how many images it says are correct."""
    hint = [line for line in map(str.strip, printed.splitlines()) if line.startswith('python validate.py ')][-1]
    capsys.readouterr()
    validate.main([*shlex.split(hint)[2:], '-j', '0'])
    return re.search('([0-9]+ of [0-9]+) images correct', capsys.readouterr().out)[1]


def counted(figures: dict) -> str:
    return f'{sum(figures["class_correct"])} of {3 * TEST}'


def test_train(photos, tmp_path, capsys):
    run(train.main, *MODEL, *SMALL, *photos, '--method', 'ce', '--epochs', 1, '-b', 8, '-j', 0, '--no-recipe',
        '--output', tmp_path, '--experiment', 'run')

    figures = json.loads((tmp_path / 'run' / 'metrics.json').read_text())['last']
    assert found_again(capsys.readouterr().out, capsys) == counted(figures)


@pytest.mark.parametrize('named', [True, False], ids=['data named', 'data of the run'])
def test_retrain(named, photos, trained, tmp_path, capsys):
    data = photos if named else []
    run(retrain.main, trained, *data, '--classifier', 'ncm', '-j', 0, '--output', tmp_path, '--experiment', 'new')

    figures = json.loads((tmp_path / 'new' / 'metrics.json').read_text())['classifiers']['ncm_l2']
    assert found_again(capsys.readouterr().out, capsys) == counted(figures)


@pytest.mark.parametrize('named', [True, False], ids=['data named', 'data of the run'])
def test_compare(named, photos, trained, tmp_path, capsys):
    data = photos if named else []
    run(compare.main, trained, *data, '--classifiers', 'ncm_l2', '-j', 0, '--output', tmp_path)

    row, = json.loads((tmp_path / 'compare.json').read_text())['rows']
    assert found_again(capsys.readouterr().out, capsys) == counted(row['test_figures'])
