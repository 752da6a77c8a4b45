"""Pages of the reference: methods, losses, models, data sets, options and recipes, read from their registries."""
import argparse
import html
import inspect
import json
import pkgutil
import re
from typing import Any

import timm
import torch

import timm_longtail
from timm_longtail import losses
from timm_longtail.config.parser import shown_default
from timm_longtail.config.recipe import RECIPES, list_recipes, read_header
from timm_longtail.data import list_datasets
from timm_longtail.data.sources.registry import REGISTRY
from timm_longtail.methods import default_options, list_methods, method_class
from timm_longtail.utils.ranges import Number

from .result_tables import table


def escape(text: str) -> str:
    """Return text in which Markdown and HTML have no effect; code in backticks stays code."""
    parts = re.split(r'(`[^`]*`)', text)
    for i in range(0, len(parts), 2):  # code has the odd numbers
        parts[i] = re.sub(r'([*_\[\]])', r'\\\1', html.escape(parts[i], quote=False))
    return ''.join(parts)


def first_line(documented: Any) -> str:
    """Return the first line of a docstring, or ''."""
    return (inspect.getdoc(documented) or '').partition('\n')[0]


def defined_in(member: Any) -> str:
    """Return the path of a class or function in the module that defines it.

    A file of the package may have the name of its function, as `losses/soft_cross_entropy.py` has: the shorter path
    would be that of the file.
    """
    return f'{member.__module__}.{member.__qualname__}'


def described_arguments(documented: Any) -> dict[str, str]:
    """Return the entries of `Args:` of a docstring: the name of each argument and what it is.

    Args:
        documented: Class or function with a Google docstring.
    """
    section = (inspect.getdoc(documented) or '').partition('\nArgs:\n')[2]

    entries: dict[str, str] = {}
    name = ''
    for line in section.splitlines():
        # the next section begins at the margin
        if line and not line.startswith(' '):
            break

        opening = re.match(r' {4}(\*{0,2}\w+): (.*)', line)
        if opening:
            name = opening[1]
            entries[name] = opening[2]
        elif name and line.strip():
            entries[name] += ' ' + line.strip()
    return entries


# --- methods and losses


def methods_page() -> str:
    """Return one section a method: its paper, what it trains, and its options with their defaults."""
    parts = ['Options are given as `--method-kwargs NAME=VALUE …`; their defaults are those of the paper on CIFAR.', '']
    for name in list_methods():
        cls = method_class(name)
        parts += [f'## {name}', '', first_line(cls), '', _source(cls), '']

        rows = [
            [f'`{option}`', f'`{_typed(value)}`', _meaning(cls, option)]
            for option, value in default_options(cls).items()
        ]
        parts += [table(['Option', 'Default', 'Meaning'], rows), '']
    return '\n'.join(parts)


def _source(cls: type) -> str:
    """Return the title of a method's paper, as the first line of its module has it, with links to arXiv."""
    module = inspect.getmodule(cls)
    numbers = re.findall(r'https://arxiv\.org/abs/(\S+\d)', module.__doc__ or '')
    links = [f'[arXiv:{number}](https://arxiv.org/abs/{number})' for number in numbers]
    return '*' + ', '.join([escape(first_line(module).rstrip('.')), *links]) + '*'


def _meaning(cls: type, option: str) -> str:
    """Return what an option of a method is, from the nearest class that describes it."""
    for base in cls.__mro__:
        found = described_arguments(base).get(option, '')
        # `See` and `As` point to a base class, which is next
        if found and not found.startswith(('See `', 'As `', 'As GLMC')):
            return found
    return ''


def _typed(value: Any) -> str:
    """Return an option's default as it can be typed."""
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, float):
        return f'{value:.6g}'
    return str(value)


def losses_page() -> str:
    """Return a list of the losses, and one section for each, which mkdocstrings fills from its docstring."""
    rows, sections = [], []
    for name in losses.__all__:
        loss = getattr(losses, name)
        path = defined_in(loss)
        rows.append([f'[`{name}`](#{path})', first_line(loss)])
        sections.append(f'::: {path}\n')
    return '\n'.join([table(['Loss', 'What it does'], rows), '', *sections])


