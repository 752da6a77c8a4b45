"""A folder of images, one sub-folder a class.

N images, C classes.
"""
import os
from functools import cache
from pathlib import Path

import numpy as np

from ..errors import UserError
from .encoded import FileImages
from .sources import Source, SourceOptions, choose_test_split, hold_out_split, refuse_options, register_dataset

__all__ = ['image_extensions', 'list_class_folders', 'list_images']

_TEST_FOLDERS = ('test', 'val', 'validation', 'valid')

# Pillow knows these files but decodes none of them by itself
_NOT_DECODED = {'BUFR', 'GRIB', 'HDF5', 'MPEG'}


@cache
def image_extensions() -> frozenset[str]:
    """Return the lower-case extensions of the formats that Pillow decodes."""
    from PIL import Image
    known = Image.registered_extensions()
    return frozenset(end for end, kind in known.items() if kind in Image.OPEN and kind not in _NOT_DECODED)


def list_class_folders(folder: Path) -> list[str]:
    """Return the names of the sub-folders, sorted; hidden ones are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.name.startswith('.') and entry.is_dir())


def list_images(folder: Path) -> list[str]:
    """Return the image files below a folder, at any depth, as sorted relative paths with `/`.

    Hidden files and folders are left out, links are followed.

    Raises:
        UserError: A link that leads back to a folder above it.
    """
    found, known = [], image_extensions()

    def walk(path: str, prefix: str, above: tuple[str, ...]):
        place = os.path.realpath(path)
        if place in above:
            raise UserError(f'{path} is a link back to {place}: its images would be counted over and over')
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith('.'):
                    continue
                if entry.is_dir():
                    walk(entry.path, f'{prefix}{entry.name}/', (*above, place))
                elif os.path.splitext(entry.name)[1].lower() in known:
                    found.append(prefix + entry.name)
    walk(str(folder), '', ())
    return sorted(found)


@register_dataset('folder', imbalance_factor=None)
def _folder(split: str, options: SourceOptions) -> Source:
    """Your images in `--data-dir`: `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` with 20 % of each class as test."""
    refuse_options('folder', options, ('input_key', 'target_key'))
    root = options.data_dir
    if root is None:
        raise UserError('--dataset folder needs --data-dir: a folder of class folders, or of train and test')
    if not root.is_dir():
        raise UserError(f'--data-dir {root} is not a folder')
    folders = _find_splits(root, options)
    if folders is None:
        names = list_class_folders(root)
        paths, targets = _list_rows(root, names)
        rows = hold_out_split(targets, split)
        note = f'{root} has no train and test folders: 20 % of the images of each class are the test split'
        return Source(targets[rows], names, FileImages(root, [paths[row] for row in rows]), note=note,
                      title=root.resolve().name)
    train, test, note = folders
    names = list_class_folders(root / train)
    if split == 'test':
        unknown = sorted(set(list_class_folders(root / test)) - set(names))
        if unknown:
            raise UserError(f'{root / test} has a class {unknown[0]!r} that {root / train} has not')
    here = root / (train if split == 'train' else test)
    paths, targets = _list_rows(here, names)
    note = note if split == 'test' else ''
    return Source(targets, names, FileImages(here, paths), note=note, title=root.resolve().name)


def _find_splits(root: Path, options: SourceOptions) -> tuple[str, str, str] | None:
    """Return the names of the train and the test folder and a note; None where the classes lie in `root` itself."""
    folders, usual = list_class_folders(root), {'train', *_TEST_FOLDERS}
    # a class may be called `train` as well: a split is a folder of folders
    splits = {name for name in folders if list_class_folders(root / name)}
    asked = {name for name in (options.train_split, options.test_split) if name is not None}
    train = options.train_split or 'train'
    if not asked and not splits & usual:
        if usual.issuperset(folders):
            where = root / folders[0] if folders else root
            raise UserError(f'{where} has no class folder: one sub-folder a class is needed')
        if len(folders) == 1:
            raise UserError(f'{root} has one class folder only, {folders[0]}: looked for several, or train and test')
        return None
    for name in sorted({train, *asked}):
        if name in folders and name not in splits:
            raise UserError(f'{root / name} has no class folder: one sub-folder a class is needed')
    if train not in splits:
        raise UserError(f'{root} has no folder {train}; it has {", ".join(folders) or "no sub-folder"} (--train-split)')
    test, note = choose_test_split(splits, _TEST_FOLDERS, train, options.test_split, str(root))
    if test is None:
        looked = ', '.join(_TEST_FOLDERS)
        raise UserError(f'{root} has {train} but no test folder: looked for {looked} (--test-split names another)')
    return train, test, note


def _list_rows(root: Path, class_names: list[str]) -> tuple[list[str], np.ndarray]:
    """Return the paths of all images below the class folders, class after class, and their classes, int64 [N]."""
    paths, counts = [], []
    for name in class_names:
        images = list_images(root / name) if (root / name).is_dir() else []
        paths += [f'{name}/{image}' for image in images]
        counts.append(len(images))
    if not paths:
        raise UserError(f'{root} holds no image: looked for .jpg, .png … in {len(class_names)} class folders')
    return paths, np.repeat(np.arange(len(class_names)), counts).astype(np.int64)
