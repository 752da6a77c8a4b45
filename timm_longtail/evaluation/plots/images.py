"""Figures of images: those that look alike in every rotation, and those that do not.

Shapes: N images, S side of an image.
"""
import math
from pathlib import Path

import numpy as np

from ...utils.errors import UserError
from .style import as_array, canvas, look

__all__ = ['plot_rotation_agnostic']

# of four rotations that are equally likely, in nats
_MOST_ENTROPY = math.log(4)


def plot_rotation_agnostic(
        path: str | Path,
        images,
        entropy,
        *,
        threshold: float = _MOST_ENTROPY / 2 + 0.2,
        columns: int = 10,
        rows: int = 3,
        title: str = '',
):
    """Draw the images of most and of least entropy, and the histogram of all entropies.

    Entropies are those of a flag file; `batches.digests` or `LongTailDataset.digests` find its images.

    Args:
        path: PNG file.
        images: Images, uint8 [N, 3, S, S].
        entropy: Entropy of each image [N], the mean over its rotations, in nats.
        threshold: Entropy above which an image is rotation-agnostic.
        columns: Images in a row.
        rows: Rows of images of either kind.
        title: Text above the figure.

    Returns:
        The figure.

    Raises:
        UserError: Not one entropy an image, or images of another shape.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        found = f'{images.dtype} {list(images.shape)}'
        raise UserError(f'images: expected uint8 [N, 3, S, S], got {found}')
    entropy = as_array(entropy, 'entropy', (len(images),))

    order = np.argsort(-entropy, kind='stable')
    number = min(columns * rows, len(images))
    flagged = 100 * np.mean(entropy > threshold)

    with canvas(path, title, (6.4, 6.4)) as figure:
        most, least, histogram = figure.subplots(3, 1, height_ratios=(rows, rows, 3))
        kinds = (
            (most, 'Most', order[:number]),
            (least, 'Least', order[::-1][:number]),
        )
        for axis, name, chosen in kinds:
            axis.imshow(_tiles(images[chosen], columns), interpolation='nearest')
            axis.set_axis_off()
            first, last = entropy[chosen[0]], entropy[chosen[-1]]
            words = f'{name} rotation-agnostic: entropy {first:.2f} to {last:.2f}'
            axis.set_title(words, loc='left')

        colour, _ = look(0)
        histogram.hist(entropy, bins=np.linspace(0, _MOST_ENTROPY, 51), color=colour)
        colour, dashes = look(1)
        histogram.axvline(threshold, color=colour, linestyle=dashes)
        histogram.set(
            xlabel='Mean entropy over the four rotations (nats)',
            ylabel='Images',
            xlim=(0, _MOST_ENTROPY),
        )
        words = f'Above {threshold:.3f}: {flagged:.2f} % of {len(images)} images'
        histogram.set_title(words, loc='left')
    return figure


def _tiles(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Return images side by side in white, uint8 [height, width, 3]; the last row may be short.

    Args:
        images: Images, uint8 [N, 3, S, S].
        columns: Images in a row.
        gap: White pixels between two images.
    """
    side = images.shape[-1] + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * side - gap, columns * side - gap, 3), 255, np.uint8)

    for i, image in enumerate(images):
        top, left = i // columns * side, i % columns * side
        bottom, right = top + side - gap, left + side - gap
        sheet[top:bottom, left:right] = image.transpose(1, 2, 0)
    return sheet
