"""The order of an original release, for copies of a benchmark that are stored in another one.

LDAM's rule shuffles the rows of each class as they are stored, so the published subsets are those
of the original order. A copy that kept the file names of the release can be put into it by a list
of these names. N images.
"""
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..utils.errors import UserError
from ..utils.files import read_text

__all__ = ['original_order']


def original_order(names: Sequence[str], targets: np.ndarray, path: Path) -> np.ndarray:
    """Return the rows of a copy in the order of the original release, int64 [N].

    Args:
        names: File name of each row, [N].
        targets: Class of each row, int64 [N].
        path: List of the release's file names in its order, one a line. Where a name stands for
            images of several classes, the number of the class follows behind a tab.

    Raises:
        UserError: The list and the copy do not name the same images.
    """
    wanted = _read_list(path)
    repeated = {name for name, count in Counter(names).items() if count > 1}

    rows: dict[tuple[str, str], int] = {}
    for row, (name, target) in enumerate(zip(names, targets.tolist(), strict=True)):
        key = (name, str(target) if name in repeated else '')
        if key in rows:
            raise UserError(f'this copy has two images {name} in class {target}: its file names say no order')
        rows[key] = row

    order = []
    for number, (name, label) in enumerate(wanted, 1):
        if name in repeated and not label:
            raise UserError(
                f'{path}, line {number}: several images are called {name}; '
                'put the number of the class behind it, after a tab')

        found = rows.pop((name, label if name in repeated else ''), None)
        if found is None:
            raise UserError(f'{path}, line {number}: this copy has no image {name}, or the list names it twice')
        order.append(found)

    if rows:
        name, _ = next(iter(rows))
        raise UserError(f'{path} leaves out {len(rows)} images of this copy, such as {name}')
    return np.array(order, np.int64)


def _read_list(path: Path) -> list[tuple[str, str]]:
    """Return the name and the class, or '', of each line that is not empty."""
    lines = read_text(path, 'list of file names').splitlines()
    entries = []
    for line in lines:
        name, _, label = line.partition('\t')
        if name.strip():
            entries.append((name.strip(), label.strip()))
    return entries
