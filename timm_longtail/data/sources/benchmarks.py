"""Small benchmarks as their copies on the Hub: CIFAR-10, CIFAR-100 and Tiny ImageNet, in Parquet files.

N images, C classes.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...utils.errors import UserError
from .labels import read_file_labels, read_labels
from .parquet import Tables, open_table, require_columns
from .registry import Source, SourceOptions, refuse_options, register_dataset


@dataclass(frozen=True)
class TableSpec:
    """A benchmark as it lies on the Hub.

    Attributes:
        repository: Name of the repository, `USER/NAME`.
        image: Column of the images.
        label: Column of the labels.
        num_classes: C, number of classes.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        first_labels: First labels of the original release by split: ten labels tell a shuffled copy from the original
            order.
    """
    repository: str
    image: str
    label: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    first_labels: Mapping[str, list[int]] = field(default_factory=dict)


# both from Krizhevsky, 2009
_CIFAR10 = TableSpec(
    repository='uoft-cs/cifar10',
    image='img',
    label='label',
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    first_labels={
        'train': [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
        'test': [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    },
)
_CIFAR100 = TableSpec(
    repository='uoft-cs/cifar100',
    image='img',
    label='fine_label',
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    first_labels={
        'train': [19, 29, 0, 11, 1, 86, 90, 28, 23, 31],
        'test': [49, 33, 72, 51, 71, 92, 15, 14, 23, 0],
    },
)
_TINY_IMAGENET = TableSpec(
    repository='zh-plus/tiny-imagenet',
    image='image',
    label='label',
    num_classes=200,
    # constants in wide use, not measured here
    mean=(0.4802, 0.4481, 0.3975),
    std=(0.2770, 0.2691, 0.2821),
)


@register_dataset('cifar10')
@register_dataset('cifar10_lt', imbalance_factor=100)
def _cifar10(split: str, options: SourceOptions) -> Source:
    """CIFAR-10, 10 classes, 32x32; the Hub repository `uoft-cs/cifar10` or a local copy."""
    return _load(_CIFAR10, split, options)


@register_dataset('cifar100')
@register_dataset('cifar100_lt', imbalance_factor=100)
def _cifar100(split: str, options: SourceOptions) -> Source:
    """CIFAR-100, 100 classes, 32x32; the Hub repository `uoft-cs/cifar100` or a local copy."""
    return _load(_CIFAR100, split, options)


@register_dataset('tiny_imagenet')
@register_dataset('tiny_imagenet_lt', imbalance_factor=100)
def _tiny_imagenet(split: str, options: SourceOptions) -> Source:
    """Tiny ImageNet, 200 classes, 64x64; the Hub repository `zh-plus/tiny-imagenet` or a local copy."""
    # the labels of the original test split were never released: everybody reports on `valid`
    stored = 'valid' if split == 'test' else split
    return _load(_TINY_IMAGENET, stored, options)


def _load(spec: TableSpec, split: str, options: SourceOptions) -> Source:
    """Open a split of a benchmark.

    Args:
        spec: The benchmark.
        split: Name of the split in the repository.
        options: Options of the user: a local copy, and nothing else.
    """
    refuse_options(spec.repository, options, ('train_split', 'test_split', 'input_key', 'target_key'))

    tables, name = open_table(spec.repository, split, options.data_dir)
    table, place = tables[name], tables.place
    require_columns(table, (spec.image, spec.label), place)
    _require_same_names(tables, spec.label)
    targets, class_names = read_labels(table, spec.label, place, spec.num_classes)

    # without labels to compare with, nothing is claimed
    first_labels = spec.first_labels.get(split)
    is_original = first_labels is not None and targets[:len(first_labels)].tolist() == first_labels

    return Source(
        targets,
        class_names,
        tables.images(name, spec.image, place),
        mean=spec.mean,
        std=spec.std,
        original_order=is_original,
        published=True,
        hub_id=spec.repository,
    )


def _require_same_names(tables: Tables, column: str):
    """Refuse a copy of a benchmark whose files do not give the same names to the same numbers."""
    files = []
    for split in tables:
        files += read_file_labels(tables, split, column)

    for found in files:
        if found.names != files[0].names:
            raise UserError(
                f'{found.path} gives other names to the labels of column {column} than {files[0].path}')
