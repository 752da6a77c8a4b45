"""One safetensors file a data set: encoded images of both splits, labels, names, digests and where it all comes from.

A way to carry or publish an exact subset. Decoded images are stored as lossless WebP, files byte
for byte. Tensors of a split: `bytes` (uint8, the images end to end), `offsets` (int64 [N+1] into
them), `targets` (int64 [N]), `indices` (int64 [N], rows of the source), `digests` (uint8 [N,32],
sha256 of the pixels), `byte_digests` (uint8 [N,32], sha256 of the encoded image) and `names`
(uint8, UTF-8, parted by NUL). The rest is JSON in the file's header. Reading needs no `datasets`.

Nothing that is used is trusted:

- When a split is opened, its `checksum` is compared: a sha256 over the header and every tensor but
  `bytes`. That is fast however large the images are.
- When an image is read, in this process or in a worker, its bytes are compared with its byte
  digest, which the checksum covers. An image that is never read is never checked.
- When a split is decoded into memory, the pixels are compared with their digests, so that another
  decoder is noticed.
- The subset hash in the header is compared with the hash of what was read.

Files of format 1 have no checksum and no byte digests. Their labels and images are checked by the
subset hash: in memory of labels and pixels, for workers of labels, names and lengths; a set that
was packed from memory is decoded once for that. What the subset hash does not know (means, class
names, and the bytes of files read by workers) is not checked there: pack the set again.
"""
import hashlib
import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..utils.errors import UserError
from ..utils.files import readable_by_others, reading, writing
from ..utils.progress import progress
from .dataset import LongTailDataset
from .images import EncodedImages, decode_images, files_hash
from .longtail import subset_hash
from .titles import plain_title

__all__ = ['packed_data', 'read_packed', 'write_packed']

_KIND = 'packed data set'
_FORMATS = {'timm_longtail.packed/1': 1, 'timm_longtail.packed/2': 2}
_FORMAT = 'timm_longtail.packed/2'

# fields of `LongTailDataset` that both splits share
_SHARED = (
    'name',
    'class_names',
    'mean',
    'std',
    'imbalance_factor',
    'seed',
    'subset_order',
    'original_order',
    'profile',
    'hub_id',
)

# what the first files of format 1 do not say
_DEFAULTS = {
    'resident': True,
    'profile': 'exp',
    'hub_id': None,
    'subset_order': 'file',
    'original_order': True,
}

# dtype and number of dimensions of each tensor; those of format 1 have no byte digests
_TENSORS = {
    'offsets': (np.int64, 1),
    'targets': (np.int64, 1),
    'indices': (np.int64, 1),
    'digests': (np.uint8, 2),
    'byte_digests': (np.uint8, 2),
    'names': (np.uint8, 1),
}


def _encode(image: np.ndarray) -> bytes:
    """Compress [H,W,3] pixels without loss."""
    buffer = io.BytesIO()
    # effort 2 of 6 gives the smallest files on 32x32 images and takes half a millisecond
    Image.fromarray(image).save(buffer, 'WEBP', lossless=True, method=2, quality=50)
    return buffer.getvalue()


class PackedImages(EncodedImages):
    """The encoded images of one split of a packed file.

    Args:
        path: Path of the packed file.
        split: `train` or `test`.
        offsets: Start of each image in the bytes of the split, int64 [N+1].
        names: File name of each image.
        byte_digests: sha256 of each encoded image, uint8 [N,32]; None leaves the bytes unchecked.
    """

    block_size = 512

    def __init__(
            self,
            path: Path,
            split: str,
            offsets: np.ndarray,
            names: list[str],
            byte_digests: np.ndarray | None = None,
    ):
        super().__init__(f'{path}, {split}', len(names))
        self.path = path
        self.key = f'{split}.bytes'
        self.offsets = offsets
        self.stored_names = names
        self.byte_digests = byte_digests

    def describe(self, position: int) -> str:
        return self._describe_row(self.rows[position])

    def files(self) -> list[Path]:
        return [self.path]

    def _describe_row(self, row: int) -> str:
        return f'{self.place} row {row} ({self.stored_names[row]})'

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        from safetensors import safe_open

        images = []
        with reading(self.path, _KIND), safe_open(self.path, framework='numpy') as file:
            data = file.get_slice(self.key)
            for row in rows:
                first, last = int(self.offsets[row]), int(self.offsets[row + 1])
                images.append(data[first:last].tobytes())

        if self.byte_digests is not None:
            for row, image in zip(rows, images, strict=True):
                if hashlib.sha256(image).digest() != self.byte_digests[row].tobytes():
                    raise UserError(
                        f'{self._describe_row(row)} differs from its digest: the file is damaged')
        return [*images]

    def _names(self, rows: np.ndarray) -> list[str]:
        return [self.stored_names[row] for row in rows]

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        return np.diff(self.offsets)[rows]


