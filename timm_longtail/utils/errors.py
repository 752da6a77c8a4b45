"""The one exception that a user is meant to read, and the words of its messages."""
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ['UserError', 'near_names', 'one_line', 'unknown_name']


class UserError(ValueError):
    """A mistake in what the user asked for (a name, a file, a number).

    Entry points print its message as one line and exit with status 2; library code raises it like
    any `ValueError`.
    """


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error as one line, cut where it is long.

    Args:
        error: An exception, or anything else that has a text.
        limit: Characters at most.
    """
    words = ' '.join(str(error).split())
    if len(words) > limit:
        return words[:limit - 1] + '…'
    return words


def near_names(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return the question whether one of the nearest known names was meant.

    It ends with a space, for text to follow; without any near name it is ''.

    Args:
        name: Name as it was typed.
        known: Names that there are.
        count: Names to offer at most.
    """
    nearest = get_close_matches(name, list(known), n=count, cutoff=0.5)
    if not nearest:
        return ''
    return f'did you mean {", ".join(nearest)}? '


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Build the error for a name that is not in a registry, with the nearest names that are.

    Args:
        kind: What the name should be of, such as `model`.
        name: Name as it was typed.
        known: Names in the registry.
    """
    hint = near_names(name, known).rstrip()
    if not hint:
        hint = f'known: {", ".join(sorted(known)[:12])}'
    return UserError(f'unknown {kind} {one_line(repr(name), 100)}; {hint}')
