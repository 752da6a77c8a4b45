"""Foreign text in Markdown: names, licences and commands, shown as what they are.

Every text of a card that is not a constant of this package goes through one of these functions, so
that nothing in it is read as Markdown, HTML, or the end of what it stands in.
"""
import html
import re
import unicodedata
from typing import Any

import yaml

__all__ = ['code_block', 'code_span', 'escape_cell', 'escape_text', 'front_matter']

# control and format characters (among them those that turn the direction of writing), halves of
# surrogate pairs, private characters, unassigned ones, and the separators of lines and paragraphs
_INVISIBLE = ('C', 'Zl', 'Zp')

# what begins something in a line of Markdown; an underscore inside a word does not
_SPECIAL = re.compile(r'[\\`*\[\]|~$#!:@{}]|(?<![^\W_])_|_(?![^\W_])|(?<=www)\.')

# what makes of the first word of a line a list, a heading or a rule
_MARKER = re.compile(r'^(\d*)([-+=.)])(?!\w)')


def _visible(text: str, kept: str = '') -> str:
    """Replace invisible characters, except those in `kept`, by the escapes of Python."""
    shown = []
    for character in text:
        if character not in kept and unicodedata.category(character).startswith(_INVISIBLE):
            character = character.encode('unicode_escape').decode('ascii')
        shown.append(character)
    return ''.join(shown)


def escape_text(value: Any) -> str:
    """Return a value as one line of plain text in Markdown.

    Args:
        value: Any value; its `str` is shown.
    """
    text = _SPECIAL.sub(r'\\\g<0>', _visible(str(value)).strip())
    text = _MARKER.sub(r'\1\\\2', text)
    return html.escape(text, quote=False)


def escape_cell(value: Any) -> str:
    """Return a value as the content of one cell of a table in Markdown.

    Args:
        value: Any value; its `str` is shown.
    """
    # a vertical bar ends a cell unless a backslash precedes it, which `escape_text` has seen to
    return escape_text(value) or ' '


def _fence(text: str, shortest: int) -> str:
    """Return more backticks than stand side by side in a text."""
    runs = [len(run) for run in re.findall('`+', text)]
    return '`' * max([shortest, *(run + 1 for run in runs)])


def code_span(value: Any) -> str:
    """Return a value as code in a line of Markdown; in a table a vertical bar would end the cell.

    Args:
        value: Any value; its `str` is shown.
    """
    text = _visible(str(value))
    fence = _fence(text, shortest=1)

    # a space on either side is taken off by the reader: it keeps a backtick from the fence, and
    # spaces from being lost
    if not text.strip() or text[0] in '` ' or text[-1] in '` ':
        text = f' {text} '
    return f'{fence}{text}{fence}'


def code_block(text: str, language: str) -> str:
    """Return a text as a fenced block of code; its line ends stay.

    Args:
        text: Lines of code.
        language: Name of the language, for the colours.
    """
    text = _visible(text, kept='\n').rstrip('\n')
    fence = _fence(text, shortest=3)
    return f'{fence}{language}\n{text}\n{fence}'


class _Dumper(yaml.SafeDumper):
    """A safe dumper that quotes every text but keys, and repeats what occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_mapping(self, *args, **kwargs) -> yaml.MappingNode:
        node = super().represent_mapping(*args, **kwargs)
        for key, _ in node.value:
            key.style = None  # quoted only where it has to be
        return node

    def represent_str(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar('tag:yaml.org,2002:str', text, style='"')


_Dumper.add_representer(str, _Dumper.represent_str)


def front_matter(metadata: dict[str, Any]) -> str:
    """Return the YAML block at the head of a card, between its lines of dashes, all texts quoted.

    Args:
        metadata: Plain types; its order is kept.
    """
    # without `allow_unicode` what is invisible or no valid character is escaped; an endless line
    # is not folded
    block = yaml.dump(
        metadata, Dumper=_Dumper, sort_keys=False, allow_unicode=False, width=float('inf'))
    return f'---\n{block}---'
