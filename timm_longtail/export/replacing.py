"""A folder that is written whole or not at all: made beside its place, and renamed in one step."""
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = ['lock_folder', 'replacing']

_SUFFIX = '.tmp'


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give a place to write a folder in, and put it where `folder` is at the end of the block.

    Where the block fails, or the disk refuses, the former folder stays. Several processes may
    write the same folder at once: one of theirs stands there in the end. What killed processes
    have left beside it is removed.

    Args:
        folder: Folder to replace; it need not be there.

    Yields:
        Path of the new folder, to be made in the block.

    Raises:
        OSError: The disk refuses.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    work, lock = _make_work_folder(folder)
    try:
        yield work / 'new'
        _put_in_place(work / 'new', folder, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)

    # only now, when the new folder is in its place: what is left may hold the former one
    _remove_left_behind(folder)


def _work_prefix(folder: Path) -> str:
    return f'.{folder.name}.'


def _make_work_folder(folder: Path) -> tuple[Path, int | None]:
    """Return a new folder beside another, and the lock that this process holds on it."""
    prefix = _work_prefix(folder)
    for _ in range(5):
        work = Path(tempfile.mkdtemp(prefix=prefix, suffix=_SUFFIX, dir=folder.parent))
        lock = lock_folder(work)

        # before it was locked, another process may have removed it as one that was left behind
        if lock is not None and work.is_dir():
            break
    return work, lock


def _remove_left_behind(folder: Path):
    """Remove the work folders that no living process has locked."""
    for path in folder.parent.iterdir():
        if not path.name.startswith(_work_prefix(folder)) or not path.name.endswith(_SUFFIX):
            continue

        lock = lock_folder(path)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder by a lock of the kernel's, which ends with this process.

    Args:
        folder: Folder that is there.

    Returns:
        The descriptor that holds the lock; None where another process holds it, or there are no
        locks.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _put_in_place(new: Path, folder: Path, work: Path):
    """Rename `new` to `folder`; where that fails, the old one stays.

    Args:
        new: Folder to put there.
        folder: Its place.
        work: Folder of this process on the same disk; the former folder is moved into it.
    """
    old = None
    while True:
        try:
            os.replace(new, folder)
            return
        except OSError as e:
            occupied = e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            if not occupied or not folder.is_dir():
                if old is not None and not folder.exists():
                    os.replace(old, folder)
                raise

        # a folder is there: the former export, or that of another process which was faster
        old = Path(tempfile.mkdtemp(prefix='old.', dir=work)) / folder.name
        with suppress(FileNotFoundError):
            os.replace(folder, old)
