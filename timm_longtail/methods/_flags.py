"""Flag files: which images look alike in every rotation. One of `cifar100` serves every subset of it.

An image is known by its digest, the sha256 of its uint8 HWC pixels, whatever its place in a data set.

N images.
"""
import hashlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..errors import UserError

__all__ = ['FLAG_FILE', 'flags_digest', 'read_flags', 'write_flags']

FLAG_FILE = 'rotation_agnostic.safetensors'


def write_flags(path: Path, digests: np.ndarray, entropy: np.ndarray, threshold: float) -> np.ndarray:
    """Write a flag file.

    Args:
        path: File.
        digests: uint8 [N,32].
        entropy: Mean entropy of the predictions for the four rotations of each image, in nats [N].
        threshold: An image is rotation-agnostic if its entropy is larger.

    Returns:
        The flags, bool [N].

    Raises:
        UserError: The disk refuses.
    """
    tensors = {'digest': digests, 'flag': entropy > threshold, 'entropy': entropy.astype(np.float32)}
    try:
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, path, {'threshold': f'{threshold:.6f}'})
    except (SafetensorError, OSError) as e:
        raise UserError(f'cannot write {path}: {e}') from e
    return tensors['flag']


def read_flags(path: str | Path, digests: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Read what a file, which may hold more, says of some images.

    Args:
        path: File that `write_flags` wrote.
        digests: Of the images, uint8 [N,32].

    Returns:
        Flags, bool [N], entropies, float32 [N], and the threshold between them.

    Raises:
        UserError: No such file, no flag file, or one of other images.
    """
    if not Path(path).is_file():
        raise UserError(f'no flag file at {path}')
    try:
        with safe_open(path, framework='numpy') as file:
            found, flags, entropies = (file.get_tensor(name) for name in ('digest', 'flag', 'entropy'))
            threshold = float((file.metadata() or {})['threshold'])
        row_of = {bytes(digest): row for row, digest in enumerate(found)}
    except (SafetensorError, KeyError, ValueError) as e:
        raise UserError(f'{path} is not a flag file of rais') from e
    rows = [row_of.get(digest, -1) for digest in map(bytes, digests)]
    missing = rows.count(-1)
    if missing:
        raise UserError(f'{path} is of other images: it lacks {missing} of these {len(rows)}')
    return flags[rows].astype(bool), entropies[rows], threshold


def flags_digest(flags: np.ndarray) -> str:
    """Return 12 letters that tell flags [N] of one data set, in its order, from others."""
    return hashlib.sha256(np.packbits(flags).tobytes()).hexdigest()[:12]
