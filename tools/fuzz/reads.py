"""How each format is read, in the process of a case: prints a digest of what was read, or ends as an entry point does.

The digest covers what a reader promises to give back: weights, labels, pixels, figures.
"""
import hashlib
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from timm_longtail.cli.entry import run_main
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import create_dataset, packed_data
from timm_longtail.data.sources.lists import ListSpec, load_list
from timm_longtail.data.sources.registry import SourceOptions
from timm_longtail.export.hub import check_export
from timm_longtail.export.loading import load_exported
from timm_longtail.methods._flags import read_flags
from timm_longtail.retraining.trained_model import load_checkpoint
from timm_longtail.training.checkpoint import read_checkpoint, read_weights

from .place import LISTS

_LISTS = ListSpec(
    name='Two-LT', folder='two', files=LISTS, totals={'train': 6, 'test': 2}, num_classes=2, name_depth=1,
    origin='a trial')


def digest(value: Any) -> str:
    """Return a fingerprint of nested plain values, arrays and tensors, to the bit."""
    sha = hashlib.sha256()

    def add(value):
        if is_dataclass(value):
            value = asdict(value)
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu().contiguous().view(torch.uint8) if value.ndim else value.item()
        if isinstance(value, torch.Tensor):
            value = value.numpy()

        if isinstance(value, np.ndarray):
            sha.update(f'{value.dtype} {value.shape}'.encode())
            sha.update(value.tobytes())
        elif isinstance(value, dict):
            for key in value:
                add(key)
                add(value[key])
        elif isinstance(value, (list, tuple)):
            for item in value:
                add(item)
        else:
            sha.update(f'{type(value).__name__} {value!r};'.encode(errors='surrogateescape'))

    add(value)
    return sha.hexdigest()


def _images(dataset) -> list:
    """Return all that a data set gives: pixels, labels, names, constants."""
    if dataset.resident:
        pixels = dataset.images
    else:
        pixels = [np.asarray(dataset.decode(position)) for position in range(len(dataset))]
    return [pixels, dataset.targets, dataset.class_names, dataset.shot_counts, dataset.mean, dataset.std]


def read_a_checkpoint(path: Path):
    return read_checkpoint(path)


def read_a_trained_model(path: Path):
    trained_model = load_checkpoint(path)
    return trained_model.model.state_dict(), trained_model.preprocessing, trained_model.provenance


def read_initial_weights(path: Path):
    return read_weights(path)


def read_an_export(path: Path):
    model, _ = load_exported(path.parent)
    return model.state_dict()


def read_for_a_push(path: Path):
    check_export(path.parent)
    return ''


def read_a_packed_set(path: Path):
    return [_images(create_dataset(f'packed:{path}', split)) for split in ('train', 'test')]


def read_a_packed_set_lazily(path: Path):
    return [_images(create_dataset(f'packed:{path}', split, loader='worker')) for split in ('train', 'test')]


def read_a_packed_header(path: Path):
    return packed_data(path)


def read_a_flag_file(path: Path):
    return read_flags(path, create_dataset('digits_lt', 'train').digests)


def read_a_recipe(path: Path):
    return vars(parse_train_args(['-c', str(path)]))


def read_lists(path: Path):
    options = SourceOptions(data_dir=path.parent)
    return [(source.targets, source.class_names, source.images.paths)
            for source in (load_list(_LISTS, split, options) for split in LISTS)]


def read_pictures(path: Path):
    return _images(create_dataset('folder', 'train', data_dir=path.parents[2]))


def read_pictures_lazily(path: Path):
    return _images(create_dataset('folder', 'train', data_dir=path.parents[2], loader='worker'))


def read_pictures_leniently(path: Path):
    return _images(create_dataset('folder', 'train', data_dir=path.parents[2], loader='resident', skip_bad_images=True))


def read_a_table(path: Path):
    return [_images(create_dataset(f'hfds/{path.parent}', split)) for split in ('train', 'test')]


def main():
    """Read as `python -c … FUNCTION FILE` asks for."""
    _, name, path = sys.argv
    sys.argv[0] = 'read'  # its errors begin with it
    run_main(lambda: print(digest(globals()[name](Path(path)))))
