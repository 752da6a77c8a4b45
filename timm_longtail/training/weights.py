"""The model of a run and the weights that it starts from."""
import inspect
import logging
import sys
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict, split_model_name_tag
from torch import nn

from ..data import LongTailDataset, Preprocessing
from ..data.preprocessing import check_preprocessing, read_preprocessing
from ..export.checks import CONFIG, WEIGHTS
from ..methods import method_class
from ..models.factory import create_timm_model, pretrained_config
from ..models.heads import set_head, single_classifier
from ..models.tuning import frozen_digest, load_trained_state_dict, trained_state_dict, tune_model
from ..utils import rng
from ..utils.errors import UserError, one_line
from ..utils.files import read_json
from ..utils.finite import check_finite, trained_tensors
from .checkpoint import check_architecture, read_about, read_part

__all__ = [
    'architecture_of',
    'choose_preprocessing',
    'create_task_model',
    'create_tuned_model',
    'initial_weights_path',
    'is_export',
    'load_initial_weights',
    'say_input',
    'size_argument',
    'weights_preprocessing',
]

_logger = logging.getLogger(__name__)

# what `--model-kwargs` may not say, and why
_REFUSED_KWARGS = {
    'checkpoint_path': 'use --initial-checkpoint',
    'pretrained_cfg': 'use --pretrained or --initial-checkpoint',
    'features_only': 'a classifier is trained',
}


def is_export(source: str) -> bool:
    """Return whether a source names an exported model and not one of timm's.

    Args:
        source: Name of a model.
    """
    return source.startswith(('local-dir:', 'hf-hub:', 'hf_hub:'))


def architecture_of(name: str, model: nn.Module) -> str:
    """Return the name by which timm builds a model once more.

    Of an export that is the name of its architecture, as it is of a model that was given another
    classifier than timm has for it.

    Args:
        name: Name that the model was built by.
        model: The model.
    """
    architecture = model.pretrained_cfg['architecture']
    if is_export(name) or split_model_name_tag(name)[0] != architecture:
        return architecture
    return name


def initial_weights_path(name: str) -> Path:
    """Return the file that `--initial-checkpoint` means.

    Of an export its weights, of an output folder those of its export.

    Args:
        name: File, export or output folder.
    """
    path = Path(name)
    if not path.is_dir():
        return path

    is_output_folder = (path / 'export').is_dir()
    if is_output_folder:
        path = path / 'export'
    return path / WEIGHTS


def weights_preprocessing(
        model_cfg: dict[str, Any],
        name: str,
        initial_checkpoint: str = '',
) -> tuple[Preprocessing, str]:
    """Return what weights want of an image: their own configuration, else that of the timm model.

    Args:
        model_cfg: `pretrained_cfg` of the model.
        name: Name of the model.
        initial_checkpoint: File or folder of weights to start from; '' for the model's pretrained
            ones.

    Returns:
        The input, and where it is described, for a start line: in the `config.json` beside the
        weights of an export, in a training checkpoint, or in timm's configuration of the model.

    Raises:
        UserError: The description beside the weights cannot be read.
    """
    if initial_checkpoint:
        path = initial_weights_path(initial_checkpoint)
        about = read_about(path)
        if about is not None:
            return _from_fields(about['preprocessing'], str(path)), str(path)

        config_path = path.with_name(CONFIG)
        config = read_json(config_path) if config_path.is_file() else {}
        if isinstance(config.get('pretrained_cfg'), dict):  # of timm, and of no other program
            return read_preprocessing(config['pretrained_cfg'], str(config_path)), str(config_path)

    return read_preprocessing(model_cfg, name), f'the configuration of {name}'


def _from_fields(fields: dict[str, Any], source: str) -> Preprocessing:
    """Return the input that a training checkpoint describes."""
    try:
        return check_preprocessing(Preprocessing(**fields))
    except (TypeError, ValueError) as e:
        raise UserError(f'{source} does not describe the images of its model: {one_line(e)}') from e


