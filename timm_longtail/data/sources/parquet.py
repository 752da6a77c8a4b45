"""Data sets that `datasets` reads: Parquet on the Hub or in a local copy.

N images, C classes.
"""
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UserError, one_line
from ..images import EncodedImages

__all__ = [
    'DATA_VARIABLE',
    'TableImages',
    'Tables',
    'find_copy',
    'load_table',
    'open_table',
    'require_columns',
]

DATA_VARIABLE = 'TIMM_LONGTAIL_DATA'

# seconds to wait for the Hub's first answer
_PATIENCE = 10

_COPY_HINT = f'name a local copy with --data-dir or ${DATA_VARIABLE}'

# files that hold a table with its schema, and so may hold the names of its classes
_TABLE_ENDS = ('.parquet', '.arrow')


class Tables(dict):
    """The splits of a data set that `datasets` opened: tables by name.

    Args:
        place: Folder or repository that was opened.
        splits: Table of each split, a `datasets.Dataset`, by name.
        files: Files of each split in the order of its rows, as paths or addresses; empty where the
            library does not say, as for a set of the Hub that it finds in its cache without a
            network.
        folders: Folders that image files of the set may lie in; a relative path starts at the
            first.
    """

    def __init__(self, place: str, splits: dict, files: dict[str, list[str]], folders: Sequence[str | Path]):
        super().__init__(splits)
        self.place = place
        self.files = files
        self.folders = folders

    def images(self, split: str, column: str, where: str) -> 'TableImages':
        """Return the image column of a split; `where` is the name of the table in an error."""
        return TableImages(self[split], column, where, self.folders, self.table_files(split))

    def table_files(self, split: str) -> list[str]:
        """Return the files of a split that hold a table with a schema."""
        return [path for path in self.files.get(split, ()) if path.endswith(_TABLE_ENDS)]


