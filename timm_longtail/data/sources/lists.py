"""Benchmarks that are an image folder and a public list of its training and its test images, `path label` a line.

ImageNet-LT and Places-LT: Liu et al., Large-Scale Long-Tailed Recognition in an Open World, CVPR
2019, https://arxiv.org/abs/1904.05160. iNaturalist 2018: lists of Kang et al., Decoupling
Representation and Classifier for Long-Tailed Recognition, ICLR 2020,
https://arxiv.org/abs/1910.09217. N images, C classes.
"""
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...utils.errors import UserError
from ...utils.files import reading
from ..images import FileImages
from .registry import Source, SourceOptions, refuse_options, register_dataset

__all__ = ['ListSpec', 'load_list']


@dataclass(frozen=True)
class ListSpec:
    """What is published about a set of lists.

    Attributes:
        name: Name of the set in an error.
        folder: Folder of the release that holds the lists.
        files: Name of the list of `train` and of `test`.
        totals: Number of lines of the list of `train` and of `test`.
        num_classes: C, number of classes.
        name_depth: Number of folders of a training path that lie above those which name the class.
        origin: Publication that the lists come from.
        mean: Mean of each channel in the published recipes; None is ImageNet's.
        std: Standard deviation of each channel in the published recipes; None is ImageNet's.
    """
    name: str
    folder: str
    files: dict[str, str]
    totals: dict[str, int]
    num_classes: int
    name_depth: int
    origin: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


_OLTR = 'the lists of Liu et al., CVPR 2019 (OLTR)'
_IMAGENET_LT = ListSpec(
    name='ImageNet-LT',
    folder='ImageNet_LT',
    files={'train': 'ImageNet_LT_train.txt', 'test': 'ImageNet_LT_test.txt'},
    totals={'train': 115846, 'test': 50000},
    num_classes=1000,
    name_depth=1,  # train/n01440764/
    origin=_OLTR,
)
_PLACES_LT = ListSpec(
    name='Places-LT',
    folder='Places_LT',
    files={'train': 'Places_LT_train.txt', 'test': 'Places_LT_test.txt'},
    totals={'train': 62500, 'test': 36500},
    num_classes=365,
    name_depth=2,  # data_256/a/airfield/
    origin=_OLTR,
)
_INAT2018 = ListSpec(
    name='iNaturalist 2018',
    folder='iNaturalist18',
    files={'train': 'iNaturalist18_train.txt', 'test': 'iNaturalist18_val.txt'},
    totals={'train': 437513, 'test': 24426},
    num_classes=8142,
    name_depth=2,  # train_val2018/Plantae/7477/
    origin='the lists in the release of Kang et al., ICLR 2020 (Decoupling)',
    # the constants of the published code for this set (Kang et al.; BCL)
    mean=(0.466, 0.471, 0.380),
    std=(0.195, 0.194, 0.192),
)


@register_dataset('imagenet_lt')
def _imagenet_lt(split: str, options: SourceOptions) -> Source:
    """ImageNet-LT, 1000 classes, 1280 to 5 images each: ILSVRC 2012 in `--data-dir`, with OLTR's lists."""
    return load_list(_IMAGENET_LT, split, options)


@register_dataset('places_lt')
def _places_lt(split: str, options: SourceOptions) -> Source:
    """Places-LT, 365 classes, 4980 to 5 images each: Places365 in `--data-dir`, with OLTR's lists."""
    return load_list(_PLACES_LT, split, options)


@register_dataset('inat2018')
def _inat2018(split: str, options: SourceOptions) -> Source:
    """INaturalist 2018, 8142 classes, 1000 to 2 images each: its images in `--data-dir`, with Decoupling's lists."""
    return load_list(_INAT2018, split, options)


def load_list(spec: ListSpec, split: str, options: SourceOptions) -> Source:
    """Return the images of one list.

    Raises:
        UserError: A folder, list or image that is not there; a line that is malformed, has a label
            out of range or a path that is there twice; counts that are not the published ones.
    """
    refuse_options(spec.name, options, ('train_split', 'test_split', 'input_key', 'target_key'))
    root = options.data_dir
    wanted = f'the folder of its images and of {spec.files["train"]} ({spec.origin})'
    if root is None:
        raise UserError(f'{spec.name}: needs --data-dir: {wanted}')
    if not root.is_dir():
        raise UserError(f'{spec.name}: --data-dir {root} is not a folder: {wanted}')

    # the training paths name the classes of both splits
    file, paths, targets = _read_list(spec, root, 'train')
    class_names = _name_classes(paths, targets, spec)
    if split != 'train':
        file, paths, targets = _read_list(spec, root, split)
    _check_images(file, root, paths)
    return Source(targets, class_names, FileImages(root, paths), mean=spec.mean, std=spec.std)


