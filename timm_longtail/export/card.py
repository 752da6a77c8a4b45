"""The card of an exported model: the `README.md` of its folder, a function of its `config.json` alone.

Run as a module, it brings folders up to date, `python -m timm_longtail.export.card hub/NAME …`: it writes the
checksums into their `config.json`, where they are missing or it was edited, and their cards.
"""
import inspect
import sys
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData

from ..config.train_options import default_method
from ..evaluation.evaluators import format_table
from ..methods import list_methods, method_class, tells_classes
from ..utils.errors import UserError
from ..utils.files import reading, write_text
from .exported import CARD, CONFIG, read_config, seal
from .markdown import code_block, code_span, escape_cell, escape_text, front_matter

__all__ = ['METRIC_NAMES', 'is_ours', 'model_card', 'model_name', 'shown_metrics', 'write_card']

_PACKAGE = 'timm_longtail'
METRIC_NAMES = {'all': 'Top-1 (all)', 'many': 'Many-shot', 'medium': 'Medium-shot', 'few': 'Few-shot'}


def write_card(folder: str | Path) -> Path:
    """Write the `README.md` of an exported folder from its `config.json`; a crash leaves the former one whole.

    Args:
        folder: Exported folder.

    Returns:
        Path of the card.

    Raises:
        UserError: `config.json` is missing or damaged, or the disk refuses.
    """
    folder = Path(folder)
    config = read_config(folder)
    with reading(folder / CONFIG, 'config of an exported model'):
        text = model_card(config)

    write_text(folder / CARD, text)
    return folder / CARD


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
    if not timm.is_model(architecture):
        return False
    # not `__package__`, which is that of this file, wherever it lies
    return timm.model_entrypoint(architecture).__module__.startswith(f'{_PACKAGE}.')


def _tells_classes(config: dict[str, Any]) -> bool:
    return tells_classes(config['timm_longtail'].get('method'), config['num_classes'])


def shown_metrics(config: dict[str, Any]) -> dict[str, float]:
    """Return the figures that `model-index` shows, by the names that it gives them; none for an empty group."""
    metrics = config['timm_longtail'].get('metrics') or {}
    if not _tells_classes(config):
        return {}
    return {label: round(metrics[key], 4) for key, label in METRIC_NAMES.items() if metrics.get(key) is not None}


def model_card(config: dict[str, Any]) -> str:
    """Return the card of an export: a block of metadata and the text.

    Args:
        config: Content of its `config.json`; what its provenance does not say, the card leaves out.
    """
    provenance = config['timm_longtail']
    name, metrics = model_name(config), provenance.get('metrics') or {}
    parts = [_metadata(config), f'# {escape_text(name)}', _summary(config)]

    if 'many' in metrics:
        row = {escape_cell(_moment(config)): metrics}
        parts += ['## Result', format_table(row), _protocol(config)]
    elif 'all' in metrics:
        parts += ['## Result', f'{metrics["all"]:.2f} % of the rotations of the test images are told, in fp32.']

    parts += ['## Use', _usage(config, name)]

    if provenance.get('command'):
        first = (provenance.get('stage_1') or {}).get('command')
        commands = '\n'.join(filter(None, [first, provenance['command']]))
        parts += ['## Training', code_block(commands, 'bash'), _training(provenance)]

    parts += ['## Limits', _limits(provenance)]
    paper = _paper(provenance.get('method'))
    if paper:
        parts += ['## Citation', f'The method is from\n\n> {paper}']
    return '\n\n'.join(filter(None, parts)) + '\n'


