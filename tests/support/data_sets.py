"""Small data sets for tests: folders of images, tables of Parquet, and the check of what is refused."""
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from timm_longtail.data import create_dataset
from timm_longtail.utils.errors import UserError

# training images of each class of the fixture `folder`
COUNTS = {'ant': 12, 'bee': 6, 'cow': 3}

# greys of the animals in tables of `write_named`
GREYS = {'cat': 10, 'dog': 120, 'emu': 250}


def draw(
        path: Path,
        size: tuple[int, int] = (8, 8),
        mode: str = 'RGB',
        seed: int = 0,
) -> Path:
    """Write an image of noise, `size` wide and high."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def write_classes(
        root: Path,
        counts: dict[str, int],
        end: str = 'png',
        size: tuple[int, int] = (8, 8),
) -> Path:
    """Write one folder a class, with so many images, each another."""
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            draw(root / name / f'{number:02d}.{end}', size, seed=100 * label + number)
    return root


def png(level: int) -> bytes:
    """Return an 8x8 PNG of one grey."""
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8), (level,) * 3).save(buffer, 'PNG')
    return buffer.getvalue()


def write_parquet(
        root: Path,
        splits: dict[str, list],
        image: str = 'image',
        label: str = 'label',
        kind: Any = None,
        with_image: bool = True,
        **columns: bool,
) -> Path:
    """Write a repository as `datasets` does: a list of labels a split, an 8x8 image each.

    Args:
        root: Folder to write; it is not there.
        splits: Labels of each split.
        image: Name of the image column.
        label: Name of the label column.
        kind: Feature of the labels; None is a `ClassLabel` of three names.
        with_image: Whether the image column says that it is one of images.
        **columns: Further columns of the same labels.
    """
    import datasets

    root.mkdir(parents=True)
    drawn = draw(root.parent / 'drawn.png').read_bytes()
    kind = kind or datasets.ClassLabel(names=['ant', 'bee', 'cow'])
    for name, labels in splits.items():
        features = {image: datasets.Image(), label: kind, **dict.fromkeys(columns, kind)}
        rows = [{'bytes': drawn, 'path': f'{row}.png'} for row in range(len(labels))]
        data = {image: rows, label: labels, **dict.fromkeys(columns, labels)}
        if not with_image:
            features[image] = datasets.Value('binary')
            data[image] = [drawn] * len(labels)

        table = datasets.Dataset.from_dict(data, datasets.Features(features))
        table.to_parquet(root / f'{name}-00000-of-00001.parquet')
    return root


def write_named(path: Path, animals: list[str], names: list[str] | None, kind: str = 'parquet'):
    """Write a table of animals, each with an image of its own grey.

    Args:
        path: File without its end.
        animals: Animal of each row.
        names: Order that the numbers of the label column follow; None writes the animals as words.
        kind: `parquet` or `arrow`.
    """
    import datasets

    if names is None:
        feature, labels = datasets.Value('string'), animals
    else:
        feature, labels = datasets.ClassLabel(names=names), [names.index(animal) for animal in animals]
    images = [{'bytes': png(GREYS[animal]), 'path': None} for animal in animals]
    features = datasets.Features({'image': datasets.Image(), 'label': feature})
    table = datasets.Dataset.from_dict({'image': images, 'label': labels}, features)

    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'parquet':
        table.to_parquet(f'{path}.parquet')
        return
    rows = table.data.table
    with pa.OSFile(f'{path}.arrow', 'wb') as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows)


def write_numbers(root: Path, **splits: Any) -> Path:
    """Write plain Parquet: one 8x8 image and one number a row, without metadata of `datasets`."""
    root.mkdir(parents=True, exist_ok=True)
    for split, labels in splits.items():
        if not isinstance(labels, pa.Array):
            labels = pa.array(labels)
        rows = [{'bytes': png(row % 251), 'path': f'{row}.png'} for row in range(len(labels))]
        table = pa.table({'image': pa.array(rows), 'label': labels})
        pq.write_table(table, root / f'{split}-0.parquet')
    return root


def write_paths(root: Path, paths: list[str | None]) -> Path:
    """Write a table whose images are paths, without bytes, as both splits."""
    import datasets

    label = datasets.ClassLabel(names=['cat', 'dog'])
    features = datasets.Features({'image': datasets.Image(), 'label': label})
    images = [{'bytes': None, 'path': path} for path in paths]
    labels = [row % 2 for row in range(len(paths))]
    table = pa.table({'image': images, 'label': labels}, features.arrow_schema)

    root.mkdir(parents=True, exist_ok=True)
    for split in ('train', 'test'):
        pq.write_table(table, root / f'{split}-0.parquet')
    return root


def refused(words: str, name: str, root: Path | None = None, split: str = 'train', **options: Any):
    """Check that a data set is refused in one line that has some words."""
    with pytest.raises(UserError, match=words) as error:
        create_dataset(name, split, root, **options)
    assert '\n' not in str(error.value)
