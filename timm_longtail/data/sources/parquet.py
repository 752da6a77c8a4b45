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

__all__ = ['DATA_VARIABLE', 'TableImages', 'Tables', 'find_copy', 'load_table', 'open_table', 'require_columns']

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
        splits: `datasets.Dataset` by name of split.
        files: Files of each split in the order of its rows, as paths or addresses; empty where the library does not
            say, as for a set of the Hub that it finds in its cache without a network.
        folders: Folders that image files of the set may lie in; a relative path starts at the first.
    """

    def __init__(self, place: str, splits: dict, files: dict[str, list[str]], folders: Sequence[str | Path]):
        super().__init__(splits)
        self.place = place
        self.files = files
        self.folders = folders

    def images(self, split: str, column: str, where: str) -> 'TableImages':
        """Return the image column of a split; `where` is what the table is called in an error."""
        return TableImages(self[split], column, where, self.folders, self.table_files(split))

    def table_files(self, split: str) -> list[str]:
        """Return the files of a split that hold a table with a schema."""
        return [path for path in self.files.get(split, ()) if path.endswith(_TABLE_ENDS)]


class TableImages(EncodedImages):
    """The image column of a table, left encoded.

    A row holds the bytes of an image or the path of a file. A path may be anything that the author of the table wrote,
    and what is read may be packed and published, so that files outside the data set are refused.

    Args:
        table: A `datasets.Dataset`.
        column: Name of the column.
        place: What the table is called in an error.
        folders: Folders that the image files may lie in; a relative path starts at the first. None allows no file.
        sources: Files that the table was read from.

    Raises:
        UserError: A row without bytes whose path leads outside the folders.
    """

    block_size = 512

    def __init__(
            self,
            table,
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
        if getattr(images.features[column], 'dtype', '').startswith(('binary_view', 'fixed_size_binary')):
            # kinds of bytes that the library does not take for images by itself
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
            if encoded.null_count:  # of most tables every row has bytes: no path is looked at
                yield from filter(None, structs.field('path').filter(pc.is_null(encoded)).to_pylist())

    def _locate(self, path: str) -> str:
        return os.path.join(self.folders[0], path) if self.folders else path

    def _refuse_foreign_files(self):
        resolved: dict[str, str] = {}
        for path in self._paths():
            place = _resolve(self._locate(path), resolved)
            if not any(place.startswith(os.path.join(folder, '')) for folder in self.folders):
                raise UserError(
                    f'{self.place}: the image {one_line(path)!r} lies outside {next(iter(self.folders), "the table")}; '
                    'a table may name files of its own folder only')

    def _structs(self, rows: np.ndarray):
        return self.table[rows.tolist()][self.column].combine_chunks()

    def _read(self, rows: np.ndarray) -> list[bytes | None]:
        images = self._structs(rows).to_pylist() if len(rows) else []
        return [self._bytes(image) for image in images]

    def _bytes(self, image: dict | None) -> bytes | None:
        if image is None:
            return None
        if image['bytes'] is not None:
            return image['bytes']

        # one file that is gone must not cost its whole block: it is named when it is decoded; a pipe would hang
        path = self._locate(image['path'] or '')
        if not os.path.isfile(path):
            return None
        try:
            return Path(path).read_bytes()
        except OSError:
            return None

    def _names(self, rows: np.ndarray) -> list[str]:
        def read(structs, first):
            paths = structs.field('path').to_pylist()
            return [Path(path or f'row {row}').name for row, path in enumerate(paths, first)]
        return self._collect(rows, read, object).tolist()

    def _sizes(self, rows: np.ndarray) -> np.ndarray:
        import pyarrow.compute as pc

        def read(structs, first):
            sizes = pc.binary_length(structs.field('bytes')).to_pylist()
            if None not in sizes:
                return sizes
            paths = structs.field('path').to_pylist()
            return [self._file_size(path) if size is None else size for size, path in zip(sizes, paths)]
        return self._collect(rows, read, np.int64)

    def _file_size(self, path: str | None) -> int:
        try:
            return os.stat(self._locate(path)).st_size if path else 0
        except OSError:
            return 0  # it is named when it is decoded

    def _collect(self, rows: np.ndarray, read: Callable, dtype) -> np.ndarray:
        """Return `read(structs, first row)` of some rows; neighbours are read as one slice, which copies no image."""
        found = np.empty(len(rows), dtype)
        order = np.argsort(rows, kind='stable')
        ordered = rows[order]
        for start in range(0, len(self.table), self.block_size):
            low, high = np.searchsorted(ordered, (start, start + self.block_size))
            if low < high:
                values = []
                for structs in self.table[start:start + self.block_size][self.column].chunks:
                    values += read(structs, start + len(values))
                found[order[low:high]] = np.array(values, dtype)[ordered[low:high] - start]
        return found


def _resolve(path: str, resolved: dict[str, str]) -> str:
    """Return a path without links and `..`; `resolved` keeps the folders, which many images share."""
    folder, name = os.path.split(path)
    if '\0' in path or name in ('', '.', '..'):
        return ''
    if folder not in resolved:
        resolved[folder] = os.path.realpath(folder)

    place = os.path.join(resolved[folder], name)
    return os.path.realpath(place) if os.path.islink(place) else place


@contextmanager
def _quiet(datasets):
    """Keep the library's progress bars off a log for a while."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _why_unreachable(datasets, repository: str) -> str:
    """Return why the Hub does not answer at all, '' where it does: the library asks six times, for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    try:
        HfApi(endpoint=datasets.config.HF_ENDPOINT).dataset_info(repository, timeout=_PATIENCE)
    except (HfHubHTTPError, ValueError):
        return ''  # an answer, or a name that the library refuses: it says so better
    except Exception as error:  # each version of the library has its own HTTP client, with its own kinds
        return (str(error).strip() or repr(error)).splitlines()[0]
    return ''


@contextmanager
def _cache_only(datasets, wanted: bool):
    """Have the library look into its cache alone for a while."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = before or wanted
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _cache_of(datasets, folder: Path) -> str:
    """Return a cache for a folder as it is: by itself the library may serve what files of that name once held."""
    files = sorted((str(path.relative_to(folder)), path.stat()) for path in folder.rglob('*') if path.is_file())
    state = [str(folder.resolve()), *((name, stat.st_size, stat.st_mtime_ns) for name, stat in files)]
    return str(Path(datasets.config.HF_DATASETS_CACHE, 'local', hashlib.sha256(repr(state).encode()).hexdigest()[:16]))


