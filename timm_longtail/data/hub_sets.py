"""Any image classification set that `datasets` opens: a Hub repository, or a folder of Parquet or image files.

N images, C classes.
"""
from pathlib import Path

import numpy as np

from ..errors import UserError
from .sources import Source, SourceOptions, choose_test_split, hold_out_split, register_dataset
from .tables import TableImages, find_copy, load_table, read_labels, require_columns

__all__ = ['choose_image_column', 'choose_label_column']

_TEST_SPLITS = ('test', 'validation', 'valid', 'val', 'dev')
_IMAGE_NAMES = ('image', 'img')
_LABEL_NAMES = ('label', 'labels', 'fine_label', 'target', 'targets', 'class', 'category')


@register_dataset('hfds/', imbalance_factor=None)
def _hfds(split: str, options: SourceOptions) -> Source:
    """Any Hub data set of images and labels, `hfds/USER/SET`, or a folder that `datasets` opens, `hfds/PATH`."""
    place, hub_id = _find_place(options)
    splits = load_table(place)
    require_random_access(splits, place)
    train = options.train_split or 'train'
    if train not in splits:
        raise UserError(f'{place} has no split {train!r} to train on; it has {", ".join(splits)} (--train-split)')
    test, note = choose_test_split(list(splits), _TEST_SPLITS, train, options.test_split, place)
    name = test if split == 'test' and test is not None else train
    table, where = splits[name], f'{place} ({name})'
    image = choose_image_column(table, options.input_key, where)
    label = choose_label_column(table, options.target_key, where)
    targets, class_names = _read_targets(table, splits[train], label, where, f'{place} ({train})')
    images = TableImages(table, image, where)
    if test is None:
        rows = hold_out_split(targets, split)
        targets, images = targets[rows], images.take(rows)
        note = f'{place} has no test split: 20 % of the images of each class of {train} are the test split'
    elif split == 'train':
        note = ''
    return Source(targets, class_names, images, hub_id=hub_id, note=note)


def _find_place(options: SourceOptions) -> tuple[str, str | None]:
    """Return the folder or the repository to open, and the repository's name where it has one."""
    name = options.argument
    if Path(name).is_dir():
        if options.data_dir is not None:
            raise UserError(f'hfds/{name} is a folder already: leave --data-dir {options.data_dir} out')
        return name, None
    if name.startswith(('/', '.', '~')) or name.count('/') > 1:
        raise UserError(f'hfds/{name}: {name} is neither a folder nor a Hub repository (USER/SET)')
    return str(find_copy(name, options.data_dir) or name), name


def require_random_access(splits, place: str):
    """Raise a `UserError` for a data set that can be read from the front alone."""
    import datasets
    if isinstance(splits, (datasets.IterableDataset, datasets.IterableDatasetDict)):
        raise UserError(
            f'{place} opens as a stream: class counts and class-balanced sampling need every label and random access; '
            'make a copy in Parquet files and name its folder')


def choose_image_column(table, asked: str | None, place: str) -> str:
    """Return the column of the images: the one asked for, else the one `Image` feature, else one called so.

    Raises:
        UserError: There is none, or there are several.
    """
    import datasets
    if asked is not None:
        require_columns(table, (asked,), place)
        return _require_images(table, asked, place)
    found = [name for name, feature in table.features.items() if isinstance(feature, datasets.Image)]
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


def _require_images(table, column: str, place: str) -> str:
    import datasets
    feature = table.features[column]
    if isinstance(feature, datasets.Image) or getattr(feature, 'dtype', '') in ('binary', 'large_binary', 'string'):
        return column
    raise UserError(f'{place}: column {column} holds {feature}, not encoded images')


def _read_targets(table, train_table, column: str, place: str, train_place: str) -> tuple[np.ndarray, list[str]]:
    """Return the labels of a split, int64 [N], and the class names, which the training split defines."""
    require_columns(train_table, (column,), train_place)
    if getattr(table.features[column], 'dtype', '') in ('string', 'large_string'):
        return _read_words(table, train_table, column, place)
    targets, names = read_labels(table, column, place)
    if len(targets) and (targets == -1).all():
        raise UserError(f'{place}: the labels are hidden, all are -1; name another split with --test-split')
    train_targets, train_names = (targets, names) if table is train_table else read_labels(
        train_table, column, train_place)
    if targets.max(initial=0) >= len(train_names):
        raise UserError(f'{place}: label {targets.max()} is none of the {len(train_names)} classes of {train_place}')
    return targets, train_names


def _read_words(table, train_table, column: str, place: str) -> tuple[np.ndarray, list[str]]:
    """Return labels and class names of a column of words: the sorted words of the training split are the classes."""
    names = sorted(name for name in train_table.unique(column) if name is not None)
    classes = {name: label for label, name in enumerate(names)}
    words = table[column][:]
    unknown = next((row for row, word in enumerate(words) if word not in classes), None)
    if unknown is not None:
        known = 'is no class of the training split' if words[unknown] is not None else 'is missing'
        raise UserError(f'{place}, row {unknown}: the label {words[unknown]!r} {known}')
    return np.array([classes[word] for word in words], np.int64), names
