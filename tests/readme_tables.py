"""Tables of the README, from the registries and `results/`: `python -m tests.readme_tables [--write]`."""
import argparse
import inspect
import json
import pkgutil
import re
import sys

import timm
import torch

import timm_longtail
from timm_longtail import losses
from timm_longtail.data import list_datasets
from timm_longtail.data.sources import REGISTRY
from timm_longtail.methods import default_options, list_methods, method_class

from . import result_tables
from .result_tables import RESULTS, ROOT, table

README = ROOT / 'README.md'


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
        shown = 'natural counts' if factor is None else 'not cut' if factor == 1 else f'{factor:g}'
        rows.append([f'`{name}`', shown, first_line(found.load)])
    return table(['Data set', 'Default factor', 'What it is'], rows)


def _typed(value) -> str:
    return json.dumps(value) if isinstance(value, tuple) else f'{value:.4g}' if isinstance(value, float) else str(value)


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


TABLES = {
    'models': models_table, 'datasets': datasets_table, 'methods': methods_table, 'losses': losses_table,
    'published': result_tables.published_table, 'study': result_tables.study_table,
    'retrained_whole': lambda: result_tables.retrained_table(whole=True), 'short': result_tables.short_table,
    'retrained': result_tables.retrained_table, 'combinations': result_tables.combinations_table,
    'rotations': result_tables.rotations_table, 'mixtures': result_tables.mixtures_table}


def fill(text: str) -> str:
    """Return a README with the tables between its markers generated anew."""
    for name, build in TABLES.items():
        begin, end = f'<!-- {name} -->', f'<!-- /{name} -->'
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f'README.md has no {begin} … {end}')
        text = f'{before}{begin}\n{build()}\n{end}{after}'
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--write', action='store_true', help='update README.md; without it the tables are printed')
    if parser.parse_args().write:
        README.write_text(fill(README.read_text()))
        (RESULTS / 'README.md').write_text(result_tables.commands())
    else:
        sys.stdout.write('\n\n'.join(build() for build in TABLES.values()) + '\n')


if __name__ == '__main__':
    main()
