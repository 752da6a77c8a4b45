"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """A mistake in what the user asked for (a name, a file, a number).

    Entry points print its message as one line and exit with status 2; library code raises it like any `ValueError`.
    """


def one_line(error: object, limit: int = 300) -> str:
    """Return the text of an error as one line of at most `limit` characters."""
    words = ' '.join(str(error).split())
    return words if len(words) <= limit else words[:limit - 1] + '…'


def near_names(name: str, known, count: int = 3) -> str:
    """Return the question whether one of the nearest known names was meant, with a space behind it; '' for none."""
    from difflib import get_close_matches
    nearest = get_close_matches(name, known, n=count, cutoff=0.5)
    return f'did you mean {", ".join(nearest)}? ' if nearest else ''


def unknown_name(kind: str, name: str, known) -> UserError:
    """Build the error for a name that is not in a registry, with the nearest names that are."""
    hint = near_names(name, known) or f'known: {", ".join(sorted(known)[:12])}'
    return UserError(f'unknown {kind} {one_line(repr(name), 100)}; {hint.rstrip()}')
