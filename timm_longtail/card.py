"""The card of an exported model: the `README.md` of its folder, a function of its `config.json` alone.

Run as a module, it writes the cards of folders anew: `python -m timm_longtail.card hub/NAME …`
"""
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .cli import default_method
from .evaluate import format_table
from .methods import list_methods, method_class, tells_classes

__all__ = ['METRIC_NAMES', 'is_ours', 'model_card', 'model_name', 'shown_metrics', 'write_card']

METRIC_NAMES = {'all': 'Top-1 (all)', 'many': 'Many-shot', 'medium': 'Medium-shot', 'few': 'Few-shot'}


def write_card(folder: str | Path) -> Path:
    """Write the `README.md` of an exported folder from its `config.json`; returns its path."""
    path = Path(folder) / 'README.md'
    model_card(json.loads((Path(folder) / 'config.json').read_text())).save(path)
    return path


def model_name(config: dict[str, Any]) -> str:
    """Return what an export is called, as recipes are: `bcl_resnet32.cifar100_lt_if100`, `resnet32_cifar.crt.…`.

    The method stands in the name where it is not the one that the architecture has by default.
    """
    architecture, provenance = config['architecture'], config['timm_longtail']
    method = provenance.get('method')
    shown = None if method == default_method(architecture) else method
    return '.'.join(filter(None, (architecture, shown, provenance.get('tag'))))


def is_ours(architecture: str) -> bool:
    """Return whether an architecture is registered by this package and not by timm."""
    return timm.models.model_entrypoint(architecture).__module__.startswith(f'{__package__}.')


def _tells_classes(config: dict[str, Any]) -> bool:
    return tells_classes(config['timm_longtail'].get('method'), config['num_classes'])


def shown_metrics(config: dict[str, Any]) -> dict[str, float]:
    """Return the figures that `model-index` shows, by the names that it gives them; none for an empty group."""
    metrics = config['timm_longtail'].get('metrics') or {}
    if not _tells_classes(config):
        return {}
    return {label: round(metrics[key], 4) for key, label in METRIC_NAMES.items() if metrics.get(key) is not None}


def model_card(config: dict[str, Any]) -> ModelCard:
    """Build the card of an export.

    Args:
        config: Content of its `config.json`; what its provenance does not say, the card leaves out.
    """
    provenance = config['timm_longtail']
    name, shown = model_name(config), shown_metrics(config)
    dataset = provenance.get('dataset', 'unknown')
    task = 'image-classification' if _tells_classes(config) else 'image-feature-extraction'
    metrics = provenance.get('metrics') or {}
    data = ModelCardData(
        model_name=name,
        tags=[task, 'timm', 'long-tailed'],
        library_name='timm',
        pipeline_tag=task,
        license=config['pretrained_cfg'].get('license') or None,
        datasets=[provenance['hub_id']] if provenance.get('hub_id') else None,
        metrics=['accuracy'] if shown else None,
        eval_results=[_eval_result(dataset, label, value) for label, value in shown.items()] or None,
    )
    parts = [f'---\n{data.to_yaml()}\n---', f'# {name}', _summary(config)]
    if 'many' in metrics:
        parts += ['## Result', format_table({_moment(config): metrics}), _protocol(config)]
    elif 'all' in metrics:
        parts += ['## Result', f'{metrics["all"]:.2f} % of the rotations of the test images are told, in fp32.']
    parts += ['## Use', _usage(config, name)]
    if provenance.get('command'):
        first = (provenance.get('stage_1') or {}).get('command')
        commands = '\n'.join(filter(None, [first, provenance['command']]))
        parts += ['## Training', f'```bash\n{commands}\n```', _training(provenance)]
    parts += ['## Limits', _limits(provenance)]
    paper = _paper(provenance.get('method'))
    if paper:
        parts += ['## Citation', f'The method is from\n\n> {paper}']
    return ModelCard('\n\n'.join(filter(None, parts)) + '\n')


def _eval_result(dataset: str, label: str, value: float) -> EvalResult:
    return EvalResult(
        task_type='image-classification',
        task_name='Image classification',
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split='test',
        metric_type='accuracy',
        metric_name=label,
        metric_value=value,
    )


def _summary(config: dict[str, Any]) -> str:
    provenance = config['timm_longtail']
    size = 'x'.join(map(str, config['pretrained_cfg']['input_size']))
    counts = provenance.get('class_counts')
    outputs = config['num_classes']
    what = f'for {outputs} classes and' if _tells_classes(config) else f'with {outputs or "no"} outputs, for'
    lines = [f'- Architecture: `{config["architecture"]}`, {what} images of {size}']
    if 'method' in provenance:
        lines.append(f'- Method: `{provenance["method"]}`')
    stage_1 = provenance.get('stage_1')
    if stage_1:
        how = f', trained by `{stage_1["method"]}`' if 'method' in stage_1 else ''
        epochs = f' for {stage_1["epochs"]} epochs' if 'epochs' in stage_1 else ''
        lines.append(f'- Representation: that of `{stage_1["source"]}`{how}{epochs}; its classifier was made anew')
    if provenance.get('initial_checkpoint'):
        lines.append(f'- Started from: the weights of `{provenance["initial_checkpoint"]}`')
    if 'dataset' in provenance:
        images = counts and f', {sum(counts)} images: {max(counts)} of the largest class, {min(counts)} of the smallest'
        name = provenance.get('dataset_name', provenance['dataset'])
        lines.append(f'- Training set: `{name}`{images or ""}')
    lines.append(f'- Made with: timm_longtail {provenance["version"]}')
    kind = 'An image classifier trained on classes of very different size.' if counts else 'An image classifier.'
    if not _tells_classes(config):
        kind = 'A network for images, trained without their classes.'
    return f'{kind}\n\n' + '\n'.join(lines)


