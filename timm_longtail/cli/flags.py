"""`timm-longtail flags`: which images RAIS found to look alike in every rotation; numbers and a figure."""
import argparse
from pathlib import Path

import numpy as np

from ..config.data_options import add_data_options, dataset_options
from ..config.parser import SHARE, Parser
from ..data import LongTailDataset, create_dataset
from ..evaluation.plots.images import plot_rotation_agnostic
from ..evaluation.plots.style import require_matplotlib
from ..methods._flags import read_flags
from ..utils.errors import UserError

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(description='Show what a flag file of RAIS says of a data set.')
    parser.add_argument('file', help='flag file that `--method rais` wrote')
    add_data_options(parser)
    parser.add_argument(
        '--val-fraction', type=SHARE, default=0.0, help='share of each class that the run held out')
    parser.add_argument(
        '--figure', help='PNG file: the most and the least rotation-agnostic images, the entropies')
    return parser


def _print_shares(flags: np.ndarray, train_set: LongTailDataset):
    """Print the classes with the largest and the smallest shares of flagged images.

    Args:
        flags: Whether each image is rotation-agnostic, bool [N].
        train_set: The images.
    """
    flagged = np.bincount(train_set.targets, flags, train_set.num_classes)
    shares = flagged / np.array(train_set.class_counts)

    order = np.argsort(-shares, kind='stable')
    for name, classes in (('most', order[:5]), ('least', order[::-1][:5])):
        print(f'{name}: ' + ', '.join(f'{train_set.class_names[c]} {100 * shares[c]:.1f} %' for c in classes))


def main(argv: list[str] | None = None):
    """Print the share of flagged images, the classes with most and least of them, and draw them.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: No flag file, or one of other images; a data set of files.
    """
    args = create_parser().parse_args(argv)
    if args.figure:
        require_matplotlib()
        if not Path(args.figure).parent.is_dir():
            raise UserError(f'--figure {args.figure}: no folder {Path(args.figure).parent}')

    # the very images that the run was trained on
    train_set = create_dataset(args.dataset, 'train', **dataset_options(args))
    if not train_set.resident:
        raise UserError(f'{args.dataset} is a set of files, and flags are of images in memory: --loader resident')
    if args.val_fraction:
        train_set, _ = train_set.hold_out(args.val_fraction, args.data_seed)

    flags, entropy, threshold = read_flags(args.file, train_set.digests)
    print(f'{100 * flags.mean():.2f} % of {len(flags)} images are rotation-agnostic: '
          f'their mean entropy is above {threshold:.3f} nats')
    _print_shares(flags, train_set)

    if args.figure:
        plot_rotation_agnostic(args.figure, train_set.images, entropy, threshold=threshold)
