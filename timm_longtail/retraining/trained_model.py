"""Models that were trained before: exports, checkpoints, models of the Hub, timm's own; and the data they know."""
import argparse
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from ..config.data_options import dataset_options
from ..config.names import check_names
from ..data import Preprocessing
from ..evaluation.evaluators import trained_tensors
from ..export.folder import load_exported
from ..methods import tells_classes
from ..models.factory import create_timm_model, pretrained_config
from ..training.checkpoint import (
    check_architecture,
    check_fields,
    check_finite,
    find_checkpoint,
    read_checkpoint,
    restoring,
)
from ..training.weights import (
    initial_weights_path,
    is_export,
    load_initial_weights,
    say_input,
    size_argument,
    weights_preprocessing,
)
from ..utils.errors import UserError, one_line
from ..utils.files import read_yaml, reading

__all__ = [
    'Candidate',
    'is_export',
    'load_checkpoint',
    'load_export',
    'load_run_export',
    'load_timm_model',
    'trained_data',
]

# where a run found its data: a checkpoint knows, an export, which is published, does not
_STORAGE = 'data_dir', 'train_split', 'test_split', 'input_key', 'target_key'
# what makes the training images, as `dataset_options` names it, and as a run's provenance does
_SUBSET = {'imbalance_factor': 'imbalance_factor', 'profile': 'imbalance_profile', 'subset_order': 'subset_order',
           'seed': 'data_seed'}

_NAME, _NUMBER = (str, NoneType), (int, float, NoneType)
# what a model says of its training: each may be missing, none may be of another type
_TRAINED = {
    'dataset': _NAME, 'dataset_name': _NAME, 'hub_id': _NAME, 'method': _NAME, 'sampler': _NAME,
    'imbalance_factor': _NUMBER, 'imbalance_profile': _NAME, 'subset_order': _NAME, 'subset_hash': _NAME,
    'data_seed': (int, NoneType), 'seed': (int, NoneType), 'epochs': (int, NoneType), 'val_fraction': _NUMBER,
    'resident': (bool, NoneType), **dict.fromkeys(_STORAGE, _NAME),
}
_LISTS = {'class_names': str, 'class_counts': int, 'shot_counts': int}


@dataclass
class Candidate:
    """A model to evaluate or to go on from, and what is known about it.

    Attributes:
        model: The model.
        name: Its architecture.
        preprocessing: What it wants of an image.
        trained: What it was trained on, as far as it says: `dataset`, `imbalance_factor`, `class_names`,
            `class_counts`, `shot_counts`, `resident`, …
        has_classes: Whether its outputs are the classes of the data; a self-supervised model has others, or none.
    """
    model: nn.Module
    name: str
    preprocessing: Preprocessing
    trained: dict[str, Any]
    has_classes: bool = field(init=False)

    def __post_init__(self):
        self.has_classes = tells_classes(self.trained.get('method'), self.model.num_classes)


def _check_trained(trained: dict[str, Any], source: str):
    """Raise a `UserError` where a model says something of its training that cannot be.

    Args:
        trained: What it says.
        source: Its file or folder.
    """
    what = f'{source} is damaged'
    check_fields(trained, {name: kind for name, kind in _TRAINED.items() if name in trained}, what)

    for name, kind in _LISTS.items():
        values = trained.get(name)
        if values is None:
            continue
        if not isinstance(values, (list, tuple)) or not all(type(value) is kind for value in values):
            raise UserError(f'{what}: {name} is {one_line(repr(values), 60)}, expected a list of {kind.__name__}')

    fraction = trained.get('val_fraction') or 0
    if not 0 <= fraction < 1:
        raise UserError(f'{what}: val_fraction is {fraction}, expected a share in [0, 1)')


def load_export(source: str) -> Candidate:
    """Load an exported model, `local-dir:FOLDER` or `hf-hub:USER/NAME`.

    Raises:
        UserError: There is none, or it is damaged: its files cannot be read or do not fit each other.
    """
    try:
        model, config = load_exported(source)
        trained = {**config.get('timm_longtail', {}), 'class_names': config.get('label_names')}
        architecture = config['architecture']
    except UserError:
        raise
    except Exception as e:  # timm builds what `config.json` says, which may be anything
        reason = f'{type(e).__name__}: {one_line(e)}'
        raise UserError(f'{source} is damaged or not an exported model: {reason}') from e

    if source.startswith('local-dir:'):
        _check_weights(model, Path(source.removeprefix('local-dir:')))
    preprocessing, _ = weights_preprocessing(model.pretrained_cfg, source)
    _check_trained(trained, source)
    return Candidate(model, architecture, preprocessing, trained)


