"""Whether the files of a data set are still those that it was created from."""
import os

import numpy as np

from .images import EncodedImages, FileImages

__all__ = ['FileState', 'first_changed_file']


class FileState:
    """Size and modification time of the files that a data set reads while it trains.

    The hash of a set of files knows names, lengths and labels. An image that is overwritten by
    another of the same length keeps that hash, and one that changes in the middle of a run belongs
    to no hash at all. A set that is decoded in memory needs no such state: it reads its files once,
    and its hash is that of the pixels it holds.

    Args:
        images: Encoded images of the set; looked at once here, and again by `first_changed`.
    """

    def __init__(self, images: EncodedImages):
        self.images = images
        self.state = self._look()

    def image_sizes(self, images: EncodedImages) -> np.ndarray:
        """Return the length of each encoded image in bytes, int64 [N], as `EncodedImages.sizes`.

        Of the images that were looked at, each a file, the lengths are known: half a million files
        are looked at once, not twice.

        Args:
            images: Encoded images of the set, or a part of them.
        """
        if images is self.images and isinstance(images, FileImages):
            return np.maximum(self.state[:, 0], 0)
        return images.sizes()

    def first_changed(self) -> str | None:
        """Return the path of the first file that is gone or has another size or time than before; None for none."""
        changed = np.flatnonzero((self._look() != self.state).any(axis=1))
        if not len(changed):
            return None
        return str(self.images.files()[changed[0]])

    def _look(self) -> np.ndarray:
        """Return size and time of each file, int64 [F,2]; -1 for one that is not there."""
        paths = self.images.files()
        state = np.full((len(paths), 2), -1, np.int64)
        for row, path in enumerate(paths):
            try:
                found = os.stat(path)
            except OSError:
                continue
            state[row] = found.st_size, found.st_mtime_ns
        return state


def first_changed_file(*datasets) -> str | None:
    """Return a file that changed since one of some data sets was created; None where all are as they were."""
    for dataset in datasets:
        changed = dataset.changed_file()
        if changed is not None:
            return changed
    return None
