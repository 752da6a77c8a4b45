"""The command `timm-longtail`, also as `python -m timm_longtail`; it runs scripts that use timm, too.

    timm-longtail train --model bcl_resnet32 --dataset cifar100_lt
    torchrun --nproc-per-node 4 -m timm_longtail train --model bcl_resnet32 --dataset cifar100_lt
    timm-longtail validate --help
    python -m timm_longtail path/to/timm/validate.py --model bcl_resnet32 --checkpoint FILE --data-dir FOLDER
"""
import importlib
import runpy
import sys
from functools import partial
from pathlib import Path

from .cli import COMMANDS
from .utils.program import COMMAND, MODULE
from .utils.version import __version__


def usage() -> str:
    """Return the help: one line for each command, one for scripts."""
    lines = [f'usage: {COMMAND} COMMAND [ARG ...]', '', 'commands, each with --help:']
    lines += [f'  {name:<12}{command.help}' for name, command in COMMANDS.items()]
    lines += ['', f'or {COMMAND} SCRIPT [ARG ...]: run a Python script, such as timm\'s train.py, with our models']
    return '\n'.join(lines)


def _program() -> str:
    """Return what this process was started as, so that commands it prints can be typed in the same way."""
    is_module = Path(sys.argv[0]).name == '__main__.py'
    return MODULE if is_module else COMMAND


def _run_script(path: str, argv: list[str]):
    # what `python SCRIPT` does; importing the package, on the way here, has registered the models
    sys.argv = [path, *argv]
    sys.path[0] = str(Path(path).resolve().parent)
    runpy.run_path(path, run_name='__main__')


def _run_command(program: str, name: str, argv: list[str]):
    from .utils.errors import unknown_name

    if name not in COMMANDS:
        scripts = map(str, Path(name).parent.glob('*.py'))
        raise unknown_name('command or script', name, [*COMMANDS, *scripts])

    sys.argv = [f'{program} {name}', *argv]  # the command of a row of results begins with it
    importlib.import_module(COMMANDS[name].module).main(argv)


def main(argv: list[str] | None = None):
    """Run a command or a script.

    Args:
        argv: Its name and its arguments; None takes the command line.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv:
        print(usage(), file=sys.stderr)
        sys.exit(2)

    name, *rest = argv
    if name in ('-h', '--help'):
        print(usage())
    elif name == '--version':
        print(f'{COMMAND} {__version__}')
    elif name not in COMMANDS and Path(name).is_file():
        _run_script(name, rest)
    else:
        from .cli.entry import run_main  # not at the top: it imports accelerate, which a script may not want

        program = _program()
        sys.argv[0] = program
        run_main(partial(_run_command, program, name, rest))


if __name__ == '__main__':
    main()
