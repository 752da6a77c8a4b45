"""The look of figures, and what they share: canvas, axis of classes, groups and legends.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers
tell apart. matplotlib is imported where something is drawn.

Shapes: C classes.
"""
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...utils.errors import UserError
from ...utils.files import writing

__all__ = [
    'GroupRule', 'as_array', 'block_size', 'canvas', 'class_axis', 'class_curve', 'draw_confusion',
    'group_bounds', 'in_blocks', 'legend', 'look', 'mark_groups', 'mixed', 'pad_labels',
    'plain_numbers', 'require_matplotlib', 'running_mean', 'smoothing', 'sort_classes',
    'whole_numbers',
]

GroupRule = Callable[[Sequence[int]], dict[str, list[int]]]

_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_DASHES = ('-', '--', '-.', ':')

_STYLE = {
    'axes.axisbelow': True,
    'axes.grid': True,
    'axes.labelsize': 9,
    'axes.spines.right': False,
    'axes.spines.top': False,
    'axes.titlesize': 9,
    'figure.constrained_layout.h_pad': 0.08,
    'figure.titlesize': 10,
    'font.size': 8.5,
    'grid.color': '0.9',
    'legend.frameon': False,
    'lines.linewidth': 1.6,
    'savefig.dpi': 150,
    'text.parse_math': False,  # `$` in the name of a class or a run is a dollar
}

# classes whose names the axis shows
_NAMED_CLASSES = 20

# classes whose names fit aslant, and whose confusion has room for numbers
_WRITTEN_CLASSES = 12

# blocks along one side of a confusion: more would be smaller than a pixel
_MOST_BLOCKS = 200

# characters in one line under a figure of 6.4 inches
_LEGEND_WIDTH = 90

# share of an axis that the name of a group takes
_GROUP_LABEL_WIDTH = 0.17
_CONFUSION_LABEL_WIDTH = 0.15


