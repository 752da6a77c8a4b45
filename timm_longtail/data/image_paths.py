"""Images by the paths that a person names: files, folders, lists of files."""
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..utils.errors import UserError
from ..utils.files import read_text, require_regular_file
from .decoding import image_extensions, read_size
from .images import read_file
from .sources.folder import list_files

__all__ = ['ImagePaths', 'find_images']

_STDIN = '-'


@dataclass
class ImagePaths:
    """What was found.

    Attributes:
        images: Path of each image, as it was named.
        num_others: Files in folders that are no images by their names.
    """
    images: list[str] = field(default_factory=list)
    num_others: int = 0


def find_images(paths: Sequence[str]) -> ImagePaths:
    """Return the images that some paths name, in their order.

    Args:
        paths: Images; folders, whose images are taken at any depth; text files that list a path a
            line, relative to the working folder; `-` reads such a list from stdin.

    Raises:
        UserError: Nothing is there, or it is neither an image nor a list; no image at all.
    """
    found = ImagePaths()
    for path in paths:
        if path == _STDIN:
            found.images += _lines(os.fsdecode(sys.stdin.buffer.read()))  # names need not be UTF-8
        elif os.path.isdir(path):
            listing = list_files(Path(path))
            found.images += [os.path.join(path, name) for name in listing.images]
            found.num_others += len(listing.others)
        elif _is_image(Path(path)):
            found.images.append(path)
        else:
            found.images += _read_list(Path(path))

    if not found.images:
        others = f', only {found.num_others} other files' if found.num_others else ''
        raise UserError(f'no image in {" ".join(paths)}{others}')
    return found


def _is_image(path: Path) -> bool:
    """Return whether a file is to be read as an image: by its name, else by its first bytes."""
    if path.suffix.lower() in image_extensions():
        require_regular_file(path, 'image file')
        return True

    data = read_file(path)
    try:
        read_size(data)
    except Exception:  # Pillow's plugins have no error in common
        return False
    return True


def _read_list(path: Path) -> list[str]:
    """Return the paths in a text file."""
    try:
        text = read_text(path, 'list of images')
    except UserError as e:
        raise UserError(f'{path} is neither an image that can be decoded nor a list of images') from e
    return _lines(text)


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
