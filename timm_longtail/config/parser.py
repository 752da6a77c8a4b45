"""A parser whose errors are one line, the kinds of its options, and what a YAML value means for an option."""
import argparse
import ast
from pathlib import Path
from typing import Any

from ..utils.errors import UserError, one_line, unknown_name
from ..utils.program import program_name
from ..utils.ranges import Number, shown

__all__ = [
    'BATCH_SIZE',
    'IMG_SIZE',
    'Pairs',
    'Parser',
    'SEED',
    'SHARE',
    'TTA_HELP',
    'WORKERS',
    'option_from_yaml',
    'plain',
    'shown_default',
]

# kinds that several commands share
BATCH_SIZE = Number(int, '[1, inf)')
IMG_SIZE = Number(int, '[1, 4096]')
SEED = Number(int, '[0, 4294967295]')
SHARE = Number(float, '[0, 1)')
WORKERS = Number(int, '[0, 1024]')

TTA_HELP = 'five_crop: evaluate the mean logits of the corners and the centre of an image file; default: the centre'

_FLAG_WORDS = {'true': True, 'yes': True, 'on': True, 'false': False, 'no': False, 'off': False}


class Pairs(argparse.Action):
    """Options of a constructor, `K=V K=V`: values are Python literals, or text where they are none."""

    def __call__(self, parser, namespace, values, option_string=None):
        pairs = {}
        for word in values:
            if not word:
                continue

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
            if text.lstrip().startswith(('(', '[', '{', '"', "'")):
                raise argparse.ArgumentError(self, f'must hold Python literals, got {shown(word)}') from None
            return text


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the range of a number to its help, and the default where the help does not say it in words."""

    def _get_help_string(self, action):
        text = action.help
        default = shown_default(action)
        if isinstance(action.type, Number):
            text = f'{text}; {action.type.words}'
        if default and 'default' not in action.help:
            escaped = default.replace('%', '%%')  # argparse fills in %(prog)s and the like
            text = f'{text} (default: {escaped})'
        return text


def shown_default(action: argparse.Action) -> str:
    """Return the default of an option as it would be typed, '' where there is none worth telling.

    Args:
        action: The option, of a parser.
    """
    default = action.default
    is_flag = action.nargs == 0
    if is_flag or default in (None, argparse.SUPPRESS, '', [], {}):
        return ''
    if isinstance(default, list):
        return ' '.join(map(str, default))
    return str(default)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, like all others, and not a page of usage.

    Args:
        prog: Name of the program in its usage; None takes that of this process.
        **kwargs: See `argparse.ArgumentParser`.
    """

    def __init__(self, prog: str | None = None, **kwargs):
        super().__init__(
            prog or program_name(),
            allow_abbrev=False,
            exit_on_error=False,
            formatter_class=_HelpFormatter,
            **kwargs,
        )

    def parse_known_args(self, args=None, namespace=None):
        """Parse; a value that an option refuses is an error like any other."""
        try:
            return super().parse_known_args(args, namespace)
        except argparse.ArgumentError as e:
            if e.argument_name and e.message.startswith('must '):
                name = e.argument_name.rpartition('/')[2]  # of `-b/--batch-size` the long one
                raise UserError(f'{name} {e.message}') from e
            self.error(str(e))

    def _get_values(self, action, arg_strings):
        values = super()._get_values(action, arg_strings)
        # argparse takes a `--` out of `--option=--`, and nothing is left
        if values == [] and action.nargs is None:
            raise argparse.ArgumentError(action, 'expected one argument')
        return values

    def error(self, message: str):
        """Raise a `UserError` with what argparse found, and the nearest option for an unknown one."""
        unrecognized = message.removeprefix('unrecognized arguments: ')
        word = unrecognized.split(' ')[0].partition('=')[0]
        if unrecognized != message and word.startswith('--'):
            known = [name for action in self._actions for name in action.option_strings]
            raise unknown_name('option', word, known)
        raise UserError(f'{one_line(message)} (--help lists all options)')


def plain(args: argparse.Namespace) -> dict[str, Any]:
    """Return options as plain types, as checkpoints and YAML hold them."""
    options = dict(vars(args))
    for name, value in options.items():
        if isinstance(value, Path):
            options[name] = str(value)
    return options


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
