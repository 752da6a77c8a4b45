"""Where images come from: labels first, then the images of the rows that are asked for.

N images, C classes.
"""
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ...utils.errors import UserError, unknown_name
from ..images import EncodedImages
from ..longtail import hold_out_indices

__all__ = [
    'REGISTRY',
    'TEST_SPLITS',
    'TRAIN_SPLITS',
    'RegisteredDataset',
    'Source',
    'SourceOptions',
    'choose_test_split',
    'choose_train_split',
    'find_dataset',
    'find_splits',
    'hold_out_split',
    'refuse_options',
    'register_dataset',
]

# what the folders of splits are called, whatever their case, the best name first
TRAIN_SPLITS = ('train', 'training')
TEST_SPLITS = ('test', 'testing', 'val', 'validation', 'valid', 'eval', 'evaluation', 'dev')

_STREAMED = (
    'class counts and class-balanced sampling need every label and random access, which a stream has not; '
    'name a Hub data set as hfds/USER/SET, or unpack the images into one folder a class and name --dataset folder')
_FOREIGN = 'is not read here; name the same data set as hfds/USER/SET, or write one folder a class: --dataset folder'

# the prefixes of timm's `create_dataset` that this package does not serve
_REFUSED = {
    'hfids': f'streams a Hub data set: {_STREAMED}',
    'wds': f'streams tar files: {_STREAMED}',
    'tfds': f'(TensorFlow Datasets) {_FOREIGN}',
    'torch': f"(torchvision's data sets) {_FOREIGN}",
}


@dataclass
class Source:
    """What a data set needs of its storage.

    Attributes:
        targets: Class of each row, int64 [N].
        class_names: Names of the classes, [C].
        images: Images, encoded, or decoded as uint8 [N,3,S,S].
        names: File name of each row, where `images` is a tensor.
        mean: Mean of each channel, for pixels in [0, 1]; None leaves both constants to be measured
            or to be ImageNet's.
        std: Standard deviation of each channel, for pixels in [0, 1].
        original_order: Whether the rows are stored in the order of the original release.
        published: Whether it is a benchmark of one small size, decoded into memory without looking
            at every header.
        hub_id: Name of the data set on the Hub, where it has one.
        note: Line that the user should read at the start, or ''.
        title: Name in file names and messages; '' takes the registered one.
    """
    targets: np.ndarray
    class_names: list[str]
    images: EncodedImages | torch.Tensor
    names: list[str] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    original_order: bool = True
    published: bool = False
    hub_id: str | None = None
    note: str = ''
    title: str = ''


@dataclass(frozen=True)
class SourceOptions:
    """Options of a source.

    Attributes:
        argument: Text behind the slash of a name such as `hfds/USER/SET`; '' without.
        data_dir: Folder of the data, or None.
        train_split: Name of the training split in the storage; None takes the usual names.
        test_split: Name of the test split in the storage; None takes the usual names.
        input_key: Column of the image; None finds it.
        target_key: Column of the label; None finds it.
        class_names: Classes of a trained model that the labels of a test split are to stand for; a
            folder then needs no training split. None takes those of the training split.
        whole: Whether the test split of a set without splits is all of it, for a model that was
            trained on other images.
    """
    argument: str = ''
    data_dir: Path | None = None
    train_split: str | None = None
    test_split: str | None = None
    input_key: str | None = None
    target_key: str | None = None
    class_names: tuple[str, ...] | None = None
    whole: bool = False


@dataclass(frozen=True)
class RegisteredDataset:
    """A source and how its training split is cut.

    Attributes:
        load: `(split, options) -> Source`, split `train` or `test`.
        imbalance_factor: Default factor; 1 is a set that is never cut, None one of natural counts
            that is cut on request.
    """
    load: Callable[[str, SourceOptions], Source]
    imbalance_factor: float | None


REGISTRY: dict[str, RegisteredDataset] = {}