def _check_weights(model: nn.Module, folder: Path):
    """Raise a `UserError` unless the weights of an export are those of its architecture, by names and shapes.

    timm draws a new classifier where the stored one has another number of classes.
    """
    path = folder / 'model.safetensors'
    with reading(path, 'safetensors file'), safe_open(path, 'pt') as file:
        names = file.keys()
        stored = {name: torch.empty(file.get_slice(name).get_shape(), device='meta') for name in names}
    check_architecture(model.state_dict(), stored, str(path), str(folder / 'config.json'))


def load_run_export(folder: Path) -> Candidate:
    """Load the export of an output folder, which knows beside it where its data was (`args.yaml`).

    Args:
        folder: Output folder of a finished run.

    Raises:
        UserError: One of its files is damaged.
    """
    candidate = load_export(f'local-dir:{folder / "export"}')
    path = folder / 'args.yaml'
    if not path.is_file():
        return candidate

    options = read_yaml(path)
    _check_trained(options, str(path))

    candidate.trained = {**options, **candidate.trained}
    return candidate


def load_checkpoint(path: str | Path) -> Candidate:
    """Load the model of a run's checkpoint, or of the newest one in a folder; its moving average where there is one.

    Raises:
        UserError: There is none, or it is of another program, or damaged.
    """
    path = Path(path)
    found = find_checkpoint(path) if path.is_dir() else (path, read_checkpoint(path))
    if found is None:
        raise UserError(f'{path}: no checkpoint in this folder')

    path, state = found
    about, options = state['about'], state['args']
    with restoring(str(path)):
        model = create_timm_model(state['arch'], **about['model_args'])
        preprocessing = Preprocessing(**about['preprocessing'])
        names = 'dataset', 'method', 'sampler', 'val_fraction', 'seed', 'epochs', *_STORAGE, *_SUBSET.values()
        trained = {**about, **{name: options.get(name) for name in names}, 'subset_hash': state['protocol']['dataset']}
    _check_trained(trained, str(path))

    weights = state.get('state_dict_ema', state['state_dict'])
    check_architecture(model.state_dict(), weights, str(path), state['arch'])
    model.load_state_dict(weights)
    return Candidate(model.eval(), state['arch'], preprocessing, trained)


def load_timm_model(name: str, initial_checkpoint: str = '') -> Candidate:
    """Build a model of timm's with its pretrained weights, or with those of a file, and the input that they want.

    Args:
        name: Name of the model.
        initial_checkpoint: File of weights, export or output folder; '' for the pretrained ones.

    Raises:
        UserError: No such model, no such file, weights that do not fit.
    """
    check_names(name, 'digits_lt')
    path = initial_weights_path(initial_checkpoint)
    if not initial_checkpoint:
        model = create_timm_model(name, pretrained=True)
        check_finite(trained_tensors(model), name)
        preprocessing, _ = weights_preprocessing(model.pretrained_cfg, name)
        return Candidate(model.eval(), name, preprocessing, {})

    if not path.is_file():
        raise UserError(f'--initial-checkpoint {path}: no such file')
    cfg = pretrained_config(name)
    preprocessing, source = weights_preprocessing(cfg, name, initial_checkpoint)
    model = create_timm_model(name, **size_argument(cfg, preprocessing.img_size))
    load_initial_weights(model, path)
    say_input(preprocessing, source)
    return Candidate(model.eval(), name, preprocessing, {})


def trained_data(args: argparse.Namespace, candidate: Candidate) -> tuple[str, dict[str, Any]]:
    """Return the name of the data set, and the arguments of `create_dataset`: what was asked for, or trained on.

    Args:
        args: Options of `add_data_options`, with None for a data set that was not named.
        candidate: The model.

    Raises:
        UserError: No data set is named, or one that does not exist.
    """
    trained, name = candidate.trained, args.dataset or candidate.trained.get('dataset')
    if name is None:
        raise UserError(f'{candidate.name} does not say what it was trained on: add --dataset')
    try:
        check_names(candidate.name, name)
    except UserError as e:
        if args.dataset is None:
            raise UserError(f'{candidate.name} was trained on {name}: name it by --dataset, a folder by '
                            '--dataset folder --data-dir …, a packed file by --dataset packed:FILE') from e
        raise
    options = dataset_options(args)
    if args.dataset is None:
        options.update({key: options[key] or trained.get(key) for key in _STORAGE})
        known = {key: trained.get(name) for key, name in _SUBSET.items()}
        options.update({key: value for key, value in known.items() if value is not None})
    if options['loader'] == 'auto' and trained.get('resident') is False:
        options['loader'] = 'worker'
    return name, options
