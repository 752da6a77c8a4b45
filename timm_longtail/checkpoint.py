"""Checkpoints: atomic on disk, exact to resume, readable by timm.

The file has timm's keys (`epoch`, `arch`, `state_dict`, `state_dict_ema`, `optimizer`, `args`, `metric`, `version`);
`state_dict` is the deployed model's, so that `timm.models.load_checkpoint` takes it as it is. What training needs
beyond that (branches, centroids, position in the epoch) stands beside it. Tensors and plain types only: read with
`weights_only=True`, always.
"""
import logging
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .errors import UserError
from .files import LAST, PREVIOUS, writing
from .models import deployed_state_dict

__all__ = [
    'check_architecture', 'find_checkpoint', 'load_method_state', 'method_state', 'read_checkpoint', 'read_weights',
    'write_checkpoint',
]

_logger = logging.getLogger(__name__)

def write_checkpoint(state: dict[str, Any], path: Path, keep_previous: bool = False):
    """Write a checkpoint so that a crash at any moment leaves a whole file.

    Args:
        state: Tensors and plain types.
        path: File to write.
        keep_previous: Rename the file that stands there to `checkpoint-previous.pth.tar` first.

    Raises:
        UserError: The disk is full or refuses; the files that stood there still do.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        with writing(path):
            with open(temporary, 'wb') as f:
                torch.save(state, f)
                f.flush()
                os.fsync(f.fileno())
            if keep_previous and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
    except UserError:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU.

    Raises:
        UserError: No such file; a file that is cut short; a pickle that holds more than tensors and plain types.
    """
    state = _read(path)
    if not isinstance(state, dict) or 'state_dict' not in state:
        raise UserError(f'{path} is not a training checkpoint: it has no state_dict')
    return state


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f'no checkpoint at {path}')
    try:
        return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as e:  # torch raises five kinds of error here, by where the file ends
        with open(path, 'rb') as f:
            start = f.read(1)
        whole = zipfile.is_zipfile(path) if start == b'P' else start == b'\x80'  # an archive of torch's, or a pickle
        if isinstance(e, pickle.UnpicklingError) and whole:
            raise UserError(f'{path} refused: it is a pickle that holds more than tensors and plain types') from e
        raise UserError(f'{path} is truncated or is not a checkpoint') from e


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a model's weights: safetensors, a state dict, or a training checkpoint (its moving average, if any).

    Raises:
        UserError: No such file, or not one of these.
    """
    if path.suffix == '.safetensors':
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        try:
            return load_file(path)
        except (SafetensorError, OSError) as e:
            raise UserError(f'{path} is truncated or is not a safetensors file') from e
    state = _read(path)
    if isinstance(state, dict) and 'state_dict' in state:
        return state.get('state_dict_ema', state['state_dict'])
    if isinstance(state, dict) and state and all(isinstance(value, torch.Tensor) for value in state.values()):
        return state
    raise UserError(f'{path} holds no weights')


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable checkpoint of an output folder with its content, or None where there is none.

    Raises:
        UserError: Checkpoints are there, and none can be read.
    """
    error = None
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except UserError as e:
            _logger.warning(f'{e}; falling back to the previous checkpoint')
            error = e
        else:
            return path, state
    if error is not None:
        raise error
    return None


def method_state(method: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Return a method's state in two parts: `state_dict`, the deployed model's, and `method_state`, all the rest."""
    deployed = deployed_state_dict(method.model)
    rest = {k: v for k, v in method.state_dict().items() if k.removeprefix('model.') not in deployed}
    return {'state_dict': deployed, 'method_state': rest}


def load_method_state(method: nn.Module, state: dict[str, Any], source: str):
    """Load what `method_state` returned.

    Args:
        method: Method of the same name around a model of the same architecture.
        state: Content of a checkpoint.
        source: Name of the checkpoint for the error.

    Raises:
        UserError: The checkpoint is of another architecture or method; names the keys that differ.
    """
    merged = {**{f'model.{k}': v for k, v in state['state_dict'].items()}, **state.get('method_state', {})}
    check_architecture(method.state_dict(), merged, source, state.get('arch', 'unknown'))
    method.load_state_dict(merged)


def check_architecture(
        own: dict[str, torch.Tensor],
        other: dict[str, torch.Tensor],
        source: str,
        arch: str = 'unknown',
):
    """Raise a `UserError` that names keys, unless two state dicts have the same keys and shapes.

    Args:
        own: State dict of what is to be loaded into.
        other: State dict to load.
        source, arch: Where `other` comes from and of which model it is, for the message.
    """
    differing = sorted(k for k in own.keys() | other.keys() if _shape(own, k) != _shape(other, k))
    if differing:
        shown = ', '.join(differing[:4])
        raise UserError(f'{source} is of another architecture ({arch}): {len(differing)} keys differ, such as {shown}')


def _shape(state: dict[str, torch.Tensor], key: str) -> torch.Size | None:
    return state[key].shape if key in state else None
