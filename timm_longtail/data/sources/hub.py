"""Any image classification set that `datasets` opens: a Hub repository, or a folder of Parquet or image files.

N images, C classes.
"""
from pathlib import Path

from ...utils.errors import UserError, one_line
from .labels import read_targets
from .parquet import find_copy, load_table, require_columns
from .registry import Source, SourceOptions, choose_test_split, hold_out_split, register_dataset

__all__ = ['choose_image_column', 'choose_label_column']

_TEST_SPLITS = ('test', 'validation', 'valid', 'val', 'dev')
_BINARY = ('binary', 'large_binary', 'binary_view')
_IMAGE_NAMES = ('image', 'img')
_LABEL_NAMES = ('label', 'labels', 'fine_label', 'target', 'targets', 'class', 'category')


@register_dataset('hfds/', imbalance_factor=None)
def _hfds(split: str, options: SourceOptions) -> Source:
    """Any Hub data set of images and labels, `hfds/USER/SET`, or a folder that `datasets` opens, `hfds/PATH`.

    Of a set with several configurations one is chosen behind a colon, `hfds/USER/SET:CONFIG`; a folder inside the set
    is chosen the same way.
    """
    place, config, hub_id = _find_place(options)
    splits = load_table(place, config=config)
    require_random_access(splits, place)
    train = options.train_split or 'train'
    if train not in splits:
        raise UserError(f'{place} has no split {train!r} to train on; it has {", ".join(splits)} (--train-split)')

    test, note = choose_test_split(list(splits), _TEST_SPLITS, train, options.test_split, place)
    name = test if split == 'test' and test is not None else train
    table, where = splits[name], f'{place} ({name})'
    image = choose_image_column(table, options.input_key, where)
    label = choose_label_column(table, options.target_key, where)
    targets, class_names, label_note = read_targets(splits, name, train, label)
    images = splits.images(name, image, where)

    if test is None:
        rows = hold_out_split(targets, split)
        targets, images = targets[rows], images.take(rows)
        note = f'{place} has no test split: 20 % of the images of each class of {train} are the test split'
    elif split == 'train':
        note = ''  # said by the test split
    notes = '; '.join(filter(None, (note, label_note)))
    return Source(targets, class_names, images, hub_id=hub_id, note=notes)


def _find_place(options: SourceOptions) -> tuple[str, str | None, str | None]:
    """Return the folder or the repository to open, the configuration asked for, and the repository's name."""
    name, config = options.argument, None
    if not Path(name).is_dir() and ':' in name:  # a folder may have a colon in its name
        name, _, config = name.rpartition(':')
        if not config:
            raise UserError(f'hfds/{options.argument}: what stands behind the colon is missing')

    if Path(name).is_dir():
        if options.data_dir is not None:
            raise UserError(f'hfds/{name} is a folder already: leave --data-dir {options.data_dir} out')
        return name, config, None
    if name.startswith(('/', '.', '~')) or name.count('/') > 1:
        raise UserError(f'hfds/{name}: {name} is neither a folder nor a Hub repository (USER/SET)')
    return str(find_copy(name, options.data_dir) or name), config, name


def require_random_access(splits, place: str):
    """Raise a `UserError` for a data set that can be read from the front alone."""
    import datasets
    if isinstance(splits, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise UserError(
            f'{place} opens as a stream: class counts and class-balanced sampling need every label and random access; '
            'make a copy in Parquet files and name its folder')


def choose_image_column(table, asked: str | None, place: str) -> str:
    """Return the column of the images: the one asked for, else the one `Image` feature, else one called so.

    What other programs write, a struct of `bytes` and perhaps `path`, counts as an `Image` feature.

    Raises:
        UserError: There is none, or there are several.
    """
    import datasets
    if asked is not None:
        require_columns(table, (asked,), place)
        return _require_images(table, asked, place)
    found = [
        name for name, feature in table.features.items()
        if isinstance(feature, datasets.Image) or _is_image_struct(feature)
    ]
    return _require_images(table, _only('image', '--input-key', found, _IMAGE_NAMES, table, place), place)


def choose_label_column(table, asked: str | None, place: str) -> str:
    """Return the column of the labels: the one asked for, else the one `ClassLabel` feature, else one called so.

    Raises:
        UserError: There is none, or there are several.
    """
    import datasets
    if asked is not None:
        require_columns(table, (asked,), place)
        return asked
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
    return _only('label', '--target-key', found, _LABEL_NAMES, table, place)


def _only(what: str, option: str, found: list[str], usual: tuple[str, ...], table, place: str) -> str:
    found = found or [name for name in table.column_names if name in usual]
    if len(found) > 1:
        raise UserError(f'{place} has several {what} columns, {", ".join(found)}: choose one with {option}')
    if not found:
        raise UserError(f'{place} has no {what} column that is known as one ({option} names it); '
                        f'its columns are {", ".join(table.column_names)}')
    return found[0]


def _is_image_struct(feature) -> bool:
    """Whether a column is one of encoded images as `Image` stores them, without the metadata that says so."""
    return isinstance(feature, dict) and getattr(feature.get('bytes'), 'dtype', '') in _BINARY


def _require_images(table, column: str, place: str) -> str:
    import datasets
    feature = table.features[column]
    if isinstance(feature, datasets.Image) or _is_image_struct(feature):
        return column
    dtype = getattr(feature, 'dtype', '')
    if dtype in (*_BINARY, 'string', 'large_string') or dtype.startswith('fixed_size_binary'):
        return column
    raise UserError(f'{place}: column {column} holds {one_line(feature)}, not encoded images')
