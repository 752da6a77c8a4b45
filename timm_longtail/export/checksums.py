"""Checksums of an exported folder, by which damage to it is seen.

`config.json` holds, under `timm_longtail.weights`, the sha256 of `model.safetensors` and the type
of its numbers; and, as `config_sha256`, a digest of all its other content. Exports of versions
that wrote neither are read unverified.
"""
import hashlib
import json
from pathlib import Path
from typing import Any

from ..utils.errors import UserError, one_line
from ..utils.files import read_json, reading, write_text
from .checks import (
    CONFIG,
    CONFIG_KIND,
    WEIGHTS,
    check_content,
    dtype_name,
    require_files,
    require_ours,
    stored_tensors,
)

__all__ = [
    'config_digest',
    'describe_weights',
    'is_sealed',
    'read_config',
    'seal',
    'verify_weights',
]


def seal(folder: str | Path) -> dict[str, Any]:
    """Write the checksums of an exported folder into its `config.json`: of its weights, and the rest.

    A checksum of the weights that is there already has to be right. All else in `config.json` is
    taken as it is.

    Args:
        folder: Exported folder.

    Returns:
        The content of its `config.json`.

    Raises:
        UserError: The folder is no export, or its weights are not those it was written with.
    """
    folder = Path(folder)
    require_files(folder)
    path = folder / CONFIG
    config = read_json(path, CONFIG_KIND)
    check_content(config, path)
    require_ours(config, path)

    # the weights first: their checksum is part of the content
    found = describe_weights(folder / WEIGHTS)
    stated = config['timm_longtail'].setdefault('weights', found)
    _compare_weights(folder / WEIGHTS, stated, found)

    digest = config_digest(config)
    if config.get('config_sha256') != digest:
        config['config_sha256'] = digest
        write_text(path, json.dumps(config, indent=2) + '\n')
    return config


def read_config(folder: str | Path) -> dict[str, Any]:
    """Return the content of the `config.json` of an exported folder, checked against its digest.

    Args:
        folder: Exported folder.

    Raises:
        UserError: The file is missing, damaged, or states something that no export states.
    """
    path = Path(folder) / CONFIG
    config = read_json(path, CONFIG_KIND)

    if 'config_sha256' in config or is_sealed(config):
        _check_digest(config, path)
    check_content(config, path)
    return config


def is_sealed(config: dict[str, Any]) -> bool:
    """Return whether an export states the checksum of its weights; older ones do not.

    Args:
        config: Content of a `config.json`, whatever it holds.
    """
    provenance = config.get('timm_longtail')
    return isinstance(provenance, dict) and 'weights' in provenance


def config_digest(config: dict[str, Any]) -> str:
    """Return the sha256 of the content of a config, whatever order and spaces it is written with."""
    content = {key: value for key, value in config.items() if key != 'config_sha256'}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_digest(config: dict[str, Any], path: Path):
    if config.get('config_sha256') != config_digest(config):
        raise UserError(
            f'{path} is damaged, or was edited: its content does not have the digest that it '
            f'states; `python -m timm_longtail.export {path.parent}` takes it as it is now'
        )


def verify_weights(folder: Path, config: dict[str, Any]):
    """Check that an export has the weights that it was written with; without a checksum it passes.

    Args:
        folder: Exported folder.
        config: Content of its `config.json`, from `read_config`.

    Raises:
        UserError: The weights have another checksum.
    """
    if is_sealed(config):
        path = folder / WEIGHTS
        _compare_weights(path, config['timm_longtail']['weights'], describe_weights(path))


def describe_weights(path: Path) -> dict[str, str]:
    """Return what `config.json` states of the weights: `sha256`, and `dtype` of floating numbers.

    Args:
        path: Path of a safetensors file.

    Raises:
        UserError: The file is missing or damaged.
    """
    digest = hashlib.sha256()
    with reading(path, 'safetensors file'):
        with open(path, 'rb') as file:
            while block := file.read(1 << 20):
                digest.update(block)

        tensors = stored_tensors(path).values()

    types = {dtype_name(tensor.dtype) for tensor in tensors if tensor.is_floating_point()}
    return {'sha256': digest.hexdigest(), 'dtype': ', '.join(sorted(types))}


def _compare_weights(path: Path, stated: dict[str, Any], found: dict[str, str]):
    for key in ('sha256', 'dtype'):
        if stated.get(key) != found[key]:
            raise UserError(
                f'{path} is damaged, or of another model: its {key} is {found[key]}, '
                f'in config.json {one_line(repr(stated.get(key)), 70)}'
            )
