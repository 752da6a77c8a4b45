"""A folder of images, one sub-folder a class.

N images, C classes.
"""
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ...utils.errors import UserError
from ..decoding import image_extensions
from ..images import FileImages
from .registry import (
    TEST_SPLITS,
    TRAIN_SPLITS,
    Source,
    SourceOptions,
    choose_test_split,
    choose_train_split,
    find_splits,
    hold_out_split,
    refuse_options,
    register_dataset,
)

__all__ = ['Listing', 'list_class_folders', 'list_files']

# a folder of one of these names, whatever its case, is a split and not a class
_SPLIT_NAMES = (*TRAIN_SPLITS, *TEST_SPLITS)

# kinds of files that a note counts one by one
_NAMED_KINDS = 4


@dataclass
class Listing:
    """Files below a folder, as relative paths with `/`.

    Attributes:
        images: Files with the extension of a format that is decoded.
        others: All other files.
    """
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def list_class_folders(folder: Path) -> list[str]:
    """Return the names of the sub-folders, sorted; hidden ones are left out.

    Raises:
        UserError: The folder cannot be read.
    """
    names = [entry.name for entry in _scan(str(folder)) if _is_folder(entry)]
    return sorted(names)


def list_files(folder: Path) -> Listing:
    """Return the files below a folder, at any depth, sorted.

    Hidden files and folders are left out, links are followed. What only looks like an image by its
    name, such as a named pipe or a link to nothing, is listed as one: it is named where it cannot
    be read.

    Raises:
        UserError: A folder that cannot be read, or a link that leads back to a folder above it.
    """
    found = Listing()
    known = image_extensions()

    def walk(path: str, prefix: str, above: tuple[str, ...]):
        """List one folder; `prefix` is its path below the first one, `above` the folders it lies in."""
        place = os.path.realpath(path)
        if place in above:
            raise UserError(f'{path} is a link back to {place}: its images would be counted over and over')

        for entry in _scan(path):
            if _is_folder(entry):
                walk(entry.path, f'{prefix}{entry.name}/', (*above, place))
            elif _extension(entry.name) in known:
                found.images.append(prefix + entry.name)
            else:
                found.others.append(prefix + entry.name)

    walk(str(folder), '', ())
    found.images.sort()
    found.others.sort()
    return found


