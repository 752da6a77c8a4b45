"""One safetensors file a data set: encoded images of both splits, labels, names, digests and where it all comes from.

A way to carry or publish an exact subset. Decoded images are stored as lossless WebP, files byte for byte. Tensors of a
split: `bytes` (uint8, the images end to end), `offsets` (int64 [N+1] into them), `targets` (int64 [N]), `indices`
(int64 [N], rows of the source), `digests` (uint8 [N,32], sha256 of the pixels) and `names` (uint8, UTF-8 lines). The
rest is JSON in the file's header. Reading needs no `datasets`.
"""
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import UserError
from .encoded import EncodedImages, decode_images
from .longtail_dataset import LongTailDataset

__all__ = ['packed_data', 'read_packed', 'write_packed']

_FORMAT = 'timm_longtail.packed/1'
_SHARED = (
    'name', 'class_names', 'mean', 'std', 'imbalance_factor', 'seed', 'subset_order', 'original_order', 'profile',
    'hub_id',
)


def _encode(image: np.ndarray) -> bytes:
    """Compress [H,W,3] pixels without loss."""
    from PIL import Image
    buffer = io.BytesIO()
    # effort 2 of 6 gives the smallest files on 32x32 images and takes half a millisecond
    Image.fromarray(image).save(buffer, 'WEBP', lossless=True, method=2, quality=50)
    return buffer.getvalue()


class PackedImages(EncodedImages):
    """The encoded images of one split of a packed file.

    Args:
        path: The file.
        split: `train` or `test`.
        offsets: Where each image starts, int64 [N+1].
        names: File name of each image.
    """

    block_size = 512

    def __init__(self, path: Path, split: str, offsets: np.ndarray, names: list[str]):
        super().__init__(f'{path}, {split}', len(names))
        self.path = path
        self.key = f'{split}.bytes'
        self.offsets = offsets
        self.stored_names = names

    def describe(self, position: int) -> str:
        row = self.rows[position]
        return f'{self.place} row {row} ({self.stored_names[row]})'

    def _read(self, rows: np.ndarray) -> list[bytes]:
        from safetensors import safe_open
        with safe_open(self.path, framework='numpy') as file:
            data = file.get_slice(self.key)
            return [data[int(self.offsets[row]):int(self.offsets[row + 1])].tobytes() for row in rows]

    def _names(self, rows: np.ndarray) -> list[str]:
        return [self.stored_names[row] for row in rows]

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        return np.diff(self.offsets)[rows]


def _encoded(dataset: LongTailDataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoded images end to end, and where each starts."""
    if dataset.resident:
        encoded = [_encode(image) for image in dataset.images.permute(0, 2, 3, 1).contiguous().numpy()]
        return np.frombuffer(b''.join(encoded), np.uint8).copy(), np.cumsum([0, *map(len, encoded)])
    offsets = np.cumsum([0, *dataset.encoded.sizes()])
    data = np.empty(offsets[-1], np.uint8)
    for position, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        data[start:end] = np.frombuffer(dataset.encoded.read([position])[0], np.uint8)
    return data, offsets


def _split_tensors(dataset: LongTailDataset) -> dict[str, torch.Tensor]:
    digests = dataset.digests  # of files too: every image is decoded once, so none that is packed is unreadable
    data, offsets = _encoded(dataset)
    names = '\n'.join(name.replace('\n', ' ') for name in dataset.source_names).encode(errors='surrogateescape')
    tensors = {
        'bytes': data,
        'offsets': offsets,
        'targets': dataset.targets,
        'indices': dataset.indices,
        'digests': digests,
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
    header |= {'resident': train.resident, 'shot_counts': train.shot_counts}
    header |= {'hash': {'train': train.hash, 'test': test.hash}}
    metadata = {'format': _FORMAT, 'data': json.dumps(header), 'provenance': json.dumps(provenance)}
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        save_file(_split_tensors(train) | _split_tensors(test), temporary, metadata=metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def packed_data(path: str | Path) -> tuple[str, float]:
    """Return the name of the data set that a file holds, and its imbalance factor, without its images.

    Raises:
        UserError: No file, or not a packed file.
    """
    _, header = _read_tensors(Path(path), 'train', ())
    return header['name'], header['imbalance_factor']


def _read_tensors(
        path: Path,
        split: str,
        keys: Sequence[str] = ('offsets', 'targets', 'indices', 'digests', 'names'),
) -> tuple[dict[str, np.ndarray], dict]:
    """Return the tensors of a split and the header."""
    from safetensors import SafetensorError, safe_open
    if not path.is_file():
        raise UserError(f'no packed data set at {path}')
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


def read_packed(path: str | Path, split: str, loader: str = 'auto') -> LongTailDataset:
    """Read one split of a packed file; decoded images are checked against their digests.

    Args:
        path: File that `write_packed` wrote.
        split: `train` or `test`.
        loader: `resident` or `worker`, see `create_dataset`; `auto` is what the set was packed from.

    Raises:
        UserError: No file, not a packed file, or an image that cannot be read or differs from its digest.
    """
    path = Path(path)
    tensors, header = _read_tensors(path, split)
    names = tensors['names'].tobytes().decode(errors='surrogateescape').split('\n')
    encoded, images = PackedImages(path, split, tensors['offsets'], names), None
    if loader == 'resident' or (loader == 'auto' and header.get('resident', True)):
        images, _ = decode_images(encoded)
    dataset = LongTailDataset(
        split=split, images=images, encoded=encoded if images is None else None,
        targets=tensors['targets'], indices=tensors['indices'], source_names=names,
        shot_counts=header.pop('shot_counts') if split == 'train' else None,
        **{key: tuple(value) if key in ('mean', 'std') else value for key, value in header.items() if key in _SHARED},
    )
    if dataset.resident:
        damaged = np.flatnonzero((dataset.digests != tensors['digests']).any(1))
        if len(damaged):
            raise UserError(f'{path}, {split} row {damaged[0]} ({names[damaged[0]]}) differs from its digest')
    return dataset
