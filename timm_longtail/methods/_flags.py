"""Flag files: which images look alike in every rotation.

A file for `cifar100` serves every subset of it. An image is identified by its digest, the sha256 of
its uint8 HWC pixels, whatever its place in a data set.

Shapes: N images.
"""
import hashlib
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from ..utils.errors import UserError
from ..utils.files import readable_by_others, reading, writing

__all__ = ['FLAG_FILE', 'flags_digest', 'read_flags', 'write_flags']

FLAG_FILE = 'rotation_agnostic.safetensors'

# type of each tensor, and its shape behind the axis of the images
_TENSORS: dict[str, tuple[type, tuple[int, ...]]] = {
    'digest': (np.uint8, (32,)),
    'flag': (np.bool_, ()),
    'entropy': (np.float32, ()),
}


def write_flags(
        path: Path,
        digests: np.ndarray,
        entropy: np.ndarray,
        threshold: float,
) -> np.ndarray:
    """Write a flag file.

    Args:
        path: File to write.
        digests: Digests of the images, uint8 [N, 32].
        entropy: Mean entropy of the predictions for the four rotations of each image, in nats [N].
        threshold: Entropy above which an image is rotation-agnostic.

    Returns:
        The flags, bool [N].

    Raises:
        UserError: The file cannot be written.
    """
    flags = entropy > threshold
    tensors = {
        'digest': np.ascontiguousarray(digests),
        'flag': np.ascontiguousarray(flags),
        'entropy': np.ascontiguousarray(entropy, dtype=np.float32),
    }
    with writing(Path(path)), readable_by_others(Path(path)):
        save_file(tensors, path, {'threshold': f'{threshold:.6f}'})
    return flags


def read_flags(path: str | Path, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Read what a file, which may hold more, says of some images.

    Args:
        path: File that `write_flags` wrote.
        digests: Digests of the images, uint8 [N, 32].

    Returns:
        Flags, bool [N], entropies, float32 [N], and the threshold between them.

    Raises:
        UserError: No such file, no flag file, one that contradicts itself, or one of other images.
    """
    with reading(Path(path), 'flag file'), safe_open(path, framework='numpy') as file:
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}

    threshold = _check_tensors(tensors, metadata, f'{path} is damaged or not a flag file of rais')

    row_of = {bytes(digest): row for row, digest in enumerate(tensors['digest'])}
    rows = [row_of.get(bytes(digest), -1) for digest in digests]
    missing = rows.count(-1)
    if missing:
        raise UserError(f'{path} is of other images: it lacks {missing} of these {len(rows)}')
    return tensors['flag'][rows], tensors['entropy'][rows], threshold


def _check_tensors(tensors: dict[str, np.ndarray], metadata: dict[str, str], what: str) -> float:
    """Check that the tensors are those of a flag file and agree with each other.

    Args:
        tensors: Content of the file, by name.
        metadata: Header of the file.
        what: Beginning of the message.

    Returns:
        The threshold between the flags.

    Raises:
        UserError: They are not, or do not.
    """
    for name, (dtype, shape) in _TENSORS.items():
        if name not in tensors:
            raise UserError(f'{what}: it has no {name}')

        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.ndim != 1 + len(shape) or tensor.shape[1:] != shape:
            expected = ', '.join(['N', *map(str, shape)])
            raise UserError(
                f'{what}: {name} is {tensor.dtype} {list(tensor.shape)}, '
                f'expected {np.dtype(dtype)} [{expected}]')

    lengths = {name: len(tensors[name]) for name in _TENSORS}
    if len(set(lengths.values())) > 1:
        found = ', '.join(f'{name} of {length} images' for name, length in lengths.items())
        raise UserError(f'{what}: {found}')

    try:
        threshold = float(metadata.get('threshold', ''))
    except ValueError as e:
        raise UserError(f'{what}: its threshold is {metadata.get("threshold", "missing")}') from e
    if not np.isfinite(tensors['entropy']).all() or not np.isfinite(threshold):
        raise UserError(f'{what}: an entropy or the threshold is not finite')

    # the threshold is stored with six digits
    distance = tensors['entropy'].astype(np.float64) - threshold
    wrong = (tensors['flag'] != (distance > 0)) & (np.abs(distance) > 1e-5)
    if wrong.any():
        raise UserError(f'{what}: {wrong.sum()} flags contradict their entropies')
    return threshold


def flags_digest(flags: np.ndarray) -> str:
    """Return 12 letters that identify the flags [N] of a data set, in its order."""
    return hashlib.sha256(np.packbits(flags).tobytes()).hexdigest()[:12]
