"""Small benchmarks as their copies on the Hub: CIFAR-10, CIFAR-100 and Tiny ImageNet, in Parquet files.

N images, C classes.
"""
from ...utils.errors import UserError
from .labels import read_file_labels, read_labels
from .parquet import Tables, open_table, require_columns
from .registry import Source, SourceOptions, refuse_options, register_dataset

# first labels of the original releases (Krizhevsky, 2009): ten labels tell a shuffled copy from the
# original order
_ORIGINAL_LABELS = {
    ('cifar10', 'train'): [6, 9, 9, 4, 1, 1, 2, 7, 8, 3],
    ('cifar10', 'test'): [3, 8, 8, 0, 6, 6, 1, 6, 3, 1],
    ('cifar100', 'train'): [19, 29, 0, 11, 1, 86, 90, 28, 23, 31],
    ('cifar100', 'test'): [49, 33, 72, 51, 71, 92, 15, 14, 23, 0],
}


def _require_same_names(tables: Tables, column: str):
    """Refuse a copy of a benchmark whose files do not give the same names to the same numbers."""
    files = []
    for split in tables:
        files += read_file_labels(tables, split, column)

    for found in files:
        if found.names != files[0].names:
            raise UserError(
                f'{found.path} gives other names to the labels of column {column} than {files[0].path}')


def _load_published(
        repository: str,
        split: str,
        options: SourceOptions,
        image: str,
        label: str,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
) -> Source:
    """Open a split of a benchmark that lies on the Hub.

    Args:
        repository: Name of the repository on the Hub, `USER/NAME`.
        split: Name of the split in the repository.
        options: Options of the user: a local copy, and nothing else.
        image: Column of the images.
        label: Column of the labels.
        num_classes: C, number of classes.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
    """
    refuse_options(repository, options, ('train_split', 'test_split', 'input_key', 'target_key'))

    tables, name = open_table(repository, split, options.data_dir)
    table, place = tables[name], tables.place
    require_columns(table, (image, label), place)
    _require_same_names(tables, label)
    targets, class_names = read_labels(table, label, place, num_classes)

    # without labels to compare with, nothing is claimed
    original = _ORIGINAL_LABELS.get((repository.split('/')[1], split))
    is_original = False
    if original is not None:
        is_original = targets[:len(original)].tolist() == original

    return Source(
        targets,
        class_names,
        tables.images(name, image, place),
        mean=mean,
        std=std,
        original_order=is_original,
        published=True,
        hub_id=repository,
    )


@register_dataset('cifar10')
@register_dataset('cifar10_lt', imbalance_factor=100)
def _cifar10(split: str, options: SourceOptions) -> Source:
    """CIFAR-10, 10 classes, 32x32; the Hub repository `uoft-cs/cifar10` or a local copy."""
    return _load_published(
        'uoft-cs/cifar10',
        split,
        options,
        image='img',
        label='label',
        num_classes=10,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )


@register_dataset('cifar100')
@register_dataset('cifar100_lt', imbalance_factor=100)
def _cifar100(split: str, options: SourceOptions) -> Source:
    """CIFAR-100, 100 classes, 32x32; the Hub repository `uoft-cs/cifar100` or a local copy."""
    return _load_published(
        'uoft-cs/cifar100',
        split,
        options,
        image='img',
        label='fine_label',
        num_classes=100,
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )


@register_dataset('tiny_imagenet')
@register_dataset('tiny_imagenet_lt', imbalance_factor=100)
def _tiny_imagenet(split: str, options: SourceOptions) -> Source:
    """Tiny ImageNet, 200 classes, 64x64; the Hub repository `zh-plus/tiny-imagenet` or a local copy."""
    # the labels of the original test split were never released: everybody reports on `valid`
    stored = 'valid' if split == 'test' else split
    return _load_published(
        'zh-plus/tiny-imagenet',
        stored,
        options,
        image='image',
        label='label',
        num_classes=200,
        # constants in wide use, not measured here
        mean=(0.4802, 0.4481, 0.3975),
        std=(0.2770, 0.2691, 0.2821),
    )