# ------------------------------------------------------------------------ writing

def _encoded_images(dataset: LongTailDataset) -> list[bytes]:
    """Return the encoded images of a data set: those in memory as lossless WebP, files as they are."""
    if dataset.images is not None:
        pixels = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
        return [_encode(image) for image in progress(pixels, 'packing', len(pixels))]

    images = []
    for position in progress(range(len(dataset)), 'packing'):
        image = dataset.require_encoded().read([position])[0]
        assert image is not None, 'the image has just been decoded'
        images.append(image)
    return images


def _split_tensors(dataset: LongTailDataset) -> dict[str, np.ndarray]:
    """Return the tensors of a split by name."""
    # every image is decoded for its digest, also one of a file, so that none is packed unreadable
    digests = dataset.digests

    encoded = _encoded_images(dataset)
    byte_digests = bytearray()
    for image in encoded:
        byte_digests += hashlib.sha256(image).digest()

    # NUL parts the names
    names = '\0'.join(name.replace('\0', ' ') for name in dataset.source_names)
    return {
        'bytes': np.frombuffer(b''.join(encoded), np.uint8),
        'offsets': np.cumsum([0, *map(len, encoded)], dtype=np.int64),
        'targets': np.ascontiguousarray(dataset.targets, np.int64),
        'indices': np.ascontiguousarray(dataset.indices, np.int64),
        'digests': digests,
        'byte_digests': np.frombuffer(bytes(byte_digests), np.uint8).reshape(-1, 32),
        'names': np.frombuffer(names.encode(errors='surrogateescape'), np.uint8),
    }


def _checksum(metadata: dict[str, str], split: str, tensors: dict[str, np.ndarray]) -> str:
    """Return the sha256 over the header and the tensors of a split.

    `bytes` are left out: their digests are among the tensors.
    """
    digest = hashlib.sha256()
    for key in ('format', 'data', 'provenance'):
        text = metadata[key].encode()
        digest.update(f'{key} {len(text)}\n'.encode() + text)

    for key in _TENSORS:
        tensor = tensors[key]
        digest.update(f'{split}.{key} {tensor.dtype} {tensor.shape}\n'.encode() + tensor.tobytes())
    return digest.hexdigest()


def write_packed(
        path: str | Path,
        train: LongTailDataset,
        test: LongTailDataset,
        provenance: dict[str, Any],
) -> Path:
    """Write both splits of a data set into one file, atomically.

    Args:
        path: File to write; there must be none.
        train: Training split, whole (before any hold-out).
        test: Test split of the same classes.
        provenance: Source of the images (origin, licence, command); plain JSON values.

    Returns:
        The path.

    Raises:
        UserError: The splits have other classes or are swapped; `path` is there already, and may be
            what is read; an image cannot be read, or changed while it was packed; the disk refuses.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if (train.split, test.split) != ('train', 'test') or train.class_names != test.class_names:
        raise UserError('a packed file holds a train and a test split of the same classes')
    if train.resident != test.resident:
        raise UserError('a packed file holds two splits that are both in memory or both of files')
    if os.path.lexists(path):
        raise UserError(f'{path} is there already; move it away or name another')

    header = {key: getattr(train, key) for key in _SHARED}
    header['resident'] = train.resident
    header['shot_counts'] = train.shot_counts
    header['hash'] = {'train': train.hash, 'test': test.hash}
    metadata = {
        'format': _FORMAT,
        'data': json.dumps(header),
        'provenance': json.dumps(provenance),
    }

    tensors: dict[str, np.ndarray] = {}
    checksums: dict[str, str] = {}
    for dataset in (train, test):
        own = _split_tensors(dataset)
        changed = dataset.changed_file()
        if changed is not None:
            raise UserError(f'{changed} changed while it was packed')
        checksums[dataset.split] = _checksum(metadata, dataset.split, own)
        for key, value in own.items():
            tensors[f'{dataset.split}.{key}'] = value
    metadata['checksum'] = json.dumps(checksums)

    # whole or not at all: what is read under `path` was written to its end
    temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        with writing(path):
            with readable_by_others(temporary):
                save_file(tensors, temporary, metadata=metadata)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------ reading

def _damaged(path: Path, reason: str) -> UserError:
    """Build the error for a file that is not as `write_packed` wrote it."""
    return UserError(f'{path} is damaged or not a {_KIND}: {reason}')


def packed_data(path: str | Path) -> tuple[str, float]:
    """Return the name of the data set that a file holds, and its imbalance factor, without its images.

    Raises:
        UserError: No file, not a packed file, or a damaged one.
    """
    _, header = _open_split(Path(path), 'train')
    return plain_title(header['name']), header['imbalance_factor']


def _open_split(path: Path, split: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return the tensors of a split but `bytes`, and the header, both checked."""
    from safetensors import safe_open

    with reading(path, _KIND), safe_open(path, framework='numpy') as file:
        metadata = file.metadata() or {}
        stated = metadata.get('format')
        version = None if stated is None else _FORMATS.get(stated)
        if version is None:
            raise UserError(f'{path} is not a {_KIND} (its format is {stated!r})')

        header = _read_header(path, metadata)
        tensors = {}
        for key in _TENSORS:
            if key != 'byte_digests' or version > 1:
                tensors[key] = file.get_tensor(f'{split}.{key}')

        # kind and length of the images, which are not read here
        images = file.get_slice(f'{split}.bytes')
        dtype, shape = images.get_dtype(), images.get_shape()

    if dtype != 'U8' or len(shape) != 1:
        raise _damaged(path, f'{split}.bytes is {dtype} {shape}, expected U8 [N]')
    _check_tensors(path, split, tensors, num_bytes=shape[0], num_classes=len(header['class_names']))
    if version > 1:
        _check_sum(path, split, metadata, tensors)
    return tensors, header


