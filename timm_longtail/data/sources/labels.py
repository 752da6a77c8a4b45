"""Label columns of tables: which class a row has, whether the column holds numbers, named numbers or words.

N rows, C classes. The training split defines the classes; other splits are matched to it by name.
"""
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...utils.errors import UserError, one_line
from .parquet import Tables, require_columns

__all__ = ['FileLabels', 'read_file_labels', 'read_labels', 'read_numbers', 'read_targets']

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
    import pyarrow as pa
    import pyarrow.parquet as pq
    found = []
    for path in tables.table_files(split):
        try:
            with fsspec.open(_cached_copy(path), 'rb') as file:
                if path.endswith('.parquet'):
                    parquet = pq.ParquetFile(file)
                    schema, num_rows = parquet.schema_arrow, parquet.metadata.num_rows
                else:
                    schema, num_rows = _read_arrow_schema(pa, file)
        except Exception as error:  # Arrow, the file system and the network each raise their own kinds
            raise UserError(f'cannot read the class names of {path}: {one_line(error)}') from error
        found.append(FileLabels(path, num_rows, _schema_names(schema, column)))
    return found


def _cached_copy(path: str) -> str:
    """Return the copy in the Hub's cache of a file on the Hub, which spares a request; else the path as it is."""
    from huggingface_hub import try_to_load_from_cache
    address = re.fullmatch('hf://datasets/([^/@]+/[^/@]+)@([^/]+)/(.+)', path)
    if address is None:
        return path
    repository, revision, name = address.groups()
    found = try_to_load_from_cache(repository, name, revision=revision, repo_type='dataset')
    return found if isinstance(found, str) else path


def _read_arrow_schema(pa, file) -> tuple[Any, int]:
    """Return the schema and the number of rows of an Arrow stream or file."""
    try:
        reader = pa.ipc.open_stream(file)
        return reader.schema, sum(batch.num_rows for batch in reader)
    except pa.ArrowInvalid:
        reader = pa.ipc.open_file(file)
        return reader.schema, sum(reader.get_batch(n).num_rows for n in range(reader.num_record_batches))


def _schema_names(schema, column: str) -> list[str] | None:
    import datasets
    feature = datasets.Features.from_arrow_schema(schema).get(column)
    return getattr(feature, 'names', None)


def read_labels(table, column: str, place: str, num_classes: int) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [N] (without decoding an image), and class names.

    Args:
        table: A `datasets.Dataset`.
        column: Name of the label column.
        place: What the table is called in an error.
        num_classes: C, for a column of integers that names no class.

    Raises:
        UserError: A column that does not hold one integer in each row.
    """
    targets = read_numbers(table, column, place)
    if not np.issubdtype(targets.dtype, np.integer):
        raise UserError(f'{place}: column {column} holds {targets.dtype}, not one integer label a row')
    names = getattr(table.features[column], 'names', None)
    return targets.astype(np.int64), list(names or map(str, range(num_classes)))


def read_numbers(table, column: str, place: str) -> np.ndarray:
    """Return a column of integers or of truth values, [N], in its own type.

    Raises:
        UserError: A column of another kind, several values a row, or a row without a value.
    """
    missing = table.data.column(column).null_count
    if missing:
        raise UserError(f'{place}: {missing} of {len(table)} rows have no label (column {column})')
    values = table.with_format('numpy')[column][:]
    if getattr(table.features[column], 'dtype', '') == 'uint64':
        values = values.astype(np.uint64)  # the library makes int64 of them, so that large ones were negative
    if values.ndim != 1 or values.dtype.kind not in 'iub':
        several = f'{values.ndim - 1} dimensions of ' if values.ndim > 1 else ''
        raise UserError(f'{place}: column {column} holds {several}{values.dtype}, not one integer label a row')
    return values


@dataclass
class _Labels:
    """The label column of a split.

    Attributes:
        place: What the split is called in an error.
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

    Names are matched by name, whatever numbers the files of either split give them. Plain numbers are classes in their
    order, whatever their size. A name that has no training image is no class.

    Args:
        tables: All splits.
        split: Split to read.
        train: Split that defines the classes.
        column: Name of the label column.

    Returns:
        The class of each row, int64 [N]; the C class names; and a line to read where the column is not simply one of
        C names or of the numbers 0..C-1, or ''.

    Raises:
        UserError: Labels that are missing, hidden, negative or of another kind; a class that the training split has
            not; numbers on one side and names on the other.
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
    columns = {name: _read_column(tables, name, column, places[name], files[name]) for name in places}

    labels, known = columns[split], columns[train]
    if (labels.names is None) != (known.names is None):
        kinds = {labels.place: labels.names, known.place: known.names}
        words = ', '.join(f'{"numbers" if names is None else "names"} in {place}' for place, names in kinds.items())
        raise UserError(f'column {column} holds {words}: labels are matched by name')
    if known.names is None:
        return _match_numbers(labels, known)
    return _match_names(labels, known)


