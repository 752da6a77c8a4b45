"""Models that were trained before: exports, checkpoints, timm's own; and the data that they know."""
import argparse
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from torch import nn

from ..config.data_options import dataset_options
from ..config.names import check_dataset, check_model
from ..data import Preprocessing
from ..export.checks import CONFIG, WEIGHTS, stored_tensors
from ..export.deploy import deploy
from ..export.loading import load_exported
from ..methods import tells_classes
from ..models.factory import create_timm_model, pretrained_config
from ..training.checkpoint import (
    check_architecture,
    check_fields,
    find_checkpoint,
    read_checkpoint,
    restoring,
)
from ..training.weights import (
    create_tuned_model,
    initial_weights_path,
    is_export,
    load_initial_weights,
    say_input,
    size_argument,
    weights_preprocessing,
)
from ..utils.errors import UserError, one_line
from ..utils.files import read_yaml, reading
from ..utils.finite import check_finite, trained_tensors

__all__ = [
    'TrainedModel',
    'is_export',
    'is_timm_model',
    'load_checkpoint',
    'load_export',
    'load_model',
    'load_run_export',
    'load_timm_model',
    'named_data',
    'trained_data',
]

# where a run found its data: a checkpoint knows, an export, which is published, does not
_STORAGE = ('data_dir', 'train_split', 'test_split', 'input_key', 'target_key')

# what chooses the training images, as `dataset_options` names it, and as the provenance of a run
# does
_SUBSET = {
    'imbalance_factor': 'imbalance_factor',
    'profile': 'imbalance_profile',
    'subset_order': 'subset_order',
    'seed': 'data_seed',
}

_NAME = (str, NoneType)
_COUNT = (int, NoneType)
_NUMBER = (int, float, NoneType)
_FLAG = (bool, NoneType)

# what a model may state of its training: each may be missing, none may be of another type
_PROVENANCE = {
    'dataset': _NAME,
    'dataset_name': _NAME,
    'hub_id': _NAME,
    'method': _NAME,
    'method_kwargs': (dict, NoneType),
    'stage_1': (dict, NoneType),
    'sampler': _NAME,
    'imbalance_factor': _NUMBER,
    'imbalance_profile': _NAME,
    'subset_order': _NAME,
    'subset_hash': _NAME,
    'data_seed': _COUNT,
    'seed': _COUNT,
    'epochs': _COUNT,
    'val_fraction': _NUMBER,
    'resident': _FLAG,
    **dict.fromkeys(_STORAGE, _NAME),
}
_LISTS = {'class_names': str, 'class_counts': int, 'shot_counts': int}


@dataclass
class TrainedModel:
    """A model to evaluate or to go on from, and what is known about it.

    Attributes:
        model: The timm model.
        name: Name of its architecture.
        preprocessing: How the model wants an image.
        provenance: What the model states of its training: `dataset`, `imbalance_factor`,
            `class_names`, `class_counts`, `shot_counts`, `resident`, …; {} where nothing is known.
        has_classes: Whether its outputs are the classes of the data; a self-supervised model has
            others, or none.
    """
    model: nn.Module
    name: str
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    has_classes: bool = field(init=False)

    def __post_init__(self):
        self.has_classes = tells_classes(self.provenance.get('method'), self.model.num_classes)


def _check_provenance(provenance: dict[str, Any], source: str):
    """Raise a `UserError` where a model states something of its training that cannot be.

    Args:
        provenance: What the model states.
        source: Its file or folder, for the message.
    """
    what = f'{source} is damaged'
    stated = {name: kind for name, kind in _PROVENANCE.items() if name in provenance}
    check_fields(provenance, stated, what)

    for name, kind in _LISTS.items():
        values = provenance.get(name)
        if values is None:
            continue
        is_list = isinstance(values, (list, tuple))
        if not is_list or not all(type(value) is kind for value in values):
            shown = one_line(repr(values), 60)
            raise UserError(f'{what}: {name} is {shown}, expected a list of {kind.__name__}')

    fraction = provenance.get('val_fraction') or 0
    if not 0 <= fraction < 1:
        raise UserError(f'{what}: val_fraction is {fraction}, expected a share in [0, 1)')


