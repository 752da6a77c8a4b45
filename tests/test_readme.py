"""What the documents say is true: generated tables, code that runs, files and options that exist."""
import re
from pathlib import Path

import pytest

from timm_longtail.cli import train_parser
from timm_longtail.methods import _registry

from . import readme_tables, result_tables

ROOT = Path(__file__).parent.parent
DOCUMENTS = ('README.md', 'CONTRIBUTING.md')
# named by the documents and made by a run, or by a reader; `test_train_script.py` holds the names of the first
MADE = {
    'args.yaml', 'class_counts.json', 'summary.csv', 'metrics.json', 'per_class.csv', 'config.json',
    'model.safetensors', 'FILE.safetensors', 'cifar100_lt.safetensors', 'bad_images.csv', 'images.csv', 'classes.csv',
    'path/to/validate.py', 'output/RUN/rotation_agnostic.safetensors', 'output/cifar100_100.safetensors',
    'output/resnet20_cifar.rais.cifar100.s0/rotation_agnostic.safetensors',
}
LAUNCHERS = {'--multi_gpu', '--num_processes'}  # accelerate's options
PLANNED = set()  # what the documents call so
FILE_NAME = r'(?<![\w/.:<>-])(?:\./)?([\w./-]+\.(?:py|sh|yaml|md|cff|cfg|toml|json|csv|safetensors))\b'


def python_blocks() -> list:
    blocks = []
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for match in re.finditer(r'```python\n(.*?)```', text, re.DOTALL):
            line = text.count('\n', 0, match.start()) + 2
            blocks.append(pytest.param(match.group(1), id=f'{document}:{line}'))
    return blocks


def test_tables_are_generated_from_the_registries():
    text = readme_tables.README.read_text()
    assert readme_tables.fill(text) == text, 'run `python -m tests.readme_tables --write`'
    commands = (result_tables.RESULTS / 'README.md').read_text()
    assert result_tables.commands() == commands, 'run `python -m tests.readme_tables --write`'


@pytest.mark.parametrize('code', python_blocks())
def test_code_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_registry, '_METHODS', dict(_registry._METHODS))  # examples register methods
    exec(compile(code, 'README', 'exec'), {'__name__': 'readme'})


@pytest.mark.parametrize('document', DOCUMENTS)
def test_named_files_exist(document):
    text = (ROOT / document).read_text()
    prose = re.sub(r'```.*?```', '', text, flags=re.DOTALL)
    names = set(re.findall(r'\]\((?!http)([^)#]+)', prose))
    names |= set(re.findall(FILE_NAME, text))
    names |= set(re.findall(r'`([\w.-]+/)`', text)) | set(re.findall(r'`([A-Z]{4,})`', text))
    made = MADE | {'export/'}
    missing = sorted(name for name in names - made if not (ROOT / name).exists())
    assert not missing
    assert len(names) > 5


def test_files_of_a_run_are_written():
    """The files that the README promises are named in the code that writes them."""
    package = ROOT / 'timm_longtail'
    source = ''.join((package / name).read_text() for name in ('outputs.py', 'checkpoint.py', 'export.py'))
    table = (ROOT / 'README.md').read_text().partition('| File |')[2].partition('\n\n')[0]
    names = re.findall(r'`([\w.-]+)/?`', table)
    assert len(names) == 12
    assert not [name for name in names if name not in source]


@pytest.mark.parametrize('document', [*DOCUMENTS, 'docs/design.md', 'docs/pc_comp.md'])
def test_named_options_exist(document):
    known = {option for action in train_parser()._actions for option in action.option_strings}
    modules = (f'timm_longtail/{name}.py' for name in ('benchmarking', 'flags', 'pack', 'push'))
    scripts = 'validate.py', 'benchmark.py', 'retrain.py', 'recipes/run.py', *modules
    for script in scripts:
        known |= set(re.findall(r"add_argument\('(--[\w-]+)'", (ROOT / script).read_text()))
    options = set(re.findall(r'(?<![\w-])--[a-z][\w-]+', (ROOT / document).read_text()))
    assert options
    assert not sorted(options - known - LAUNCHERS - PLANNED)
    assert not PLANNED & known, 'no longer planned'
