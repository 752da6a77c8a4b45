"""The border between this program and the disk: every file is read and written through here.

Whatever a library raises about a file (safetensors, json, yaml, zipfile, the operating system, a
wrong encoding) becomes one line that names the file. Text is UTF-8 everywhere, whatever the locale
says.
"""
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import UserError, one_line
from .yaml_loader import load_yaml

__all__ = [
    'BEST',
    'LAST',
    'PREVIOUS',
    'create_text',
    'last_state',
    'read_json',
    'read_text',
    'read_yaml',
    'readable_by_others',
    'reading',
    'require_place',
    'require_regular_file',
    'write_json',
    'write_text',
    'writing',
]

# checkpoints in an output folder
LAST = 'checkpoint-last.pth.tar'
PREVIOUS = 'checkpoint-previous.pth.tar'
BEST = 'model_best.pth.tar'


def last_state(folder: Path | None) -> str:
    """Say, in an error message, where the last good state of a folder is; '' for none."""
    if folder is None:
        return ''

    for name in (LAST, PREVIOUS):
        if (folder / name).is_file():
            return f'; the last good state is in {folder / name}'
    return ''


def require_regular_file(path: Path, kind: str = 'file'):
    """Refuse what cannot be read to an end: a named pipe or a device would hang.

    Args:
        path: File, or a link to one.
        kind: What the file should be, for the message, such as `recipe`.

    Raises:
        UserError: There is nothing at `path`, or it is not a regular file.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as e:
        raise UserError(f'no {kind} at {path}') from e
    except (OSError, ValueError) as e:  # a link to itself, a name that is too long, a NUL byte
        raise UserError(f'cannot read {path}: {getattr(e, "strerror", None) or e}') from e

    if stat.S_ISDIR(mode):
        raise UserError(f'{path} is a folder, not a {kind}')
    if not stat.S_ISREG(mode):
        raise UserError(f'{path} is not a regular file')


def require_place(folder: Path):
    """Refuse a folder in which nothing can be written, without making it.

    Args:
        folder: The folder, which may not exist yet.

    Raises:
        UserError: What is there in the place of the folder, or of one that it lies in, is no
            folder or is read-only.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())

    if not there.is_dir():
        raise UserError(f'cannot write {folder}: {there} is not a folder')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f'cannot write {folder}: {there} is read-only')


@contextmanager
def reading(path: Path, kind: str = 'file') -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one line that names it.

    Keep the block small: every exception in it counts as the file's fault.

    Args:
        path: File that the block reads.
        kind: What it should be, for the message, such as `recipe` or `safetensors file`.

    Raises:
        UserError: The file is missing, cannot be read, or does not hold what it should.
    """
    require_regular_file(path, kind)
    try:
        yield
    except UserError:
        raise
    except OSError as e:
        raise UserError(f'cannot read {path}: {e.strerror or one_line(e)}') from e
    except UnicodeError as e:
        raise UserError(f'{path} is not a {kind}: it is not UTF-8') from e
    except Exception as e:
        reason = one_line(e) or type(e).__name__
        raise UserError(f'{path} is damaged or not a {kind}: {reason}') from e


def read_text(path: Path, kind: str = 'text file') -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Args:
        path: The file.
        kind: What it should be, for the message.

    Raises:
        UserError: The file is missing, cannot be read, or is not UTF-8.
    """
    with reading(path, kind):
        return Path(path).read_text(encoding='utf-8-sig')


def read_json(path: Path, kind: str = 'JSON file') -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Args:
        path: The file.
        kind: What it should be, for the message.

    Raises:
        UserError: The file is missing, is not JSON, or holds something else than an object.
    """
    text = read_text(path, kind)
    with reading(path, kind):
        value = json.loads(text)

    if not isinstance(value, dict):
        raise UserError(f'{path} is not a {kind}: it holds no object')
    return value


def read_yaml(path: Path, kind: str = 'YAML file') -> dict[str, Any]:
    """Return the mapping that a YAML file holds, read as `yaml_loader` says; {} of an empty file.

    Args:
        path: The file.
        kind: What it should be, for the message.

    Raises:
        UserError: The file is missing, is not YAML, names a key twice, or holds something else
            than a mapping.
    """
    text = read_text(path, kind)
    with reading(path, kind):
        value = load_yaml(text)

    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f'{path} is not a {kind}: it holds no `name: value` lines')
    return value


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into one line that names the file.

    Args:
        path: File or folder that the block writes.

    Raises:
        UserError: Names `path`, the reason, and the checkpoint that stands beside it.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as e:
        # torch.save hides the disk's error behind a RuntimeError of its own
        reason = e.__context__ if isinstance(e, RuntimeError) else e
        if isinstance(e, RuntimeError) and not isinstance(reason, OSError):
            raise

        words = getattr(reason, 'strerror', None) or reason
        raise UserError(f'cannot write {path}: {words}{last_state(path.parent)}') from e


@contextmanager
def create_text(path: Path, mode: str = 'w') -> Iterator[IO[str]]:
    """Open a text file for writing: UTF-8 whatever the locale, line ends as given.

    `csv` writes line ends of its own. A name that is not valid UTF-8, such as that of an old class
    folder, is written with its bytes escaped.

    Args:
        path: The file.
        mode: As that of `open`: `w` for a new file, `a` to append.

    Raises:
        UserError: The disk refuses.
    """
    with writing(path), open(path, mode, encoding='utf-8', errors='backslashreplace', newline='') as f:
        yield f


@contextmanager
def readable_by_others(path: Path) -> Iterator[None]:
    """Give the file that the block writes the permissions of any new file.

    Recent versions of safetensors write files that nobody but their owner can read.

    Args:
        path: File that the block writes; its folder is there.
    """
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def write_text(path: Path, text: str):
    """Write a text file so that a crash leaves the former file whole.

    Args:
        path: The file; its folder is made where it is missing.
        text: All of its text.

    Raises:
        UserError: The disk refuses.
    """
    temporary = path.with_name(path.name + '.tmp')

    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding='utf-8', errors='backslashreplace')
        os.replace(temporary, path)


def write_json(path: Path, value: Any):
    """Write JSON so that a crash leaves the former file whole.

    Args:
        path: The file; its folder is made where it is missing.
        value: What `json` can write.

    Raises:
        UserError: The disk refuses.
    """
    write_text(path, json.dumps(value, indent=1) + '\n')