def choose_preprocessing(args: Namespace, dataset: LongTailDataset) -> Preprocessing:
    """Return the input of a run: what was typed, else what suits weights, model and data.

    A run that starts from weights, `--pretrained` or `--initial-checkpoint`, looks at images as
    these do, see `weights_preprocessing`. One from scratch takes the constants of the data set and,
    of images in memory, their own size, unless the model has one size; else that of the model. What
    was typed is above all. Images in memory are looked at whole.

    Args:
        args: Options of `train.py`.
        dataset: The training set.

    Raises:
        UserError: `--crop-pct` for images in memory; a description of the weights that cannot be
            read.
    """
    if dataset.resident and args.crop_pct not in (None, 1):
        raise UserError(
            '--crop-pct is for image files: images in memory are looked at whole; '
            '--loader worker leaves files as they are')

    # the weights, or else the data
    cfg = _pretrained_cfg(args)
    if args.pretrained or args.initial_checkpoint:
        chosen, source = weights_preprocessing(cfg, args.model, args.initial_checkpoint)
    else:
        chosen, source = _from_scratch(cfg, dataset), None

    # a model that is built for one size says so by its constructor
    own_size = args.model_kwargs.get('img_size')
    if own_size is not None:
        img_size = own_size if isinstance(own_size, int) else own_size[-1]
        chosen = replace(chosen, img_size=img_size)
    if dataset.resident:
        chosen = replace(chosen, crop_pct=1.0)

    # what was typed is above all
    typed = {}
    for name in ('img_size', 'mean', 'std', 'crop_pct'):
        value = getattr(args, name)
        if value is not None:
            typed[name] = tuple(value) if name in ('mean', 'std') else value
    chosen = replace(chosen, **typed)

    if source is not None:
        say_input(chosen, source, typed)
    return chosen


def _from_scratch(cfg: dict[str, Any], dataset: LongTailDataset) -> Preprocessing:
    """Return the input of a model that starts from random weights."""
    takes_any_size = not cfg.get('fixed_input_size', False)
    if dataset.resident and takes_any_size:
        input_size = dataset.input_size
    else:
        input_size = cfg.get('input_size', (3, 224, 224))
    return Preprocessing(img_size=int(input_size[-1]), mean=tuple(dataset.mean), std=tuple(dataset.std), crop_pct=0.875)


def say_input(preprocessing: Preprocessing, source: str, typed: Iterable[str] = ()):
    """Say in a start line how images are prepared, and what decides it.

    Args:
        preprocessing: Input of the model.
        source: Place where it is described, from `weights_preprocessing`.
        typed: Names of options that are above it.
    """
    size = f'{preprocessing.img_size}x{preprocessing.img_size}'
    mean = ' '.join(f'{value:.4g}' for value in preprocessing.mean)
    std = ' '.join(f'{value:.4g}' for value in preprocessing.std)
    line = f'input: {size}, mean {mean}, std {std}, as in {source}'

    options = ', '.join(f'--{name.replace("_", "-")}' for name in typed)
    if options:
        line = f'{line}; typed: {options}'
    _logger.info(line)


def create_task_model(
        args: Namespace,
        num_classes: int,
        img_size: int | None = None,
        class_names: Sequence[str] | None = None,
) -> nn.Module:
    """Build the timm model that the method asks for, with the weights it starts from.

    These are drawn from the training seed, pretrained, or from a file.

    Args:
        args: Options of `train.py`.
        num_classes: Classes of the data set.
        img_size: Side of its input; given to a model that is built for one size. None leaves it at
            its default.
        class_names: Classes of the data set; a classifier of others does not stay. None keeps it.

    Raises:
        UserError: An argument that the model does not take or that contradicts the data; weights
            that do not fit it.
    """
    rng.seed_torch(args.seed, purpose='init')

    # the file of weights, before anything is built
    path = initial_weights_path(args.initial_checkpoint)
    if args.initial_checkpoint and not path.is_file():
        raise UserError(f'--initial-checkpoint {path}: no such file')

    # the model, with the outputs that the method wants
    kwargs = {**args.model_kwargs, 'num_classes': method_class(args.method).num_outputs(num_classes)}
    if args.pretrained:
        kwargs['pretrained'] = True
    if 'img_size' not in kwargs:
        kwargs.update(size_argument(_pretrained_cfg(args), img_size))
    try:
        model = create_timm_model(args.model, **kwargs)
    except UserError as e:
        if args.pretrained:
            raise UserError(f'{e}; --initial-checkpoint takes weights from a file') from e
        raise

    if args.pretrained:
        check_finite(trained_tensors(model), f'--model {args.model}')
    if args.head is not None:
        set_head(model, args.head)
    if args.initial_checkpoint:
        left = load_initial_weights(model, path)
        _warn_of_frozen(args, model, path, left)

    learned = _learned_classes(args, model)
    if learned and class_names is not None:
        _fit_classifier(model, learned, class_names)
    return model


