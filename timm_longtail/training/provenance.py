"""Where a result comes from: the code that made it, the command, the machine."""
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import accelerate
import psutil
import timm
import torch

from ..config.data_options import data_words
from ..utils.errors import UserError
from ..utils.program import COMMAND, MODULE
from ..utils.version import __version__

__all__ = [
    'code_state',
    'command_line',
    'environment',
    'is_dirty',
    'peak_memory',
    'relative_to_root',
    'require_clean_tree',
    'start_of',
    'tree_files',
    'tree_hash',
    'validate_command',
    'working_tree_hash',
]

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = ('train.py', 'retrain.py', 'validate.py', 'benchmark.py')


def tree_files(names: Iterable[str], recipe: str | None = None) -> list[str]:
    """Return the files that decide a result: those of the package, the entry points and the recipe.

    Args:
        names: Names of files, relative to the root.
        recipe: Name of the recipe, or None.
    """
    deciding = []
    for name in names:
        is_of_package = name.startswith('timm_longtail/') and name.endswith('.py')
        if is_of_package or name in ENTRY_POINTS or name == recipe:
            deciding.append(name)
    return sorted(deciding)


def tree_hash(contents: dict[str, bytes]) -> str:
    """Return the sha256 over sorted paths and bytes of the files that `tree_files` names.

    Args:
        contents: Bytes of each file by its name.
    """
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f'{name}\0{len(contents[name])}\0'.encode())
        digest.update(contents[name])
    return digest.hexdigest()


def working_tree_hash(recipe: str | None = None, root: Path = ROOT) -> str:
    """Return the tree hash of the files as they lie on disk; needs no git.

    Args:
        recipe: Path of the recipe, relative to the root or absolute; None without one.
        root: Root of the project.
    """
    names = [str(path.relative_to(root)) for path in root.glob('timm_longtail/**/*.py')]
    names += [name for name in (*ENTRY_POINTS, recipe) if name and (root / name).is_file()]

    contents = {name: (root / name).read_bytes() for name in tree_files(names, recipe)}
    return tree_hash(contents)


def is_dirty(recipe: str | None = None, root: Path = ROOT) -> bool | None:
    """Whether a file that decides a result differs from the last commit.

    None where there is no git to ask.
    """
    if recipe and Path(recipe).is_absolute():
        return True  # outside the project: no commit has it

    names = ['timm_longtail', *ENTRY_POINTS]
    if recipe:
        names.append(recipe)
    try:
        top = _git(root, 'rev-parse', '--show-toplevel').strip()
        if Path(top).resolve() != Path(root).resolve():
            return None  # installed in a folder of another project

        status = _git(
            root, 'status', '--porcelain', '--untracked-files=all', '--ignored', '--no-renames', '--', *names)
    except (OSError, subprocess.CalledProcessError):
        return None
    return bool(tree_files([line[3:] for line in status.splitlines()], recipe))


def _git(root: Path, *arguments: str) -> str:
    command = ['git', '-C', str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def code_state(recipe: str | None = None) -> dict[str, Any]:
    """Return the recipe, the tree hash and whether the code differs from the last commit.

    Args:
        recipe: Path of the recipe as `relative_to_root` gives it, or None.
    """
    return {
        'recipe': recipe,
        'tree_hash': working_tree_hash(recipe),
        'dirty': is_dirty(recipe),
    }


def require_clean_tree(recipe: str | None = None):
    """Raise a `UserError` where a row of results could not be traced to a commit.

    Args:
        recipe: Path of the recipe as `relative_to_root` gives it, or None.
    """
    if is_dirty(recipe):
        raise UserError('--results: the code differs from the last commit; commit it, so that others can run the row')


def command_line(num_processes: int) -> str:
    """Return the command of this process as it can be typed again.

    The data folder becomes $TIMM_LONGTAIL_DATA.
    """
    program = _launcher(num_processes) if num_processes > 1 else _program()
    line = shlex.join([*program, *sys.argv[1:]])

    folder = os.environ.get('TIMM_LONGTAIL_DATA')
    if folder:
        line = line.replace(folder, '$TIMM_LONGTAIL_DATA')
    return line


def start_of(command: str) -> str:
    """Return what starts another command in the way that this process was started.

    Args:
        command: Name of the command, such as `validate`.
    """
    if _is_command():
        *before, _ = _program()
        return shlex.join([*before, command])
    if f'{command}.py' in ENTRY_POINTS:
        return f'python {command}.py'
    return f'{MODULE} {command}'


def validate_command(
        export: Path,
        dataset: str,
        options: dict[str, Any],
        tta: str | None = None,
) -> str:
    """Return the command that evaluates an export on the data of this process.

    Args:
        export: Folder of the export.
        dataset: Name of the data set.
        options: From `dataset_options`.
        tta: Ensemble of views that the figures beside the command are of; None is one view.
    """
    words = ['--model', f'local-dir:{export}', *data_words(dataset, options)]
    if tta is not None:
        words += ['--tta', tta]
    return f'{start_of("validate")} {shlex.join(words)}'


def _is_command() -> bool:
    """Whether this process is a command of the package, and no script.

    `__main__` writes the name of the command to `sys.argv`.
    """
    return sys.argv[0].startswith((f'{COMMAND} ', f'{MODULE} '))


def _program() -> list[str]:
    """Return what stands before the options of this process where it is the only one."""
    if _is_command():
        return sys.argv[0].split()
    return ['python', Path(sys.argv[0]).name]


def _launcher(num_processes: int) -> list[str]:
    """Return what stands before the options of this process where it is one of several."""
    hosts = int(os.environ.get('GROUP_WORLD_SIZE', 1))
    on_host = str(num_processes // hosts)

    if _is_command():
        place = ['--nnodes', str(hosts)] if hosts > 1 else ['--standalone']
        return ['torchrun', *place, '--nproc-per-node', on_host, '-m', 'timm_longtail', _program()[-1]]

    script = ['./distributed_train.sh', on_host]
    return [f'NNODES={hosts}', *script] if hosts > 1 else script


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware of this process.

    Args:
        device: Device of the run.
    """
    if device.type == 'cuda':
        device_name = torch.cuda.get_device_name(device)
    else:
        device_name = platform.processor() or platform.machine()

    return {
        'device': device_name,
        'device_type': device.type,
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'accelerate': accelerate.__version__,
        'timm_longtail': __version__,
    }


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the largest memory of this process, on the host and on the device, in GB (1e9 bytes).

    Args:
        device: Device of the run.
    """
    memory = {'peak_rss_gb': _peak_rss() / 1e9}
    if device.type == 'cuda':
        memory['peak_device_gb'] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory


def _peak_rss() -> int:
    """Return the largest resident memory of this process, in bytes."""
    # on Linux not ru_maxrss: it starts with what the process held that started this one
    try:
        found = re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())
    except OSError:  # no Linux
        found = None
    if found:
        return 1024 * int(found[1])

    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def relative_to_root(path: Path | None) -> str | None:
    """Return a recipe's path as it is written to results.

    It is relative to the project where it lies inside.

    Args:
        path: Path of the recipe, or None.
    """
    if path is None:
        return None

    path = Path(path).resolve()
    if path.is_relative_to(ROOT):
        path = path.relative_to(ROOT)
    return str(path)
