"""Where images come from: labels first, then the images of the rows that are asked for.

N images, C classes.
"""
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..errors import UserError, unknown_name
from .encoded import EncodedImages
from .longtail import hold_out_indices

__all__ = ['REGISTRY', 'RegisteredDataset', 'Source', 'SourceOptions', 'find_dataset', 'register_dataset']


@dataclass
class Source:
    """What a data set needs of its storage.

    Attributes:
        targets: Class of each row, int64 [N].
        class_names: C names.
        images: The N images, encoded; or decoded, uint8 [N,3,S,S].
        names: File name of each row, where `images` is a tensor.
        mean, std: Per-channel constants for pixels in [0, 1]; None leaves them to be measured or to be ImageNet's.
        original_order: Whether the rows are stored in the order of the original release.
        published: Whether it is a benchmark of one size, decoded into memory whatever the loader.
        hub_id: The Hub's name of the data set, where it has one.
        note: A line that the user should read at the start, or ''.
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


@dataclass(frozen=True)
class SourceOptions:
    """What a source may be told.

    Attributes:
        argument: What stands behind the slash of a name such as `hfds/USER/SET`; '' without.
        data_dir: Folder of the data, or None.
        train_split, test_split: What the splits are called in the storage; None takes the usual names.
        input_key, target_key: Columns of the image and of the label; None finds them.
    """
    argument: str = ''
    data_dir: Path | None = None
    train_split: str | None = None
    test_split: str | None = None
    input_key: str | None = None
    target_key: str | None = None


@dataclass(frozen=True)
class RegisteredDataset:
    """A source and how its training split is cut.

    Attributes:
        load: `(split, options) -> Source`, split `train` or `test`.
        imbalance_factor: Default factor; 1 is a set that is never cut, None has natural counts and is cut on request.
    """
    load: Callable[[str, SourceOptions], Source]
    imbalance_factor: float | None


REGISTRY: dict[str, RegisteredDataset] = {}


def register_dataset(name: str, imbalance_factor: float | None = 1.) -> Callable:
    """Register a function `(split, options) -> Source` under a name.

    Args:
        name: What `create_dataset` calls it; one that ends in a slash takes an argument behind it.
        imbalance_factor: See `RegisteredDataset`.
    """
    def register(load: Callable) -> Callable:
        REGISTRY[name] = RegisteredDataset(load, imbalance_factor)
        return load
    return register


def find_dataset(name: str) -> tuple[RegisteredDataset, str]:
    """Return what is registered under a name, and the argument behind its slash.

    Raises:
        UserError: An unknown name, or a missing argument.
    """
    prefix, slash, argument = name.partition('/')
    found = REGISTRY.get(prefix + slash)
    if found is None:
        raise unknown_name('data set', name, sorted(REGISTRY))
    if slash and not argument:
        raise UserError(f'--dataset {name}: what stands behind the slash is missing')
    return found, argument


@register_dataset('digits_lt', imbalance_factor=20)
def _digits(split: str, options: SourceOptions) -> Source:
    """scikit-learn's 8x8 digits, up-sampled to 32x32 RGB; 20 % of each class are the test split."""
    from sklearn.datasets import load_digits
    if options.data_dir is not None:
        raise UserError('digits_lt comes with scikit-learn; it takes no --data-dir')
    digits = load_digits()
    test = hold_out_indices(digits.target, 0.2, seed=0)
    rows = test if split == 'test' else np.setdiff1d(np.arange(len(digits.target)), test)
    grey = torch.from_numpy(digits.images[rows]).float() * (255 / 16)
    large = torch.nn.functional.interpolate(grey[:, None], size=(32, 32), mode='bilinear', align_corners=False)
    return Source(
        targets=digits.target[rows].astype(np.int64),
        class_names=[str(digit) for digit in range(10)],
        images=large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(),
        names=[f'digit_{row:04d}' for row in rows],
        mean=(0.3051,) * 3,
        std=(0.3234,) * 3,
        published=True,
    )
