"""`python -m timm_longtail`: run a script that uses timm, such as timm's own, with our models registered; or a command.

    python -m timm_longtail path/to/timm/validate.py --model bcl_resnet32 --checkpoint FILE --data-dir FOLDER
    torchrun --nproc_per_node 4 -m timm_longtail path/to/timm/train.py --model bcl_resnet50 --data-dir FOLDER
    python -m timm_longtail pack --help
"""
import importlib
import runpy
import sys
from functools import partial
from pathlib import Path

COMMANDS = {
    'flags': 'show which images look alike in every rotation',
    'pack': 'write a data set as one file',
    'push': 'send an exported folder to the Hub',
}
MODULES = {
    'flags': 'timm_longtail.cli.flags',
    'pack': 'timm_longtail.cli.pack',
    'push': 'timm_longtail.export.hub',
}
_PROGRAM = 'python -m timm_longtail'


def usage() -> str:
    """Return the help: one line for scripts, one for each command."""
    rows = [('SCRIPT', 'run a Python script, such as timm\'s train.py, with our models'), *COMMANDS.items()]
    lines = [f'{_PROGRAM} {name} [ARG ...]'.ljust(45) + words for name, words in rows]
    return 'usage: ' + '\n       '.join(lines)


def _run_script(path: str, argv: list[str]):
    # what `python SCRIPT` does; importing the package, on the way here, has registered the models
    sys.argv = [path, *argv]
    sys.path[0] = str(Path(path).resolve().parent)
    runpy.run_path(path, run_name='__main__')


def _run_command(name: str, argv: list[str]):
    from .utils.errors import unknown_name
    if name not in COMMANDS:
        scripts = map(str, Path(name).parent.glob('*.py'))
        raise unknown_name('command or script', name, [*COMMANDS, *scripts])
    sys.argv = [f'{_PROGRAM} {name}', *argv]  # usage and errors begin with it
    importlib.import_module(MODULES[name]).main(argv)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(usage(), file=sys.stderr)
        sys.exit(2)
    name, *rest = argv
    if name in ('-h', '--help'):
        print(usage())
    elif name not in COMMANDS and Path(name).is_file():
        _run_script(name, rest)
    else:
        from .cli.entry import run_main  # not at the top: it imports accelerate, which a script may not want
        sys.argv[0] = _PROGRAM
        run_main(partial(_run_command, name, rest))


if __name__ == '__main__':
    main()
