"""The output folder that this process writes: one process at a time."""
import errno
import os
from contextlib import suppress
from itertools import count
from pathlib import Path

from .errors import UserError
from .files import writing

__all__ = ['create_folder', 'held_folder', 'hold_folder', 'join_folder', 'release_folder', 'require_place']

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

_held: dict[Path, int | None] = {}
_made: list[Path] = []  # by this process, the outer one first


def create_folder(base: Path) -> Path:
    """Make a new folder, with a number where the name is taken; of two runs that start at once each gets its own.

    Raises:
        UserError: It cannot be made.
    """
    _make_folders(base.parent)
    for number in count(1):
        folder = base if number == 1 else base.with_name(f'{base.name}-{number}')
        with writing(folder):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        _made.append(folder)
        return folder


def _make_folders(folder: Path):
    """Make a folder and those it lies in, and note which of them are new."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(missing))


def require_place(folder: Path):
    """Refuse a folder in which nothing can be written, without making it.

    Raises:
        UserError: What is there in the place of the folder, or of one that it lies in, is no folder or is read-only.
    """
    folder = Path(folder).absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise UserError(f'cannot write {folder}: {there} is not a folder')
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f'cannot write {folder}: {there} is read-only')


def hold_folder(folder: Path):
    """Keep other processes from holding a folder, until `release_folder` or the end of this process.

    A lock of the kernel's on the folder itself, so that a killed process leaves nothing behind. Where the file system
    has no such locks, as some of networks have none, nothing is held.

    Raises:
        UserError: Another process holds it; it is no folder.
    """
    _close_held()
    _make_folders(folder)
    if fcntl is None:
        _held[folder] = None
        return

    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        descriptor = None
        if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f'{folder} is being written by another run; wait for its end, or name another folder') from e
    _held[folder] = descriptor


def join_folder(folder: Path):
    """Note the folder that the main process of the run holds, so that this one can name what is kept in it."""
    _close_held()
    _held[folder] = None


def held_folder() -> Path | None:
    """Return the folder that this process writes, or that the main process of its run does."""
    return next(iter(_held), None)


def release_folder():
    """Let other processes write the folder that was held; one that this process made and left empty goes."""
    _close_held()
    while _made:
        with suppress(OSError):  # something lies in it, or it was moved away
            _made.pop().rmdir()


def _close_held():
    while _held:
        _, descriptor = _held.popitem()
        if descriptor is not None:
            os.close(descriptor)


def _leave_to_parent():
    _close_held()
    _made.clear()


# a loader's worker must not keep the lock of a killed run; it closes its copy only, which unlocks nothing
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_leave_to_parent)
