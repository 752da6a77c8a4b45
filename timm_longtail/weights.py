"""The model of a run and the weights that it starts from."""
import inspect
import logging
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from torch import nn

from . import rng
from .checkpoint import read_weights
from .cli import create_timm_model
from .data import LongTailDataset, Preprocessing
from .errors import UserError
from .exported import read_config, verify_weights
from .methods import method_class

__all__ = ['choose_preprocessing', 'create_task_model', 'load_initial_weights']

_logger = logging.getLogger(__name__)


def choose_preprocessing(args: Namespace, dataset: LongTailDataset) -> Preprocessing:
    """Return what becomes of an image: what was asked for, else what suits the weights, the model and the data.

    Size: `--img-size`; of images in memory their own, unless the model has one size; else that of the model. Constants
    and crop: the options, with `--pretrained` those of the weights, else those of the data set.

    Args:
        args: Options of `train.py`.
        dataset: The training set.
    """
    cfg = _pretrained_cfg(args)
    own_size = args.model_kwargs.get('img_size') or cfg.get('input_size', (3, 224, 224))[-1]
    free = not cfg.get('fixed_input_size', False)
    default = dataset.input_size[-1] if dataset.resident and free and not args.pretrained else own_size
    weights = cfg if args.pretrained else {}
    if dataset.resident and args.crop_pct not in (None, 1):
        raise UserError('--crop-pct is for image files: images in memory are looked at whole')
    crop_pct = 1.0 if dataset.resident else args.crop_pct or weights.get('crop_pct', 0.875)
    return Preprocessing(
        img_size=args.img_size or int(default if isinstance(default, int) else default[-1]),
        mean=tuple(args.mean or weights.get('mean', dataset.mean)),
        std=tuple(args.std or weights.get('std', dataset.std)),
        crop_pct=crop_pct,
    )


def create_task_model(args: Namespace, num_classes: int, img_size: int | None = None) -> nn.Module:
    """Build the timm model that the method asks for, initialised from the training seed, pretrained or from a file.

    Args:
        args: Options of `train.py`.
        num_classes: Classes of the data set.
        img_size: Side of its input; given to a model that is built for one size. None leaves it at its default.

    Raises:
        UserError: An argument that the model does not take, or weights that do not fit it.
    """
    rng.seed_torch(args.seed, purpose='init')
    num_outputs = method_class(args.method).num_outputs(num_classes)
    start = Path(args.initial_checkpoint)
    if start.is_dir() and args.initial_checkpoint:
        export = start / 'export'  # of an output folder
        start = export if export.is_dir() else start
        if (start / 'config.json').is_file():
            verify_weights(start, read_config(start))
        start = start / 'model.safetensors'
    if args.initial_checkpoint and not start.is_file():
        raise UserError(f'--initial-checkpoint {start}: no such file')
    kwargs = {'num_classes': num_outputs, **args.model_kwargs}
    if args.pretrained:
        kwargs['pretrained'] = True
    try:
        model = create_timm_model(args.model, **kwargs, **_size_argument(args, img_size))
    except UserError as e:
        hint = '; --initial-checkpoint takes weights from a file' if args.pretrained else ''
        raise UserError(f'{e}{hint}') from e
    if args.initial_checkpoint:
        load_initial_weights(model, start)
    return model


def _size_argument(args: Namespace, img_size: int | None) -> dict[str, int]:
    cfg = _pretrained_cfg(args)
    own = img_size is None or 'img_size' in args.model_kwargs or not cfg.get('fixed_input_size', False)
    return {} if own or cfg['input_size'][-1] == img_size else {'img_size': img_size}


def _pretrained_cfg(args: Namespace) -> dict[str, Any]:
    with torch.device('meta'):
        model = create_timm_model(args.model, **args.model_kwargs)
    return getattr(model, 'pretrained_cfg', None) or {}


def load_initial_weights(model: nn.Module, path: Path):
    """Load what fits of a file of weights, and say what did not.

    The model's own `checkpoint_filter_fn` in timm translates names of other releases and resizes position embeddings.

    Args:
        model: timm model.
        path: safetensors, state dict or training checkpoint.

    Raises:
        UserError: Nothing fits.
    """
    weights = _translate(clean_state_dict(read_weights(path)), model)
    own = model.state_dict()
    fits = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    if not any(name in fits for name, _ in model.named_parameters()):
        raise UserError(
            f'{path}: none of its {len(weights)} tensors fits {type(model).__name__}; it has {_shown(weights)}, '
            f'the model {_shown(own)}')
    model.load_state_dict(fits, strict=False)
    other_shape = own.keys() & weights.keys() - fits.keys()
    _logger.info(
        f'initial checkpoint: {len(fits)} of {len(own)} tensors from {path}; of another shape: {_shown(other_shape)}; '
        f'missing: {_shown(own.keys() - weights.keys())}; unexpected: {_shown(weights.keys() - own.keys())}')


def _translate(weights: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    translate = getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', None)
    if translate is None or len(inspect.signature(translate).parameters) < 2:
        return weights
    try:
        return translate(weights, model)
    except (KeyError, RuntimeError, AttributeError) as e:
        raise UserError(f'these weights are not of a {type(model).__name__}: {" ".join(str(e).split())}') from e


def _shown(names, limit: int = 6) -> str:
    names = sorted(names)
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more if names else 'none'
