"""Tables of the README, generated from the registries: `python -m tests.readme_tables [--write]`."""
import argparse
import inspect
import json
import pkgutil
import re
import statistics
import sys
from pathlib import Path

import timm
import torch

import timm_longtail
from timm_longtail.data import list_datasets
from timm_longtail.data.sources import REGISTRY
from timm_longtail.evaluate import GROUPS
from timm_longtail.methods import list_methods, method_class

README = Path(__file__).parent.parent / 'README.md'
RESULTS = README.parent / 'results'

def first_line(documented) -> str:
    """Return the first line of a docstring, or ''."""
    return (inspect.getdoc(documented) or '').partition('\n')[0]


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ['---'] * len(titles), *rows]
    return '\n'.join('| ' + ' | '.join(cell.replace('|', '\\|') for cell in line) + ' |' for line in lines)


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
    return _table(['Model', 'Parameters', 'Default method', 'What it is'], rows)


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
    return _table(['Data set', 'Default factor', 'What it is'], rows)


def methods_table() -> str:
    """One row a method, with its options: the keyword-only arguments of its constructor."""
    rows = []
    for name in list_methods():
        cls = method_class(name)
        module = inspect.getmodule(cls)
        title = first_line(module).rstrip('.')
        link = re.search(r'https://arxiv\.org/\S+\d', module.__doc__ or '')
        options = [p for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY]
        rows.append([
            f'`{name}`',
            f'[{title}]({link.group()})' if link else title,
            first_line(cls),
            ', '.join(f'`{p.name}`' for p in options),
        ])
    return _table(['Method', 'Paper', 'What it trains', 'Options (`--method-kwargs`)'], rows)


def results_table() -> str:
    """One row a setting, over its seeds, from `results/*.json`: last epoch, best in brackets, the command."""
    settings = {}
    for path in sorted(RESULTS.glob('*.json')):
        row = json.loads(path.read_text())
        setting = tuple(row.get(name) for name in ('tag', 'model', 'method', 'experiment', 'epochs', 'subset_hash'))
        settings.setdefault(setting, []).append(row)
    rows = []
    for (tag, model, method, experiment, epochs, subset), runs in settings.items():
        shown = f'`{method}`, {experiment}' if experiment else f'`{method}`'
        cells = [f'`{tag}` ({subset})', f'`{model}`', shown, str(epochs), str(len(runs))]
        best = statistics.mean(run['best']['all'] for run in runs)
        cells.append(f'{_over_seeds(runs, "all")} ({best:.2f})')
        rows.append([*cells, *(_over_seeds(runs, group) for group in GROUPS), f'`{runs[0]["command"]}`'])
    return _table(['Data (subset)', 'Model', 'Method', 'Epochs', 'Seeds', 'All (best epoch)',
                   *map(str.capitalize, GROUPS), 'First seed again'], rows)


def _over_seeds(runs: list[dict], metric: str) -> str:
    values = [run['last'][metric] for run in runs]
    if None in values:
        return 'n/a'
    spread = f' ± {statistics.stdev(values):.2f}' if len(values) > 1 else ''
    return f'{statistics.mean(values):.2f}{spread}'


SHOWN_CLASSIFIERS = 'joint', 'ncm_cosine', 'crt', 'lws', 'tau_norm', 'logit_adjust'


def retrained_table() -> str:
    """One row a representation and a way to train on it, All / Few of each classifier, from `results/retrained/`."""
    rows = []
    for path in sorted((RESULTS / 'retrained').glob('*.json')):
        row = json.loads(path.read_text())
        stage, classifiers = row['stage_1'], row['classifiers']
        on = 'features' if row['features'] == 'cached' else f'images, BatchNorm {row["bn"]}'
        cells = [f'`{row["tag"]}` ({row["subset_hash"]})', f'`{row["model"]}`, `{stage["method"]}`',
                 f'`{stage["sampler"]}`', str(stage['epochs']), on]
        for name in SHOWN_CLASSIFIERS:
            found = classifiers.get(name)
            cells.append(f'{found["all"]:.2f} / {found["few"]:.2f}' if found else '')
        rows.append([*cells, f'`{row["command"]}`'])
    titles = ['Data (subset)', 'Stage 1', 'Sampler', 'Epochs', 'Stage 2 on', *SHOWN_CLASSIFIERS, 'Again']
    return _table(titles, rows)


TABLES = {'models': models_table, 'datasets': datasets_table, 'methods': methods_table, 'results': results_table,
          'retrained': retrained_table}


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
    else:
        sys.stdout.write('\n\n'.join(build() for build in TABLES.values()) + '\n')


if __name__ == '__main__':
    main()
