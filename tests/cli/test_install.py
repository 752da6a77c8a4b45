"""The package as pip installs it: what its wheel holds, and a run from an empty folder."""
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from timm_longtail.config.recipe import list_recipes
from timm_longtail.utils.version import __version__

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.script


def done(*command, **options) -> subprocess.CompletedProcess:
    """Run a command to its end, which must be a good one."""
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the project: a build leaves folders beside its sources."""
    source = tmp_path_factory.mktemp('source')
    ignored = shutil.ignore_patterns('__pycache__', '*.egg-info')
    for name in ('timm_longtail', 'tests', 'tools', 'benchmarks', 'recipes'):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE', 'NOTICE', 'train.py', 'validate.py'):
        shutil.copy(ROOT / name, source)

    folder = tmp_path_factory.mktemp('wheel')
    options = '--no-deps', '--no-build-isolation', '--no-index', '--quiet', '--disable-pip-version-check'
    done(sys.executable, '-m', 'pip', 'wheel', *options, '--wheel-dir', folder, source)
    path, = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def environment(wheel, tmp_path_factory) -> Path:
    """A virtual environment with the wheel, which finds all other packages where this process finds them."""
    folder = tmp_path_factory.mktemp('environment')
    done(sys.executable, '-m', 'venv', '--without-pip', folder)

    paths = {'base': str(folder), 'platbase': str(folder)}
    packages = Path(sysconfig.get_path('purelib', 'venv', paths))
    # what is installed there comes first, so the project itself is the wheel's
    (packages / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    options = '--no-deps', '--no-index', '--quiet', '--disable-pip-version-check'
    done(sys.executable, '-m', 'pip', '--python', folder / 'bin' / 'python', 'install', *options, '--force-reinstall',
         wheel)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()

    tops = {name.partition('/')[0] for name in names}
    assert tops == {'timm_longtail', f'timm_longtail-{__version__}.dist-info'}
    assert {'timm_longtail/py.typed', 'timm_longtail/__main__.py', 'timm_longtail/cli/train.py'} <= set(names)
    packed = {name for name in names if name.startswith('timm_longtail/config/recipes/')}
    assert packed == {f'timm_longtail/config/recipes/{name}.yaml' for name in list_recipes()}
    licenses = {Path(name).name for name in names if '.dist-info/licenses/' in name}
    assert licenses == {'LICENSE', 'NOTICE'}


def test_an_installed_command_trains_from_an_empty_folder(environment, tmp_path):
    command = environment / 'bin' / 'timm-longtail'
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'CUDA_VISIBLE_DEVICES': ''}
    env.pop('PYTHONPATH', None)
    find = 'import importlib.util; print(importlib.util.find_spec("timm_longtail").origin)'
    found = done(environment / 'bin' / 'python', '-c', find, cwd=tmp_path, env=env).stdout
    assert found.startswith(str(environment)), 'the project itself is found, and not the wheel'

    small = '--img-size', '16', '--model-kwargs', 'layers=(1,1,1)', 'channels=(8,16,32)'
    options = '-c', 'bcl_resnet20.digits_lt_if20', '--epochs', '1', *small
    printed = done(command, 'train', *options, cwd=tmp_path, env=env).stdout

    assert printed.startswith('recipe: timm_longtail/config/recipes/bcl_resnet20.digits_lt_if20.yaml')
    run, = (tmp_path / 'output').iterdir()
    hint = f'timm-longtail validate --model local-dir:output/{run.name}/export --dataset digits_lt'
    assert any(line.strip().startswith(hint) for line in printed.splitlines())
    assert (run / 'report.html').is_file()
    assert (run / 'export' / 'model.safetensors').is_file()
    command = json.loads((run / 'metrics.json').read_text())['command']
    assert command == shlex.join(['timm-longtail', 'train', *options])
