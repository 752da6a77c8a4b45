"""Options that several entry points share, how recipes give them, and a parser whose errors are one line."""
import argparse
import ast
from typing import Any

from ..data import list_datasets
from ..utils.errors import UserError, one_line, unknown_name
from ..utils.ranges import Number, shown

__all__ = [
    'BATCH_SIZE', 'IMG_SIZE', 'Pairs', 'Parser', 'SEED', 'SHARE', 'WORKERS', 'add_data_options', 'dataset_options',
    'option_from_yaml',
]

# kinds that several entry points share
BATCH_SIZE = Number(int, '[1, inf)')
IMG_SIZE = Number(int, '[1, 4096]')
SEED = Number(int, '[0, 4294967295]')
SHARE = Number(float, '[0, 1)')
WORKERS = Number(int, '[0, 1024]')

_FLAG_WORDS = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}


class Pairs(argparse.Action):
    """Options of a constructor, `K=V K=V`: values are Python literals, or text where they are none."""

    def __call__(self, parser, namespace, values, option_string=None):
        pairs = {}
        for word in filter(None, values):
            key, equals, text = word.partition('=')
            if not equals or not key.isidentifier():
                raise argparse.ArgumentError(self, f'must be pairs of K=V, got {shown(word)}')
            if key in pairs:
                raise argparse.ArgumentError(self, f'must name each option once, got {key} twice')
            pairs[key] = self._literal(word, text)
        setattr(namespace, self.dest, pairs)

    def _literal(self, word: str, text: str) -> Any:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            # a name needs no quotes, but a bracket that is not closed is no name
            if text.lstrip()[:1] in tuple('([{"\''):
                raise argparse.ArgumentError(self, f'must hold Python literals, got {shown(word)}') from None
            return text


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the range of a number to its help, before the default."""

    def _get_help_string(self, action):
        text = super()._get_help_string(action)
        if isinstance(action.type, Number):
            default = text.removeprefix(action.help)
            return f'{action.help}; {action.type.words}{default}'
        return text


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others, and not a page of usage."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, allow_abbrev=False, exit_on_error=False, formatter_class=_HelpFormatter, **kwargs)

    def parse_known_args(self, args=None, namespace=None):
        """Parse; a value that an option refuses is an error like any other."""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as e:
            if e.argument_name and e.message.startswith('must '):
                name = e.argument_name.rpartition('/')[2]  # of `-b/--batch-size` the long one
                raise UserError(f'{name} {e.message}') from e
            self.error(str(e))

    def error(self, message: str):
        """Raise a `UserError` with what argparse found, and the nearest option for an unknown one."""
        word = message.removeprefix('unrecognized arguments: ').split(' ')[0].partition('=')[0]
        if word != message.split(' ')[0] and word.startswith('--'):
            raise unknown_name('option', word, [o for action in self._actions for o in action.option_strings])
        raise UserError(f'{one_line(message)} (--help lists all options)')


def option_from_yaml(action: argparse.Action, value: Any) -> Any:
    """Return what a YAML value means for an option, as if it had been typed.

    Args:
        action: The option, of a parser.
        value: Value that the file holds. Nothing, as behind `seed:`, is the default of an option that has none.

    Raises:
        argparse.ArgumentTypeError: The value is of another kind than the option, or out of its range.
    """
    if isinstance(action, Pairs):
        return _pairs_from_yaml({} if value is None else value)
    if action.nargs == 0:
        return _flag_from_yaml(value)
    if value is None and action.default is None:
        return None

    if action.nargs is None:
        return _one_from_yaml(action, value)

    values = value if isinstance(value, list) else [value]
    if action.nargs == '+' and not values:
        raise argparse.ArgumentTypeError('must be one value or more, got []')
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise argparse.ArgumentTypeError(f'must be {action.nargs} values, got {shown(value)}')
    return [_one_from_yaml(action, part) for part in values]


def _pairs_from_yaml(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be options and their values, got {shown(value)}')
    for key in value:
        if not key.isidentifier():
            raise argparse.ArgumentTypeError(f'must be options and their values, got the name {shown(key)}')
    return value


def _flag_from_yaml(value: Any) -> bool:
    if isinstance(value, str):
        value = _FLAG_WORDS.get(value.lower(), value)
    if not isinstance(value, bool):
        raise argparse.ArgumentTypeError(f'must be true or false, got {shown(value)}')
    return value


def _one_from_yaml(action: argparse.Action, value: Any) -> Any:
    if action.type is not None:
        return action.type(value)
    if action.choices is not None and value not in action.choices:
        raise argparse.ArgumentTypeError(f'must be one of {", ".join(action.choices)}, got {shown(value)}')
    if not isinstance(value, str):
        raise argparse.ArgumentTypeError(f'must be text, got {shown(value)}: put it in quotes')
    return value


def add_data_options(parser: argparse.ArgumentParser):
    """Add what `create_dataset` may be told, as a group of options."""
    group = parser.add_argument_group('data')
    group.add_argument('--dataset', default='digits_lt', help=f'one of {", ".join(list_datasets())}; '
                       'hfds/USER/SET:CONFIG chooses one of several configurations')
    group.add_argument('--data-dir', help='folder of the data set; without it $TIMM_LONGTAIL_DATA, then the Hub')
    group.add_argument('--imbalance-factor', type=Number(float, '[1, inf)'),
                       help='largest over smallest class; default of the data set')
    group.add_argument('--imbalance-profile', choices=('exp', 'step'), default='exp', help='shape of the cut')
    group.add_argument('--subset-order', choices=('file', 'content'), default='file',
                       help='rows as stored (the published subsets, on the original order), or sorted by pixel digest')
    group.add_argument('--data-seed', type=SEED, default=0, help='seed of the subset and of the hold-out')
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
