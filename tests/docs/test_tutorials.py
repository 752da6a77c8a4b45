"""What the pages of documentation show works: their tested blocks run, and all their commands parse."""
import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import timm
from accelerate.state import AcceleratorState
from safetensors.torch import save_file

from timm_longtail.cli import COMMANDS, compare, validate
from timm_longtail.config.train_options import parse_train_args

from ..support import forks
from ..support.data_sets import write_classes

ROOT = Path(__file__).parents[2]
SMALLER = ['--model-kwargs', 'layers=(1,1,1)', 'channels=(8,16,32)']
PAGES = (ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')))
BLOCK = re.compile(r'(<!-- tested -->\n)?```(bash|python)\n(.*?)```', re.DOTALL)

# how a command is started: as installed, as a module of several processes, as a script of a clone
STARTS = re.compile(r'.*?(?:\btimm-longtail |-m timm_longtail |\bpython (?=\w+\.py )|distributed_train\.sh \d+ )')


def blocks(page: Path, tested: bool = False) -> list[tuple[str, str]]:
    """Return the language and the text of each block of code on a page.

    Args:
        page: Markdown file.
        tested: Whether to take only those marked `<!-- tested -->`.
    """
    found = BLOCK.findall(page.read_text(encoding='utf-8'))
    return [(language, text) for mark, language, text in found if mark or not tested]


def command_lines(text: str) -> list[str]:
    """Return the lines of a block of bash, continued ones joined."""
    return [line for line in text.replace('\\\n', ' ').splitlines() if line.strip()]


def our_commands() -> list:
    """Return each command of ours on any page as a parameter: its name and its arguments."""
    found = []
    for page in PAGES:
        for language, text in blocks(page):
            lines = command_lines(text) if language == 'bash' else []
            for number, line in enumerate(lines):
                start = STARTS.match(line)
                if not start or line.startswith('#'):
                    continue

                words = shlex.split(line[start.end():], comments=True)
                words = [word for word in words if word != '…']
                if 'distributed_train' in start[0]:
                    words.insert(0, 'train')
                name = words[0].removesuffix('.py')
                found.append(pytest.param(name, words[1:], id=f'{page.stem}-{number}-{name}'))
    return found


@cache
def examples() -> set[str]:
    """Return the methods that the reader of a page registers himself."""
    return {name for page in PAGES for name in re.findall(r"@register_method\('(\w+)'\)", page.read_text('utf-8'))}


@pytest.mark.parametrize('name, argv', our_commands())
def test_commands_parse(name, argv):
    # `timm-longtail SCRIPT` runs a script of timm's, which has options of its own
    if '/' in name:
        pytest.skip('a script of timm')

    parser = importlib.import_module(COMMANDS[name].module).create_parser()
    if name == 'benchmark':
        parser.parse_known_args(argv)
    else:
        parser.parse_args(argv)

    # where nothing is left for the reader to fill in, names, recipe and options of the method are checked too
    if name == 'train' and not any(re.search('[A-Z]{3}', word) for word in argv) and not examples() & {*argv}:
        parse_train_args(argv)


@pytest.mark.script
@pytest.mark.parametrize('page', [page for page in PAGES if blocks(page, tested=True)], ids=lambda page: page.stem)
def test_tested_blocks_run(page, tmp_path):
    """The blocks of a page run in their order, in one folder.

    A training, which takes minutes, is cut to one epoch of a smaller network.
    """
    for language, text in blocks(page, tested=True):
        if language == 'python':
            run(tmp_path, '-c', text)
            continue

        for line in command_lines(text):
            program, *argv = shlex.split(line, comments=True)
            assert program == 'timm-longtail'
            # the last of several counts
            shorter = ['--epochs', '1', *SMALLER] if argv[0] == 'train' else []
            run(tmp_path, '-m', 'timm_longtail', *argv, *shorter)


def test_your_photos_leads_to_an_export_in_three_commands(tmp_path, monkeypatch):
    """The first block with our commands, run on a folder of photographs by a small model with weights from a file."""
    page = ROOT / 'docs' / 'tutorials' / 'your-photos.md'
    text = next(text for language, text in blocks(page) if 'timm-longtail' in text)
    compare_line, validate_line, push_line = command_lines(text)

    monkeypatch.chdir(tmp_path)
    write_classes(Path('my_photos/train'), {'cat': 8, 'dog': 5, 'owl': 3})
    write_classes(Path('my_photos/test'), dict.fromkeys(('cat', 'dog', 'owl'), 2))
    save_file(timm.create_model('resnet10t').state_dict(), 'weights.safetensors')
    AcceleratorState._reset_state(reset_partial_state=False)

    words = shlex.split(compare_line)[3:]  # after the model
    compare.main(['resnet10t', '--initial-checkpoint', 'weights.safetensors', '--img-size', '32', '-j', '0', *words])
    validate.main([*shlex.split(validate_line)[2:], '-j', '0'])

    export = Path(shlex.split(push_line)[2])
    assert (export / 'model.safetensors').is_file()


def run(folder: Path, *argv: str):
    """Run what follows `python` in a folder, and check that it ends well."""
    ended = forks.run(*argv, cwd=folder)
    assert ended.returncode == 0, f'{argv}: {ended.stdout[-2000:]} {ended.stderr[-2000:]}'