def _image_folders(datasets, place: str) -> list[str | Path]:
    """Return the folders that hold the image files of a set: its own, or the caches it was downloaded to."""
    root = Path(place)
    if not root.is_dir():
        from huggingface_hub import constants
        repository = f'datasets--{place.replace("/", "--")}'
        return [Path(constants.HF_HUB_CACHE, repository), Path(datasets.config.HF_DATASETS_CACHE, 'downloads')]

    folders = [root, Path(_cache_of(datasets, root))]
    if root.resolve().parent.name == 'snapshots':  # in the Hub's cache, where a snapshot is links to `blobs`
        folders.append(root.resolve().parent.parent / 'blobs')
    return folders


def _list_configs(datasets, place: str) -> list[str]:
    """Return the names of the configurations of a set; none where the library cannot say."""
    try:
        return datasets.get_dataset_config_names(place)
    except Exception:  # each builder raises its own kinds; opening the set says what is wrong
        return []


def load_table(place: str, what: str = 'the splits', config: str | None = None) -> Tables:
    """Open a folder or a Hub repository with `datasets`.

    Args:
        place: Path of the folder, or `USER/NAME`.
        what: What of it is wanted, for an error; the library reads all splits in any case.
        config: Configuration of the set, or a folder inside it; None where it has one only.

    Raises:
        UserError: The library cannot read it, the Hub cannot be reached, or there are several configurations.
    """
    import datasets
    local = Path(place).is_dir()
    unreachable = '' if local else _why_unreachable(datasets, place)
    cache = _cache_of(datasets, Path(place)) if local else None

    with _quiet(datasets), _cache_only(datasets, bool(unreachable)):
        chosen: dict[str, Any] = {}
        if config is not None:
            is_known = config in _list_configs(datasets, place)
            chosen = {'name': config} if is_known else {'data_dir': config}
        try:
            # before anything is written: the cache may lie inside the folder
            builder = datasets.load_dataset_builder(place, cache_dir=cache, **chosen)
            splits = datasets.load_dataset(place, cache_dir=cache, **chosen)
        except Exception as error:  # the library, the network and Arrow each raise their own kinds
            raise _why_not_loaded(datasets, place, what, config, unreachable, error) from error

    files = {str(split): [*map(str, paths)] for split, paths in (builder.config.data_files or {}).items()}
    tables = Tables(place, splits, files, _image_folders(datasets, place))
    if local and config is None:
        _require_one_folder(tables)
    return tables


