"""Models that were trained before: exports, checkpoints, models of the Hub, timm's own; and the data they know."""
import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm.data import resolve_model_data_config
from torch import nn

from .checkpoint import check_architecture, find_checkpoint, read_checkpoint
from .cli import check_names, create_timm_model
from .data import Preprocessing
from .errors import UserError
from .export import load_exported
from .methods import tells_classes
from .options import dataset_options
from .weights import load_initial_weights

__all__ = ['Candidate', 'is_export', 'load_checkpoint', 'load_export', 'load_timm_model', 'trained_data']

# where a run found its data: a checkpoint knows, an export, which is published, does not
_STORAGE = 'data_dir', 'train_split', 'test_split', 'input_key', 'target_key'
# what makes the training images, as `dataset_options` names it, and as a run's provenance does
_SUBSET = {'imbalance_factor': 'imbalance_factor', 'profile': 'imbalance_profile', 'subset_order': 'subset_order',
           'seed': 'data_seed'}


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


def is_export(source: str) -> bool:
    """Return whether a source names an exported model and not one of timm's."""
    return source.startswith(('local-dir:', 'hf-hub:', 'hf_hub:'))


def load_export(source: str) -> Candidate:
    """Load an exported model, `local-dir:FOLDER` or `hf-hub:USER/NAME`."""
    model, config = load_exported(source)
    trained = {**config.get('timm_longtail', {}), 'class_names': config.get('label_names')}
    return Candidate(model, config['architecture'], _preprocessing(model), trained)


def load_checkpoint(path: str | Path) -> Candidate:
    """Load the model of a run's checkpoint, or of the newest one in a folder; its moving average where there is one.

    Raises:
        UserError: There is none, or it is of another program.
    """
    path = Path(path)
    found = find_checkpoint(path) if path.is_dir() else (path, read_checkpoint(path))
    if found is None:
        raise UserError(f'{path}: no checkpoint in this folder')
    _, state = found
    about = state.get('about')
    if about is None:
        raise UserError(f'{path} is not a checkpoint of train.py: it does not say how to evaluate it')
    model = create_timm_model(state['arch'], **about['model_args'])
    weights = state.get('state_dict_ema', state['state_dict'])
    check_architecture(model.state_dict(), weights, str(path), state['arch'])
    model.load_state_dict(weights)
    options, protocol = state['args'], state['protocol']
    names = 'dataset', 'method', 'sampler', 'val_fraction', 'seed', 'epochs', *_STORAGE, *_SUBSET.values()
    trained = {**about, **{name: options.get(name) for name in names}, 'subset_hash': protocol['dataset']}
    return Candidate(model.eval(), state['arch'], Preprocessing(**about['preprocessing']), trained)


def load_timm_model(name: str, initial_checkpoint: str = '') -> Candidate:
    """Build a model of timm's with its pretrained weights, or with those of a file."""
    check_names(name, 'digits_lt')
    if initial_checkpoint and not Path(initial_checkpoint).is_file():
        raise UserError(f'--initial-checkpoint {initial_checkpoint}: no such file')
    model = create_timm_model(name, pretrained=not initial_checkpoint)
    if initial_checkpoint:
        load_initial_weights(model, Path(initial_checkpoint))
    return Candidate(model.eval(), name, _preprocessing(model), {})


def _preprocessing(model: nn.Module) -> Preprocessing:
    config = resolve_model_data_config(model)
    return Preprocessing(
        config['input_size'][-1], config['mean'], config['std'], config['crop_pct'], config['interpolation'])


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