def _scan(folder: str) -> list[os.DirEntry]:
    """Return what lies in a folder, without hidden files."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith('.')]
    except OSError as error:
        raise UserError(f'cannot read the folder {folder}: {error.strerror}') from error


def _extension(path: str) -> str:
    """Return the extension of a path in lower case, with its dot; '' without one."""
    return os.path.splitext(path)[1].lower()


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


@register_dataset('folder', imbalance_factor=None)
def _folder(split: str, options: SourceOptions) -> Source:
    """Your images in `--data-dir`: `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` with 20 % of each class as test."""
    refuse_options('folder', options, ('input_key', 'target_key'))
    root = options.data_dir
    if root is None:
        raise UserError('--dataset folder needs --data-dir: a folder of class folders, or of train and test')
    if not root.is_dir():
        raise UserError(f'--data-dir {root} is not a folder')

    found = _find_splits(root, split, options)
    if found is None:
        return _read_flat(root, split, options)

    train, test, note = found
    if split == 'train':
        assert train is not None, 'only a test split can do without a training split'
        here = root / train
        names = list_class_folders(here)
        note = ''  # the choice of a test split is said by that split
    else:
        here = root / test
        names = _read_test_classes(here, root, train, options.class_names)

    paths, targets, unused = _list_rows(here, names)
    return Source(targets, names, FileImages(here, paths), note=_join(note, unused), title=root.resolve().name)


def _read_test_classes(
        here: Path,
        root: Path,
        train: str | None,
        class_names: Sequence[str] | None,
) -> list[str]:
    """Return the classes of a test split: those of the model, else of the training split.

    Args:
        here: Folder of the test split.
        root: Folder of the splits.
        train: Name of the training split, None without one.
        class_names: Classes of a model; None for none.
    """
    if class_names:
        return _check_classes(here, class_names, 'the model')

    assert train is not None, 'without a model, the training split says which classes there are'
    return _check_classes(here, list_class_folders(root / train), str(root / train))


def _read_flat(root: Path, split: str, options: SourceOptions) -> Source:
    """Return one split of class folders that lie in `root` itself."""
    names = list_class_folders(root)
    if split == 'test' and options.class_names:
        names = _check_classes(root, options.class_names, 'the model')
    paths, targets, unused = _list_rows(root, names)

    if split == 'test' and options.whole:
        rows = np.arange(len(targets))
        note = f'{root} has no train and test folders: all of its {len(rows)} images are the test split'
    else:
        rows = hold_out_split(targets, split)
        note = f'{root} has no train and test folders: 20 % of the images of each class are the test split'

    images = FileImages(root, [paths[row] for row in rows])
    return Source(targets[rows], names, images, note=_join(note, unused), title=root.resolve().name)


def _find_splits(
        root: Path,
        split: str,
        options: SourceOptions,
) -> tuple[str | None, str, str] | None:
    """Return the names of the train and the test folder, and a note.

    None where the classes lie in `root` itself. The train folder is None where there is none and
    the classes of the test split are known without it.
    """
    below = {name: list_class_folders(root / name) for name in list_class_folders(root)}
    classes_known = split == 'test' and options.class_names is not None

    # a class may be called `train` as well: a split is a folder of folders
    splits = [name for name in below if below[name]]
    has_splits = any(name.casefold() in _SPLIT_NAMES for name in splits)
    asked = [name for name in (options.train_split, options.test_split) if name is not None]
    if not asked and not has_splits:
        _check_flat(root, below, classes_known)
        return None

    # a folder that is meant as a split has class folders
    meant = list(asked)
    if options.train_split is None:
        meant += find_splits(below, TRAIN_SPLITS, str(root), '--train-split')
    for name in meant:
        if name in below and name not in splits:
            raise UserError(f'{root / name} has no class folder: one sub-folder a class is needed')

    train = choose_train_split(splits, options.train_split, str(root))
    if train is None and not classes_known:
        wanted = options.train_split or 'train'
        there = ', '.join(below) or 'no sub-folder'
        raise UserError(f'{root} has no folder {wanted}; it has {there} (--train-split)')

    test, note = choose_test_split(splits, TEST_SPLITS, train, options.test_split, str(root))
    if test is None:
        there = train or 'no train'
        raise UserError(
            f'{root} has {there} but no test folder: looked for {", ".join(TEST_SPLITS)} '
            '(--test-split names another)')
    return train, test, note


def _check_flat(root: Path, below: dict[str, list[str]], classes_known: bool):
    """Refuse sub-folders that cannot be classes.

    Args:
        root: Folder of the class folders.
        below: Sub-folders of each class folder, by its name.
        classes_known: Whether a trained model says which classes there are: then one of them is
            enough.
    """
    folders = list(below)
    if not folders:
        raise UserError(f'{root} has no class folder: one sub-folder a class is needed')
    if all(name.casefold() in _SPLIT_NAMES for name in folders):
        raise UserError(f'{root / folders[0]} has no class folder: one sub-folder a class is needed')

    if len(folders) == 1 and not classes_known:
        hint = ''
        if below[folders[0]]:
            hint = f' (is --data-dir {root / folders[0]} meant?)'
        raise UserError(
            f'{root} has one class folder only, {folders[0]}: looked for several, or train and test{hint}')

    # one name alone is a habit of some sets, such as `CLASS/images`
    shared = below[folders[0]]
    all_share = all(names == shared for names in below.values())
    if len(folders) > 1 and len(shared) > 1 and all_share:
        raise UserError(
            f'{root}: {_few(folders)} all hold the same sub-folders, {_few(shared)}, and are no classes: name the '
            'folder of the class folders, or the splits with --train-split and --test-split')


def _check_classes(folder: Path, known: Sequence[str], owner: str) -> list[str]:
    """Return the known classes, if the class folders are among them.

    Args:
        folder: Folder of the class folders.
        known: Names of the known classes, [C].
        owner: Owner of these classes, for the message.
    """
    unknown = sorted(set(list_class_folders(folder)) - set(known))
    if unknown:
        raise UserError(f'{folder} has a class {unknown[0]!r} that {owner} has not ({_few(known)})')
    return list(known)


def _list_rows(root: Path, class_names: Sequence[str]) -> tuple[list[str], np.ndarray, str]:
    """List the images below the class folders, class after class.

    Returns:
        Paths of the images relative to `root`, [N]; their classes, int64 [N]; a note that counts
        the files that are not used, '' where there are none.
    """
    paths: list[str] = []
    others: list[str] = []
    counts: list[int] = []
    for name in class_names:
        # a class of the training split may have no folder in the test split
        listing = Listing()
        if (root / name).is_dir():
            listing = list_files(root / name)
        paths += [f'{name}/{image}' for image in listing.images]
        others += [f'{name}/{other}' for other in listing.others]
        counts.append(len(listing.images))

    note = _join(_describe_others(root, others), _describe_loose(root))
    if not paths:
        reason = f'{root} holds no image: looked for .jpg, .png … in {len(class_names)} class folders'
        raise UserError(_join(reason, note))

    targets = np.repeat(np.arange(len(class_names)), counts).astype(np.int64)
    return paths, targets, note


def _describe_others(root: Path, others: list[str]) -> str:
    """Return a line on files in class folders that are not read as images; '' where there are none."""
    if not others:
        return ''

    kinds: Counter[str] = Counter()
    for path in others:
        kinds[_extension(path) or 'without extension'] += 1

    parts = [f'{count} {kind}' for kind, count in kinds.most_common(_NAMED_KINDS)]
    if len(kinds) > _NAMED_KINDS:
        parts.append('…')

    hint = ''
    if '.heic' in kinds or '.heif' in kinds:
        hint = ' (HEIC is not decoded: convert it to JPEG)'
    return f'{root}: files not read as images: {", ".join(parts)}, the first is {others[0]}{hint}'


def _describe_loose(root: Path) -> str:
    """Return a line on images that lie beside the class folders; '' where there are none."""
    known = image_extensions()
    loose = []
    for entry in _scan(str(root)):
        if _extension(entry.name) in known and not _is_folder(entry):
            loose.append(entry.name)
    if not loose:
        return ''

    loose.sort()
    return f'{root}: images outside the class folders, not used: {len(loose)}, the first is {loose[0]}'


def _join(*notes: str) -> str:
    return '; '.join(note for note in notes if note)


def _few(names: Sequence[str]) -> str:
    """Return the first names of a list."""
    first = list(names[:3])
    if len(names) > 3:
        first.append('…')
    return ', '.join(first)