def _why_not_loaded(
        datasets,
        place: str,
        what: str,
        config: str | None,
        unreachable: str,
        error: Exception,
) -> UserError:
    """Return the error for a set that `datasets` does not open."""
    reason = (str(error).strip() or repr(error)).splitlines()[0]
    if unreachable and isinstance(error, ConnectionError):
        reason = f'it is not in the cache, and the Hub cannot be reached ({unreachable})'
        return UserError(f'cannot load {what} of {place}: {reason}; {_COPY_HINT}')

    configs = _list_configs(datasets, place)
    if config is None and len(configs) > 1:
        return UserError(f'{place} has several configurations, {", ".join(configs)}: choose one, as in '
                         f'--dataset hfds/{place}:{configs[0]}')
    if config is not None and config not in configs:
        known = ', '.join(configs) or 'none'
        return UserError(f'{place} has no configuration and no folder {config!r} that can be opened; '
                         f'its configurations are {known}')
    hint = '' if Path(place).is_dir() else f'; {_COPY_HINT}'
    return UserError(f'cannot load {what} of {place}: {reason}{hint}')


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
            splits_of.setdefault(os.path.relpath(os.path.dirname(path), root.resolve()), set()).add(split)
    whole = sorted(folder for folder, splits in splits_of.items() if len(splits) > 1)
    if len(whole) > 1:
        raise UserError(f'{root} holds several data sets, in the folders {", ".join(whole)}: choose one, as in '
                        f'--dataset hfds/{root}:{whole[0]}')


def find_copy(repository: str, data_dir: Path | None) -> Path | None:
    """Return the local copy of a Hub repository: `--data-dir`, else `$TIMM_LONGTAIL_DATA/<repository>`, else None.

    Raises:
        UserError: `data_dir` is not a folder.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f'{data_dir} is not a folder: --data-dir is a copy of the Hub repository {repository}')
    root = os.environ.get(DATA_VARIABLE)
    if data_dir is None and root and (Path(root) / repository).is_dir():
        return Path(root) / repository
    return data_dir


def open_table(repository: str, split: str, data_dir: Path | None) -> tuple[Tables, str]:
    """Open one split of a Hub repository or of its local copy.

    Args:
        repository: `USER/NAME`.
        split: What the repository calls the split.
        data_dir: Local copy, Parquet with the split in its name; None looks for `$TIMM_LONGTAIL_DATA/<repository>`,
            then asks the Hub.

    Returns:
        All splits, and the name of the one.

    Raises:
        UserError: Files are missing, or the library cannot read them.
    """
    copy, pattern = find_copy(repository, data_dir), f'**/*{split}*.parquet'
    if copy is not None and not any(copy.glob(pattern)):
        raise UserError(
            f'{copy} holds no {split} split: looked for {pattern}, as in a copy of the Hub repository {repository}')
    place = str(copy or repository)
    splits = load_table(place, split)
    # files called valid-* are the split `validation`, unless the card of the repository says otherwise
    name = 'validation' if split == 'valid' and split not in splits else split
    if name not in splits:
        raise UserError(f'{place} has no {split} split; it has {", ".join(splits)}')
    return splits, name


def require_columns(table, columns: tuple[str, ...], place: str):
    """Raise a `UserError` that lists the columns, where one is missing."""
    for column in columns:
        if column not in table.column_names:
            raise UserError(f'{place} has no column {column!r}; its columns are {", ".join(table.column_names)}')