class TableImages(EncodedImages):
    """The image column of a table, left encoded.

    A row holds the bytes of an image or the path of a file. A path may be anything that the author
    of the table wrote, and what is read may be packed and published, so that files outside the data
    set are refused.

    Args:
        table: Split of a data set, a `datasets.Dataset`.
        column: Name of the column.
        place: Name of the table in an error.
        folders: Folders that the image files may lie in; a relative path starts at the first. No
            folder allows no file.
        sources: Files that the table was read from.

    Raises:
        UserError: A row without bytes whose path leads outside the folders.
    """

    block_size = 512

    def __init__(
            self,
            table: Any,
            column: str,
            place: str,
            folders: Sequence[str | Path] = (),
            sources: Sequence[str] = (),
    ):
        import datasets

        super().__init__(place, len(table))
        self.column = column
        self.folders = [os.path.realpath(folder) for folder in folders]
        self.sources = [path for path in sources if os.path.exists(path)]

        images = table.select_columns(column)
        dtype = getattr(images.features[column], 'dtype', '')
        if dtype.startswith(('large_binary', 'binary_view', 'fixed_size_binary')):
            # kinds of bytes that the library does not read as images by itself
            images = images.cast_column(column, datasets.Value('binary'))
        self.table = images.cast_column(column, datasets.Image(decode=False)).with_format('arrow')

        self._refuse_foreign_files()

    def files(self) -> list[str]:
        tables = [entry['filename'] for entry in self.table.cache_files]
        return [*tables, *self.sources, *map(self._locate, self._paths())]

    def _paths(self) -> Iterator[str]:
        """Yield the path of each row of the table that has no bytes."""
        import pyarrow.compute as pc

        for structs in self.table.data.column(self.column).chunks:
            encoded = structs.field('bytes')
            # in most tables every row has bytes, and no path is looked at
            if not encoded.null_count:
                continue
            for path in structs.field('path').filter(pc.is_null(encoded)).to_pylist():
                if path:
                    yield path

    def _locate(self, path: str) -> str:
        """Return the place of an image file; a relative path starts at the first folder."""
        if not self.folders:
            return path
        return os.path.join(self.folders[0], path)

    def _refuse_foreign_files(self):
        """Raise a `UserError` for an image file that lies outside the folders."""
        inside = tuple(os.path.join(folder, '') for folder in self.folders)
        resolved: dict[str, str] = {}
        for path in self._paths():
            if _resolve(self._locate(path), resolved).startswith(inside):
                continue
            home = self.folders[0] if self.folders else 'the table'
            raise UserError(
                f'{self.place}: the image {one_line(path)!r} lies outside {home}; '
                'a table may name files of its own folder only')

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        if not len(rows):
            return []
        images = self.table[rows.tolist()][self.column].combine_chunks()
        return [self._bytes(image) for image in images.to_pylist()]

    def _bytes(self, image: dict | None) -> bytes | None:
        """Return the encoded image of a row; None where there is none, or its file cannot be read."""
        if image is None:
            return None
        if image['bytes'] is not None:
            return image['bytes']

        # one file that is gone must not cost its whole block: it is named when it is decoded; a
        # pipe would hang
        path = self._locate(image['path'] or '')
        if not os.path.isfile(path):
            return None
        try:
            return Path(path).read_bytes()
        except OSError:
            return None

    def _names(self, rows: np.ndarray) -> list[str]:
        return self._collect(rows, _read_names, object).tolist()

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        return self._collect(rows, self._read_sizes, np.int64)

    def _read_sizes(self, structs: Any, first: int) -> list[int]:
        """Return the length in bytes of each image of a block; 0 where there is none."""
        import pyarrow.compute as pc

        sizes = pc.binary_length(structs.field('bytes')).to_pylist()
        if None not in sizes:
            return sizes

        for row, path in enumerate(structs.field('path').to_pylist()):
            if sizes[row] is None:
                sizes[row] = self._file_size(path)
        return sizes

    def _file_size(self, path: str | None) -> int:
        if not path:
            return 0
        try:
            return os.stat(self._locate(path)).st_size
        except OSError:
            return 0  # it is named when it is decoded

    def _collect(
            self,
            rows: np.ndarray,
            read: Callable[[Any, int], list],
            dtype: type,
    ) -> np.ndarray:
        """Return one value of each row; neighbours are read as one slice, which copies no image.

        Args:
            rows: Rows of the table, int64 [n].
            read: Function of a block of rows, an Arrow array of structs, and the number of its
                first row, that returns a value of each row.
            dtype: Type of the values.
        """
        found: np.ndarray = np.empty(len(rows), dtype)
        order = np.argsort(rows, kind='stable')
        ordered = rows[order]
        for start in range(0, len(self.table), self.block_size):
            # those of the rows that lie in this block
            low, high = np.searchsorted(ordered, (start, start + self.block_size))
            if low == high:
                continue

            values: list = []
            for structs in self.table[start:start + self.block_size][self.column].chunks:
                values += read(structs, start + len(values))
            found[order[low:high]] = np.array(values, dtype)[ordered[low:high] - start]
        return found


def _read_names(structs: Any, first: int) -> list[str]:
    """Return the file name of each image of a block; its row where it has none."""
    names = []
    for row, path in enumerate(structs.field('path').to_pylist(), first):
        names.append(Path(path or f'row {row}').name)
    return names


def _resolve(path: str, resolved: dict[str, str]) -> str:
    """Return a path without links and `..`; `resolved` keeps the folders, which many images share."""
    folder, name = os.path.split(path)
    if '\0' in path or name in ('', '.', '..'):
        return ''
    if folder not in resolved:
        resolved[folder] = os.path.realpath(folder)

    place = os.path.join(resolved[folder], name)
    if os.path.islink(place):
        return os.path.realpath(place)
    return place


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars off a log for a while."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _why_unreachable(repository: str) -> str:
    """Return why the Hub does not answer at all, '' where it does.

    Asked once, and not for long: the library itself asks six times, for half a minute.
    """
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(repository, timeout=_PATIENCE)
    except (HfHubHTTPError, ValueError):
        return ''  # an answer, or a name that the library refuses: it says so better
    except Exception as error:  # each version of the library has its own HTTP client, with its own kinds
        return _first_line(error)
    return ''


