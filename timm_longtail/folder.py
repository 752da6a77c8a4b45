"""The output folder that this process writes: one process at a time."""
import errno
import fcntl
import os
from itertools import count
from pathlib import Path

from .errors import UserError
from .files import writing

__all__ = ['create_folder', 'held_folder', 'hold_folder', 'release_folder']

_held: dict[Path, int | None] = {}


def create_folder(base: Path) -> Path:
    """Make a new folder, with a number where the name is taken; of two runs that start at once each gets its own.

    Raises:
        UserError: It cannot be made.
    """
    with writing(base.parent):
        base.parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = base if number == 1 else base.with_name(f'{base.name}-{number}')
        with writing(folder):
            try:
                folder.mkdir()
            except FileExistsError:
                continue
        return folder


def hold_folder(folder: Path):
    """Keep other processes from holding a folder, until `release_folder` or the end of this process.

    A lock of the kernel's on the folder itself, so that a killed process leaves nothing behind. Where the file system
    has no such locks, as some of networks have none, nothing is held.

    Raises:
        UserError: Another process holds it; it is no folder.
    """
    release_folder()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
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


def held_folder() -> Path | None:
    """Return the folder that this process writes."""
    return next(iter(_held), None)


def release_folder():
    """Let other processes write the folder that was held."""
    while _held:
        _, descriptor = _held.popitem()
        if descriptor is not None:
            os.close(descriptor)


# a loader's worker must not keep the lock of a killed run; it closes its copy only, which unlocks nothing
os.register_at_fork(after_in_child=release_folder)
