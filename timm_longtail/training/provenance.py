"""Where a result comes from: the code that made it, the command, the machine; and the row that keeps it."""
import hashlib
import os
import platform
import re
import shlex
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import accelerate
import psutil
import timm
import torch

from ..data.titles import file_title
from ..utils.errors import UserError
from ..utils.files import read_json
from ..utils.version import __version__

__all__ = [
    'RETRAINED_COLUMNS',
    'code_state',
    'command_line',
    'cut_folders',
    'data_tag',
    'environment',
    'experiment_of',
    'is_dirty',
    'peak_memory',
    'read_row',
    'relative_to_root',
    'require_clean_tree',
    'require_new_row',
    'results_path',
    'start_of',
    'tree_files',
    'tree_hash',
    'variant_of',
    'without_folders',
    'working_tree_hash',
]

ROOT = Path(__file__).parents[2]
ENTRY_POINTS = ('train.py', 'retrain.py', 'validate.py', 'benchmark.py')

# what the rows of all versions have: those of training, and those of classifiers that were retrained
ROW_COLUMNS = ('tag', 'model', 'method', 'method_kwargs', 'dataset', 'imbalance_factor', 'recipe', 'epochs', 'seed',
               'command', 'last', 'best')
RETRAINED_COLUMNS = ('tag', 'model', 'command', 'stage_1', 'classifiers', 'features')


def tree_files(names, recipe: str | None = None) -> list[str]:
    """Return, of file names relative to the root, those that decide a result: package, entry points, recipe."""
    return sorted(
        name for name in names
        if (name.startswith('timm_longtail/') and name.endswith('.py')) or name in ENTRY_POINTS or name == recipe
    )


def tree_hash(contents: dict[str, bytes]) -> str:
    """Return the sha256 over sorted paths and bytes of the files that `tree_files` names."""
    digest = hashlib.sha256()
    for name in sorted(contents):
        digest.update(f'{name}\0{len(contents[name])}\0'.encode())
        digest.update(contents[name])
    return digest.hexdigest()


def working_tree_hash(recipe: str | None = None, root: Path = ROOT) -> str:
    """Return the tree hash of the files as they lie on disk; needs no git."""
    names = [str(p.relative_to(root)) for p in root.glob('timm_longtail/**/*.py')]
    names += [name for name in (*ENTRY_POINTS, recipe) if name and (root / name).is_file()]
    return tree_hash({name: (root / name).read_bytes() for name in tree_files(names, recipe)})


def is_dirty(recipe: str | None = None, root: Path = ROOT) -> bool | None:
    """Whether a file that decides a result differs from the last commit; None where there is no git to ask."""
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
    """Return what the code of this process is: `recipe`, `tree_hash` and whether it differs from the last commit."""
    return {'recipe': recipe, 'tree_hash': working_tree_hash(recipe), 'dirty': is_dirty(recipe)}


def require_clean_tree(recipe: str | None = None):
    """Raise a `UserError` where a row of results could not be traced to a commit."""
    if is_dirty(recipe):
        raise UserError('--results: the code differs from the last commit; commit it, so that others can run the row')


def command_line(num_processes: int) -> str:
    """Return the command of this process as it can be typed again; the data folder becomes $TIMM_LONGTAIL_DATA."""
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
    return f'python {command}.py'


def _is_command() -> bool:
    """Whether this process is a command of the package, and no script; `__main__` writes its name to `sys.argv`."""
    return sys.argv[0].startswith(('timm-longtail ', 'python -m timm_longtail '))


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


# an absolute path in a text: what stands before it, and its names; those of a URL are none
_NAMES = r'/(?!/)(?P<names>(?:[^/{stop}]+/)*[^/{stop}]*)'
_BEFORE = r'(?P<before>^|[=:,;\'"(\[{{]|\bhfds/|file://{more})'
_PATH_IN_WORD = re.compile((_BEFORE + _NAMES).format(stop=r'\'",;:()\[\]{}', more=''))
_PATH_IN_TEXT = re.compile((_BEFORE + _NAMES).format(stop=r'\s\'",;:()\[\]{}', more=r'|\s'))


def cut_folders(text: str, pattern: re.Pattern = _PATH_IN_TEXT) -> str:
    """Return a text in which absolute paths are cut to their last name; an export keeps its run's name.

    What is published says neither how the folders of this machine are called nor who has an account on it.

    Args:
        text: A path, or any text.
        pattern: What a path is in it.
    """
    def cut(match: re.Match) -> str:
        names = [name for name in match['names'].split('/') if name]
        if not names:
            return match[0]

        shown = names[-1]
        if _is_home(names):
            shown = '~'
        elif shown == 'export' and len(names) > 1 and not _is_home(names[:-1]):
            shown = f'{names[-2]}/export'
        return match['before'].removesuffix('file://') + shown

    # a path alone may hold spaces
    return (_PATH_IN_WORD if text.startswith('/') else pattern).sub(cut, text)