def _warn_of_frozen(args: Namespace, model: nn.Module, path: Path, left: Sequence[str]):
    """Say so where weights that a file does not have stay random: those that the tuning does not train.

    Args:
        args: Options of `train.py`.
        model: Model that the file was loaded into.
        path: The file.
        left: Parameters that it does not have.
    """
    tuning = args.tune or method_class(args.method).tune
    classifier = {id(parameter) for parameter in single_classifier(model).parameters()}
    parameters = dict(model.named_parameters())
    random = [name for name in left if id(parameters[name]) not in classifier]
    if random and tuning not in (None, 'all'):
        _logger.warning(
            f'--tune {tuning} keeps most of the weights as they are, and {len(random)} of {len(parameters)} of them '
            f'are random, since {path} does not have them: {_shown(random, 3)}')


def _learned_classes(args: Namespace, model: nn.Module) -> list[str] | None:
    """Return the classes of the weights that a model starts from, in their order; None where they are not said."""
    if not args.initial_checkpoint:
        timm_model: Any = model  # timm has no class that declares what its models share
        return timm_model.pretrained_cfg.get('label_names') if args.pretrained else None

    path = initial_weights_path(args.initial_checkpoint)
    about = read_about(path)
    if about is not None:
        return about.get('class_names')
    config_path = path.with_name(CONFIG)
    is_of_export = path.name == WEIGHTS and config_path.is_file()
    return read_json(config_path).get('label_names') if is_of_export else None


@torch.no_grad()
def _fit_classifier(model: nn.Module, learned: Sequence[str], class_names: Sequence[str]):
    """Put the rows of a classifier into the order of the data set's classes; one of other classes starts anew.

    As many classes are not the same classes, and the order of a data set is that of its folders.

    Args:
        model: Model with its weights.
        learned: Classes of these weights.
        class_names: Classes of the data set.
    """
    classifier = single_classifier(model)
    is_other_size = len(learned) != len(class_names) or len(learned) != getattr(model, 'num_classes', 0)
    if is_other_size or list(learned) == list(class_names) or not hasattr(classifier, 'weight'):
        return  # of another size it has started anew already

    if sorted(learned) == sorted(class_names):
        rows = [list(learned).index(name) for name in class_names]
        for parameter in classifier.parameters():
            parameter.copy_(parameter[rows].clone())
        _logger.info('classifier: the weights have its classes in another order; now they are in that of the data')
        return

    classifier.reset_parameters()
    _logger.info(f'classifier: starts anew, since the weights know other classes ({_shown(learned, 3)})')


def create_tuned_model(state: dict[str, Any], source: str) -> nn.Module:
    """Build the model of a checkpoint that names its frozen weights and does not hold them.

    They are found as the run found them: pretrained, in the file that it started from, or by its
    seed.

    Args:
        state: Content of the checkpoint; the moving average is taken where there is one.
        source: Name of the checkpoint, for messages.

    Raises:
        UserError: The weights that the run started from are not there, or are others now.
    """
    options, about = Namespace(**state['args']), state['about']
    start = options.initial_checkpoint or options.model
    try:
        model = create_task_model(options, len(about['class_names']), about['preprocessing']['img_size'])
    except UserError as e:
        raise UserError(
            f'{source} holds what was tuned and no frozen weights: those are of {start}, seen from the folder that the '
            f'run was started in, and cannot be read ({e}). The export of the run has all weights') from e

    tune_model(model, options.tune or method_class(options.method).tune)
    if frozen_digest(model) != state['protocol']['backbone']:
        raise UserError(f'{source} was trained on other frozen weights than {start} has now')

    weights = state.get('state_dict_ema', state['state_dict'])
    check_architecture(trained_state_dict(model), weights, source, state['arch'])
    load_trained_state_dict(model, weights)
    return model