# --- models and data sets


def list_our_models() -> list[str]:
    """Return the names of the models that this package registers."""
    names = timm.list_models(module=[module.name for module in pkgutil.iter_modules(timm_longtail.models.__path__)])
    return [name for name in names if timm.model_entrypoint(name).__module__.startswith('timm_longtail.')]


def models_table() -> str:
    """Return one row a registered model; parameters with 10 classes, as in the ResNet paper, without branches."""
    rows = []
    for name in list_our_models():
        with torch.device('meta'):
            model = timm.create_model(name, num_classes=10)

        millions = sum(p.numel() for p in model.parameters()) / 1e6
        method = getattr(model, 'default_method', 'ce')
        rows.append([f'`{name}`', f'{millions:.2f} M', f'`{method}`', first_line(timm.model_entrypoint(name))])
    return table(['Model', 'Parameters', 'Default method', 'What it is'], rows)


def datasets_table() -> str:
    """Return one row a data set."""
    rows = []
    for name in list_datasets():
        found = REGISTRY.get(name.removesuffix('NAME'))
        if found is None:
            rows.append([f'`{name}`', 'as packed', 'One file with the encoded images of both splits.'])
            continue

        factor = found.imbalance_factor
        if factor is None:
            shown = 'natural counts'
        elif factor == 1:
            shown = 'not cut'
        else:
            shown = f'{factor:g}'
        rows.append([f'`{name}`', shown, first_line(found.load)])
    return table(['Data set', 'Imbalance factor', 'What it is'], rows)


# --- command line and recipes


def options_table(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    """Return one row an option of a command: its names, what it means and its default.

    Args:
        parser: Parser of the command.
        actions: The options to show, those of one group.
    """
    rows = []
    for action in actions:
        names = ', '.join(f'`{name}`' for name in action.option_strings) or f'`{action.dest}`'

        # argparse fills in %(default)s and the like
        words = (action.help or '') % {**vars(action), 'prog': parser.prog}
        sentences = [' '.join(words.split())]
        if isinstance(action.type, Number):
            sentences.append(action.type.words)
        if action.choices:
            sentences.append('one of ' + ', '.join(f'`{choice}`' for choice in action.choices))
        default = shown_default(action)
        if default and 'default' not in sentences[0]:
            sentences.append(f'default `{default}`')

        meaning = '; '.join([escape(sentences[0]), *sentences[1:]])
        first_word = meaning.split()[0]
        if first_word.isalpha() and first_word != 'timm':
            meaning = meaning[:1].upper() + meaning[1:]
        rows.append([names, meaning])
    return table(['Option', 'Meaning'], rows)


def recipes_page() -> str:
    """Return one section a data set with its recipes: the name of each, and what its header says."""
    sections: dict[str, list[str]] = {}
    for name in list_recipes():
        header = read_header(RECIPES / f'{name}.yaml')
        data = name.rsplit('.', 1)[1]
        sections.setdefault(data, []).extend(_recipe_entry(name, header))

    parts = ['`timm-longtail recipes show NAME` prints a recipe, with everything that its header says.', '']
    for data, entries in sorted(sections.items()):
        parts += [f'## {data}', '', *entries]
    return '\n'.join(parts)


def _recipe_entry(name: str, header: dict[str, str]) -> list[str]:
    """Return the lines of a recipe: name, title, command, and the first sentence on what it expects and its source."""
    lines = [f'### {name}', '', escape(header['title']), '', '```bash', header['command'], '```', '']
    for field in ('Expected', 'Source'):
        if field in header:
            text = header[field].partition('\n')[0]
            sentence = re.split(r'(?<=\w\w\.) (?=[A-Z-])', text)[0]
            lines.append(f'- **{field}**: {escape(sentence)}')
    return [*lines, '']