def register_dataset(name: str, imbalance_factor: float | None = 1.) -> Callable:
    """Register a function `(split, options) -> Source` under a name.

    Args:
        name: Name for `create_dataset`; one that ends in a slash takes an argument behind it.
        imbalance_factor: Default factor, see `RegisteredDataset`.
    """
    def register(load: Callable) -> Callable:
        REGISTRY[name] = RegisteredDataset(load, imbalance_factor)
        return load
    return register


def find_dataset(name: str) -> tuple[RegisteredDataset, str]:
    """Return what is registered under a name, and the argument behind its slash.

    Raises:
        UserError: An unknown name, one of timm's that is not served here, or a missing argument.
    """
    prefix, slash, argument = name.partition('/')
    if slash and prefix in _REFUSED:
        raise UserError(f'--dataset {name}: {prefix}/ {_REFUSED[prefix]}')
    found = REGISTRY.get(prefix + slash)
    if found is None:
        raise unknown_name('data set', name, sorted(REGISTRY))
    if slash and not argument:
        raise UserError(f'--dataset {name}: what stands behind the slash is missing')
    return found, argument


def refuse_options(what: str, options: SourceOptions, names: Sequence[str]):
    """Raise a `UserError` for an option that a source has no use for."""
    for name in names:
        if getattr(options, name) is not None:
            raise UserError(f'{what} takes no --{name.replace("_", "-")}')


def find_splits(known: Collection[str], usual: Sequence[str], place: str, option: str) -> list[str]:
    """Return the splits that have a usual name, whatever its case, in the order of the usual names.

    Args:
        known: Names of the splits that are there.
        usual: Usual names, lower case, the best first.
        place: Name of the data set in an error.
        option: Option that chooses a split.

    Raises:
        UserError: One split in two spellings.
    """
    found = []
    for name in usual:
        spellings = sorted(one for one in known if one.casefold() == name)
        if len(spellings) > 1:
            both = ' and '.join(spellings)
            raise UserError(f'{place} has {both}, one split in two spellings; choose with {option}')
        found += spellings
    return found


def choose_train_split(known: Collection[str], asked: str | None, place: str) -> str | None:
    """Choose the split that is trained on.

    Args:
        known: Names of the splits that are there.
        asked: Name that the user gave, or None.
        place: Name of the data set in an error.

    Returns:
        Its name, None where there is none.

    Raises:
        UserError: Several might be meant.
    """
    if asked is not None:
        return asked if asked in known else None

    found = find_splits(known, TRAIN_SPLITS, place, '--train-split')
    if len(found) > 1:
        raise UserError(f'{place} has {" and ".join(found)}: choose the training split with --train-split')
    return found[0] if found else None


def choose_test_split(
        known: Collection[str],
        usual: Sequence[str],
        train: str | None,
        asked: str | None,
        place: str,
) -> tuple[str | None, str]:
    """Choose the split that is tested on.

    Args:
        known: Names of the splits that are there.
        usual: Usual names of test splits, lower case, the best first.
        train: Name of the training split, None without one.
        asked: Name that the user gave, or None.
        place: Name of the data set in an error.

    Returns:
        Its name, None where there is none; and a line to read where there was a choice, or ''.

    Raises:
        UserError: The split asked for is not there, or is the training split; one split in two
            spellings.
    """
    if asked is not None:
        if asked not in known:
            raise UserError(f'{place} has no split {asked!r}; it has {", ".join(sorted(known))}')
        if asked == train:
            raise UserError(f'{place}: {asked!r} is the training split; name another with --test-split')
        return asked, ''

    others = [name for name in known if name != train]
    found = find_splits(others, usual, place, '--test-split')
    if not found:
        return None, ''

    test, *unused = found
    if not unused:
        return test, ''
    return test, f'{place}: {test} is the test split, {", ".join(unused)} not used (--test-split chooses)'


def hold_out_split(targets: np.ndarray, split: str) -> np.ndarray:
    """Return the rows of one split of a set that has no test split: 20 % of each class become one.

    Args:
        targets: Class of each row, int64 [N].
        split: `train` or `test`.

    Returns:
        Rows, int64, increasing.
    """
    test = hold_out_indices(targets, 0.2, seed=0)
    if split == 'test':
        return test
    return np.setdiff1d(np.arange(len(targets)), test)
