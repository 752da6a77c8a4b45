"""Checkpoints: atomic on disk, exact to resume, readable by timm.

The file has timm's keys (`epoch`, `arch`, `state_dict`, `state_dict_ema`, `optimizer`, `args`,
`metric`, `version`); `state_dict` is the deployed model's, so that `timm.models.load_checkpoint`
takes it as it is. What training needs beyond that (branches, centroids, position in the epoch)
stands beside it. Tensors and plain types only: read with `weights_only=True`, always, and not
before every record has been compared with its checksum.
"""
import argparse
import logging
import os
import pathlib
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import IO, Any

import numpy as np
import torch
from torch import nn

from ..export.checks import CONFIG, WEIGHTS
from ..export.checksums import read_config, verify_weights
from ..models import deployed_state_dict
from ..models.tuning import frozen_names, trained_state_dict
from ..utils.errors import UserError, one_line
from ..utils.files import LAST, PREVIOUS, reading, require_regular_file, writing

__all__ = [
    'check_architecture',
    'check_fields',
    'find_checkpoint',
    'load_method_state',
    'method_state',
    'read_checkpoint',
    'read_about',
    'read_part',
    'read_weights',
    'restoring',
    'write_checkpoint',
]

_logger = logging.getLogger(__name__)

# how the files of torch begin
_ARCHIVE = b'PK\x03\x04'
_PICKLE = b'\x80'

# where programs keep a model's weights in a file: the order of `timm.models.load_state_dict`, then
# DeepSpeed's name
_PARTS = ('state_dict_ema', 'model_ema', 'state_dict', 'model', 'module')

# what resuming reads, and the type that it must have
_FIELDS = {
    'epoch': int,
    'step': int,
    'arch': str,
    'state_dict': dict,
    'method_state': dict,
    'optimizer': dict,
    'optimizers': list,
    'args': dict,
    'about': dict,
    'protocol': dict,
    'tree_hashes': list,
    'seconds': (int, float),
    'history': list,
    'best': (dict, NoneType),
}

