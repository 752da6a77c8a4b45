"""Label columns of tables: which class a row has, whether the column holds numbers, named numbers or words.

N rows, C classes. The training split defines the classes; other splits are matched to it by name.
"""
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...utils.errors import UserError, one_line
from .parquet import Tables, require_columns

__all__ = [
    'FileLabels',
    'read_file_labels',
    'read_labels',
    'read_numbers',
    'read_targets',
]

# a column of as many different numbers as rows is no column of classes, unless the set is tiny
_TINY = 1000


@dataclass
class FileLabels:
    """What one file of a table says of a label column.

    Attributes:
        path: File, or its address on the Hub.
        num_rows: Rows in the file.
        names: Class names that its numbers stand for; None where they are plain numbers.
    """
    path: str
    num_rows: int
    names: list[str] | None = field(default=None)


def read_file_labels(tables: Tables, split: str, column: str) -> list[FileLabels]:
    """Return what each file of a split says of a label column; nothing for files without a schema.

    `datasets` takes the names of the first file for all of them, of other splits too.

    Raises:
        UserError: A file cannot be read.
    """
    import fsspec
    import pyarrow.parquet as pq

    found = []
    for path in tables.table_files(split):
        try:
            with fsspec.open(_cached_copy(path), 'rb') as file:
                if path.endswith('.parquet'):
                    parquet = pq.ParquetFile(file)
                    schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
                else:
                    schema, num_rows = _read_arrow_schema(file)
        except Exception as error:  # Arrow, the file system and the network each raise their own kinds
            raise UserError(
                f'cannot read the class names of {path}: {one_line(error)}') from error
        found.append(FileLabels(path, num_rows, _schema_names(schema, column)))
    return found


def _cached_copy(path: str) -> str:
    """Return the path of a file to read: a file on the Hub may lie in the cache, which saves a request."""
    from huggingface_hub import try_to_load_from_cache

    address = re.fullmatch('hf://datasets/([^/@]+/[^/@]+)@([^/]+)/(.+)', path)
    if address is None:
        return path

    repository, revision, name = address.groups()
    found = try_to_load_from_cache(repository, name, revision=revision, repo_type='dataset')
    if isinstance(found, str):
        return found
    return path


def _read_arrow_schema(file: Any) -> tuple[Any, int]:
    """Return the schema and the number of rows of an Arrow stream or file."""
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(file)
        return stream.schema, sum(batch.num_rows for batch in stream)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)
        sizes = [reader.get_batch(number).num_rows for number in range(reader.num_record_batches)]
        return reader.schema, sum(sizes)


def _schema_names(schema: Any, column: str) -> list[str] | None:
    """Return the class names of a column in an Arrow schema; None where it has none."""
    import datasets

    feature = datasets.Features.from_arrow_schema(schema).get(column)
    return getattr(feature, 'names', None)