def _read_header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """Return the header of the data set, with every field of the kind that it should be."""
    header = json.loads(metadata['data'])
    if not isinstance(header, dict):
        raise _damaged(path, 'its header holds no object')
    header = {**_DEFAULTS, **header}

    for key, (kind, is_kind) in _HEADER.items():
        if key not in header:
            raise _damaged(path, f'its header has no {key}')
        if not is_kind(header[key]):
            raise _damaged(path, f'{key} in its header is {str(header[key])[:40]}, expected {kind}')

    if len(header['shot_counts']) != len(header['class_names']):
        raise _damaged(path, 'shot_counts in its header is not one count a class')
    return header


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_string_or_null(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and value > 0


def _is_factor(value: Any) -> bool:
    return _is_number(value) and value >= 1


def _is_list(value: Any, is_member: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_member, value))


def _is_names(value: Any) -> bool:
    return _is_list(value, _is_string) and len(value) > 0


def _is_channels(value: Any) -> bool:
    return _is_list(value, _is_number) and len(value) == 3


def _is_positive_channels(value: Any) -> bool:
    return _is_list(value, _is_positive) and len(value) == 3


def _is_counts(value: Any) -> bool:
    return _is_list(value, _is_integer)


def _is_hashes(value: Any) -> bool:
    return isinstance(value, dict) and _is_list([*value.values()], _is_string)


# what each field of the header should be: in words, and as a test
_HEADER: dict[str, tuple[str, Callable[[Any], bool]]] = {
    'name': ('a string', _is_string),
    'class_names': ('a list of strings', _is_names),
    'mean': ('three numbers', _is_channels),
    'std': ('three numbers above zero', _is_positive_channels),
    'imbalance_factor': ('a number of at least 1', _is_factor),
    'seed': ('an integer', _is_integer),
    'subset_order': ('a string', _is_string),
    'original_order': ('true or false', _is_bool),
    'profile': ('a string', _is_string),
    'hub_id': ('a string or null', _is_string_or_null),
    'resident': ('true or false', _is_bool),
    'shot_counts': ('one count a class', _is_counts),
    'hash': ('one hash a split', _is_hashes),
}


