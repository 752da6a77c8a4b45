"""`timm-longtail`, `python -m timm_longtail`: scripts run as they would alone, with our models; commands; recipes."""
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from timm_longtail.__main__ import main, usage
from timm_longtail.cli import COMMANDS, recipes
from timm_longtail.config.recipe import find_recipe, list_recipes, read_header
from timm_longtail.training.provenance import command_line
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.version import __version__

from ..support import forks

ROOT = Path(__file__).parents[2]

# reads a folder and validates in timm's own way, as its validate.py does
_SCRIPT = '''
import json, sys
import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from beside import NAME

def validate(name, folder):
    model = timm.create_model(name, num_classes=3).eval()
    config = resolve_data_config({}, model=model)
    loader = create_loader(
        create_dataset('', folder, split='validation'), config['input_size'], 2, num_workers=1, use_prefetcher=False,
        mean=config['mean'], std=config['std'], interpolation=config['interpolation'], crop_pct=config['crop_pct'])
    with torch.inference_mode():
        return [list(model(images).shape) for images, _ in loader]

if __name__ == '__main__':
    known = timm.is_model('resnet20_cifar')
    shapes = validate('resnet20_cifar', sys.argv[1]) if known else None
    print(json.dumps({
        'argv': sys.argv, 'path': sys.path[0], 'main': sys.modules['__main__'].NAME, 'known': known, 'shapes': shapes,
        'accelerate': 'accelerate' in sys.modules}))
    sys.exit(7)
'''


@pytest.mark.script
def test_a_script_runs_as_it_would_alone_but_with_our_models(tmp_path):
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'validate.py').write_text(_SCRIPT)
    (folder / 'beside.py').write_text('NAME = "imported from beside the script"')
    for i, label in enumerate('abc'):
        image = tmp_path / 'images' / 'validation' / label / 'image.png'
        image.parent.mkdir(parents=True)
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(image)
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    seen = []
    command = ['scripts/validate.py', 'images', '--model', 'x']
    for done in (forks.run(*command, cwd=tmp_path, env=env, server=forks.stock()), subprocess.run(
            [sys.executable, '-m', 'timm_longtail', *command], cwd=tmp_path, env=env, capture_output=True, text=True)):
        assert done.returncode == 7, done.stderr
        seen.append(json.loads(done.stdout))
    alone, ours = seen
    assert (alone.pop('known'), alone.pop('shapes')) == (False, None)
    assert (ours.pop('known'), ours.pop('shapes')) == (True, [[2, 3], [1, 3]])
    assert ours == alone and ours['argv'] == ['scripts/validate.py', 'images', '--model', 'x']


def run(capsys, monkeypatch, *argv, started='/env/bin/timm-longtail'):
    """Return status, stdout and stderr of the entry point."""
    monkeypatch.setattr(sys, 'argv', [started, *argv])
    try:
        main()
        status = 0
    except SystemExit as e:
        status = e.code
    return status, *capsys.readouterr()


def test_usage_has_a_line_for_each_command(capsys, monkeypatch):
    text = usage()

    assert run(capsys, monkeypatch) == (2, '', text + '\n')
    for option in ('-h', '--help'):
        assert run(capsys, monkeypatch, option) == (0, text + '\n', '')
    lines = [line.split(None, 1) for line in text.splitlines() if line.startswith('  ')]
    assert lines == [[name, command.help] for name, command in COMMANDS.items()]


def test_version(capsys, monkeypatch):
    assert run(capsys, monkeypatch, '--version') == (0, f'timm-longtail {__version__}\n', '')


@pytest.mark.parametrize('word, hint', [
    ('pakc', 'did you mean pack'), ('trian', 'did you mean train'), ('trian.py', 'did you mean train.py'),
    ('nothing-like-it', 'known: benchmark, benchmark.py, compare, '),
])
def test_an_unknown_word_is_one_line_with_near_names(word, hint, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, err = run(capsys, monkeypatch, word, '--option')

    assert (status, out, err.count('\n')) == (2, '', 1)
    assert err.startswith(f"timm-longtail: error: unknown command or script '{word}'; {hint}")


@pytest.mark.parametrize('started, program', [
    ('/env/bin/timm-longtail', 'timm-longtail'), ('/at/timm_longtail/__main__.py', 'python -m timm_longtail'),
])
@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_gets_its_arguments_and_its_errors_are_one_line(
        name, started, program, capsys, monkeypatch, tmp_path):
    module, seen = ModuleType(name), []

    def command(argv):
        seen.append((argv, list(sys.argv), command_line(1)))
        raise UserError('no such thing')

    module.main = command
    monkeypatch.setitem(sys.modules, COMMANDS[name].module, module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('raise SystemExit(5)')  # a file of that name does not hide the command

    status, out, err = run(capsys, monkeypatch, name, 'a', '-b', started=started)
    # one name in errors, and in commands the way in which this one was started
    assert (status, out, err) == (2, '', f'timm-longtail {name}: error: no such thing\n')
    assert seen == [(['a', '-b'], [f'{program} {name}', 'a', '-b'], f'{program} {name} a -b')]


@pytest.mark.parametrize('started', ['/env/bin/timm-longtail', '/at/timm_longtail/__main__.py'])
@pytest.mark.parametrize('name', COMMANDS)
def test_each_command_has_help(name, started, capsys, monkeypatch):
    status, out, _ = run(capsys, monkeypatch, name, '--help', started=started)

    assert status == 0 and out.startswith(f'usage: timm-longtail {name}')


# --- recipes ---------------------------------------------------------------------------------------------------------

DIGITS = 'bcl_resnet20.digits_lt_if20'


def test_recipes_are_listed_with_their_expected_figures(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '120')
    recipes.main([])

    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.strip() and line == line.lstrip()][:-1] == list_recipes()
    assert lines[lines.index('resnet20_cifar.cifar100_lt_if100') + 3].startswith('    expected: 41.14')


def test_commands_in_the_list_of_recipes_are_whole_lines(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '60')
    recipes.main([])

    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for name in list_recipes():
        assert read_header(find_recipe(name))['command'] in lines
    retrain = [line for line in lines if line.startswith('timm-longtail retrain ')]
    assert retrain and all(line.endswith(' --choose-lr-on-test') for line in retrain)


@pytest.mark.parametrize('argv', [['show', DIGITS], ['show', f'{DIGITS}.yaml'], [DIGITS]])
def test_a_recipe_is_printed_as_it_is_written(argv, capsys):
    recipes.main(argv)

    assert capsys.readouterr().out == find_recipe(DIGITS).read_text()


@pytest.mark.parametrize('argv, words', [
    (['show'], 'recipes show needs the name of a recipe'),
    (['list', DIGITS], f'recipes show {DIGITS} prints one'),
    (['show', 'bcl_resnet20.digits'], f'did you mean {DIGITS}'),
    (['show', 'nowhere.yaml'], 'no recipe at nowhere.yaml'),
    (['bcl_resnet20.digits'], f'did you mean {DIGITS}'),
    ([DIGITS, 'more'], f'recipes takes one name, got {DIGITS} and more'),
])
def test_what_recipes_refuses_is_one_line(argv, words):
    with pytest.raises(UserError) as error:
        recipes.main(argv)

    assert words in str(error.value) and '\n' not in str(error.value)