def load_export(source: str) -> TrainedModel:
    """Load an exported model.

    Args:
        source: `local-dir:FOLDER` or `hf-hub:USER/NAME`.

    Raises:
        UserError: There is none, or it is damaged: its files cannot be read or do not fit each
            other.
    """
    try:
        model, config = load_exported(source)
        provenance = {**config.get('timm_longtail', {}), 'class_names': config.get('label_names')}
        architecture = config['architecture']
    except UserError:
        raise
    except Exception as e:  # timm builds what `config.json` describes, which may be anything
        reason = f'{type(e).__name__}: {one_line(e)}'
        raise UserError(f'{source} is damaged or not an exported model: {reason}') from e

    if source.startswith('local-dir:'):
        _check_weights(model, Path(source.removeprefix('local-dir:')))
    preprocessing, _ = weights_preprocessing(model.pretrained_cfg, source)
    _check_provenance(provenance, source)
    return TrainedModel(model, architecture, preprocessing, provenance)


def _check_weights(model: nn.Module, folder: Path):
    """Raise a `UserError` unless an export has the weights of its architecture, by names and shapes.

    timm draws a new classifier where the stored one has another number of classes.
    """
    path = folder / WEIGHTS
    with reading(path, 'safetensors file'):
        stored = stored_tensors(path)
    check_architecture(model.state_dict(), stored, str(path), str(folder / CONFIG))


def load_run_export(folder: Path) -> TrainedModel:
    """Load the export of an output folder, which also knows where the data was (`args.yaml`).

    Args:
        folder: Output folder of a finished run.

    Raises:
        UserError: One of its files is damaged.
    """
    trained_model = load_export(f'local-dir:{folder / "export"}')
    path = folder / 'args.yaml'
    if not path.is_file():
        return trained_model

    options = read_yaml(path)
    _check_provenance(options, str(path))
    trained_model.provenance = {**options, **trained_model.provenance}
    return trained_model


def load_checkpoint(path: str | Path) -> TrainedModel:
    """Load the model of a run's checkpoint; its moving average where there is one.

    Args:
        path: Checkpoint, or a folder, whose newest checkpoint is taken.

    Raises:
        UserError: There is none, or it is of another program, or damaged.
    """
    path = Path(path)
    found = find_checkpoint(path) if path.is_dir() else (path, read_checkpoint(path))
    if found is None:
        raise UserError(f'{path}: no checkpoint in this folder')
    path, state = found

    # of the options those that say what the model was trained on
    names = ('dataset', 'method', 'method_kwargs', 'sampler', 'val_fraction', 'seed', 'epochs')
    names += (*_STORAGE, *_SUBSET.values())
    about, options = state['about'], state['args']
    is_tuned = 'backbone' in state['protocol']
    with restoring(str(path)):
        if is_tuned:
            model = deploy(create_tuned_model(state, str(path)))
        else:
            model = _create_whole_model(state, str(path))
        preprocessing = Preprocessing(**about['preprocessing'])
        provenance = {
            **about,
            **{name: options.get(name) for name in names},
            'subset_hash': state['protocol']['dataset'],
        }
    _check_provenance(provenance, str(path))

    return TrainedModel(model.eval(), state['arch'], preprocessing, provenance)


def _create_whole_model(state: dict[str, Any], source: str) -> nn.Module:
    """Build the model of a checkpoint that holds all of its weights."""
    model = create_timm_model(state['arch'], **state['about']['model_args'])
    weights = state.get('state_dict_ema', state['state_dict'])
    check_architecture(model.state_dict(), weights, source, state['arch'])
    model.load_state_dict(weights)
    return model