# the same for a checkpoint from inside an epoch
_FIELDS_INSIDE = {
    'torch_rng': list,
    'method_rng': dict,
    'sums': list,
}


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

            # on disk: only now the names change
            if keep_previous and path.exists():
                os.replace(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
    except UserError:
        temporary.unlink(missing_ok=True)
        raise


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint onto the CPU.

    Args:
        path: File that `train.py` wrote.

    Raises:
        UserError: No such file; a file that is cut short or whose bits have changed; a pickle that
            holds more than tensors and plain types; a file of another kind; fields that are missing
            or of another type.
    """
    if path.suffix == '.safetensors':
        require_regular_file(path, 'checkpoint')
        raise UserError(f'{path} is no training checkpoint: it holds weights only, which --initial-checkpoint takes')

    content = _read(path)
    if not isinstance(content, dict) or 'protocol' not in content:
        raise UserError(f'{path} is no training checkpoint of timm_longtail: {_describe(content)}')

    _check_training_state(content, path)
    return content


def _describe(content: Any) -> str:
    """Return, for an error message, what a file holds that is not our training checkpoint."""
    found = _find_weights(content)
    if found is None:
        if isinstance(content, dict):
            return 'it holds no weights'
        return f'it holds a {type(content).__name__}'

    part, _ = found
    if part and 'optimizer' in content:
        return f'it is of another program, such as timm\'s train.py; --initial-checkpoint takes its weights ({part})'
    return 'it holds weights only, which --initial-checkpoint takes'


def _check_training_state(state: dict[str, Any], path: Path):
    """Raise a `UserError` unless a checkpoint has all that resuming reads."""
    what = f'{path} is a damaged training checkpoint'

    # fields, and those of dictionaries in them
    check_fields(state, _FIELDS, what)
    if min(state['epoch'], state['step']) < 0:
        raise UserError(f'{what}: epoch {state["epoch"]}, step {state["step"]}')
    if state['step'] > 0:
        check_fields(state, _FIELDS_INSIDE, what)
    check_fields(state['args'], {'method_kwargs': dict}, f'{what}: args')
    if state['best'] is not None:
        check_fields(state['best'], {'epoch': int}, f'{what}: best')

    # weights and figures
    for name in ('state_dict', 'method_state', 'state_dict_ema'):
        if name in state and not _is_state_dict(state[name]):
            raise UserError(f'{what}: {name} holds something else than tensors')
    if not all(isinstance(row, dict) for row in state['history']):
        raise UserError(f'{what}: history holds something else than rows of figures')
    if len(state['history']) != state['epoch']:
        raise UserError(f'{what}: history has {len(state["history"])} rows, and {state["epoch"]} epochs are finished')


def check_fields(values: Mapping[str, Any], kinds: Mapping[str, type | tuple[type, ...]], what: str):
    """Raise a `UserError` unless a dictionary has some fields, each of its type.

    True and False are no numbers.

    Args:
        values: Content of a file.
        kinds: Type of each field, or the types that it may have.
        what: Beginning of the message.
    """
    for name, kind in kinds.items():
        kinds_of_field = kind if isinstance(kind, tuple) else (kind,)
        if name not in values:
            raise UserError(f'{what}: it has no {name}')

        value = values[name]
        is_wrong_bool = isinstance(value, bool) and bool not in kinds_of_field
        if is_wrong_bool or not isinstance(value, kinds_of_field):
            names = ['None' if one is NoneType else one.__name__ for one in kinds_of_field]
            expected = ' or '.join(names)
            raise UserError(f'{what}: {name} is {one_line(repr(value), 60)}, expected {expected}')


@contextmanager
def restoring(source: str) -> Iterator[None]:
    """Turn what an optimizer or a generator raises about a state that it cannot take into one line.

    Args:
        source: Name of the checkpoint.

    Raises:
        UserError: Names it, and the reason.
    """
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        reason = f'{type(e).__name__}: {one_line(e)}'
        raise UserError(f'{source} is a damaged training checkpoint: {reason}') from e


def _read(path: Path) -> Any:
    """Return what a file of `torch.save` holds, opened once: checksums first, then the content."""
    require_regular_file(path, 'checkpoint')
    start = b''
    try:
        with open(path, 'rb') as f:
            start = f.read(4)
            # as torch itself tells an archive from a pickle, which has no checksums
            if start == _ARCHIVE:
                _check_records(f, path)

            f.seek(0)
            with torch.serialization.safe_globals(_plain_types()):
                return torch.load(f, map_location='cpu', weights_only=True)
    except UserError:
        raise
    except OSError as e:
        raise UserError(f'cannot read {path}: {e.strerror or one_line(e)}') from e
    except Exception as e:  # torch raises five kinds of error here, by where the file ends
        is_pickle = start == _ARCHIVE or start[:1] == _PICKLE
        if not (is_pickle and isinstance(e, pickle.UnpicklingError)):
            raise UserError(f'{path} is truncated or is not a checkpoint') from e

        message = f'{path} refused: it is a pickle that holds more than tensors and plain types'
        named = re.search(r'GLOBAL (\S+) was not an allowed', str(e))
        if named:
            message = f'{message}, such as {named.group(1)}'
        raise UserError(message) from e


def _check_records(f: IO[bytes], path: Path):
    """Compare every record of an archive with its checksum, which `torch.load` does not.

    Raises:
        UserError: A record has changed.
        Exception: Whatever `zipfile` raises about an archive that is cut short.
    """
    with zipfile.ZipFile(f) as archive:
        records = archive.infolist()
        if not any(record.CRC for record in records):
            return  # written without (`torch.serialization.set_crc32_options`)

        for record in records:
            try:
                with archive.open(record) as stream:
                    while stream.read(1 << 20):
                        pass
            except zipfile.BadZipFile as e:
                raise UserError(f'{path} is damaged: record {record.filename} does not have its checksum') from e


def _plain_types() -> list:
    """Return types that checkpoints of other programs hold beside their weights.

    None of them runs anything.

    DeiT, MAE and timm keep options as a `Namespace`; some hold paths, or figures as scalars of
    NumPy. Where a type has moved between releases, it is listed by the names that files have for
    it.
    """
    scalar = np._core.multiarray.scalar
    return [
        argparse.Namespace,
        (pathlib.PurePosixPath, 'pathlib.PosixPath'),
        (pathlib.PurePosixPath, 'pathlib._local.PosixPath'),
        (pathlib.PureWindowsPath, 'pathlib.WindowsPath'),
        (pathlib.PureWindowsPath, 'pathlib._local.WindowsPath'),
        (scalar, 'numpy.core.multiarray.scalar'),
        (scalar, 'numpy._core.multiarray.scalar'),
        np.dtype,
        *(type(np.dtype(name)) for name in ('bool', 'int32', 'int64', 'float16', 'float32', 'float64')),
    ]


def _is_state_dict(value: Any) -> bool:
    """Return whether a value is a dictionary of tensors by name; an empty one is."""
    if not isinstance(value, dict):
        return False
    return all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())


def _find_weights(content: Any) -> tuple[str, dict[str, torch.Tensor]] | None:
    """Return the part of a file's content that is weights, and the weights.

    The part is '' where the file is nothing else.
    """
    if not isinstance(content, dict):
        return None
    if content and _is_state_dict(content):
        return '', content

    for part in _PARTS:
        if content.get(part) and _is_state_dict(content[part]):
            return part, content[part]
    return None


def _is_tuned(content: Any) -> bool:
    """Return whether a file's content is a training checkpoint that names frozen weights and does not hold them."""
    if not isinstance(content, dict):
        return False
    protocol = content.get('protocol')
    return isinstance(protocol, dict) and 'backbone' in protocol


def read_part(path: Path) -> tuple[str, dict[str, torch.Tensor]]:
    """Read a model's weights and say where in the file they are.

    Taken are safetensors, a state dict, and what `timm.models.load_state_dict` takes: a checkpoint
    that keeps its weights under `state_dict_ema`, `model_ema`, `state_dict`, `model` or `module`,
    the first of these that there is. The weights of an export are verified by its `config.json`.

    Args:
        path: File.

    Returns:
        Name of the part, '' where the file is nothing but weights, and the tensors.

    Raises:
        UserError: No such file, or not one of these; an export with other weights than it states; a
            checkpoint of a tuned model, which has a part of its weights.
    """
    if path.suffix == '.safetensors':
        from safetensors.torch import load_file
        if path.name == WEIGHTS and (path.parent / CONFIG).is_file():
            verify_weights(path.parent, read_config(path.parent))
        with reading(path, 'safetensors file'):
            return '', load_file(path)

    content = _read(path)
    if _is_tuned(content):
        raise UserError(
            f'{path} holds the tuned part of a model only, without its frozen weights: take the export of the run')
    found = _find_weights(content)
    if found is not None:
        return found

    if isinstance(content, dict):
        held = ', '.join(sorted(map(str, content))[:6]) or 'nothing'
    else:
        held = type(content).__name__
    raise UserError(f'{path} holds no weights, neither by themselves nor under {", ".join(_PARTS)}: it holds {held}')


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a model's weights from any file that `read_part` takes.

    Args:
        path: File.

    Raises:
        UserError: No such file, or one of another kind.
    """
    return read_part(path)[1]


def read_about(path: Path) -> dict[str, Any] | None:
    """Return what a training checkpoint says of its model, without reading tensors.

    Args:
        path: File.

    Returns:
        `preprocessing`, the fields of `Preprocessing`, `class_names` and more; None where the file
        is of another kind. What is wrong with it is said where the weights are read.
    """
    if path.suffix == '.safetensors' or not path.is_file():
        return None
    try:
        with torch.serialization.safe_globals(_plain_types()):
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        return dict(content['about'])
    except Exception:  # no archive, a pickle of something else, another program's
        return None


def find_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest readable checkpoint of an output folder, and its content.

    None where there is no checkpoint.

    Args:
        folder: Output folder.

    Raises:
        UserError: Checkpoints are there, and none can be read.
    """
    paths = [path for path in (folder / LAST, folder / PREVIOUS) if path.exists()]
    if not paths:
        return None

    for path in paths[:-1]:
        try:
            return path, read_checkpoint(path)
        except UserError as e:
            _logger.warning(f'{e}; falling back to the previous checkpoint')
    return paths[-1], read_checkpoint(paths[-1])


def method_state(method: nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Return a method's state in two parts, `state_dict` and `method_state`.

    The first is the deployed model's, the second is all the rest; both without the parameters that
    the tuning leaves as they are.

    Args:
        method: The method.
    """
    deployed = deployed_state_dict(method.model)
    frozen = _frozen_places(method)
    rest = {}
    for name, value in method.state_dict().items():
        if name.removeprefix('model.') not in deployed and name not in frozen:
            rest[name] = value
    return {'state_dict': trained_state_dict(method.model), 'method_state': rest}


def _frozen_places(method: nn.Module) -> set[str]:
    """Return the names of frozen parameters in a method: in its model, and where it shares them with another."""
    names = frozen_names(method.model)
    frozen = {id(parameter) for name, parameter in method.model.named_parameters() if name in names}
    every_name = method.named_parameters(remove_duplicate=False)
    return {name for name, parameter in every_name if id(parameter) in frozen}


def load_method_state(method: nn.Module, state: dict[str, Any], source: str):
    """Load what `method_state` returned.

    Args:
        method: Method of the same name around a model of the same architecture.
        state: Content of a checkpoint.
        source: Name of the checkpoint for the error.

    Raises:
        UserError: The checkpoint is of another architecture or method; names the keys that differ.
    """
    deployed = {f'model.{name}': value for name, value in state['state_dict'].items()}
    merged = {**deployed, **state.get('method_state', {})}

    # what is frozen is not in the file: it is that of the run, which the protocol compares
    frozen = _frozen_places(method)
    own = {name: value for name, value in method.state_dict().items() if name not in frozen}
    check_architecture(own, merged, source, state.get('arch', 'unknown'))
    method.load_state_dict(merged, strict=False)


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
        source: File of `other`, for the message.
        arch: Name of the model that `other` is of.
    """
    differing = []
    for name in sorted(own.keys() | other.keys()):
        is_in_both = name in own and name in other
        if not is_in_both or own[name].shape != other[name].shape:
            differing.append(name)

    if differing:
        shown = ', '.join(differing[:4])
        raise UserError(f'{source} is of another architecture ({arch}): {len(differing)} keys differ, such as {shown}')
