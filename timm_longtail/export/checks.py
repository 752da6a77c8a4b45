"""What the files of an export must hold, checked before a model is loaded from them or pushed."""
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import nn

from ..utils.errors import UserError, one_line, unknown_name
from ..utils.files import reading

__all__ = [
    'CARD',
    'CONFIG',
    'CONFIG_KIND',
    'FILES',
    'WEIGHTS',
    'check_content',
    'check_tensors',
    'dtype_name',
    'require_files',
    'require_ours',
    'stored_tensors',
]

CARD, CONFIG, WEIGHTS = FILES = ('README.md', 'config.json', 'model.safetensors')

CONFIG_KIND = 'config of an exported model'
"""What `config.json` is called in messages."""

# what a model may be published in; timm copies them into the fp32 weights of a model
_PUBLISHED = (torch.float32, torch.float16, torch.bfloat16)


def require_files(folder: Path, names: tuple[str, ...] = (CONFIG, WEIGHTS)):
    """Raise a `UserError` unless a folder holds the files of an export.

    Args:
        folder: Exported folder.
        names: Names of the files.
    """
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f'{folder} is not an exported model: no {name} in it')


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value != ''


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and value != [] and all(map(_is_number, value))


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_count, value))


def _is_size(value: Any) -> bool:
    return _is_counts(value) and len(value) == 3 and 0 not in value


_Known = dict[str, tuple[Callable[[Any], bool], str]]

# keys of `config.json` and of the objects in it: what each may be, in words; all may be missing or
# null
_CONTENT: dict[str, _Known] = {
    '': {
        'architecture': (_is_name, 'a name'),
        'num_classes': (_is_count, 'a number of classes'),
        'pretrained_cfg': (_is_object, 'an object'),
        'model_args': (_is_object, 'an object'),
        'timm_longtail': (_is_object, 'an object'),
    },
    'pretrained_cfg': {
        'input_size': (_is_size, 'three sizes'),
        'mean': (_is_numbers, 'a list of numbers'),
        'std': (_is_numbers, 'a list of numbers'),
        'crop_pct': (_is_number, 'a number'),
        'interpolation': (_is_text, 'a text'),
        'license': (_is_text, 'a text'),
    },
    'timm_longtail': {
        'weights': (_is_object, 'an object'),
        'metrics': (_is_object, 'an object'),
        'stage_1': (_is_object, 'an object'),
        'method_kwargs': (_is_object, 'an object'),
        'class_counts': (_is_counts, 'a list of counts'),
        'shot_counts': (_is_counts, 'a list of counts'),
        'dataset': (_is_text, 'a text'),
        'dataset_name': (_is_text, 'a text'),
        'hub_id': (_is_text, 'a text'),
        'tag': (_is_text, 'a text'),
        'method': (_is_text, 'a text'),
        'command': (_is_text, 'a text'),
        'recipe': (_is_text, 'a text'),
        'val_fraction': (_is_number, 'a number'),
        'imbalance_factor': (_is_number, 'a number'),
    },
}


# keys that every export of this package states
_REQUIRED = ('architecture', 'num_classes', 'pretrained_cfg', 'timm_longtail')


def check_content(config: dict[str, Any], path: Path):
    """Raise a `UserError` where a config holds something of the wrong type, or contradicts itself.

    Args:
        config: Content of a `config.json`.
        path: Path of the file, for the message.
    """
    # the objects are checked first, as keys of the whole, so that they can be looked into
    for place, known in _CONTENT.items():
        content = config
        if place:
            content = config.get(place) or {}

        for key, (is_right, expected) in known.items():
            value = content.get(key)
            if value is not None and not is_right(value):
                where = f'{place}.{key}' if place else key
                shown = one_line(repr(value), 60)
                raise UserError(f'{path}: {where} is {shown}, expected {expected}')

    _check_num_classes(config, path)
    _check_label_names(config, path)


def _check_num_classes(config: dict[str, Any], path: Path):
    stated = config.get('num_classes')
    built = (config.get('model_args') or {}).get('num_classes')
    if stated is None or built is None:
        return

    # timm drops a classifier of another size than the model's, and goes on with a random one
    if stated != built:
        shown = one_line(repr(built), 60)
        raise UserError(f'{path}: num_classes is {stated}, model_args.num_classes {shown}')


def _check_label_names(config: dict[str, Any], path: Path):
    names, num_classes = config.get('label_names'), config.get('num_classes')
    if names is None or isinstance(names, dict):  # timm also takes names by class, as an object
        return

    if not isinstance(names, list):
        raise UserError(f'{path}: label_names is {one_line(repr(names), 60)}, expected a list')
    if not all(map(_is_text, names)):
        raise UserError(f'{path}: label_names holds something else than texts')
    if num_classes is not None and len(names) != num_classes:
        raise UserError(f'{path}: label_names holds {len(names)} names for {num_classes} classes')


def require_ours(config: dict[str, Any], path: Path):
    """Raise a `UserError` where a config lacks what every export of this package states.

    Args:
        config: Content of a `config.json`.
        path: Path of the file, for the message.
    """
    stated = {key: config.get(key) for key in _REQUIRED}
    stated['pretrained_cfg.input_size'] = (config.get('pretrained_cfg') or {}).get('input_size')
    for key, value in stated.items():
        if value is None:
            raise UserError(f'{path} says nothing of {key}: export_model did not write it')

    if not timm.is_model(config['architecture']):
        raise unknown_name('architecture', config['architecture'], timm.list_models())


def stored_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file by name: their shapes and types, without memory.

    Args:
        path: Path of the file.
    """
    with safe_open(path, 'pt') as file:
        names = file.keys()
        return {name: file.get_tensor(name).to('meta') for name in names}  # mapped, not read


def dtype_name(dtype: torch.dtype) -> str:
    """Return `float32` for `torch.float32`."""
    return str(dtype).removeprefix('torch.')


def check_tensors(folder: Path, config: dict[str, Any], model: nn.Module | None = None):
    """Check names, shapes and types of the tensors of an export against the model of its config.

    Weights may be fp32, fp16 or bf16; a buffer of integers, such as the counter of BatchNorm, has
    the model's type.

    Args:
        folder: Exported folder.
        config: Content of its `config.json`, from `read_config`.
        model: Model that the config describes; None builds it, without memory.

    Raises:
        UserError: A tensor is missing, too many, or of another shape or type; the config describes
            no model.
    """
    path, architecture = folder / WEIGHTS, config['architecture']
    with reading(path, 'safetensors file'):
        stored = stored_tensors(path)

    if model is None:
        with reading(folder / CONFIG, CONFIG_KIND), torch.device('meta'):
            model = timm.create_model(f'local-dir:{folder}')
    wanted = model.state_dict()

    for name in sorted(stored.keys() | wanted.keys()):
        shape = tuple(stored[name].shape) if name in stored else 'not there'
        wanted_shape = tuple(wanted[name].shape) if name in wanted else 'not there'
        if shape != wanted_shape:
            raise UserError(
                f'{path} does not fit {architecture}: {name} is {shape}, in the model {wanted_shape}')

        accepted = _PUBLISHED if wanted[name].is_floating_point() else (wanted[name].dtype,)
        if stored[name].dtype not in accepted:
            found, expected = dtype_name(stored[name].dtype), ', '.join(map(dtype_name, accepted))
            raise UserError(f'{path}: {name} is {found}, expected {expected}')