def _find_list(spec: ListSpec, root: Path, split: str) -> Path:
    """Return the list of a split, beside the images or in the folder of the release."""
    places = [root / spec.files[split], root / spec.folder / spec.files[split]]
    for place in places:
        if place.is_file():
            return place
    raise UserError(f'{spec.name}: no list at {places[0]} or {places[1]}; it is one of {spec.origin}')


def _read_list(spec: ListSpec, root: Path, split: str) -> tuple[Path, list[str], np.ndarray]:
    """Return the file, the N paths and their labels, int64 [N]."""
    file = _find_list(spec, root, split)

    lines: dict[str, int] = {}  # number of the line of each path
    labels = []
    # names are bytes to the file system
    with reading(file, 'list'), open(file, encoding='utf-8', errors='surrogateescape') as stream:
        for number, line in enumerate(stream, 1):
            path, label = _read_line(file, number, line, spec.num_classes)
            if path in lines:
                raise UserError(f'{file}, line {number}: {path} is there already, in line {lines[path]}')
            lines[path] = number
            labels.append(label)

    total = spec.totals[split]
    if len(lines) != total:
        raise UserError(f'{file} has {len(lines)} lines, the published list of {spec.name} {total}')

    targets = np.array(labels, np.int64)
    empty = np.flatnonzero(np.bincount(targets, minlength=spec.num_classes) == 0)
    if len(empty):
        raise UserError(
            f'{file}: {len(empty)} of {spec.num_classes} classes have no image, the first is {empty[0]}')
    return file, list(lines), targets


def _read_line(file: Path, number: int, line: str, num_classes: int) -> tuple[str, int]:
    """Return the path and the label of a line.

    Args:
        file: List.
        number: Number of the line, for an error.
        line: The line.
        num_classes: Number of classes.
    """
    # from the right: a path may have spaces
    fields = line.rsplit(maxsplit=1)
    if len(fields) != 2:
        raise UserError(f'{file}, line {number}: expected `path label`, got {line.strip()!r}')

    path, label = fields
    if not label.removeprefix('-').isdecimal():
        raise UserError(f'{file}, line {number}: the label {label!r} is no integer')
    if not 0 <= int(label) < num_classes:
        raise UserError(f'{file}, line {number}: label {label} lies outside 0..{num_classes - 1}')
    if not {'', '.', '..'}.isdisjoint(path.split('/')):
        raise UserError(f'{file}, line {number}: {path} is no path below the folder of the images')
    return path, int(label)


def _check_images(file: Path, root: Path, paths: list[str]):
    """Raise a `UserError` for images that are not there.

    One look into each folder, not one at each image: a network file system takes minutes for those.
    """
    present: dict[str, frozenset[str]] = {}  # names of the files in each folder
    missing = []
    for number, path in enumerate(paths, 1):
        folder, _, name = path.rpartition('/')
        if folder not in present:
            present[folder] = _list_files(root / folder)
        if name not in present[folder]:
            missing.append(number)

    if missing:
        first = missing[0]
        raise UserError(
            f'{file}, line {first}: {root / paths[first - 1]} is not there; '
            f'{len(missing)} of {len(paths)} images are missing')


def _list_files(folder: Path) -> frozenset[str]:
    """Return the names in a folder; none where it is not there."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (OSError, ValueError) as error:  # a link to itself, no permission, a NUL byte
        reason = getattr(error, 'strerror', None) or error
        raise UserError(f'cannot read the folder {folder}: {reason}') from error


def _name_classes(paths: list[str], targets: np.ndarray, spec: ListSpec) -> list[str]:
    """Return a name for each class: that of its folder, or its number.

    A folder names a class whose images all lie in it, where no other class has a folder of that
    name.
    """
    folders: dict[int, set[str]] = {}
    for path, label in zip(paths, targets.tolist()):
        folder = path.rpartition('/')[0]
        folders.setdefault(label, set()).add(folder)

    names: dict[int, str] = {}
    for label, found in folders.items():
        own = {'/'.join(folder.split('/')[spec.name_depth:]) for folder in found}
        if len(own) == 1:
            names[label] = own.pop()

    taken = Counter(names.values())
    class_names = []
    for label in range(spec.num_classes):
        name = names.get(label, '')
        is_own = name != '' and taken[name] == 1
        class_names.append(name if is_own else str(label))
    return class_names
