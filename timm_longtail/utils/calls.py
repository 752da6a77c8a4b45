"""Names with arguments, as options and recipes write them: `sim`, `sim(scale=0.08)`, `power(q=0.5)`."""
import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UserError, one_line, unknown_name
from .ranges import check_option, shown

__all__ = ['call_by_name', 'complete_call', 'parse_call']

# range of an argument by its name, whatever view or sampler takes it
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


def call_by_name(
        kind: str,
        text: str,
        known: Mapping[str, Callable],
        *args: Any,
        intervals: Mapping[str, str] = _INTERVALS,
) -> Any:
    """Call the function that a text names, with the keyword arguments that stand in its brackets.

    Args:
        kind: Kind of object that the functions make, for messages, such as `view`.
        text: Name of a function, perhaps followed by keyword arguments in brackets.
        known: Functions by name.
        *args: Positional arguments of the function, which the text cannot give.
        intervals: Range of an argument by its name; default those of views and samplers.

    Raises:
        UserError: An unknown name or argument, a value of another kind, a value out of range or one
            that the function refuses, or a text that is not a call.
    """
    name, arguments = parse_call(kind, text)
    if name not in known:
        raise unknown_name(kind, name, known)

    # the first parameters are those that `args` fill
    parameters = inspect.signature(known[name]).parameters
    taken = list(parameters)[len(args):]

    for argument, value in arguments.items():
        if argument not in taken:
            known_arguments = ', '.join(taken) or 'no arguments'
            raise UserError(f'{kind} {name} takes {known_arguments}; got {shown(argument)}')

        what = f'{kind} {shown(text)}: {argument}'
        check_option(what, argument, value, parameters[argument], intervals)

    try:
        return known[name](*args, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f'{kind} {shown(text)}: {one_line(error)}') from error


def complete_call(kind: str, text: str, known: Mapping[str, Callable]) -> tuple[str, dict[str, Any]]:
    """Return the name and the keyword arguments that a text means; what it leaves out is the default.

    Two texts of one meaning give equal values: `sim` and `sim(scale=0.2)`, where 0.2 is the default.

    Args:
        kind: What the text names, for messages.
        text: See `parse_call`.
        known: Functions by name, of which nothing is called.

    Raises:
        UserError: An unknown name, or a text that is not a call.
    """
    name, arguments = parse_call(kind, text)
    if name not in known:
        raise unknown_name(kind, name, known)

    parameters = inspect.signature(known[name]).parameters
    defaults = {parameter.name: parameter.default for parameter in parameters.values()}
    return name, {**defaults, **arguments}


def parse_call(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Split `sim(scale=0.08)` into its name and its arguments.

    Args:
        kind: What the text names, for messages: `view`.
        text: A name, or that with keyword arguments in brackets. They are Python literals, or `auto` for None, which
            lets the function choose.

    Raises:
        UserError: A text that is not a call.
    """
    try:
        tree = ast.parse(text.strip(), mode='eval').body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            return tree.func.id, _read_keywords(tree.keywords)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        pass  # whatever is wrong with the text, the message is the same
    raise UserError(
        f'cannot read the {kind} {shown(text)}; write a name, or name(argument=value)')


def _read_keywords(keywords: list[ast.keyword]) -> dict[str, Any]:
    """Return the keyword arguments of a call, which are literals.

    Raises:
        ValueError: An argument that is no literal, is given twice or is `**`.
    """
    arguments: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError('each argument has a name of its own')

        is_auto = isinstance(keyword.value, ast.Name) and keyword.value.id == 'auto'
        arguments[keyword.arg] = None if is_auto else ast.literal_eval(keyword.value)
    return arguments
