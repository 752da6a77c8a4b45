"""An exported folder as it lies on disk: what its files must hold, and the checksums by which damage is seen.

`config.json` holds, under `timm_longtail.weights`, the sha256 of `model.safetensors` and the type of its numbers; and,
as `config_sha256`, a digest of all its other content. Folders of versions that wrote neither are read unverified.
"""
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from torch import nn

from ..utils.errors import UserError, one_line, unknown_name
from ..utils.files import read_json, reading, write_text

__all__ = [
    'FILES',
    'check_content',
    'check_tensors',
    'check_values',
    'describe_weights',
    'is_sealed',
    'read_config',
    'require_files',
    'require_ours',
    'seal',
    'verify_weights',
]

CARD, CONFIG, WEIGHTS = FILES = ('README.md', 'config.json', 'model.safetensors')
_KIND = 'config of an exported model'

# what a model may be published in; timm copies them into the fp32 weights of a model
_PUBLISHED = (torch.float32, torch.float16, torch.bfloat16)


def require_files(folder: Path, names: tuple[str, ...] = (CONFIG, WEIGHTS)):
    """Raise a `UserError` unless a folder holds the files of an export."""
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f'{folder} is not an exported model: no {name} in it')


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of the `config.json` of an exported folder.

    Raises:
        UserError: The file is missing, damaged, or says something that no export says.
    """
    path = Path(folder) / CONFIG
    config = read_json(path, _KIND)
    if 'config_sha256' in config or 'weights' in _provenance(config):
        _check_digest(config, path)
    check_content(config, path)
    return config


def _provenance(config: dict[str, Any]) -> dict[str, Any]:
    provenance = config.get('timm_longtail')
    return provenance if isinstance(provenance, dict) else {}


def _digest(config: dict[str, Any]) -> str:
    """Return the sha256 of what a config says, whatever the order and the spaces it is written with."""
    content = {key: value for key, value in config.items() if key != 'config_sha256'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_digest(config: dict[str, Any], path: Path):
    if config.get('config_sha256') != _digest(config):
        raise UserError(
            f'{path} is damaged, or was edited: its content does not have the digest that it states; '
            f'`python -m timm_longtail.export.card {path.parent}` takes it as it is now')


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
    return isinstance(value, list) and len(value) == 3 and all(_is_count(n) and n > 0 for n in value)


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


# keys of `config.json` and of the objects in it: what each may be, in words; all may be missing or null
_CONTENT = {
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


def check_content(config: dict[str, Any], path: Path):
    """Raise a `UserError` where a config holds something of the wrong type.

    Args:
        config: Content of a `config.json`.
        path: File, for the message.
    """
    for place, known in _CONTENT.items():
        content = config.get(place) if place else config
        for key, (is_right, expected) in known.items():
            value = (content or {}).get(key)
            if value is not None and not is_right(value):
                where = f'{place}.{key}' if place else key
                raise UserError(f'{path}: {where} is {one_line(repr(value), 60)}, expected {expected}')

    # timm drops a classifier whose size the two places state otherwise, and goes on with a random one
    num_classes = config.get('num_classes')
    built = (config.get('model_args') or {}).get('num_classes')
    if None not in (num_classes, built) and num_classes != built:
        raise UserError(f'{path}: num_classes is {num_classes}, model_args.num_classes {one_line(repr(built), 60)}')

    # timm also takes names by class, as an object
    names = config.get('label_names')
    if isinstance(names, list) and not _is_names(names):
        raise UserError(f'{path}: label_names holds something else than texts')
    if isinstance(names, list) and num_classes is not None and len(names) != num_classes:
        raise UserError(f'{path}: label_names holds {len(names)} names for {num_classes} classes')
    if names is not None and not isinstance(names, (list, dict)):
        raise UserError(f'{path}: label_names is {one_line(repr(names), 60)}, expected a list')


def describe_weights(path: Path) -> dict[str, str]:
    """Return what `config.json` says about the file of the weights: `sha256`, and `dtype` of its floating numbers.

    Raises:
        UserError: The file is missing or damaged.
    """
    digest = hashlib.sha256()
    with reading(path, 'safetensors file'):
        with open(path, 'rb') as f:
            while block := f.read(1 << 20):
                digest.update(block)
        types = {dtype for _, dtype in _stored(path).values() if dtype.is_floating_point}

    return {'sha256': digest.hexdigest(), 'dtype': ', '.join(sorted(map(_name, types)))}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix('torch.')


def _stored(path: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and type of each tensor in a safetensors file."""
    found = {}
    with safe_open(path, 'pt') as f:
        for name in f.keys():  # noqa: SIM118  no dictionary
            tensor = f.get_tensor(name)  # mapped, not read
            found[name] = tuple(tensor.shape), tensor.dtype
    return found


