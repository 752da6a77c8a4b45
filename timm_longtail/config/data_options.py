"""Options that choose a data set and the part of it that is used; shared by several commands."""
import argparse
from typing import Any

from ..data import list_datasets
from ..utils.ranges import Number
from .parser import SEED

__all__ = ['add_data_options', 'data_words', 'dataset_options']

# options that `create_dataset` has by the same name
_SAME_NAME = (
    'data_dir',
    'imbalance_factor',
    'input_key',
    'loader',
    'order_file',
    'skip_bad_images',
    'subset_order',
    'target_key',
    'test_split',
    'train_split',
)


# words of the command line for arguments of another name
_OTHER_NAME = {'seed': 'data-seed', 'profile': 'imbalance-profile'}


def add_data_options(parser: argparse.ArgumentParser):
    """Add the options that become arguments of `create_dataset`, as a group.

    Args:
        parser: Parser of a command.
    """
    group = parser.add_argument_group('data')

    # which data set, and where it is
    group.add_argument(
        '--dataset', default='digits_lt',
        help=f'one of {", ".join(list_datasets())}; hfds/USER/SET:CONFIG chooses one of several configurations')
    group.add_argument(
        '--data-dir', help='folder of the data set; without it $TIMM_LONGTAIL_DATA, then the Hub')

    # the part of it that is trained on
    group.add_argument(
        '--imbalance-factor', type=Number(float, '[1, inf)'),
        help='largest over smallest class; default of the data set')
    group.add_argument(
        '--imbalance-profile', choices=('exp', 'step'), default='exp', help='shape of the cut')
    group.add_argument(
        '--subset-order', choices=('file', 'content', 'original'), default='file',
        help='what the cut shuffles: rows as stored, sorted by pixel digest, or in the order of the '
             'original release (the published subsets)')
    group.add_argument(
        '--order-file', metavar='FILE',
        help='file names of the original release in its order, one a line, for a copy stored in another')
    group.add_argument(
        '--data-seed', type=SEED, default=0, help='seed of the subset and of the hold-out')

    # names of splits and columns, in a folder or on the Hub
    group.add_argument(
        '--train-split', help='what the training split is called in a folder or a Hub data set')
    group.add_argument(
        '--test-split', '--val-split', help='what the split to evaluate on is called there')
    group.add_argument('--input-key', help='image column of a Hub data set')
    group.add_argument('--target-key', help='label column of a Hub data set')

    # how images are read
    group.add_argument(
        '--loader', choices=('auto', 'resident', 'worker'), default='auto',
        help='decoded in memory, or by workers; auto: in memory if square, of one size, up to 96 pixels')
    group.add_argument(
        '--skip-bad-images', action='store_true',
        help='go on without images that cannot be read, and list them')


def dataset_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return options of `add_data_options` as arguments of `create_dataset`, the name of the set aside.

    Args:
        args: Parsed options.
    """
    options = {name: getattr(args, name) for name in _SAME_NAME}
    options['seed'] = args.data_seed
    options['profile'] = args.imbalance_profile
    return options


def data_words(dataset: str, options: dict[str, Any]) -> list[str]:
    """Return the words of a command line that name a data set to another command.

    Args:
        dataset: Name of the data set.
        options: From `dataset_options`; those at their defaults are left out.
    """
    parser = argparse.ArgumentParser()
    add_data_options(parser)
    defaults = dataset_options(parser.parse_args([]))

    words = ['--dataset', dataset]
    for name, value in options.items():
        if value == defaults[name]:
            continue
        words.append(f'--{_OTHER_NAME.get(name, name.replace("_", "-"))}')
        if value is not True:
            words.append(f'{value:g}' if isinstance(value, float) else str(value))
    return words
