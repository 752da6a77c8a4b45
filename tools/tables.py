"""Tables of models, data sets, methods and losses, read from their registries."""
import argparse
import inspect
import json
import pkgutil
import re

import timm
import torch

import timm_longtail
from timm_longtail import losses
from timm_longtail.config.recipe import find_recipe, list_recipes, read_header
from timm_longtail.data import list_datasets
from timm_longtail.data.sources.registry import REGISTRY
from timm_longtail.methods import default_options, list_methods, method_class

from .result_tables import table


def first_line(documented) -> str:
    """Return the first line of a docstring, or ''."""
    return (inspect.getdoc(documented) or '').partition('\n')[0]


def list_our_models() -> list[str]:
    """Return the names of the models that this package registers."""
    names = timm.list_models(module=[module.name for module in pkgutil.iter_modules(timm_longtail.models.__path__)])
    return [name for name in names if timm.model_entrypoint(name).__module__.startswith('timm_longtail.')]


def models_table() -> str:
    """One row a registered model; parameters with 10 classes, as in the ResNet paper, without branches."""
    rows = []
    for name in list_our_models():
        with torch.device('meta'):
            model = timm.create_model(name, num_classes=10)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        method = getattr(model, 'default_method', 'ce')
        rows.append([f'`{name}`', f'{millions:.2f} M', f'`{method}`', first_line(timm.model_entrypoint(name))])
    return table(['Model', 'Parameters', 'Default method', 'What it is'], rows)


def datasets_table() -> str:
    """One row a data set."""
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
    return table(['Data set', 'Default factor', 'What it is'], rows)


def _typed(value) -> str:
    """Return an option's default as it can be typed."""
    if isinstance(value, tuple):
        return json.dumps(value)
    if isinstance(value, float):
        return repr(value).removesuffix('.0')
    return str(value)


def methods_table() -> str:
    """One row a method, with its options: the keyword-only arguments of its constructor."""
    rows = []
    for name in list_methods():
        cls = method_class(name)
        module = inspect.getmodule(cls)
        numbers = re.findall(r'https://arxiv\.org/abs/(\S+\d)', module.__doc__ or '')
        links = [f'[{number}](https://arxiv.org/abs/{number})' for number in numbers]
        paper = ', '.join([first_line(module).rstrip('.'), *links])
        rows.append([
            f'`{name}`',
            paper,
            first_line(cls),
            ', '.join(f'`{option}={_typed(value)}`' for option, value in default_options(cls).items()),
        ])
    return table(['Method', 'Paper', 'What it trains', 'Options (`--method-kwargs`)'], rows)


def losses_table() -> str:
    """One row a loss, with its arguments."""
    rows = []
    for name in losses.__all__:
        parameters = inspect.signature(getattr(losses, name)).parameters.values()
        arguments = ', '.join(str(parameter.replace(annotation=parameter.empty)) for parameter in parameters)
        rows.append([f'`{name}({arguments})`', first_line(getattr(losses, name))])
    return table(['Loss', 'What it does'], rows)


def options_table(parser: argparse.ArgumentParser, actions: list[argparse.Action]) -> str:
    """One row an option of a command: its names, its default and its help.

    Args:
        parser: Parser of the command.
        actions: The options to show, those of one group.
    """
    rows = []
    for action in actions:
        names = ', '.join(f'`{name}`' for name in action.option_strings) or f'`{action.dest}`'
        words = action.help or ''
        # argparse fills in %(default)s and the like
        words = ' '.join((words % {**vars(action), 'prog': parser.prog}).split())

        default = action.default
        shown = '' if default in (None, argparse.SUPPRESS, False, '', [], {}) else f'`{default}`'
        rows.append([names, shown, escape(words)])
    return table(['Option', 'Default', 'Meaning'], rows)


def escape(text: str) -> str:
    """Return text in which Markdown and HTML have no effect."""
    return re.sub(r'([<>*_\[\]])', r'\\\1', text)


def recipes_table() -> str:
    """One row a recipe: its name, what its header expects, and the source."""
    rows = []
    for name in list_recipes():
        header = read_header(find_recipe(name))
        rows.append([f'`{name}`', escape(header['title']), escape(header.get('Expected', '')),
                     escape(header.get('Source', ''))])
    return table(['Recipe', 'What it trains', 'Expected', 'Source'], rows)
