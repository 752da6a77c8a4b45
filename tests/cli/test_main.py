"""`python -m timm_longtail`: a script runs as it would alone, but with our models; commands; wrong words."""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from timm_longtail.__main__ import COMMANDS, main, usage
from timm_longtail.training.provenance import command_line
from timm_longtail.utils.errors import UserError

from ..support import forks

ROOT = Path(__file__).parents[2]
PROGRAM = 'python -m timm_longtail'

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


def run(capsys, monkeypatch, *argv):
    """Return status, stdout and stderr of the entry point."""
    monkeypatch.setattr(sys, 'argv', ['__main__.py', *argv])
    try:
        main()
        status = 0
    except SystemExit as e:
        status = e.code
    return status, *capsys.readouterr()


def test_usage_has_a_line_for_scripts_and_for_each_command(capsys, monkeypatch):
    assert run(capsys, monkeypatch) == (2, '', usage() + '\n')
    for option in ('-h', '--help'):
        assert run(capsys, monkeypatch, option) == (0, usage() + '\n', '')
    lines = usage().splitlines()
    assert len(lines) == 1 + len(COMMANDS) and max(map(len, lines)) <= 120
    for line, name in zip(lines, ('SCRIPT', *COMMANDS)):
        assert f'{PROGRAM} {name} [ARG' in line


@pytest.mark.parametrize('word, hint', [
    ('pakc', 'did you mean pack?'), ('trian.py', 'did you mean train.py'),
    ('tests', 'known: benchmark.py, flags, pack, push, '), ('nowhere/train.py', 'known: flags, pack, push\n'),
])
def test_an_unknown_word_is_one_line_with_near_names(word, hint, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, err = run(capsys, monkeypatch, word, '--option')
    assert (status, out, err.count('\n')) == (2, '', 1)
    assert err.startswith(f"{PROGRAM}: error: unknown command or script '{word}'; {hint}")


@pytest.mark.parametrize('name', COMMANDS)
def test_a_command_gets_its_arguments_and_its_errors_are_one_line(name, capsys, monkeypatch, tmp_path):
    module, seen = ModuleType(name), []

    def command(argv):
        seen.append((argv, list(sys.argv), command_line(1)))
        raise UserError('no such thing')

    module.main = command
    monkeypatch.setitem(sys.modules, f'timm_longtail.{name}', module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text('raise SystemExit(5)')  # a file of that name does not hide the command
    assert run(capsys, monkeypatch, name, 'a', '-b') == (2, '', f'{PROGRAM} {name}: error: no such thing\n')
    assert seen == [(['a', '-b'], [f'{PROGRAM} {name}', 'a', '-b'], f'{PROGRAM} {name} a -b')]


@pytest.mark.parametrize('name', COMMANDS)
def test_each_command_has_help(name, capsys, monkeypatch):
    if importlib.util.find_spec(f'timm_longtail.{name}') is None:
        pytest.skip(f'timm_longtail/{name}.py is not there yet')
    status, out, _ = run(capsys, monkeypatch, name, '--help')
    assert status == 0 and out.startswith(f'usage: {PROGRAM} {name}')