def read_labels(
        table: Any,
        column: str,
        place: str,
        num_classes: int,
) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [N] (without decoding an image), and class names.

    Args:
        table: Split of a data set, a `datasets.Dataset`.
        column: Name of the label column.
        place: Name of the table in an error.
        num_classes: C, for a column of integers that names no class.

    Raises:
        UserError: A column that does not hold one integer in each row.
    """
    targets = read_numbers(table, column, place)
    if not np.issubdtype(targets.dtype, np.integer):
        raise UserError(
            f'{place}: column {column} holds {targets.dtype}, not one integer label a row')

    names = getattr(table.features[column], 'names', None)
    if not names:
        names = [str(label) for label in range(num_classes)]
    return targets.astype(np.int64), list(names)


def read_numbers(table: Any, column: str, place: str) -> np.ndarray:
    """Return a column of integers or of truth values, [N], in its own type.

    Args:
        table: Split of a data set, a `datasets.Dataset`.
        column: Name of the column.
        place: Name of the table in an error.

    Raises:
        UserError: A column of another kind, several values a row, or a row without a value.
    """
    missing = table.data.column(column).null_count
    if missing:
        raise UserError(f'{place}: {missing} of {len(table)} rows have no label (column {column})')

    values = table.with_format('numpy')[column][:]
    if getattr(table.features[column], 'dtype', '') == 'uint64':
        # the library makes int64 of them, so that large ones were negative
        values = values.astype(np.uint64)

    if values.ndim != 1 or values.dtype.kind not in 'iub':
        kind = str(values.dtype)
        if values.ndim > 1:
            kind = f'{values.ndim - 1} dimensions of {kind}'
        raise UserError(f'{place}: column {column} holds {kind}, not one integer label a row')
    return values


@dataclass
class _Labels:
    """The label column of a split.

    Attributes:
        place: Name of the split in an error.
        codes: Label of each row, int64 [N]: a number as it stands, or the position of its name.
        names: Names that the codes stand for; None for plain numbers.
    """
    place: str
    codes: np.ndarray
    names: list[str] | None


def read_targets(
        tables: Tables,
        split: str,
        train: str,
        column: str,
) -> tuple[np.ndarray, list[str], str]:
    """Return the classes of a split.

    Names are matched by name, whatever numbers the files of either split give them. Plain numbers
    are classes in their order, whatever their size. A name that has no training image is no class.

    Args:
        tables: All splits.
        split: Split to read.
        train: Split that defines the classes.
        column: Name of the label column.

    Returns:
        The class of each row, int64 [N]; the C class names; and a line to read where the column is
        not simply one of C names or of the numbers 0..C-1, or ''.

    Raises:
        UserError: Labels that are missing, hidden, negative or of another kind; a class that the
            training split has not; numbers on one side and names on the other.
    """
    places = {name: f'{tables.place} ({name})' for name in (split, train)}
    for name, place in places.items():
        require_columns(tables[name], (column,), place)

    files = {name: read_file_labels(tables, name, column) for name in places}
    every_file = [found for name in files for found in files[name]]
    _refuse_mixed(every_file, column)

    if all(found.names == every_file[0].names for found in every_file):
        # the names that the library gives to all files are right; otherwise each file knows its own
        files = {name: [] for name in places}

    labels = _read_column(tables, split, column, places[split], files[split])
    known = labels
    if split != train:
        known = _read_column(tables, train, column, places[train], files[train])

    if labels.names is None and known.names is None:
        return _match_numbers(labels, known)
    if labels.names is not None and known.names is not None:
        return _match_names(labels, labels.names, known, known.names)
    words = f'{_kind(labels)} in {labels.place}, {_kind(known)} in {known.place}'
    raise UserError(f'column {column} holds {words}: labels are matched by name')


def _kind(labels: _Labels) -> str:
    return 'numbers' if labels.names is None else 'names'


def _refuse_mixed(files: list[FileLabels], column: str):
    """Refuse files of which some name their numbers and some do not: nothing says that they mean the same."""
    named = [found for found in files if found.names is not None]
    plain = [found for found in files if found.names is None]
    if named and plain:
        raise UserError(
            f'column {column} holds class names in {named[0].path} and plain values in {plain[0].path}: '
            'they cannot be matched')


def _read_column(
        tables: Tables,
        split: str,
        column: str,
        place: str,
        files: list[FileLabels],
) -> _Labels:
    """Read the label column of a split.

    Args:
        tables: All splits.
        split: Split to read.
        column: Name of the column.
        place: Name of the split in an error.
        files: What each file says of the column; empty where `datasets` knows the names of all.
    """
    table = tables[split]
    if getattr(table.features[column], 'dtype', '') in ('string', 'large_string', 'string_view'):
        return _read_words(table, column, place)

    values = read_numbers(table, column, place)
    if values.dtype.kind == 'b':
        return _Labels(place, values.astype(np.int64), ['False', 'True'])

    largest = values.max(initial=0)
    if largest > np.iinfo(np.int64).max:
        raise UserError(f'{place}: label {largest} is too large a number')
    values = values.astype(np.int64)
    _refuse_negative(values, place)

    if not files:
        names = getattr(table.features[column], 'names', None)
        files = [FileLabels(place, len(table), names)]
    return _name_by_file(values, files, place)


def _read_words(table: Any, column: str, place: str) -> _Labels:
    """Read a column of texts: each different one is a name."""
    words = table[column][:]
    for row, word in enumerate(words):
        if word is None:
            raise UserError(f'{place}, row {row}: the label None is missing')

    names, codes = np.unique(np.array(words, dtype=object), return_inverse=True)
    return _Labels(place, codes.astype(np.int64), names.tolist())


def _refuse_negative(values: np.ndarray, place: str):
    """Raise a `UserError` for numbers that are no classes."""
    negative = np.flatnonzero(values < 0)
    if not len(negative):
        return

    if (values == -1).all():
        raise UserError(
            f'{place}: the labels are hidden, all are -1; name another split with --test-split')
    row = negative[0]
    raise UserError(
        f'{place}: {len(negative)} of {len(values)} labels are negative, the first is {values[row]} in '
        f'row {row}: a class is a number from 0 up')


def _name_by_file(values: np.ndarray, files: list[FileLabels], place: str) -> _Labels:
    """Return labels whose codes mean the same in all rows.

    Args:
        values: Number of each row, int64 [N].
        files: Files in the order of the rows, each with its own names for its numbers.
        place: Name of the split in an error.
    """
    if files[0].names is None:
        return _Labels(place, values, None)

    num_rows = sum(found.num_rows for found in files)
    if num_rows != len(values):
        raise UserError(
            f'{place}: its files name their classes differently, and hold {num_rows} rows, not {len(values)}')

    code_of: dict[str, int] = {}
    codes = np.empty_like(values)
    start = 0
    for found in files:
        assert found.names is not None, 'either all files have names or none'
        rows = slice(start, start + found.num_rows)
        start += found.num_rows

        largest = values[rows].max(initial=-1)
        if largest >= len(found.names):
            raise UserError(
                f'{found.path}: label {largest} is none of its {len(found.names)} class names')

        # what the numbers of this file are in the codes of all files
        for name in found.names:
            code_of.setdefault(name, len(code_of))
        meaning = np.array([code_of[name] for name in found.names], np.int64)
        codes[rows] = meaning[values[rows]]
    return _Labels(place, codes, [*code_of])


def _match_names(
        labels: _Labels,
        names: list[str],
        train: _Labels,
        train_names: list[str],
) -> tuple[np.ndarray, list[str], str]:
    """Return the classes of labels that have names, as `read_targets` does.

    Args:
        labels: Labels of the split to read.
        names: Names that their codes stand for.
        train: Labels of the training split.
        train_names: Names that their codes stand for.
    """
    # a name without a training image is no class
    counts = np.bincount(train.codes, minlength=len(train_names))
    class_names, unused = [], []
    for name, count in zip(train_names, counts, strict=True):
        if count > 0:
            class_names.append(name)
        else:
            unused.append(name)

    class_of = {name: label for label, name in enumerate(class_names)}
    meaning = np.array([class_of.get(name, -1) for name in names], np.int64)
    targets = meaning[labels.codes]
    unknown = np.flatnonzero(targets < 0)
    if len(unknown):
        row = unknown[0]
        name = one_line(names[labels.codes[row]])
        raise UserError(
            f'{labels.place}, row {row}: the label {name!r} is no class of the training split')

    note = ''
    if unused:
        shown = ', '.join(unused[:3])
        if len(unused) > 3:
            shown += ', …'
        note = f'{train.place}: {len(unused)} class names have no image and are left out: {shown}'
    return targets, class_names, note


def _match_numbers(labels: _Labels, train: _Labels) -> tuple[np.ndarray, list[str], str]:
    """Return the classes of labels that are plain numbers, as `read_targets` does."""
    numbers = np.unique(train.codes)
    all_differ = len(numbers) == len(train.codes)
    if all_differ and len(numbers) > _TINY:
        raise UserError(
            f'{train.place}: each of the {len(numbers)} rows has a label of its own; name the column of '
            'classes with --target-key')

    # the position of each label among the numbers, or a wrong one where it is not among them
    targets = np.searchsorted(numbers, labels.codes).clip(max=max(len(numbers) - 1, 0))
    if len(numbers):
        unknown = np.flatnonzero(numbers[targets] != labels.codes)
    else:
        unknown = np.arange(len(targets))
    if len(unknown):
        label = labels.codes[unknown[0]]
        raise UserError(
            f'{labels.place}: label {label} is none of the {len(numbers)} classes of {train.place}')

    note = ''
    if len(numbers) and numbers[-1] != len(numbers) - 1:
        note = (
            f'{train.place}: the labels are {len(numbers)} numbers from {numbers[0]} to {numbers[-1]}; '
            'classes are numbered in their order')
    return targets.astype(np.int64), [str(number) for number in numbers], note