def _metadata(config: dict[str, Any]) -> str:
    """Return the block at the head of the card, which the Hub reads."""
    provenance, shown = config['timm_longtail'], shown_metrics(config)
    dataset = provenance.get('dataset', 'unknown')
    task = 'image-classification' if _tells_classes(config) else 'image-feature-extraction'
    data = ModelCardData(
        model_name=model_name(config),
        tags=[task, 'timm', 'long-tailed'],
        library_name='timm',
        pipeline_tag=task,
        license=config['pretrained_cfg'].get('license') or None,
        datasets=[provenance['hub_id']] if provenance.get('hub_id') else None,
        metrics=['accuracy'] if shown else None,
        eval_results=[_eval_result(dataset, label, value) for label, value in shown.items()] or None,
    )
    return front_matter(data.to_dict())


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
    lines = [f'- Architecture: {code_span(config["architecture"])}, {what} images of {size}']
    if 'method' in provenance:
        lines.append(f'- Method: {code_span(provenance["method"])}')

    stage_1 = provenance.get('stage_1')
    if stage_1:
        how = f', trained by {code_span(stage_1["method"])}' if 'method' in stage_1 else ''
        epochs = f' for {escape_text(stage_1["epochs"])} epochs' if 'epochs' in stage_1 else ''
        source = code_span(stage_1['source'])
        lines.append(f'- Representation: that of {source}{how}{epochs}; its classifier was retrained')
    if provenance.get('initial_checkpoint'):
        lines.append(f'- Started from: the weights of {code_span(provenance["initial_checkpoint"])}')

    if 'dataset' in provenance:
        images = counts and f', {sum(counts)} images: {max(counts)} of the largest class, {min(counts)} of the smallest'
        name = provenance.get('dataset_name', provenance['dataset'])
        lines.append(f'- Training set: {code_span(name)}{images or ""}')
    if provenance.get('weights'):
        weights = provenance['weights']
        lines.append(f'- Weights: {escape_text(weights["dtype"])}, sha256 {code_span(weights["sha256"])}')
    lines.append(f'- Made with: timm_longtail {escape_text(provenance["version"])}')

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
        'data seed': _text(provenance.get('data_seed')),
        'training seed': _text(provenance.get('seed')),
        'held-out share': _number(provenance.get('val_fraction') or None),
    }
    after = '' if 'stage_1' in provenance else ' after the last epoch,'
    known = ', '.join(f'{key} {value}' for key, value in subset.items() if value is not None)
    test_set = f'test set of {code_span(provenance["dataset"])}' if 'dataset' in provenance else 'test set'
    return (
        f'All: percent of the images of the {test_set} that are right{correct}. Many, Medium, Few: means of the class '
        f'accuracies over the classes with more than 100, with 20 to 100, and with fewer than 20 training images. '
        f'Measured{after} on the weights in this folder, in fp32.'
        + ('' if config['num_classes'] else ' The 200 nearest training images vote for the class of an image.')
        + (f' Note: {escape_text(provenance["note"])}.' if provenance.get('note') else '')
        + (f' Protocol: {known}.' if known else '')
    )


def _usage(config: dict[str, Any], name: str) -> str:
    architecture, labels = config['architecture'], config.get('label_names')
    imports = f'import timm_longtail  # registers {architecture}\n' if is_ours(architecture) else ''
    source = repr(f'hf-hub:USER/{name}')  # a literal of Python, whatever the name holds
    words = 'Stock timm loads it; no other package is needed.'
    if imports:
        words = (
            f'Stock timm does not know {code_span(architecture)}: the package timm_longtail, imported, registers it. '
            f'Without the package, `model.safetensors` is a plain state dict.'
        )
    code = (
        f'import timm\n{imports}from PIL import Image\n\n'
        f'model = timm.create_model({source}, pretrained=True).eval()  # or local-dir:FOLDER\n'
        f'transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n'
        f'image = Image.open(\'image.png\').convert(\'RGB\')\n'
        + (f'logits = model(transform(image).unsqueeze(0))  # [1, {config["num_classes"]}]\n' if config['num_classes']
           else 'features = model(transform(image).unsqueeze(0))  # [1, model.num_features]\n')
    )
    if labels:
        code += 'label = model.pretrained_cfg[\'label_names\'][logits.argmax()]\n'
    return f'{words} `USER` is the owner of this repository.\n\n{code_block(code, "python")}'


def _training(provenance: dict[str, Any]) -> str | None:
    if not provenance.get('recipe'):
        return None
    recipe, version = code_span(provenance['recipe']), escape_text(provenance['version'])
    return f'The other options are those of {recipe} in timm_longtail {version}.'


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
    return None if value is None else code_span(value)


def _text(value: Any) -> str | None:
    return None if value is None else escape_text(value)


def main(folders: list[str]):
    """Write checksums and cards of exported folders."""
    for folder in folders:
        seal(folder)
        print(write_card(folder))


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f'python -m timm_longtail.export.card: error: {e}')