def require_matplotlib():
    """Raise a `UserError` where matplotlib is missing; to be called before any work for figures."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise UserError("figures need matplotlib; pip install 'timm_longtail[plots]'") from e


@contextmanager
def canvas(
        path: str | Path,
        title: str = '',
        size: tuple[float, float] = (6.4, 4.0),
) -> Iterator:
    """Yield an empty figure in the one look, and write it when the block ends.

    Args:
        path: PNG file; its folder is made.
        title: Text above the figure.
        size: Width and height in inches, of 150 pixels.

    Raises:
        UserError: matplotlib is missing, or the disk refuses.
    """
    require_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure  # not pyplot: no window, no state, nothing to close

    with matplotlib.style.context(_STYLE, after_reset=True):
        figure = Figure(figsize=size, layout='constrained')
        if title:
            figure.suptitle(title)
        yield figure

        # a file is a function of the figure: no date, no version
        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format='png', metadata={'Software': None})


def as_array(values, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return values as float64, None as NaN.

    Args:
        values: Tensor on any device, array or list.
        name: Name of the values, for the message.
        shape: Shape that they must have; None stands for any length.

    Raises:
        UserError: They have another shape.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)

    fits = array.ndim == len(shape)
    for expected, found in zip(shape, array.shape):
        fits = fits and expected in (None, found)
    if not fits:
        words = ', '.join('any' if n is None else str(n) for n in shape)
        raise UserError(f'{name}: expected numbers of shape [{words}], got {list(array.shape)}')
    return array


def sort_classes(class_counts) -> tuple[np.ndarray, np.ndarray]:
    """Sort classes from the largest to the smallest; equal ones keep their order.

    Args:
        class_counts: Training images of each class [C].

    Returns:
        The sorted counts [C], and the class ids in their order [C].
    """
    counts = as_array(class_counts, 'class_counts', (None,))
    order = np.argsort(-counts, kind='stable')
    return counts[order], order


def look(i: int) -> tuple[str, str]:
    """Return colour and dashes of the i-th curve; no two of the first 28 are alike."""
    colour = _COLOURS[i % len(_COLOURS)]
    dashes = _DASHES[i // len(_COLOURS) % len(_DASHES)]
    return colour, dashes


def mixed(colour: str, share: float) -> tuple[float, ...]:
    """Return a colour mixed with white, itself at a share of 1."""
    from matplotlib.colors import to_rgb

    return tuple(1 - share * (1 - part) for part in to_rgb(colour))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the values around each.

    Args:
        values: Values in order [C]; NaN counts as none.
        window: Number of values in a mean; fewer at the ends.
    """
    seen = ~np.isnan(values)
    total = np.convolve(np.where(seen, values, 0.0), np.ones(window), 'same')
    number = np.convolve(seen, np.ones(window), 'same').round()
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def smoothing(num_classes: int) -> int:
    """Return how many neighbours a curve is averaged over: about a twelfth of the classes."""
    return 2 * (num_classes // 24) + 1


def class_curve(axis, x: np.ndarray, values: np.ndarray, name: str, i: int):
    """Draw one value a class: few joined by a line, more as faint points with their running mean.

    Args:
        axis: matplotlib axis.
        x: Places in the order of the classes [C]; of those in one place the line takes the mean.
        values: Values in the same order [C].
        name: Name of the curve in the legend.
        i: Position of the curve in the figure, which decides its colour.
    """
    colour, dashes = look(i)
    window = smoothing(len(values))

    points: dict[str, Any] = {'markersize': 7}
    if window > 1:
        size = 5 if len(x) <= 2000 else 2
        points = {'markersize': size, 'alpha': 0.35, 'markeredgewidth': 0}
    axis.plot(x, values, '.', color=colour, label='_points', **points)

    # one point of the line where several classes have as many images
    places, place = np.unique(x, return_inverse=True)
    mean = np.bincount(place, running_mean(values, window)) / np.bincount(place)
    axis.plot(places, mean, color=colour, linestyle=dashes, label=name, zorder=3)


def _drawable(names: Sequence[str]) -> list[str]:
    """Return names with bytes escaped that are not UTF-8, as those of old class folders.

    matplotlib raises for them.
    """
    return [name.encode(errors='backslashreplace').decode() for name in names]


def class_axis(axis, order: np.ndarray, class_names: Sequence[str] | None = None):
    """Make the horizontal axis that of the classes, from the largest to the smallest.

    Args:
        axis: matplotlib axis.
        order: Class ids in the order of the axis [C].
        class_names: Names by class id [C], shown where the classes are few; None for numbers.
    """
    num_classes = len(order)
    axis.set_xlim(0.5, num_classes + 0.5)
    axis.set_xlabel('Class, by training images (1 = most)')
    whole_numbers(axis.xaxis)
    if class_names is None or num_classes > _NAMED_CLASSES:
        return

    axis.set_xlabel('Class, by training images')
    names = _drawable([class_names[c] for c in order])
    crowded = num_classes > _WRITTEN_CLASSES
    axis.set_xticks(
        range(1, num_classes + 1), names, ha='right', va='center' if crowded else 'top',
        rotation=90 if crowded else 30, rotation_mode='anchor')


def group_bounds(sorted_counts: np.ndarray, groups: GroupRule) -> dict[str, tuple[int, int]]:
    """Return where each group that is not empty begins and ends among the sorted classes.

    Args:
        sorted_counts: Training images of the classes [C], from the largest to the smallest.
        groups: Function that splits the counts into groups by name.
    """
    bounds = {}
    for name, ids in groups(sorted_counts.tolist()).items():
        if len(ids):
            bounds[name] = min(ids), max(ids) + 1
    return bounds


def _middles(bounds: Mapping[str, tuple[int, int]], num_classes: int) -> list[float]:
    """Return the middle of each group on an axis of length 1."""
    return [(start + end) / 2 / num_classes for start, end in bounds.values()]


def _inner_bounds(bounds: Mapping[str, tuple[int, int]]) -> list[float]:
    """Return the places between two groups on an axis of classes from 1."""
    starts = [start for start, _ in bounds.values()]
    return [start + 0.5 for start in starts[1:]]


def pad_labels(middles: list[float], width: float) -> list[float]:
    """Move labels on [0, 1] so that none overlaps the next or leaves.

    Args:
        middles: Middles of the labels, in order.
        width: Width of each label.
    """
    placed: list[float] = []
    for k, middle in enumerate(middles):
        low = placed[-1] + width if placed else width / 2
        room_for_others = width * (len(middles) - 1 - k)
        high = 1 - width / 2 - room_for_others
        placed.append(max(low, min(middle, high)))
    return placed


def mark_groups(axis, sorted_counts: np.ndarray, groups: GroupRule):
    """Draw the bounds of the groups, with names and numbers of classes above.

    Args:
        axis: matplotlib axis of sorted classes.
        sorted_counts: Training images of the classes [C], from the largest to the smallest.
        groups: Function that splits the counts into groups by name.
    """
    bounds = group_bounds(sorted_counts, groups)
    places = pad_labels(_middles(bounds, len(sorted_counts)), _GROUP_LABEL_WIDTH)

    for (name, (start, end)), x in zip(bounds.items(), places):
        words = f'{name.capitalize()} ({end - start})'
        axis.text(x, 1.01, words, transform=axis.transAxes, ha='center', va='bottom', color='0.3')

    for place in _inner_bounds(bounds):
        axis.axvline(place, color='0.5', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def block_size(num_classes: int) -> int:
    """Return how many classes share a row of the drawn confusion."""
    return -(-num_classes // _MOST_BLOCKS)


def in_blocks(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return a confusion by blocks of neighbours: mean of the rows, sum of the columns, in percent.

    Args:
        matrix: Images of each class (rows) predicted as each class (columns), [C, C]; a row without
            images is left out.
        size: Classes in a block; 1 for the rows in percent. The last block may have fewer.

    Returns:
        Percentages [C / size, C / size], rounded up; NaN for a block of rows without images.
    """
    total = matrix.sum(axis=1, keepdims=True)
    percent = 100 * matrix / np.maximum(total, np.finfo(np.float64).tiny)

    starts = np.arange(0, len(matrix), size)
    blocks = np.add.reduceat(np.add.reduceat(percent, starts, axis=1), starts, axis=0)
    seen = np.add.reduceat(1.0 * (total > 0), starts, axis=0)
    return np.where(seen > 0, blocks / np.maximum(seen, 1), np.nan)


def draw_confusion(
        axis,
        matrix: np.ndarray,
        bounds: dict[str, tuple[int, int]],
        class_names: Sequence[str] | None,
):
    """Draw a confusion of sorted classes, and the bounds of their groups over it.

    Args:
        axis: matplotlib axis.
        matrix: Images of each class (rows) predicted as each class (columns), [C, C].
        bounds: What `group_bounds` returned.
        class_names: Names in the order of the rows [C]; None for none.

    Returns:
        The image, for a colour bar.
    """
    import matplotlib
    from matplotlib.colors import PowerNorm

    num_classes = len(matrix)
    percent = in_blocks(matrix, block_size(num_classes))
    image = axis.imshow(
        percent,
        cmap=matplotlib.colormaps['Blues'].with_extremes(bad='0.75'),
        norm=PowerNorm(0.5, 0, 100),
        extent=(0.5, num_classes + 0.5, num_classes + 0.5, 0.5),
        interpolation='nearest',
    )
    axis.grid(False)
    axis.set(xlabel='Predicted class (1 = most training images)', ylabel='True class')

    if num_classes <= _NAMED_CLASSES:
        _name_classes(axis, num_classes, class_names)
    if num_classes <= _WRITTEN_CLASSES:
        _write_cells(axis, percent)

    # names of the groups above, then at the right, with lines between them
    middles = pad_labels(_middles(bounds, num_classes), _CONFUSION_LABEL_WIDTH)
    names = [name.capitalize() for name in bounds]
    style = dict(transform=axis.transAxes, color='0.3')
    for name, middle in zip(names, middles):
        axis.text(middle, 1.01, name, ha='center', va='bottom', **style)
    for name, middle in zip(names, middles):
        axis.text(1.01, 1 - middle, name, ha='left', va='center', rotation=-90, **style)
    for place in _inner_bounds(bounds):
        axis.axvline(place, color='0.3', linewidth=0.8)
        axis.axhline(place, color='0.3', linewidth=0.8)
    return image


def _name_classes(axis, num_classes: int, class_names: Sequence[str] | None):
    """Put a tick at each class of both axes, with its name if there are names."""
    ticks = range(1, num_classes + 1)
    names = None if class_names is None else _drawable(class_names)
    axis.set_xticks(ticks, names)
    axis.set_yticks(ticks, names)

    if names is not None:
        axis.set_xlabel('Predicted class')
        axis.tick_params('x', rotation=90)
        axis.tick_params(labelsize=7 if num_classes > _WRITTEN_CLASSES else 8.5)


def _write_cells(axis, percent: np.ndarray):
    """Write the percentages into their cells; a zero is an empty cell."""
    for (i, j), value in np.ndenumerate(percent):
        if value >= 0.5:
            colour = 'white' if value > 35 else 'black'
            axis.text(
                j + 1, i + 1, f'{value:.0f}', ha='center', va='center', fontsize=7, color=colour)


def whole_numbers(axis):
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator('auto', integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def plain_numbers(axis):
    """Write 10, 100, 1000 at a logarithmic axis, and numbers between where it is short."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    low, high = sorted(axis.get_view_interval())
    subs = (1.0,) if high > 2000 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axis.set_minor_formatter(NullFormatter())


def legend(figure, axis, num_classes: int = 1):
    """Put the legend of an axis under the figure, where it hides no curve.

    Args:
        figure: matplotlib figure.
        axis: matplotlib axis whose named curves are listed.
        num_classes: Number of classes of curves by `class_curve`: the legend says what their lines
            are.
    """
    handles, labels = axis.get_legend_handles_labels()
    if not labels:
        return

    # as many columns as fit, with the labels spread over them evenly
    longest = max(map(len, labels))
    most = max(1, min(4, _LEGEND_WIDTH // (8 + longest)))
    rows = -(-len(labels) // most)
    columns = -(-len(labels) // rows)

    window = smoothing(num_classes)
    title = None
    if window > 1:
        title = f'Points: classes. Lines: mean of {window} neighbouring classes'
    figure.legend(
        handles, labels, loc='outside lower center', ncols=columns,
        title=title, title_fontsize='medium')
