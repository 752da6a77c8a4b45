"""Figures of images, in the look of `plots`: those that look alike in every rotation, and those that do not.

Shapes: N images, S side of an image.
"""
import math

import numpy as np

from ...utils.errors import UserError
from .style import as_array, canvas, look

__all__ = ['plot_rotation_agnostic']


def plot_rotation_agnostic(
        path,
        images,
        entropy,
        *,
        threshold: float = math.log(4) / 2 + 0.2,
        columns: int = 10,
        rows: int = 3,
        title: str = '',
):
    """Draw the images of most and of least entropy, and the histogram of all entropies.

    Entropies are those of a flag file; `batches.digests` or `LongTailDataset.digests` find its images.

    Args:
        path: PNG file.
        images: uint8 [N, 3, S, S].
        entropy: Of each image, mean over its rotations, in nats [N].
        threshold: An image is rotation-agnostic above it.
        columns, rows: Images drawn of either kind.
        title: Above the figure.

    Returns:
        The figure.

    Raises:
        UserError: Not one entropy an image, or images of another shape.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != np.uint8:
        raise UserError(f'images: expected uint8 [N, 3, S, S], got {images.dtype} {list(images.shape)}')
    entropy = as_array(entropy, 'entropy', (len(images),))
    order = np.argsort(-entropy, kind='stable')
    number = min(columns * rows, len(images))
    flagged = 100 * np.mean(entropy > threshold)
    with canvas(path, title, (6.4, 6.4)) as figure:
        most, least, histogram = figure.subplots(3, 1, height_ratios=(rows, rows, 3))
        for axis, chosen, name in ((most, order[:number], 'Most'), (least, order[::-1][:number], 'Least')):
            axis.imshow(_tiles(images[chosen], columns), interpolation='nearest')
            axis.set_axis_off()
            first, last = entropy[chosen[[0, -1]]]
            axis.set_title(f'{name} rotation-agnostic: entropy {first:.2f} to {last:.2f}', loc='left')
        histogram.hist(entropy, bins=np.linspace(0, math.log(4), 51), color=look(0)[0])
        histogram.axvline(threshold, color=look(1)[0], linestyle=look(1)[1])
        histogram.set(xlabel='Mean entropy over the four rotations (nats)', ylabel='Images', xlim=(0, math.log(4)))
        histogram.set_title(f'Above {threshold:.3f}: {flagged:.2f} % of {len(images)} images', loc='left')
    return figure


def _tiles(images: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Return images uint8 [n, 3, S, S] side by side in white, [height, width, 3]; the last row may be short."""
    side = images.shape[-1] + gap
    rows = -(-len(images) // columns)
    sheet = np.full((rows * side - gap, columns * side - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * side, i % columns * side
        sheet[top:top + side - gap, left:left + side - gap] = image.transpose(1, 2, 0)
    return sheet
