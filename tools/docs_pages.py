"""What the documentation site generates when it is built: run by mkdocs (plugin gen-files).

Tables of the registries and of results, the command line, the recipes, and the list of public names.
"""
import argparse
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import GenericAlias

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import result_tables, tables  # noqa: E402

TABLES = {
    'published': result_tables.published_table,
    'study': result_tables.study_table,
    'retrained_whole': lambda: result_tables.retrained_table(whole=True),
    'short': result_tables.short_table,
    'fast': result_tables.fast_table,
    'hour': result_tables.hour_table,
    'retrained': result_tables.retrained_table,
    'combinations': result_tables.combinations_table,
    'rotations': result_tables.rotations_table,
    'mixtures': result_tables.mixtures_table,
    'rows': result_tables.commands_list,
}
PUBLIC_MODULES = (
    'timm_longtail', 'timm_longtail.methods', 'timm_longtail.data', 'timm_longtail.models', 'timm_longtail.export',
)


def write(path: str, text: str):
    """Write one page of the site; a page that stands in docs/ is replaced for this build only."""
    with mkdocs_gen_files.open(path, 'w') as f:
        f.write(text)


def without_repository_links(text: str) -> str:
    """Return a table whose links to files outside of docs/ are plain text: the site does not hold them."""
    return re.sub(r'\[([^\]]+)\]\((?!http)[^)]+\)', r'\1', text)


def fill_tables():
    """Replace `<!-- table: NAME -->` in the pages of results by the table."""
    for page in sorted((ROOT / 'docs' / 'results').glob('*.md')):
        text = page.read_text(encoding='utf-8')
        filled = re.sub(
            r'<!-- table: (\w+) -->', lambda found: without_repository_links(TABLES[found[1]]()), text)
        if filled != text:
            write(f'results/{page.name}', filled)


def write_registries():
    """Write the pages of methods, losses, models, data sets and recipes."""
    pages = {
        'methods': ('Methods', tables.methods_page),
        'losses': ('Losses', tables.losses_page),
        'models': ('Models', tables.models_table),
        'datasets': ('Data sets', tables.datasets_table),
        'recipes': ('Recipes', tables.recipes_page),
    }
    for name, (title, build) in pages.items():
        write(f'reference/{name}.md', f'# {title}\n\n{build()}\n')


def write_command_line():
    """Write one section for each command, from its parser."""
    from timm_longtail.cli import COMMANDS

    parts = ['# Command line', '', 'The options of each command, as `--help` has them.', '']
    for name, command in COMMANDS.items():
        parser: argparse.ArgumentParser = importlib.import_module(command.module).create_parser()
        parts += [f'## timm-longtail {name}', '', parser.description or command.help, '']

        for group in parser._action_groups:
            shown = [
                action for action in group._group_actions
                if action.dest != 'help' and action.help != argparse.SUPPRESS
            ]
            if shown:
                parts += [f'### {name}: {group.title}', '', tables.options_table(parser, shown), '']
    write('reference/cli.md', '\n'.join(parts))


def write_api():
    """Write the public names of each public module, documented from their docstrings."""
    parts = ['# Python API', '', 'The losses have [a page of their own](losses.md).', '']
    documented = []
    for module in PUBLIC_MODULES:
        parts += [f'## {module}', '']
        for name in importlib.import_module(module).__all__:
            member = getattr(importlib.import_module(module), name)
            # an alias such as `Batch` has no docstring; the top package has names of the others
            is_defined_here = inspect.isclass(member) or inspect.isfunction(member)
            if is_defined_here and not isinstance(member, GenericAlias) and member not in documented:
                documented.append(member)
                parts += [f'::: {tables.defined_in(member)}', '']
    write('reference/api.md', '\n'.join(parts))


def write_benchmarks():
    """Write the page of benchmarks: what stands in benchmarks/README.md."""
    page = (ROOT / 'docs' / 'benchmarks.md').read_text(encoding='utf-8')
    measured = (ROOT / 'benchmarks' / 'README.md').read_text(encoding='utf-8').partition('\n')[2]
    write('benchmarks.md', page.replace('<!-- measured -->', measured))


fill_tables()
write_registries()
write_command_line()
write_api()
write_benchmarks()
