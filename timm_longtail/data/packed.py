"""One safetensors file a data set: encoded images of both splits, labels, names, digests and where it all comes from.

A way to carry or publish an exact subset. Tensors of a split: `bytes` (uint8, the images end to end), `offsets` (int64
[N+1] into them), `targets` (int64 [N]), `indices` (int64 [N], rows of the source), `digests` (uint8 [N,32], sha256 of
the pixels) and `names` (uint8, UTF-8 lines). The rest is JSON in the file's header. Reading needs no `datasets`.
"""
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .longtail_dataset import LongTailDataset
from .sources import decode_images

__all__ = ['read_packed', 'write_packed']

_FORMAT = 'timm_longtail.packed/1'
_SHARED = ('name', 'class_names', 'mean', 'std', 'imbalance_factor', 'seed', 'subset_order', 'original_order')


def _encode(image: np.ndarray) -> bytes:
    """Compress [H,W,3] pixels without loss."""
    from PIL import Image
    buffer = io.BytesIO()
    # effort 2 of 6 gives the smallest files on 32x32 images and takes half a millisecond
    Image.fromarray(image).save(buffer, 'WEBP', lossless=True, method=2, quality=50)
    return buffer.getvalue()


def _split_tensors(dataset: LongTailDataset) -> dict[str, torch.Tensor]:
    encoded = [_encode(image) for image in dataset.images.permute(0, 2, 3, 1).contiguous().numpy()]
    names = '\n'.join(name.replace('\n', ' ') for name in dataset.source_names).encode()
    tensors = {
        'bytes': np.frombuffer(b''.join(encoded), np.uint8).copy(),
        'offsets': np.cumsum([0, *map(len, encoded)]),
        'targets': dataset.targets,
        'indices': dataset.indices,
        'digests': dataset.digests,
        'names': np.frombuffer(names, np.uint8).copy(),
    }
    return {f'{dataset.split}.{key}': torch.from_numpy(value) for key, value in tensors.items()}


def write_packed(
        path: str | Path,
        train: LongTailDataset,
        test: LongTailDataset,
        provenance: dict[str, Any],
) -> Path:
    """Write both splits of a data set into one file, atomically.

    Args:
        path: File to write.
        train: Training split, whole (before any hold-out).
        test: Test split of the same classes.
        provenance: Anything that says where the images come from (source, licence, command); plain JSON values.

    Returns:
        The path.

    Raises:
        UserError: The splits have other classes or are swapped.
    """
    from safetensors.torch import save_file
    if (train.split, test.split) != ('train', 'test') or train.class_names != test.class_names:
        raise UserError('a packed file holds a train and a test split of the same classes')
    path = Path(path)
    header = {key: getattr(train, key) for key in _SHARED}
    header |= {'shot_counts': train.shot_counts, 'hash': {'train': train.hash, 'test': test.hash}}
    metadata = {'format': _FORMAT, 'data': json.dumps(header), 'provenance': json.dumps(provenance)}
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        save_file(_split_tensors(train) | _split_tensors(test), temporary, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _read_tensors(path: Path, split: str) -> tuple[dict[str, np.ndarray], dict]:
    """Return the tensors of a split and the header."""
    from safetensors import SafetensorError, safe_open
    if not path.is_file():
        raise UserError(f'no packed data set at {path}')
    keys = ('bytes', 'offsets', 'targets', 'indices', 'digests', 'names')
    try:
        with safe_open(path, framework='numpy') as file:
            metadata = file.metadata() or {}
            if metadata.get('format') != _FORMAT:
                raise UserError(f'{path} is not a packed data set (its format is {metadata.get("format")!r})')
            return {key: file.get_tensor(f'{split}.{key}') for key in keys}, json.loads(metadata['data'])
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f'{path} is not a packed data set, or is damaged: {error}') from error


def read_packed(path: str | Path, split: str) -> LongTailDataset:
    """Read one split of a packed file; every image is decoded and checked against its digest.

    Args:
        path: File that `write_packed` wrote.
        split: `train` or `test`.

    Raises:
        UserError: No file, not a packed file, or an image that cannot be read or differs from its digest.
    """
    path = Path(path)
    tensors, header = _read_tensors(path, split)
    data, offsets = tensors['bytes'].tobytes(), tensors['offsets'].tolist()
    names = tensors['names'].tobytes().decode().split('\n')
    images = decode_images(
        (data[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)),
        [f'{path}, {split} row {row} ({name})' for row, name in enumerate(names)],
    )
    dataset = LongTailDataset(
        split=split, images=images, targets=tensors['targets'], indices=tensors['indices'], source_names=names,
        shot_counts=header.pop('shot_counts') if split == 'train' else None,
        **{key: tuple(value) if key in ('mean', 'std') else value for key, value in header.items() if key in _SHARED},
    )
    damaged = np.flatnonzero((dataset.digests != tensors['digests']).any(1))
    if len(damaged):
        raise UserError(f'{path}, {split} row {damaged[0]} ({names[damaged[0]]}) differs from its digest')
    return dataset
