"""Options that several entry points share, and a parser whose errors are one line."""
import argparse
from typing import Any

from .data import list_datasets
from .errors import UserError, unknown_name

__all__ = ['Parser', 'add_data_options', 'dataset_options']


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others, and not a page of usage."""

    def __init__(self, *args, **kwargs):
        super().__init__(
            *args, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """Parse; an option of `K=V` pairs without a `=` is an error like any other."""
        try:
            return super().parse_args(args, namespace)
        except ValueError as e:
            if isinstance(e, UserError):
                raise
            raise UserError('--method-kwargs and --model-kwargs take pairs of K=V') from e

    def error(self, message: str):
        """Raise a `UserError` with what argparse found, and the nearest option for an unknown one."""
        word = message.removeprefix('unrecognized arguments: ').split(' ')[0].partition('=')[0]
        if word != message.split(' ')[0] and word.startswith('--'):
            raise unknown_name('option', word, [o for action in self._actions for o in action.option_strings])
        raise UserError(f'{message} (--help lists all options)')


def add_data_options(parser: argparse.ArgumentParser):
    """Add what `create_dataset` may be told, as a group of options."""
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', default='digits_lt', help=f'one of {", ".join(list_datasets())}')
    group.add_argument('--data-dir', help='folder of the data set; without it $TIMM_LONGTAIL_DATA, then the Hub')
    group.add_argument('--imbalance-factor', type=float, help='largest over smallest class; default of the data set')
    group.add_argument('--imbalance-profile', choices=('exp', 'step'), default='exp', help='shape of the cut')
    group.add_argument('--subset-order', choices=('file', 'content'), default='file',
                       help='rows as stored (the published subsets, on the original order), or sorted by pixel digest')
    group.add_argument('--data-seed', type=int, default=0, help='seed of the subset and of the hold-out')
    group.add_argument('--train-split', help='what the training split is called in a folder or a Hub data set')
    group.add_argument('--test-split', '--val-split', help='what the split to evaluate on is called there')
    group.add_argument('--input-key', help='image column of a Hub data set')
    group.add_argument('--target-key', help='label column of a Hub data set')
    group.add_argument('--loader', choices=('auto', 'resident', 'worker'), default='auto',
                       help='decoded in memory, or by workers; auto: in memory if square, of one size, up to 96 pixels')
    group.add_argument('--skip-bad-images', action='store_true',
                       help='go on without images that cannot be read, and list them')


def dataset_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return what `add_data_options` was told as arguments of `create_dataset`."""
    same = (
        'data_dir', 'imbalance_factor', 'subset_order', 'loader', 'skip_bad_images', 'train_split', 'test_split',
        'input_key', 'target_key')
    return {'seed': args.data_seed, 'profile': args.imbalance_profile, **{name: getattr(args, name) for name in same}}
