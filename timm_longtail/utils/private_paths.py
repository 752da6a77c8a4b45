"""Absolute paths in texts that are published: the folders of a machine, and whose account is on it, are cut out."""
import re
import shlex
from pathlib import Path

__all__ = ['cut_folders', 'without_folders']

# an absolute path in a text: what stands before it, and its names; those of a URL are none
_NAMES = r'/(?!/)(?P<names>(?:[^/{stop}]+/)*[^/{stop}]*)'
_BEFORE = r'(?P<before>^|[=:,;\'"(\[{{]|\bhfds/|file://{more})'
_PATH_IN_WORD = re.compile((_BEFORE + _NAMES).format(stop=r'\'",;:()\[\]{}', more=''))
_PATH_IN_TEXT = re.compile((_BEFORE + _NAMES).format(stop=r'\s\'",;:()\[\]{}', more=r'|\s'))


def cut_folders(text: str, pattern: re.Pattern[str] = _PATH_IN_TEXT) -> str:
    """Return a text in which absolute paths are cut to their last name; an export keeps its run's name.

    Args:
        text: A path, or any text.
        pattern: What counts as a path in it.
    """
    def cut(match: re.Match[str]) -> str:
        names = [name for name in match['names'].split('/') if name]
        if not names:
            return match[0]

        shown = names[-1]
        if _is_home(names):
            shown = '~'
        elif shown == 'export' and len(names) > 1 and not _is_home(names[:-1]):
            shown = f'{names[-2]}/export'
        return match['before'].removesuffix('file://') + shown

    # a path alone may hold spaces
    if text.startswith('/'):
        pattern = _PATH_IN_WORD
    return pattern.sub(cut, text)


def _is_home(names: list[str]) -> bool:
    """Return whether an absolute path, by its names, is somebody's home: its last name is that of an account."""
    if names == ['root']:
        return True
    if len(names) == 2 and names[0] in ('home', 'Users'):
        return True
    return Path('/', *names) == Path.home()


def without_folders(command: str) -> str:
    """Return a command line in which absolute paths are cut to their last name; an export keeps its run's name.

    Args:
        command: Line of a shell; a variable that a word begins with, such as `$TIMM_LONGTAIL_DATA`, stays.
    """
    try:
        words = shlex.split(command)
    except ValueError:  # no command line of a shell
        return cut_folders(command)

    shown = []
    for word in words:
        word = cut_folders(word, _PATH_IN_WORD)
        if not word.startswith('$'):
            word = shlex.quote(word)
        shown.append(word)
    return ' '.join(shown)
