"""Any image classification set that `datasets` opens: a Hub repository, or a folder of Parquet or image files.

N images, C classes.
"""
from pathlib import Path
from typing import Any

from ...utils.errors import UserError, one_line
from ..images import EncodedImages
from .labels import read_targets
from .parquet import find_copy, load_table, require_columns
from .registry import Source, SourceOptions, choose_test_split, hold_out_split, register_dataset

__all__ = ['choose_image_column', 'choose_label_column']

_TEST_SPLITS = ('test', 'validation', 'valid', 'val', 'dev')

# types of columns of bytes
_BINARY = ('binary', 'large_binary', 'binary_view')

# what columns are called that no feature marks
_IMAGE_NAMES = ('image', 'img')
_LABEL_NAMES = ('label', 'labels', 'fine_label', 'target', 'targets', 'class', 'category')


@register_dataset('hfds/', imbalance_factor=None)
def _hfds(split: str, options: SourceOptions) -> Source:
    """Any Hub data set of images and labels, `hfds/USER/SET`, or a folder that `datasets` opens, `hfds/PATH`.

    Of a set with several configurations one is chosen behind a colon, `hfds/USER/SET:CONFIG`; a
    folder inside the set is chosen the same way.
    """
    place, config, hub_id = _find_place(options)
    splits = load_table(place, config=config)
    require_random_access(splits, place)

    # the split to read: a set without a test split gives a part of the training split
    train = options.train_split or 'train'
    if train not in splits:
        there = ', '.join(splits)
        raise UserError(
            f'{place} has no split {train!r} to train on; it has {there} (--train-split)')

    test, note = choose_test_split(list(splits), _TEST_SPLITS, train, options.test_split, place)
    name = train
    if split == 'test' and test is not None:
        name = test

    table, where = splits[name], f'{place} ({name})'
    image = choose_image_column(table, options.input_key, where)
    label = choose_label_column(table, options.target_key, where)
    targets, class_names, label_note = read_targets(splits, name, train, label)
    images: EncodedImages = splits.images(name, image, where)

    if test is None:
        rows = hold_out_split(targets, split)
        targets, images = targets[rows], images.take(rows)
        note = f'{place} has no test split: 20 % of the images of each class of {train} are the test split'
    elif split == 'train':
        note = ''  # said by the test split

    notes = '; '.join(line for line in (note, label_note) if line)
    return Source(targets, class_names, images, hub_id=hub_id, note=notes)


def _find_place(options: SourceOptions) -> tuple[str, str | None, str | None]:
    """Return what to open.

    Returns:
        Path of a folder, or name of a repository; name of the configuration, None for the only one;
        name of the repository, None for a folder.

    Raises:
        UserError: The text behind `hfds/` is neither a folder nor the name of a repository.
    """
    name = options.argument
    config = None

    # a folder may have a colon in its name
    if not Path(name).is_dir() and ':' in name:
        name, _, config = name.rpartition(':')
        if not config:
            raise UserError(f'hfds/{options.argument}: what stands behind the colon is missing')

    if Path(name).is_dir():
        if options.data_dir is not None:
            raise UserError(f'hfds/{name} is a folder already: leave --data-dir {options.data_dir} out')
        return name, config, None

    if name.startswith(('/', '.', '~')) or name.count('/') > 1:
        raise UserError(f'hfds/{name}: {name} is neither a folder nor a Hub repository (USER/SET)')
    copy = find_copy(name, options.data_dir)
    return str(copy or name), config, name


def require_random_access(splits: Any, place: str):
    """Raise a `UserError` for a data set that can be read from the front alone.

    Args:
        splits: What `datasets` opened.
        place: Name of the data set in the error.
    """
    import datasets

    if isinstance(splits, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise UserError(
            f'{place} opens as a stream: class counts and class-balanced sampling need every label and random access; '
            'make a copy in Parquet files and name its folder')


def choose_image_column(table: Any, asked: str | None, place: str) -> str:
    """Return the column of the images.

    It is the one asked for, else the only `Image` feature, else the only one with a usual name. A
    struct of `bytes` and perhaps `path`, which other programs write, counts as an `Image` feature.

    Args:
        table: Split of a data set, a `datasets.Dataset`.
        asked: Name that the user gave, or None.
        place: Name of the table in an error.

    Raises:
        UserError: There is none, or there are several.
    """
    column = asked
    if column is None:
        found = [name for name, feature in table.features.items() if _is_image(feature)]
        column = _only('image', '--input-key', found, _IMAGE_NAMES, table, place)

    require_columns(table, (column,), place)
    _require_images(table, column, place)
    return column


def choose_label_column(table: Any, asked: str | None, place: str) -> str:
    """Return the column of the labels.

    It is the one asked for, else the only `ClassLabel` feature, else the only one with a usual
    name.

    Args:
        table: Split of a data set, a `datasets.Dataset`.
        asked: Name that the user gave, or None.
        place: Name of the table in an error.

    Raises:
        UserError: There is none, or there are several.
    """
    import datasets

    column = asked
    if column is None:
        found = [name for name, feature in table.features.items() if isinstance(feature, datasets.ClassLabel)]
        column = _only('label', '--target-key', found, _LABEL_NAMES, table, place)

    require_columns(table, (column,), place)
    return column


def _only(
        what: str,
        option: str,
        found: list[str],
        usual: tuple[str, ...],
        table: Any,
        place: str,
) -> str:
    """Return the only column of a kind, or a `UserError` that names the option which chooses one.

    Args:
        what: Kind of column, `image` or `label`.
        option: Option that chooses the column.
        found: Columns whose feature is of the kind.
        usual: Names to look for where there is none.
        table: Split of a data set, a `datasets.Dataset`.
        place: Name of the table in an error.
    """
    if not found:
        found = [name for name in table.column_names if name in usual]

    if len(found) > 1:
        names = ', '.join(found)
        raise UserError(f'{place} has several {what} columns, {names}: choose one with {option}')
    if not found:
        raise UserError(
            f'{place} has no {what} column that is known as one ({option} names it); '
            f'its columns are {", ".join(table.column_names)}')
    return found[0]


def _is_image(feature: Any) -> bool:
    """Whether a column holds encoded images as `datasets` stores them, with or without saying so."""
    import datasets

    if isinstance(feature, datasets.Image):
        return True
    return isinstance(feature, dict) and getattr(feature.get('bytes'), 'dtype', '') in _BINARY


def _require_images(table: Any, column: str, place: str):
    """Raise a `UserError` for a column that holds neither encoded images nor paths of files."""
    feature = table.features[column]
    if _is_image(feature):
        return

    dtype = getattr(feature, 'dtype', '')
    if dtype in (*_BINARY, 'string', 'large_string') or dtype.startswith('fixed_size_binary'):
        return
    raise UserError(f'{place}: column {column} holds {one_line(feature)}, not encoded images')
