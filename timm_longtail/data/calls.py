"""Names with arguments, as options and recipes write them: `sim`, `sim(scale=0.08)`, `power(q=0.5)`."""
import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..utils.errors import UserError, one_line, unknown_name
from ..utils.ranges import check_option, shown

__all__ = ['call_by_name', 'parse_call']

# of an argument by its name, whatever view or sampler takes it
_INTERVALS = {
    'q': '[-10, 10]',  # a power of class counts
    'scale': '(0, 1]',
    'crop_pct': '(0, 1]',
    'padding': '[0, 1024]',
    'cutout': '[0, 4096]',
    'fill': '[0, 255]',
    'jitter': '[0, 10]',
    'n': '[0, 100]',
    'm': '[0, 100]',
    'mstd': '[0, 100]',
}


def call_by_name(kind: str, text: str, known: Mapping[str, Callable], *args: Any) -> Any:
    """Call the function that a text names, with the keyword arguments that stand in its brackets.

    Args:
        kind: What the functions make, for messages: `view`.
        text: A name, or that with keyword arguments in brackets.
        known: Functions by name.
        *args: Their positional arguments, which the text cannot give.

    Raises:
        UserError: An unknown name or argument, a value of another kind, out of range or that the function refuses, or a
            text that is not a call.
    """
    name, arguments = parse_call(kind, text)
    if name not in known:
        raise unknown_name(kind, name, known)

    parameters = inspect.signature(known[name]).parameters
    taken = list(parameters)[len(args):]
    for argument, value in arguments.items():
        if argument not in taken:
            raise UserError(f'{kind} {name} takes {", ".join(taken) or "no arguments"}; got {shown(argument)}')
        check_option(f'{kind} {shown(text)}: {argument}', argument, value, parameters[argument], _INTERVALS)

    try:
        return known[name](*args, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f'{kind} {shown(text)}: {one_line(error)}') from error


def parse_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Split `sim(scale=0.08)` into its name and its arguments.

    Args:
        kind: What the text names, for messages: `view`.
        text: A name, or that with keyword arguments in brackets.

    Raises:
        UserError: A text that is not a call.
    """
    try:
        tree = ast.parse(text.strip(), mode='eval').body
        if isinstance(tree, ast.Name):
            return tree.id, {}

        is_call = isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args
        if is_call:
            words = [word.arg for word in tree.keywords]
            is_clear = None not in words and len(set(words)) == len(words)  # `**` has no name
            if is_clear:
                return tree.func.id, {word.arg: ast.literal_eval(word.value) for word in tree.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass
    raise UserError(f'cannot read the {kind} {shown(text)}; write a name or name(argument=value), e.g. sim(scale=0.08)')
