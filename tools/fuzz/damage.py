"""What can happen to a file: to its bytes, to its place in the file system, to the structure of what it holds."""
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import yaml

# values that no reader expects where another one was
STRANGE = [
    None, True, -1, 0, 3, 2 ** 70, 0.5, float('nan'), float('inf'), 1e308, '', 'word', '../..', 'a\nb', 'ünï', [], [[]],
    ['word'], [1, 2], {}, {'a': 1}, {'': []},
]


# ---- bytes: (content, generator) -> content

def flip_bit(data: bytes, draw: Random) -> bytes:
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def flip_bits(data: bytes, draw: Random) -> bytes:
    for _ in range(draw.randint(2, 40)):
        data = flip_bit(data, draw)
    return data


def _span(data: bytes, draw: Random) -> tuple[int, int]:
    """Choose a run of bytes, mostly a short one."""
    start = draw.randrange(len(data))
    longest = draw.choice([4, 64, 4096, len(data)])
    return start, min(len(data), start + draw.randint(1, longest))


def zero_run(data: bytes, draw: Random) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + bytes(end - start) + data[end:]


def random_run(data: bytes, draw: Random) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + draw.randbytes(end - start) + data[end:]


def truncate(data: bytes, draw: Random) -> bytes:
    return data[:draw.randrange(len(data))]


def cut_out(data: bytes, draw: Random) -> bytes:
    start, end = _span(data, draw)
    return data[:start] + data[end:]


def insert(data: bytes, draw: Random) -> bytes:
    start, _ = _span(data, draw)
    return data[:start] + draw.randbytes(draw.choice([1, 8, 1000])) + data[start:]


def duplicate(data: bytes, draw: Random) -> bytes:
    start, end = _span(data, draw)
    return data[:end] + data[start:end] + data[end:]


def empty(data: bytes, draw: Random) -> bytes:
    return b''


BYTES = {
    damage.__name__: damage
    for damage in (flip_bit, flip_bits, zero_run, random_run, truncate, cut_out, insert, duplicate, empty)
}


# ---- place: (path) -> None

def pipe_instead(path: Path):
    path.unlink()
    os.mkfifo(path)


def loop_instead(path: Path):
    path.unlink()
    path.symlink_to(path.name)


def folder_instead(path: Path):
    path.unlink()
    path.mkdir()


def device_instead(path: Path):
    path.unlink()
    path.symlink_to('/dev/zero')


PLACES = {damage.__name__: damage for damage in (pipe_instead, loop_instead, folder_instead, device_instead)}


# ---- structure: (content, generator) -> content, a whole file that holds something else

def alter(value: Any, draw: Random) -> Any:
    """Return a nested value with one part of it dropped, doubled, renamed or replaced, at any depth."""
    is_leaf = not isinstance(value, (dict, list, tuple)) or not value
    if is_leaf or draw.random() < 0.15:
        return draw.choice(STRANGE)

    if isinstance(value, dict):
        changed, key = dict(value), draw.choice(list(value))
        action = draw.choice(['drop', 'rename', 'deeper', 'deeper', 'replace'])
        if action == 'drop':
            del changed[key]
        elif action == 'rename':
            changed[f'{key}_'] = changed.pop(key)
        elif action == 'replace':
            changed[key] = draw.choice(STRANGE)
        else:
            changed[key] = alter(value[key], draw)
        return changed

    changed, position = list(value), draw.randrange(len(value))
    action = draw.choice(['drop', 'double', 'deeper'])
    if action == 'drop':
        del changed[position]
    elif action == 'double':
        changed.insert(position, changed[position])
    else:
        changed[position] = alter(changed[position], draw)
    return type(value)(changed) if type(value) in (list, tuple) else changed


def alter_json(data: bytes, draw: Random) -> bytes:
    return json.dumps(alter(json.loads(data), draw)).encode()


def alter_yaml(data: bytes, draw: Random) -> bytes:
    return yaml.safe_dump(alter(yaml.safe_load(data), draw), allow_unicode=True).encode()


def alter_lines(data: bytes, draw: Random) -> bytes:
    """Drop, double or swap a line, or replace a word."""
    lines = data.decode().splitlines()
    position = draw.randrange(len(lines))
    action = draw.choice(['drop', 'double', 'word', 'word', 'word'])
    if action == 'drop':
        del lines[position]
    elif action == 'double':
        lines.insert(position, lines[position])
    else:
        words = lines[position].split(' ')
        words[draw.randrange(len(words))] = draw.choice([*map(str, STRANGE), '"', '--', '--seeds', '-1', '\x00', '/'])
        lines[position] = ' '.join(words)
    return '\n'.join([*lines, '']).encode()


def alter_safetensors(data: bytes, draw: Random) -> bytes:
    """Change the header: names, shapes, kinds, offsets, and the JSON inside the metadata."""
    size, = struct.unpack('<Q', data[:8])
    header = json.loads(data[8:8 + size])

    # half the time the metadata, which holds more JSON as text
    metadata = header.get('__metadata__', {})
    inner = [key for key, value in metadata.items() if value[:1] in '{[']
    if inner and draw.random() < 0.5:
        key = draw.choice(inner)
        metadata[key] = json.dumps(alter(json.loads(metadata[key]), draw))
    else:
        header = alter(header, draw)

    text = json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data[8 + size:]


def alter_checkpoint(data: bytes, draw: Random) -> bytes:
    import torch
    buffer = io.BytesIO()
    torch.save(alter(torch.load(io.BytesIO(data), weights_only=True), draw), buffer)
    return buffer.getvalue()


def alter_table(data: bytes, draw: Random) -> bytes:
    """Drop, rename or retype a column of a Parquet file, or take all its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    table = pq.read_table(io.BytesIO(data))
    name = draw.choice(table.column_names)
    rows = len(table)
    strange = draw.choice([[None] * rows, ['word'] * rows, [2 ** 40] * rows, [-1] * rows, [0.5] * rows, [[1]] * rows])

    action = draw.choice(['drop', 'rename', 'retype', 'retype', 'rows', 'metadata'])
    if action == 'drop':
        table = table.drop_columns([name])
    elif action == 'rename':
        table = table.rename_columns([f'{column}_' if column == name else column for column in table.column_names])
    elif action == 'retype':
        table = table.set_column(table.column_names.index(name), name, pa.array(strange))
    elif action == 'rows':
        table = table.slice(0, 0)
    if action != 'drop' and draw.random() < 0.5:
        table = table.replace_schema_metadata({})

    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def enlarge_png(data: bytes, draw: Random) -> bytes:
    """Say in the header, with the right checksum, that the picture is larger than any memory, or has no side."""
    sides = [draw.choice([0, 1, 17, 20000, 2 ** 31 - 1, 2 ** 32 - 1]) for _ in range(2)]
    header = b'IHDR' + struct.pack('>II', *sides) + data[24:29]
    return data[:12] + header + struct.pack('>I', zlib.crc32(header)) + data[33:]


Alter = Callable[[bytes, Random], bytes]