def _first_line(error: Exception) -> str:
    text = str(error).strip() or repr(error)
    return text.splitlines()[0]


@contextmanager
def _cache_only(wanted: bool) -> Iterator[None]:
    """Have the library look into its cache alone for a while, if that is wanted."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _cache_of(folder: Path) -> str:
    """Return the cache for the present state of a folder.

    In its usual cache the library may find what files of the same names once held.
    """
    import datasets

    files = []
    for path in folder.rglob('*'):
        if path.is_file():
            stat = path.stat()
            files.append((str(path.relative_to(folder)), stat.st_size, stat.st_mtime_ns))

    state = [str(folder.resolve()), *sorted(files)]
    digest = hashlib.sha256(repr(state).encode()).hexdigest()[:16]
    return str(Path(datasets.config.HF_DATASETS_CACHE, 'local', digest))


def _image_folders(place: str) -> list[Path]:
    """Return the folders of the image files of a set: its own, or the caches of its download."""
    import datasets
    from huggingface_hub import constants

    root = Path(place)
    if not root.is_dir():
        repository = f'datasets--{place.replace("/", "--")}'
        downloads = Path(datasets.config.HF_DATASETS_CACHE, 'downloads')
        return [Path(constants.HF_HUB_CACHE, repository), downloads]

    folders = [root, Path(_cache_of(root))]
    # in the cache of the Hub a snapshot is a folder of links to `blobs`
    if root.resolve().parent.name == 'snapshots':
        folders.append(root.resolve().parent.parent / 'blobs')
    return folders


def _list_configs(place: str) -> list[str]:
    """Return the names of the configurations of a set; none where the library cannot say."""
    import datasets

    try:
        return datasets.get_dataset_config_names(place)
    except Exception:  # each builder raises its own kinds; opening the set says what is wrong
        return []


def load_table(place: str, what: str = 'the splits', config: str | None = None) -> Tables:
    """Open a folder or a Hub repository with `datasets`.

    Args:
        place: Path of the folder, or name of the repository, `USER/NAME`.
        what: Part of the set that is wanted, for an error; the library reads all splits in any
            case.
        config: Configuration of the set, or a folder inside it; None where it has one only.

    Raises:
        UserError: The library cannot read it, the Hub cannot be reached, or there are several
            configurations.
    """
    import datasets

    local = Path(place).is_dir()
    cache, unreachable = None, ''
    if local:
        cache = _cache_of(Path(place))
    else:
        unreachable = _why_unreachable(place)

    with _quiet(), _cache_only(bool(unreachable)):
        chosen: dict[str, str] = {}
        if config is not None:
            key = 'name' if config in _list_configs(place) else 'data_dir'
            chosen = {key: config}

        try:
            # before anything is written: the cache may lie inside the folder
            builder = datasets.load_dataset_builder(place, cache_dir=cache, **chosen)
            splits = datasets.load_dataset(place, cache_dir=cache, **chosen)
        except Exception as error:  # the library, the network and Arrow each raise their own kinds
            raise _why_not_loaded(place, what, config, unreachable, error) from error

    files = {}
    for split, paths in (builder.config.data_files or {}).items():
        files[str(split)] = [str(path) for path in paths]
    tables = Tables(place, splits, files, _image_folders(place))
    if local and config is None:
        _require_one_folder(tables)
    return tables


def _why_not_loaded(
        place: str,
        what: str,
        config: str | None,
        unreachable: str,
        error: Exception,
) -> UserError:
    """Build the error for a set that `datasets` does not open.

    Args:
        place: Folder or repository.
        what: Part of the set that was wanted.
        config: Configuration that was asked for, or None.
        unreachable: Reason for which the Hub cannot be reached; '' where it can.
        error: Error of the library.
    """
    if unreachable and isinstance(error, ConnectionError):
        reason = f'it is not in the cache, and the Hub cannot be reached ({unreachable})'
        return UserError(f'cannot load {what} of {place}: {reason}; {_COPY_HINT}')

    configs = _list_configs(place)
    if config is None and len(configs) > 1:
        return UserError(
            f'{place} has several configurations, {", ".join(configs)}: choose one, as in '
            f'--dataset hfds/{place}:{configs[0]}')
    if config is not None and config not in configs:
        known = ', '.join(configs) or 'none'
        return UserError(
            f'{place} has no configuration and no folder {config!r} that can be opened; '
            f'its configurations are {known}')

    message = f'cannot load {what} of {place}: {_first_line(error)}'
    if not Path(place).is_dir():
        message += f'; {_COPY_HINT}'
    return UserError(message)


def _require_one_folder(tables: Tables):
    """Refuse several data sets side by side, which the library would read as one.

    A card may say that a split has files in several folders; then it is meant so.
    """
    root = Path(tables.place)
    card = root / 'README.md'
    if card.is_file() and 'data_files:' in card.read_text(encoding='utf-8', errors='replace'):
        return

    splits_of: dict[str, set[str]] = {}
    for split in tables:
        for path in tables.table_files(split):
            folder = os.path.relpath(os.path.dirname(path), root.resolve())
            splits_of.setdefault(folder, set()).add(split)

    # a folder with several splits is a whole data set
    whole = sorted(folder for folder, splits in splits_of.items() if len(splits) > 1)
    if len(whole) > 1:
        raise UserError(
            f'{root} holds several data sets, in the folders {", ".join(whole)}: choose one, as in '
            f'--dataset hfds/{root}:{whole[0]}')


def find_copy(repository: str, data_dir: Path | None) -> Path | None:
    """Return the local copy of a Hub repository.

    It is `--data-dir`, else `$TIMM_LONGTAIL_DATA/<repository>` where that is a folder, else None.

    Args:
        repository: Name of the repository, `USER/NAME`.
        data_dir: Folder that the user gave, or None.

    Raises:
        UserError: `data_dir` is not a folder.
    """
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(
                f'{data_dir} is not a folder: --data-dir is a copy of the Hub repository {repository}')
        return data_dir

    root = os.environ.get(DATA_VARIABLE)
    if root and (Path(root) / repository).is_dir():
        return Path(root) / repository
    return None


def open_table(repository: str, split: str, data_dir: Path | None) -> tuple[Tables, str]:
    """Open one split of a Hub repository or of its local copy.

    Args:
        repository: Name of the repository, `USER/NAME`.
        split: Name of the split in the repository.
        data_dir: Local copy, Parquet with the split in its name; None looks for
            `$TIMM_LONGTAIL_DATA/<repository>`, then asks the Hub.

    Returns:
        All splits, and the name of the one.

    Raises:
        UserError: Files are missing, or the library cannot read them.
    """
    copy = find_copy(repository, data_dir)
    pattern = f'**/*{split}*.parquet'
    if copy is not None and not any(copy.glob(pattern)):
        raise UserError(
            f'{copy} holds no {split} split: looked for {pattern}, as in a copy of the Hub repository '
            f'{repository}')

    place = str(copy or repository)
    splits = load_table(place, split)

    # files called valid-* are the split `validation`, unless the card of the repository says
    # otherwise
    name = split
    if split == 'valid' and split not in splits:
        name = 'validation'
    if name not in splits:
        raise UserError(f'{place} has no {split} split; it has {", ".join(splits)}')
    return splits, name


def require_columns(table: Any, columns: tuple[str, ...], place: str):
    """Raise a `UserError` that lists the columns of a table, where one is missing."""
    for column in columns:
        if column not in table.column_names:
            known = ', '.join(table.column_names)
            raise UserError(f'{place} has no column {column!r}; its columns are {known}')
