"""YAML as its version 1.2 reads it, and strictly: what is said twice is refused.

PyYAML follows version 1.1, where `no` is false, `5e-4` is text and `1:30` is 90. Here plain words
are booleans, numbers or nothing as in the core schema of version 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema), and text otherwise.
"""
import re
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

__all__ = ['StrictLoader', 'load_yaml']

MAX_VALUES = 10_000
"""Values that a file may hold, where each alias counts as all that it stands for."""

MAX_DEPTH = 30
"""Levels of lists and mappings; the time that PyYAML takes grows with the square of it."""


class StrictLoader(yaml.SafeLoader):
    """A safe loader that refuses deep nesting, and a key which is there twice or is not text."""

    yaml_implicit_resolvers: dict = {}
    depth = 0

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            words = f'it is nested more than {MAX_DEPTH} levels deep'
            raise ComposerError(None, None, words, mark)

        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        keys = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            mark = key_node.start_mark
            if not isinstance(key, str):
                raise ConstructorError(None, None, f'the key {key!r} is not text', mark)
            if key in keys:
                raise ConstructorError(None, None, f'{key!r} is there twice', mark)
            keys.add(key)

        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node) -> int:
        text = self.construct_scalar(node)
        if text.startswith(('0x', '0o')):
            return int(text, 0)
        return int(text)


_NUMBER = r'[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?'

# what plain words are: the kind, its pattern, and the letters that it may begin with
_RESOLVERS = (
    # the empty scalar, as behind `lr:`, has no first letter
    ('null', r'~|null|Null|NULL|', [*'~nN', '']),
    ('bool', r'true|True|TRUE|false|False|FALSE', [*'tTfF']),
    ('int', r'[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+', [*'-+0123456789']),
    ('float', rf'{_NUMBER}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)', [*'-+.0123456789']),
)
for _tag, _pattern, _letters in _RESOLVERS:
    _regexp = re.compile(f'^(?:{_pattern})$')
    StrictLoader.add_implicit_resolver(f'tag:yaml.org,2002:{_tag}', _regexp, _letters)
StrictLoader.add_constructor('tag:yaml.org,2002:int', StrictLoader.construct_yaml_int)


def load_yaml(text: str) -> Any:
    """Return what a YAML document holds.

    Args:
        text: The document.

    Raises:
        yaml.YAMLError: The text is not YAML, a key is there twice or is not text, lists are nested
            too deeply, or aliases stand for too many values.
    """
    value = yaml.load(text, StrictLoader)
    _count_values(value)
    return value


def _count_values(value: Any, count: int = 0) -> int:
    """Return `count` and the number of values that a document holds, each alias written out."""
    count += 1
    if count > MAX_VALUES:
        raise yaml.YAMLError(f'it holds more than {MAX_VALUES} values, those behind aliases (*) included')

    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple, set)):
        for part in value:
            count = _count_values(part, count)
    return count
