"""The card of an export: the `README.md` of its folder, a function of its `config.json` alone."""
import inspect
import sys
from pathlib import Path
from typing import Any

from ..data.longtail import natural_imbalance
from ..evaluation.tables import format_table
from ..methods import list_methods, method_class
from ..utils.files import reading, write_text
from .checks import CARD, CONFIG, CONFIG_KIND
from .checksums import read_config
from .markdown import code_block, code_span, escape_cell, escape_text
from .metadata import has_classes, is_ours, metadata_block, model_name

__all__ = ['model_card', 'write_card']


def write_card(folder: str | Path) -> Path:
    """Write the card of an exported folder from its `config.json`; a crash leaves the former one whole.

    Args:
        folder: Exported folder.

    Returns:
        Path of the card.

    Raises:
        UserError: `config.json` is missing or damaged, or the disk refuses.
    """
    folder = Path(folder)
    config = read_config(folder)
    with reading(folder / CONFIG, CONFIG_KIND):
        text = model_card(config)

    write_text(folder / CARD, text)
    return folder / CARD


def model_card(config: dict[str, Any]) -> str:
    """Return the card of an export: a block of metadata, then the page.

    Args:
        config: Content of its `config.json`; what its provenance does not state, the card leaves
            out.
    """
    parts = [
        metadata_block(config),
        f'# {escape_text(model_name(config))}',
        _summary(config),
        _section('Result', _result(config)),
        _section('Use', _usage(config)),
        _section('Training', _training(config)),
        _section('Limits', _limits(config)),
        _section('Citation', _citation(config)),
    ]
    return '\n\n'.join(part for part in parts if part) + '\n'


def _section(title: str, text: str) -> str:
    """Return a section of the page; '' where it has no text."""
    return f'## {title}\n\n{text}' if text else ''


def _summary(config: dict[str, Any]) -> str:
    """Return what kind of model this is, and a list of facts."""
    provenance = config['timm_longtail']

    kind = 'An image classifier.'
    if provenance.get('class_counts'):
        kind = 'An image classifier trained on classes of very different size.'
    if not has_classes(config):
        kind = 'A network for images, trained without their classes.'

    facts = [
        _architecture(config),
        *_method(provenance),
        *_start(provenance),
        *_training_set(provenance),
        *_weights(provenance),
        f'Made with: timm_longtail {escape_text(provenance["version"])}',
    ]
    return f'{kind}\n\n' + '\n'.join(f'- {fact}' for fact in facts)


def _architecture(config: dict[str, Any]) -> str:
    num_classes = config['num_classes']
    outputs = f'for {num_classes} classes and'
    if not has_classes(config):
        outputs = f'with {num_classes or "no"} outputs, for'

    size = 'x'.join(map(str, config['pretrained_cfg']['input_size']))
    return f'Architecture: {code_span(config["architecture"])}, {outputs} images of {size}'


def _method(provenance: dict[str, Any]) -> list[str]:
    if 'method' not in provenance:
        return []
    return [f'Method: {code_span(provenance["method"])}']


def _start(provenance: dict[str, Any]) -> list[str]:
    """Return the model whose representation this is, or from whose weights training started."""
    facts = []
    stage_1 = provenance.get('stage_1')
    if stage_1:
        trained = ''
        if 'method' in stage_1:
            trained += f', trained by {code_span(stage_1["method"])}'
        if 'epochs' in stage_1:
            trained += f' for {escape_text(stage_1["epochs"])} epochs'
        source = code_span(stage_1['source'])
        facts.append(f'Representation: that of {source}{trained}; its classifier was retrained')

    if provenance.get('initial_checkpoint'):
        facts.append(f'Started from: the weights of {code_span(provenance["initial_checkpoint"])}')
    return facts


def _training_set(provenance: dict[str, Any]) -> list[str]:
    if 'dataset' not in provenance:
        return []

    fact = f'Training set: {code_span(provenance.get("dataset_name", provenance["dataset"]))}'
    counts = provenance.get('class_counts')
    if counts:
        largest, smallest = max(counts), min(counts)
        fact += f', {sum(counts)} images: {largest} of the largest class, {smallest} of the smallest'
    return [fact]


def _weights(provenance: dict[str, Any]) -> list[str]:
    weights = provenance.get('weights')
    if not weights:
        return []
    return [f'Weights: {escape_text(weights["dtype"])}, sha256 {code_span(weights["sha256"])}']


def _result(config: dict[str, Any]) -> str:
    """Return the table of figures and how they were measured; '' where nothing was."""
    metrics = config['timm_longtail'].get('metrics') or {}
    if 'many' in metrics:
        table = format_table({escape_cell(_row_name(config)): metrics})
        return f'{table}\n\n{_protocol(config)}'

    # a method whose outputs are no classes words its figure itself
    method = config['timm_longtail'].get('method')
    if 'all' in metrics and method in list_methods():
        return method_class(method).result_sentence(metrics) or ''
    return ''


def _row_name(config: dict[str, Any]) -> str:
    if not config['num_classes']:
        return 'vote of neighbours'
    return 'as exported' if 'stage_1' in config['timm_longtail'] else 'last epoch'