def _is_home(names: list[str]) -> bool:
    """Return whether an absolute path, by its names, is the home of somebody: its last name is that of an account."""
    if names == ['root'] or (len(names) == 2 and names[0] in ('home', 'Users')):
        return True
    return Path('/', *names) == Path.home()


def without_folders(command: str) -> str:
    """Return a command line in which absolute paths are cut to their last name; an export keeps its run's name."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command line of a shell
        return cut_folders(command)
    words = [cut_folders(word, _PATH_IN_WORD) for word in words]
    return ' '.join(word if word.startswith('$') else shlex.quote(word) for word in words)


def environment(device: torch.device) -> dict[str, Any]:
    """Return the versions and the hardware of this process."""
    on_gpu = device.type == 'cuda'
    return {
        'device': torch.cuda.get_device_name(device) if on_gpu else (platform.processor() or platform.machine()),
        'device_type': device.type,
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
        'timm': timm.__version__,
        'accelerate': accelerate.__version__,
        'timm_longtail': __version__,
    }


def peak_memory(device: torch.device) -> dict[str, float]:
    """Return the largest memory of this process, on the host and on the device, in GB (1e9 bytes)."""
    memory = {'peak_rss_gb': _peak_rss() / 1e9}
    if device.type == 'cuda':
        memory['peak_device_gb'] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory


def _peak_rss() -> int:
    # of Linux not ru_maxrss: it starts with what the process held that started this one
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
    """Return a recipe's path as it is written to results: relative to the project where it lies inside."""
    if path is None:
        return None
    path = Path(path).resolve()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def data_tag(train_set) -> str:
    """Return the name of a data set in file names: `cifar100_lt_if100`, or without a factor where nothing was cut."""
    profile = '' if train_set.profile == 'exp' else f'_{train_set.profile}'
    name = file_title(train_set.name)
    return name if train_set.imbalance_factor == 1 else f'{name}{profile}_if{train_set.imbalance_factor:g}'


def results_path(args: Namespace, train_set) -> Path:
    """Return the file of a run's row of results.

    A variant of a method, by its options or its sampler, is told apart by `--experiment`, or by its recipe's name.

    Raises:
        UserError: It is there already: a row is measured once; or it could not be written.
    """
    names = [data_tag(train_set), args.model.rpartition('/')[2], args.method, experiment_of(args)]
    path = Path(args.results) / f'{".".join(filter(None, names))}.e{args.epochs}.s{args.seed}.json'
    require_new_row(path)
    return path


def require_new_row(path: Path):
    """Refuse the file of a row that is there already, or could not be written once the run is over.

    Its folder is made; on the main process alone, since others may be on hosts that do not have it.

    Args:
        path: File to be written.

    Raises:
        UserError: Says why.
    """
    try:
        is_there = path.exists()
        if not is_there and int(os.environ.get('RANK', 0)) == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            # as long a name as `write_text` takes
            trial = path.with_name(f'{path.name}.tmp')
            trial.touch()
            trial.unlink()
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UserError(f'--results: cannot write {path}: {getattr(e, "strerror", None) or e}') from e

    if is_there:
        raise UserError(f'--results: {path} is there already; name a variant by --experiment, or move the file away')


def read_row(path: Path, columns: tuple[str, ...] = ROW_COLUMNS) -> dict[str, Any]:
    """Read a row of results.

    Args:
        path: JSON file.
        columns: What it must hold.

    Raises:
        UserError: The file is missing, damaged, or something else.
    """
    row = read_json(path, 'row of results')
    for column in columns:
        if column not in row:
            raise UserError(f'{path} is not a row of results: it has no {column}')
    return row


def experiment_of(args: Namespace) -> str | None:
    """Return what tells a variant apart: what was typed, or what its recipe's name has behind the method."""
    return args.experiment or (variant_of(Path(args.recipe)) if args.recipe else None)


def variant_of(recipe: Path) -> str | None:
    """Return `sqrt` of `resnet32_cifar.ce-sqrt.cifar100_lt_if100.yaml`; None of a recipe that is no variant."""
    found = re.search(r'\.\w+-(\w+)\.', recipe.name)
    return found and found[1]
