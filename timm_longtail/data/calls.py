"""Names with arguments, as options and recipes write them: `sim`, `sim(scale=0.08)`, `power(q=0.5)`."""
import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import UserError, unknown_name

__all__ = ['call_by_name']


def call_by_name(kind: str, text: str, known: Mapping[str, Callable], *args: Any) -> Any:
    """Call the function that a text names, with the keyword arguments that stand in its brackets.

    Args:
        kind: What the functions make, for messages: `view`.
        text: A name, or that with keyword arguments in brackets.
        known: Functions by name.
        *args: Their positional arguments, which the text cannot give.

    Raises:
        UserError: An unknown name or argument, a value that the function refuses, or a text that is not a call.
    """
    name, arguments = _parse(kind, text)
    if name not in known:
        raise unknown_name(kind, name, known)
    taken = list(inspect.signature(known[name]).parameters)[len(args):]
    for argument in arguments:
        if argument not in taken:
            raise UserError(f'{kind} {name} takes {", ".join(taken) or "no arguments"}; got {argument!r}')
    try:
        return known[name](*args, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f'{kind} {text!r}: {error}') from error


def _parse(kind: str, text: str) -> tuple[str, dict[str, Any]]:
    """Split `sim(scale=0.08)` into its name and its arguments."""
    try:
        tree = ast.parse(text.strip(), mode='eval').body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            if all(word.arg for word in tree.keywords):  # `**` has no name
                return tree.func.id, {word.arg: ast.literal_eval(word.value) for word in tree.keywords}
    except (SyntaxError, ValueError):
        pass
    raise UserError(f'cannot read the {kind} {text!r}; write a name or name(argument=value), e.g. sim(scale=0.08)')
