"""`timm-longtail pack`: both splits of a data set in one safetensors file."""
import argparse
import os
import time
from pathlib import Path

import numpy as np

from ..config.data_options import add_data_options, dataset_options
from ..config.names import check_dataset
from ..config.parser import Parser
from ..data import LongTailDataset, create_splits, write_packed
from ..data.create import require_every_class
from ..data.longtail import shot_groups
from ..evaluation.tables import GROUPS
from ..training import provenance
from ..utils.errors import UserError
from ..utils.ranges import Number

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(description='Write both splits of a data set into one file.')
    add_data_options(parser)
    parser.add_argument('--packed', '-o', required=True, help='file to write: NAME.safetensors')
    parser.add_argument(
        '--images-per-class', type=Number(int, '[1, inf)'), metavar='N',
        help='at most N training images of each class, by the data seed; default all')
    parser.add_argument('--license', default='', help='licence of the images, kept in the file')
    return parser


def _new_file(word: str) -> Path:
    """Return the path of the file to write.

    Raises:
        UserError: It has another kind of name, is there already, or has no folder.
    """
    path = Path(word)
    if path.suffix != '.safetensors':
        raise UserError(f'--packed {path}: name a file that ends in .safetensors')
    if os.path.lexists(path):
        raise UserError(f'--packed {path} is there already; move it away or name another')
    if not path.parent.is_dir():
        raise UserError(f'--packed {path}: no folder {path.parent}')
    return path


def _first_of_each_class(dataset: LongTailDataset, number: int) -> LongTailDataset:
    """Return a set with at most `number` images of each class, drawn by its seed, in their order."""
    order = np.random.default_rng(dataset.seed).permutation(len(dataset))
    kept = [order[dataset.targets[order] == c][:number] for c in range(dataset.num_classes)]

    part = dataset.subset(np.sort(np.concatenate(kept)))
    part.shot_counts = list(part.class_counts)
    return part


def _leave_out_bad(dataset: LongTailDataset) -> LongTailDataset:
    """Return a set of files without those that cannot be read; one in memory has left them out already.

    Raises:
        UserError: A training class is left without an image.
    """
    if dataset.resident:
        return dataset

    bad = []
    for position in range(len(dataset)):
        try:
            dataset.decode(position)
        except UserError as e:
            print(e)
            bad.append(position)

    rest = dataset.subset(np.setdiff1d(np.arange(len(dataset)), bad))
    rest.bad_images = [dataset.source_names[position] for position in bad]
    if dataset.shot_counts is not None:
        require_every_class(rest)
        rest.shot_counts = list(rest.class_counts)
    return rest


def _describe_bad(dataset: LongTailDataset) -> str:
    """Return which images of a split were left out."""
    number = len(dataset.bad_images)
    verb = 'image cannot be read and is' if number == 1 else 'images cannot be read and are'
    names = ', '.join(dataset.bad_images[:5])
    more = ', …' if number > 5 else ''
    return f'{dataset.split}: {number} {verb} left out: {names}{more}'


def _print_contents(path: Path, train: LongTailDataset, test: LongTailDataset, seconds: float):
    """Print what was written, and how it is used."""
    groups = shot_groups(train.class_counts)
    sizes = ', '.join(f'{len(groups[name])} {name}' for name in GROUPS)

    print(f'{path}: {path.stat().st_size / 1e6:.1f} MB in {seconds:.1f} s')
    print(f'train: {len(train)} images, {train.num_classes} classes of {max(train.class_counts)} to '
          f'{min(train.class_counts)}, {sizes}, subset {train.hash}')
    print(f'test: {len(test)} images, subset {test.hash}')
    print(f'use it: --dataset packed:{path}')


def main(argv: list[str] | None = None):
    """Read a data set and write both splits.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: A bad data set, or a file that is there already.
    """
    args = create_parser().parse_args(argv)
    check_dataset(args.dataset)
    path = _new_file(args.packed)

    start = time.perf_counter()
    train, test = create_splits(args.dataset, **dataset_options(args))
    if args.skip_bad_images:
        train, test = _leave_out_bad(train), _leave_out_bad(test)
    for dataset in (train, test):
        if dataset.bad_images:
            print(_describe_bad(dataset))

    if args.images_per_class is not None:
        train = _first_of_each_class(train, args.images_per_class)
    write_packed(path, train, test, {
        'dataset': args.dataset,
        'hub_id': train.hub_id,
        'license': args.license,
        'command': provenance.command_line(1),
        'note': train.note,
        'bad_images': {dataset.split: dataset.bad_images for dataset in (train, test)},
    })
    _print_contents(path, train, test, time.perf_counter() - start)
