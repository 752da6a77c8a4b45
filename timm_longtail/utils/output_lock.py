"""The lock of the output folder: one process at a time makes, holds and writes it."""
import errno
import os
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import ModuleType

from .errors import UserError
from .files import writing

__all__ = [
    'create_folder',
    'held_folder',
    'hold_folder',
    'join_folder',
    'make_folders',
    'release_folder',
]

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

# the folder that is held, and the descriptor of its lock; None where another process or nobody
# locks it
_held: dict[Path, int | None] = {}

# folders that this process made, the outer one first
_made: list[Path] = []


def create_folder(base: Path) -> Path:
    """Make a new folder, with a number where the name is taken.

    Of two runs that start at once each gets its own.

    Args:
        base: The folder, if there is none yet; else `base-2`, `base-3` and so on are tried.

    Raises:
        UserError: It cannot be made.
    """
    make_folders(base.parent)

    folder = base
    numbers = count(2)
    while not _make_new(folder):
        folder = base.with_name(f'{base.name}-{next(numbers)}')

    _made.append(folder)
    return folder


def _make_new(folder: Path) -> bool:
    """Make one folder; return whether it is new."""
    with writing(folder):
        try:
            folder.mkdir()
        except FileExistsError:
            return False
        return True


def make_folders(folder: Path):
    """Make a folder and those it lies in; what is new goes again with `release_folder` while it is empty.

    Args:
        folder: The folder.

    Raises:
        UserError: It cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]

    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _made.extend(reversed(missing))


def hold_folder(folder: Path):
    """Keep other processes from holding a folder, until `release_folder` or the end of this one.

    A lock of the kernel's on the folder itself, so that a killed process leaves nothing behind.
    Where the file system has no such locks, as some network file systems have none, nothing is
    held.

    Args:
        folder: The folder; it is made where it is missing.

    Raises:
        UserError: Another process holds it; it is no folder.
    """
    _close_held()
    make_folders(folder)
    _held[folder] = None if fcntl is None else _lock(folder, fcntl)


def _lock(folder: Path, locks: ModuleType) -> int | None:
    """Return the descriptor that keeps a lock on a folder; None where there are no locks."""
    with writing(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    try:
        locks.flock(descriptor, locks.LOCK_EX | locks.LOCK_NB)
    except OSError as e:
        os.close(descriptor)
        if e.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise UserError(
                f'{folder} is being written by another run; '
                'wait for its end, or name another folder') from e
        return None

    return descriptor


def join_folder(folder: Path):
    """Note the folder that the main process of the run holds, for messages of this one.

    Args:
        folder: The folder, which this process does not lock.
    """
    _close_held()
    _held[folder] = None


def held_folder() -> Path | None:
    """Return the folder that this process writes, or that the main process of its run does."""
    return next(iter(_held), None)


def release_folder():
    """Let other processes write the folder; folders that were made and are empty are removed."""
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
    """Forget in a forked child what its parent holds and made."""
    _close_held()
    _made.clear()


# a loader's worker must not keep the lock of a killed run; it closes its copy only, which unlocks
# nothing
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_leave_to_parent)