def _check_tensors(
        path: Path,
        split: str,
        tensors: dict[str, np.ndarray],
        num_bytes: int,
        num_classes: int,
):
    """Raise a `UserError` for a tensor of another kind or length, and for values that point outside.

    Args:
        path: Packed file.
        split: `train` or `test`.
        tensors: Tensors of the split but `bytes`.
        num_bytes: Number of bytes of all images of the split.
        num_classes: C, number of classes.
    """
    for key, tensor in tensors.items():
        dtype, ndim = _TENSORS[key]
        if tensor.dtype != dtype or tensor.ndim != ndim:
            found = f'{tensor.dtype} of {tensor.ndim} dimensions'
            raise _damaged(path, f'{split}.{key} is {found}, expected {np.dtype(dtype)} of {ndim}')

    number = len(tensors['targets'])
    shapes = {
        'offsets': (number + 1,),
        'indices': (number,),
        'digests': (number, 32),
        'byte_digests': (number, 32),
    }
    for key, shape in shapes.items():
        if key in tensors and tensors[key].shape != shape:
            raise _damaged(path, f'{split}.{key} has shape {tensors[key].shape}, expected {shape}')

    offsets = tensors['offsets']
    if offsets[0] != 0 or offsets[-1] != num_bytes or (np.diff(offsets) < 0).any():
        reason = f'{split}.offsets do not rise from 0 to {num_bytes}, the bytes of the images'
        raise _damaged(path, reason)

    targets = tensors['targets']
    if number and (targets.min() < 0 or targets.max() >= num_classes):
        raise _damaged(path, f'{split}.targets lie outside 0..{num_classes - 1}')


def _check_sum(path: Path, split: str, metadata: dict[str, str], tensors: dict[str, np.ndarray]):
    """Raise a `UserError` where header and tensors of a split differ from their checksum."""
    with reading(path, _KIND):
        stated = json.loads(metadata['checksum'])[split]
        found = _checksum(metadata, split, tensors)

    if stated != found:
        raise _damaged(path, f'header and labels of {split} differ from their checksum')


def _read_names(tensors: dict[str, np.ndarray]) -> list[str]:
    """Return the file name of each image; format 1 parts them by line ends, format 2 by NUL."""
    if not len(tensors['targets']):
        return []

    separator = '\0' if 'byte_digests' in tensors else '\n'
    return tensors['names'].tobytes().decode(errors='surrogateescape').split(separator)


def read_packed(path: str | Path, split: str, loader: str = 'auto') -> LongTailDataset:
    """Read one split of a packed file and check it, see the head of this file.

    Args:
        path: File that `write_packed` wrote.
        split: `train` or `test`.
        loader: `resident` or `worker`, see `create_dataset`; `auto` is what the set was packed
            from.

    Raises:
        UserError: No file, not a packed file, a damaged one, or an image that cannot be read.
    """
    path = Path(path)
    tensors, header = _open_split(path, split)
    names = _read_names(tensors)
    if len(names) != len(tensors['targets']):
        num_labels = len(tensors['targets'])
        raise _damaged(path, f'it has {len(names)} names and {num_labels} labels in {split}')

    encoded = PackedImages(path, split, tensors['offsets'], names, tensors.get('byte_digests'))
    images = None
    if loader == 'resident' or (loader == 'auto' and header['resident']):
        images, _ = decode_images(encoded)

    # JSON has no tuples
    fields = {key: header[key] for key in _SHARED}
    fields['mean'] = tuple(header['mean'])
    fields['std'] = tuple(header['std'])
    dataset = LongTailDataset(
        split=split,
        images=images,
        encoded=encoded if images is None else None,
        targets=tensors['targets'],
        indices=tensors['indices'],
        source_names=names,
        shot_counts=header['shot_counts'] if split == 'train' else None,
        **fields,
    )

    if dataset.resident:
        damaged = np.flatnonzero((dataset.digests != tensors['digests']).any(1))
        if len(damaged):
            row = damaged[0]
            raise UserError(f'{path}, {split} row {row} ({names[row]}) differs from its digest')
    _check_hash(dataset, encoded, header['hash'].get(split), packed_from_memory=header['resident'])
    return dataset


def _check_hash(
        dataset: LongTailDataset,
        encoded: PackedImages,
        stated: str | None,
        packed_from_memory: bool,
):
    """Raise a `UserError` where the hash in the header is not that of the labels and images.

    Args:
        dataset: Split that was read.
        encoded: Encoded images of the split.
        stated: Hash of the split in the header; None without one.
        packed_from_memory: Whether the hash is one of pixels, not of names and lengths.
    """
    if not packed_from_memory:
        found = files_hash(dataset.source_names, encoded.sizes(), dataset.targets)
    elif dataset.resident:
        found = dataset.hash
    elif encoded.byte_digests is None:
        images, _ = decode_images(encoded)
        found = subset_hash(images, dataset.targets)
    else:
        # the checksum covers the labels, the byte digests the images: no need to decode them all
        return

    if found != stated:
        raise _damaged(encoded.path, f'the hash of {dataset.split} is {found}, its header says {stated}')