def is_sealed(config: dict[str, Any]) -> bool:
    """Return whether an export states the checksum of its weights; older ones do not."""
    return 'weights' in _provenance(config)


def seal(folder: str | Path) -> dict[str, Any]:
    """Write the checksums of an exported folder into its `config.json`: of its weights, and of its other content.

    A checksum of the weights that is there already has to be right. What else `config.json` says is taken as it is.

    Args:
        folder: Exported folder.

    Returns:
        The content of its `config.json`.

    Raises:
        UserError: It is no export; the weights are others than those it was written with.
    """
    folder = Path(folder)
    require_files(folder)
    path = folder / CONFIG
    config = read_json(path, _KIND)
    check_content(config, path)
    require_ours(config, path)

    found = describe_weights(folder / WEIGHTS)
    stated = config['timm_longtail'].setdefault('weights', found)
    _compare(folder / WEIGHTS, stated, found)

    digest = _digest(config)
    if config.get('config_sha256') != digest:
        config['config_sha256'] = digest
        write_text(path, json.dumps(config, indent=2) + '\n')
    return config


def require_ours(config: dict[str, Any], path: Path):
    """Raise a `UserError` where a config lacks what every export of this package says.

    Args:
        config: Content of a `config.json`.
        path: File, for the message.
    """
    for key in ('architecture', 'num_classes', 'pretrained_cfg', 'timm_longtail'):
        if config.get(key) is None:
            raise UserError(f'{path} says nothing of {key}: export_model did not write it')
    if config['pretrained_cfg'].get('input_size') is None:
        raise UserError(f'{path} says nothing of pretrained_cfg.input_size: export_model did not write it')
    if not timm.is_model(config['architecture']):
        raise unknown_name('architecture', config['architecture'], timm.list_models())


def _compare(path: Path, stated: dict[str, Any], found: dict[str, str]):
    for key in ('sha256', 'dtype'):
        if stated.get(key) != found[key]:
            raise UserError(
                f'{path} is damaged, or of another model: its {key} is {found[key]}, '
                f'in config.json {one_line(repr(stated.get(key)), 70)}')


def verify_weights(folder: Path, config: dict[str, Any]):
    """Check that the weights of an export are those that it was written with; one that states nothing passes.

    Args:
        folder: Exported folder.
        config: Content of its `config.json`, from `read_config`.

    Raises:
        UserError: They are not.
    """
    if is_sealed(config):
        _compare(folder / WEIGHTS, config['timm_longtail']['weights'], describe_weights(folder / WEIGHTS))


def check_tensors(folder: Path, config: dict[str, Any], model: nn.Module | None = None):
    """Check names, shapes and types of the tensors of an export against the model that its config describes.

    Weights may be fp32, fp16 or bf16; a buffer of integers, such as the counter of BatchNorm, has the model's type.

    Args:
        folder: Exported folder.
        config: Content of its `config.json`, from `read_config`.
        model: That model; None builds it, without memory.

    Raises:
        UserError: A tensor is missing, too many, or of another shape or type; the config describes no model.
    """
    path, architecture = folder / WEIGHTS, config['architecture']
    with reading(path, 'safetensors file'):
        stored = _stored(path)

    if model is None:
        with reading(folder / CONFIG, _KIND), torch.device('meta'):
            model = timm.create_model(f'local-dir:{folder}')

    wanted = {name: (tuple(value.shape), value.dtype) for name, value in model.state_dict().items()}
    for name in sorted(stored.keys() | wanted.keys()):
        shape, dtype = stored.get(name, ('not there', None))
        wanted_shape, wanted_dtype = wanted.get(name, ('not there', None))
        if shape != wanted_shape:
            raise UserError(f'{path} does not fit {architecture}: {name} is {shape}, in the model {wanted_shape}')

        expected = _PUBLISHED if wanted_dtype.is_floating_point else [wanted_dtype]
        if dtype not in expected:
            raise UserError(f'{path}: {name} is {_name(dtype)}, expected {", ".join(map(_name, expected))}')


def check_values(tensors: dict[str, torch.Tensor], place: str | Path):
    """Raise a `UserError` that names the first tensor with a value that is not finite.

    Args:
        tensors: By name.
        place: Where they are, for the message.
    """
    for name, tensor in tensors.items():
        if (tensor.is_floating_point() or tensor.is_complex()) and not torch.isfinite(tensor).all():
            count = int((~torch.isfinite(tensor)).sum())
            raise UserError(f'{place}: {name} holds {count} values that are not finite, of {tensor.numel()}')