def load_timm_model(name: str, initial_checkpoint: str = '') -> TrainedModel:
    """Build a model of timm's with its pretrained weights, or with those of a file.

    Args:
        name: Name of the model.
        initial_checkpoint: File of weights, export or output folder; '' for the pretrained ones.

    Raises:
        UserError: No such model, no such file, weights that do not fit.
    """
    check_model(name)
    if not initial_checkpoint:
        model = create_timm_model(name, pretrained=True)
        check_finite(trained_tensors(model), name)
        preprocessing, _ = weights_preprocessing(model.pretrained_cfg, name)
        return TrainedModel(model.eval(), name, preprocessing, {})

    path = initial_weights_path(initial_checkpoint)
    if not path.is_file():
        raise UserError(f'--initial-checkpoint {path}: no such file')

    cfg = pretrained_config(name)
    preprocessing, source = weights_preprocessing(cfg, name, initial_checkpoint)
    model = create_timm_model(name, **size_argument(cfg, preprocessing.img_size))
    load_initial_weights(model, path)
    say_input(preprocessing, source)
    return TrainedModel(model.eval(), name, preprocessing, {})


def is_timm_model(source: str) -> bool:
    """Return whether a source is the name of a timm model, and not that of an export, a folder or a file.

    Args:
        source: See `load_model`.
    """
    return not is_export(source) and '/' not in source and not Path(source).exists()


def load_model(source: str, initial_checkpoint: str = '') -> TrainedModel:
    """Load any model: an export, the output folder of a run, a checkpoint, or a model of timm's.

    Args:
        source: `local-dir:FOLDER`, `hf-hub:USER/NAME`, the folder of an export or of a run, a
            checkpoint, or the name of a timm model.
        initial_checkpoint: Weights of a timm model; '' for the pretrained ones.

    Raises:
        UserError: There is none, or it is damaged.
    """
    path = Path(source)
    if is_export(source):
        return load_export(source)
    if (path / 'export' / CONFIG).is_file():
        return load_run_export(path)
    if (path / CONFIG).is_file():
        return load_export(f'local-dir:{path}')
    if path.exists():
        return load_checkpoint(path)

    if '/' in source:
        raise UserError(f'{source}: no such file or folder')
    return load_timm_model(source, initial_checkpoint)


def trained_data(
        args: argparse.Namespace,
        trained_model: TrainedModel,
) -> tuple[str, dict[str, Any]]:
    """Return the data set that is named, or else the one that a model was trained on.

    Args:
        args: Options of `add_data_options`, with None for a data set that was not named.
        trained_model: Model, and what it states of its training.

    Returns:
        Name of the data set, and the arguments of `create_dataset`.

    Raises:
        UserError: No data set is named, or one that does not exist.
    """
    provenance = trained_model.provenance
    name = args.dataset or provenance.get('dataset')
    if name is None:
        raise UserError(f'{trained_model.name} does not say what it was trained on: add --dataset')
    try:
        check_dataset(name)
    except UserError as e:
        if args.dataset is None:
            raise UserError(
                f'{trained_model.name} was trained on {name}: name it by --dataset, a folder by '
                '--dataset folder --data-dir …, a packed file by --dataset packed:FILE'
            ) from e
        raise

    # what was not asked for is as it was in training
    options = dataset_options(args)
    if args.dataset is None:
        for key in _STORAGE:
            options[key] = options[key] or provenance.get(key)
        for key, stated_as in _SUBSET.items():
            if provenance.get(stated_as) is not None:
                options[key] = provenance[stated_as]

    if options['loader'] == 'auto' and provenance.get('resident') is False:
        options['loader'] = 'worker'
    return name, options


def named_data(args: argparse.Namespace, trained_model: TrainedModel) -> tuple[str, dict[str, Any]]:
    """Return the data of a command as the next one is told of it.

    Args:
        args: Options of `add_data_options`.
        trained_model: Model, and what it states of its training.

    Returns:
        Name of the data set, and its options: those that were given, and where its images are.
    """
    name, found = trained_data(args, trained_model)
    options = dataset_options(args)
    options.update({key: found[key] for key in _STORAGE})
    return name, options