def size_argument(cfg: dict[str, Any], img_size: int | None) -> dict[str, int]:
    """Return the argument that builds a model of one size for another one.

    There is none where the model takes images as they are.

    Args:
        cfg: `pretrained_cfg` of the model.
        img_size: Side of its input; None for the model's own.
    """
    takes_any = not cfg.get('fixed_input_size', False)
    if img_size is None or takes_any or cfg['input_size'][-1] == img_size:
        return {}
    return {'img_size': img_size}


def _pretrained_cfg(args: Namespace) -> dict[str, Any]:
    """Return timm's configuration of the model, with its checked `--model-kwargs`."""
    for name, reason in _REFUSED_KWARGS.items():
        if name in args.model_kwargs:
            raise UserError(f'--model-kwargs {name}: {reason}')
    channels = args.model_kwargs.get('in_chans', 3)
    if channels != 3:
        raise UserError(f'--model-kwargs in_chans={channels}: images have 3 channels')

    return pretrained_config(args.model, **args.model_kwargs)


def load_initial_weights(model: nn.Module, path: Path) -> list[str]:
    """Load what fits of a file of weights, and say what did not.

    The model's own `checkpoint_filter_fn` in timm translates names of other releases and resizes
    position embeddings.

    Args:
        model: timm model.
        path: File of weights, see `read_part`.

    Returns:
        Names of the parameters that were not in the file, or of another shape there.

    Raises:
        UserError: Nothing fits, a value that would be taken is not finite, or the file has adapters
            that the model lacks.
    """
    part, stored = read_part(path)
    stored = clean_state_dict(stored)
    own = model.state_dict()
    _refuse_adapters(stored.keys() - own.keys(), type(model).__name__, path)
    weights = _translate(stored, model)
    fits = {}
    for name, value in weights.items():
        if name in own and own[name].shape == value.shape:
            fits[name] = value

    # a counter of BatchNorm that fits is no weight
    if not any(name in fits for name, _ in model.named_parameters()):
        raise UserError(
            f'{path}: none of its {len(weights)} tensors fits {type(model).__name__}; it has {_shown(weights)}, '
            f'the model {_shown(own)}')

    check_finite({name: fits[name] for name in trained_tensors(model) if name in fits}, path)
    model.load_state_dict(fits, strict=False)

    other_shape = own.keys() & weights.keys() - fits.keys()
    taken = f' ({part})' if part else ''
    _logger.info(
        f'initial checkpoint: {len(fits)} of {len(own)} tensors from {path}{taken}; '
        f'of another shape: {_shown(other_shape)}; missing: {_shown(own.keys() - weights.keys())}; '
        f'unexpected: {_shown(weights.keys() - own.keys())}')
    return [name for name, _ in model.named_parameters() if name not in fits]


def _refuse_adapters(unexpected: Iterable[str], model_name: str, path: Path):
    """Refuse weights with adapters for a model without: it would compute something else without them."""
    adapters = sorted(name for name in unexpected if '.adapter.' in name)
    if not adapters:
        return

    is_of_export = path.name == WEIGHTS and path.with_name(CONFIG).is_file()
    folder = path.parent if is_of_export else 'FOLDER'
    raise UserError(
        f'{path} has adapters ({adapters[0]}, …), and {model_name} has none: '
        f'to start from an export with adapters, use --model local-dir:{folder} --pretrained')


def _translate(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights by the names of the model, as the file of its architecture has them."""
    translate = getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', None)
    if translate is None or len(inspect.signature(translate).parameters) < 2:
        return weights

    try:
        return translate(weights, model)
    except (KeyError, RuntimeError, AttributeError) as e:
        raise UserError(f'these weights are not of a {type(model).__name__}: {one_line(e)}') from e


def _shown(names: Iterable[str], limit: int = 6) -> str:
    """Return the first of some names in alphabetical order, and how many more there are."""
    names = sorted(names)
    if not names:
        return 'none'

    shown = ', '.join(names[:limit])
    if len(names) > limit:
        shown = f'{shown} and {len(names) - limit} more'
    return shown