def _refuse_mixed(files: list[FileLabels], column: str):
    """Refuse files of which some name their numbers and some do not: nothing says that they mean the same."""
    named = [found for found in files if found.names is not None]
    plain = [found for found in files if found.names is None]
    if named and plain:
        raise UserError(f'column {column} holds class names in {named[0].path} and plain values in {plain[0].path}: '
                        'they cannot be matched')


def _read_column(tables: Tables, split: str, column: str, place: str, files: list[FileLabels]) -> _Labels:
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

    names = getattr(table.features[column], 'names', None)
    return _name_by_file(values, files or [FileLabels(place, len(table), names)], place)


def _read_words(table, column: str, place: str) -> _Labels:
    words = table[column][:]
    missing = next((row for row, word in enumerate(words) if word is None), None)
    if missing is not None:
        raise UserError(f'{place}, row {missing}: the label None is missing')

    names, codes = np.unique(np.array(words, dtype=object), return_inverse=True)
    return _Labels(place, codes.astype(np.int64), names.tolist())


def _refuse_negative(values: np.ndarray, place: str):
    negative = np.flatnonzero(values < 0)
    if not len(negative):
        return
    if (values == -1).all():
        raise UserError(f'{place}: the labels are hidden, all are -1; name another split with --test-split')
    row = negative[0]
    raise UserError(f'{place}: {len(negative)} of {len(values)} labels are negative, the first is {values[row]} in '
                    f'row {row}: a class is a number from 0 up')


def _name_by_file(values: np.ndarray, files: list[FileLabels], place: str) -> _Labels:
    """Return labels whose codes mean the same in all rows, where each file has its own names for its numbers."""
    if files[0].names is None:
        return _Labels(place, values, None)

    num_rows = sum(found.num_rows for found in files)
    if num_rows != len(values):
        raise UserError(f'{place}: its files name their classes differently, and hold {num_rows} rows, not '
                        f'{len(values)}')

    names: dict[str, int] = {}
    codes, start = np.empty_like(values), 0
    for found in files:
        rows = slice(start, start + found.num_rows)
        start += found.num_rows
        largest = values[rows].max(initial=-1)
        if largest >= len(found.names):
            raise UserError(f'{found.path}: label {largest} is none of its {len(found.names)} class names')

        for name in found.names:
            names.setdefault(name, len(names))
        meaning = np.array([names[name] for name in found.names], np.int64)
        codes[rows] = meaning[values[rows]]
    return _Labels(place, codes, [*names])


def _match_names(labels: _Labels, train: _Labels) -> tuple[np.ndarray, list[str], str]:
    used = np.bincount(train.codes, minlength=len(train.names)) > 0
    class_names = [name for name, is_used in zip(train.names, used, strict=True) if is_used]
    unused = [name for name, is_used in zip(train.names, used, strict=True) if not is_used]

    class_of = {name: label for label, name in enumerate(class_names)}
    meaning = np.array([class_of.get(name, -1) for name in labels.names], np.int64)
    targets = meaning[labels.codes]
    unknown = np.flatnonzero(targets < 0)
    if len(unknown):
        row = unknown[0]
        name = labels.names[labels.codes[row]]
        raise UserError(f'{labels.place}, row {row}: the label {one_line(name)!r} is no class of the training split')

    note = ''
    if unused:
        more = ', …' if len(unused) > 3 else ''
        note = f'{train.place}: {len(unused)} class names have no image and are left out: {", ".join(unused[:3])}{more}'
    return targets, class_names, note


def _match_numbers(labels: _Labels, train: _Labels) -> tuple[np.ndarray, list[str], str]:
    numbers = np.unique(train.codes)
    if len(numbers) == len(train.codes) > _TINY:
        raise UserError(f'{train.place}: each of the {len(numbers)} rows has a label of its own; name the column of '
                        'classes with --target-key')

    targets = np.searchsorted(numbers, labels.codes).clip(max=max(len(numbers) - 1, 0))
    unknown = np.flatnonzero(numbers[targets] != labels.codes) if len(numbers) else np.arange(len(targets))
    if len(unknown):
        raise UserError(f'{labels.place}: label {labels.codes[unknown[0]]} is none of the {len(numbers)} classes of '
                        f'{train.place}')

    note = ''
    if len(numbers) and numbers[-1] != len(numbers) - 1:
        note = (f'{train.place}: the labels are {len(numbers)} numbers from {numbers[0]} to {numbers[-1]}; '
                'classes are numbered in their order')
    return targets.astype(np.int64), [str(number) for number in numbers], note