def _moment(config: dict[str, Any]) -> str:
    if not config['num_classes']:
        return 'vote of neighbours'
    provenance = config['timm_longtail']
    return 'as exported' if 'stage_1' in provenance else 'last epoch'


def _protocol(config: dict[str, Any]) -> str:
    provenance = config['timm_longtail']
    metrics = provenance['metrics']
    correct = f' ({sum(metrics["class_correct"])} of {metrics["num_images"]})' if 'class_correct' in metrics else ''
    subset = {
        'imbalance factor': _number(provenance.get('imbalance_factor')),
        'subset hash': _code(provenance.get('subset_hash')),
        'subset order': _code(provenance.get('subset_order')),
        'data seed': provenance.get('data_seed'),
        'training seed': provenance.get('seed'),
        'held-out share': _number(provenance.get('val_fraction') or None),
    }
    after = '' if 'stage_1' in provenance else ' after the last epoch,'
    known = ', '.join(f'{key} {value}' for key, value in subset.items() if value is not None)
    test_set = f'test set of `{provenance["dataset"]}`' if 'dataset' in provenance else 'test set'
    return (
        f'All: percent of the images of the {test_set} that are right{correct}. Many, Medium, Few: means of the class '
        f'accuracies over the classes with more than 100, with 20 to 100, and with fewer than 20 training images. '
        f'Measured{after} on the weights in this folder, in fp32.'
        + ('' if config['num_classes'] else ' The 200 nearest training images vote for the class of an image.')
        + (f' Note: {provenance["note"]}.' if provenance.get('note') else '')
        + (f' Protocol: {known}.' if known else '')
    )


def _usage(config: dict[str, Any], name: str) -> str:
    architecture, labels = config['architecture'], config.get('label_names')
    imports = f'import timm_longtail  # registers {architecture}\n' if is_ours(architecture) else ''
    words = (
        f'Stock timm does not know `{architecture}`: the package timm_longtail, imported, registers it. Without the '
        f'package, `model.safetensors` is a plain state dict.'
    ) if imports else 'Stock timm loads it; no other package is needed.'
    code = (
        f'import timm\n{imports}from PIL import Image\n\n'
        f'model = timm.create_model(\'hf-hub:USER/{name}\', pretrained=True).eval()  # or local-dir:FOLDER\n'
        f'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n'
        f'image = Image.open(\'image.png\').convert(\'RGB\')\n'
        + (f'logits = model(transform(image).unsqueeze(0))  # [1, {config["num_classes"]}]\n' if config['num_classes']
           else 'features = model(transform(image).unsqueeze(0))  # [1, model.num_features]\n')
    )
    if labels:
        code += 'label = model.pretrained_cfg[\'label_names\'][logits.argmax()]\n'
    return f'{words} `USER` is the owner of this repository.\n\n```python\n{code}```'


def _training(provenance: dict[str, Any]) -> str | None:
    recipe = provenance.get('recipe')
    return f'The other options are those of `{recipe}` in timm_longtail {provenance["version"]}.' if recipe else None


def _limits(provenance: dict[str, Any]) -> str:
    metrics = provenance.get('metrics') or {}
    tested = 'on the test set above only: not on other images, and not' if metrics else 'on no test set yet, and not'
    worst = metrics.get('worst_class') if 'many' in metrics else None  # rais has four rotations
    return (
        f'The model is meant for research on long-tailed recognition. It was tested {tested} for robustness or bias. '
        f'One training run stands behind it, which says nothing about the spread over seeds'
        + (f'; its worst class is right in {worst:.2f} % of the images.' if worst is not None else '.')
    )


def _paper(method: str | None) -> str | None:
    """Return title, authors, place and link of a method's paper, with which its file begins; None without a paper."""
    if method not in list_methods():
        return None
    title, *paragraphs = inspect.getdoc(sys.modules[method_class(method).__module__]).split('\n\n')
    return ' '.join(f'{title}. {paragraphs[0]}'.split()) if paragraphs and 'https://' in paragraphs[0] else None


def _number(value: float | None) -> str | None:
    return None if value is None else f'{value:g}'


def _code(value: str | None) -> str | None:
    return None if value is None else f'`{value}`'


if __name__ == '__main__':
    for _folder in sys.argv[1:]:
        write_card(_folder)