def _protocol(config: dict[str, Any]) -> str:
    """Return what the figures mean and on which images they were measured."""
    provenance = config['timm_longtail']
    metrics = provenance['metrics']

    test_set = 'test set'
    if 'dataset' in provenance:
        test_set = f'test set of {code_span(provenance["dataset"])}'
    correct = ''
    if 'class_correct' in metrics:
        correct = f' ({sum(metrics["class_correct"])} of {metrics["num_images"]})'
    when = '' if 'stage_1' in provenance else ' after the last epoch,'

    sentences = [
        f'All: percent of the images of the {test_set} that are right{correct}.',
        'Many, Medium, Few: means of the class accuracies over the classes with more than 100, '
        'with 20 to 100, and with fewer than 20 training images.',
        f'Measured{when} on the weights in this folder, in fp32.',
    ]
    if not config['num_classes']:
        sentences.append('The 200 nearest training images vote for the class of an image.')
    if provenance.get('note'):
        sentences.append(f'Note: {escape_text(provenance["note"])}.')
    subset = _subset(provenance)
    if subset:
        sentences.append(f'Protocol: {subset}.')
    return ' '.join(sentences)


def _subset(provenance: dict[str, Any]) -> str:
    """Return by what the training images were chosen, as far as it is known."""
    known = []

    # how they were cut
    factor = provenance.get('imbalance_factor')
    if factor is not None:
        natural = natural_imbalance(factor, provenance.get('class_counts') or [])
        known.append(natural or f'imbalance factor {factor:g}')

    # which ones they are
    if provenance.get('subset_hash') is not None:
        known.append(f'subset hash {code_span(provenance["subset_hash"])}')
    if provenance.get('subset_order') is not None:
        known.append(f'subset order {code_span(provenance["subset_order"])}')
    if provenance.get('data_seed') is not None:
        known.append(f'data seed {escape_text(provenance["data_seed"])}')

    # what the run did with them
    if provenance.get('seed') is not None:
        known.append(f'training seed {escape_text(provenance["seed"])}')
    if provenance.get('val_fraction'):
        known.append(f'held-out share {provenance["val_fraction"]:g}')
    return ', '.join(known)


_CODE = '''\
import timm
{imports}from PIL import Image

model = timm.create_model({source}, pretrained=True).eval()  # or local-dir:FOLDER
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.open('image.png').convert('RGB')
{forward}
'''
_PREDICT = '''\
import timm
import timm_longtail

model = timm.create_model({source}, pretrained=True)
for prediction in timm_longtail.predict(model, ['a.jpg', 'b.jpg']):
    print(prediction.image, prediction.name, prediction.probability)
'''
_PREDICT_WORDS = (
    'With timm_longtail, {command} writes the class of every image below a folder. From Python, images are paths, '
    'Pillow images or arrays:'
)
_STOCK_TIMM = 'Stock timm loads it; no other package is needed.'
_THIS_PACKAGE = (
    'Stock timm does not know {architecture}: the package timm_longtail, imported, registers it. '
    'Without the package, `model.safetensors` is a plain state dict.'
)


def _usage(config: dict[str, Any]) -> str:
    """Return the code that loads the model and shows it an image."""
    architecture = config['architecture']
    words, imports = _STOCK_TIMM, ''
    if is_ours(architecture):
        words = _THIS_PACKAGE.format(architecture=code_span(architecture))
        imports = f'import timm_longtail  # registers {architecture}\n'

    forward = 'features = model(transform(image).unsqueeze(0))  # [1, model.num_features]'
    if config['num_classes']:
        forward = f'logits = model(transform(image).unsqueeze(0))  # [1, {config["num_classes"]}]'
    if config.get('label_names'):
        forward += '\nlabel = model.pretrained_cfg[\'label_names\'][logits.argmax()]'

    # a literal of Python, whatever the name holds
    source = repr(f'hf-hub:USER/{model_name(config)}')
    code = _CODE.format(imports=imports, source=source, forward=forward)
    text = f'{words} `USER` is the owner of this repository.\n\n{code_block(code, "python")}'
    if not config.get('label_names'):
        return text

    command = code_span(f'timm-longtail predict hf-hub:USER/{model_name(config)} FOLDER')
    predict = code_block(_PREDICT.format(source=source), 'python')
    return f'{text}\n\n{_PREDICT_WORDS.format(command=command)}\n\n{predict}'


def _training(config: dict[str, Any]) -> str:
    """Return the commands of both stages, and where the options that they do not name are found."""
    provenance = config['timm_longtail']
    if not provenance.get('command'):
        return ''

    commands = provenance['command']
    stage_1 = provenance.get('stage_1') or {}
    if stage_1.get('command'):
        commands = f'{stage_1["command"]}\n{commands}'
    text = code_block(commands, 'bash')

    if provenance.get('recipe'):
        recipe, version = code_span(provenance['recipe']), escape_text(provenance['version'])
        text += f'\n\nThe other options are those of {recipe} in timm_longtail {version}.'
    return text


def _limits(config: dict[str, Any]) -> str:
    metrics = config['timm_longtail'].get('metrics') or {}
    tested = 'on the test set above only: not on other images'
    if not metrics:
        tested = 'on no test set yet'

    worst = ''
    if 'many' in metrics and metrics.get('worst_class') is not None:
        worst = f'; its worst class is right in {metrics["worst_class"]:.2f} % of the images'

    sentences = [
        'The model is meant for research on long-tailed recognition.',
        f'It was tested {tested}, and not for robustness or bias.',
        'One training run stands behind it, which says nothing about the spread over seeds'
        f'{worst}.',
    ]
    return ' '.join(sentences)


def _citation(config: dict[str, Any]) -> str:
    """Return title, authors, place and link of the paper, with which a method's file begins."""
    method = config['timm_longtail'].get('method')
    if method not in list_methods():
        return ''

    module = sys.modules[method_class(method).__module__]
    title, *paragraphs = (inspect.getdoc(module) or '').split('\n\n')
    if not paragraphs or 'https://' not in paragraphs[0]:
        return ''
    paper = ' '.join(f'{title}. {paragraphs[0]}'.split())
    return f'The method is from\n\n> {paper}'
