"""Names of data sets as they are shown and as they stand in file names: they come from folders and files of others."""
import re
import unicodedata

__all__ = ['file_title', 'plain_title']

# longest name in bytes of UTF-8, inside file names that say more; a file system takes 255
_MAX_FILE_BYTES = 80

# what Markdown or HTML would take for markup in a model card or a table
_MARKUP = re.compile(r'[`|<>\[\]*\\]')


def plain_title(text: str, limit: int = 200) -> str:
    """Return a name as one line without control characters and without what Markdown takes for markup.

    Args:
        text: Name as a folder or the header of a file gives it.
        limit: Largest number of characters.

    Returns:
        The name; `data` where nothing of it is left.
    """
    # bytes of a path that are not UTF-8 arrive as lone surrogates, which no file in UTF-8 can hold
    text = text.encode(errors='replace').decode()

    # category C: control and format characters (U+202E turns the line around), private and
    # unassigned ones
    text = ''.join(' ' if unicodedata.category(letter).startswith('C') else letter for letter in text)
    words = ' '.join(_MARKUP.sub(' ', text).split())

    if len(words) > limit:
        words = words[:limit - 1] + '…'
    return words or 'data'


def file_title(text: str) -> str:
    """Return a name as part of a file name: letters, digits and `_.+-`, not hidden, of limited length.

    Args:
        text: Name of a data set; of one with slashes the last part.
    """
    last = plain_title(text).rstrip('/').rpartition('/')[2]
    safe = re.sub(r'[^\w.+-]+', '-', last).lstrip('.-')
    return safe.encode()[:_MAX_FILE_BYTES].decode(errors='ignore') or 'data'
