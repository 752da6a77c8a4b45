"""What a confusion matrix says of groups of classes.

Shapes: C classes.
"""
from collections.abc import Callable

import torch

from ..data.longtail import shot_groups
from ..utils.errors import UserError, unknown_name

__all__ = ['confusion_rate']


def confusion_rate(
        confusion,
        class_counts,
        source: str = 'few',
        target: str = 'many',
        groups: Callable[..., dict[str, list[int]]] = shot_groups,
) -> float | None:
    """Return the percentage of the images of one group of classes that were predicted as another.

    With M the confusion: `100 * sum_{i in source, j in target} M_ij / sum_{i in source, j} M_ij`.
    By default the share of the images of Few classes that were predicted as any Many class. Each
    image weighs the same; where the test set is balanced, so does each class.

    Args:
        confusion: Images of each class (rows) predicted as each class (columns), [C, C].
        class_counts: Training images of each class [C].
        source: Group of the images.
        target: Group of the predictions; the same as `source` gives the share that stays within it.
        groups: Function that splits the counts into groups by name: `shot_groups`, or
            `head_tail_groups` for `head` and `tail`.

    Returns:
        A percentage; None where the source has no image or the target no class.

    Raises:
        UserError: The confusion is not square, or there is no such group.
    """
    matrix = torch.as_tensor(confusion)
    members = groups(class_counts)
    num_classes = len(class_counts)

    if matrix.shape != (num_classes, num_classes):
        raise UserError(f'a confusion of {num_classes} classes is square, got {list(matrix.shape)}')
    for name in (source, target):
        if name not in members:
            raise unknown_name('group', name, members)

    rows = matrix[torch.as_tensor(members[source], dtype=torch.int64)].double()
    num_images = float(rows.sum())
    if num_images == 0 or not members[target]:
        return None
    return 100.0 * float(rows[:, members[target]].sum()) / num_images
