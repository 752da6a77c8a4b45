"""The look of figures, and what they share: a canvas, the axis of classes, the bounds of their groups, legends.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color), which colour-blind readers tell apart. matplotlib
is imported where something is drawn.

Shapes: C classes.
"""
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ...utils.errors import UserError
from ...utils.files import writing

__all__ = [
    'GroupRule', 'as_array', 'block_size', 'canvas', 'class_axis', 'class_curve', 'draw_confusion', 'group_bounds',
    'in_blocks', 'legend', 'look', 'mark_groups', 'mixed', 'pad_labels', 'plain_numbers', 'require_matplotlib',
    'running_mean', 'smoothing', 'sort_classes', 'whole_numbers',
]

GroupRule = Callable[[Sequence[int]], dict[str, list[int]]]

_COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000')
_DASHES = ('-', '--', '-.', ':')
_STYLE = {
    'axes.axisbelow': True, 'axes.grid': True, 'axes.labelsize': 9, 'axes.spines.right': False,
    'axes.spines.top': False, 'axes.titlesize': 9, 'figure.constrained_layout.h_pad': 0.08, 'figure.titlesize': 10,
    'font.size': 8.5, 'grid.color': '0.9', 'legend.frameon': False, 'lines.linewidth': 1.6, 'savefig.dpi': 150,
    'text.parse_math': False,  # `$` in the name of a class or a run is a dollar
}
_NAMED_CLASSES = 20
_WRITTEN_CLASSES = 12  # whose names fit aslant, and whose confusion has room for numbers
_MOST_BLOCKS = 200  # along one side of a confusion: more would be smaller than a pixel
_LEGEND_WIDTH = 90  # characters in one line under a figure of 6.4 inches


def require_matplotlib():
    """Raise a `UserError` where matplotlib is missing; to be called before the work whose figures are wanted."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise UserError("figures need matplotlib; pip install 'timm_longtail[plots]'") from e


@contextmanager
def canvas(path, title: str = '', size: tuple[float, float] = (6.4, 4.0)) -> Iterator:
    """Yield an empty figure in the one look, and write it when the block ends.

    Args:
        path: PNG file; its folder is made.
        title: Above the figure.
        size: Inches, of 150 pixels.
    """
    require_matplotlib()
    import matplotlib.style
    from matplotlib.figure import Figure  # not pyplot: no window, no state, nothing to close
    with matplotlib.style.context(_STYLE, after_reset=True):
        figure = Figure(figsize=size, layout='constrained')
        if title:
            figure.suptitle(title)
        yield figure
        path = Path(path)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format='png', metadata={'Software': None})


def as_array(values, name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Return values as float64, None as NaN.

    Args:
        values: Tensor on any device, array or list.
        name: What they are, for the message.
        shape: That they must have; None for any length.

    Raises:
        UserError: They have another shape.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape)):
        expected = ', '.join('any' if n is None else str(n) for n in shape)
        raise UserError(f'{name}: expected numbers of shape [{expected}], got {list(array.shape)}')
    return array


def sort_classes(class_counts) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts from the largest class to the smallest, and the class ids in that order; ties keep theirs."""
    counts = as_array(class_counts, 'class_counts', (None,))
    order = np.argsort(-counts, kind='stable')
    return counts[order], order


def look(i: int) -> tuple[str, str]:
    """Return colour and dashes of the i-th curve; no two of the first 28 are alike."""
    return _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]


def mixed(colour: str, share: float) -> tuple[float, ...]:
    """Return a colour mixed with white, itself at a share of 1."""
    from matplotlib.colors import to_rgb
    return tuple(1 - share * (1 - part) for part in to_rgb(colour))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of those among `window` values around each that are numbers; fewer at the ends."""
    seen = ~np.isnan(values)
    total = np.convolve(np.where(seen, values, 0.0), np.ones(window), 'same')
    number = np.convolve(seen, np.ones(window), 'same').round()
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def smoothing(num_classes: int) -> int:
    """Return over how many neighbours the curves of so many classes are averaged: 1 up to 23, then a twelfth, odd."""
    return 2 * (num_classes // 24) + 1


def class_curve(axis, x: np.ndarray, values: np.ndarray, name: str, i: int):
    """Draw one value a class: few joined by a line, more as faint points with their running mean.

    Args:
        axis: Of matplotlib.
        x: Places in the order of the classes [C]; of those in one place the line takes the mean.
        values: In the same order [C].
        name: For the legend.
        i: Which curve of the figure it is.
    """
    colour, dashes = look(i)
    window = smoothing(len(values))
    points = {'markersize': 7}
    if window > 1:
        points = {'markersize': 5 if len(x) <= 2000 else 2, 'alpha': 0.35, 'markeredgewidth': 0}
    axis.plot(x, values, '.', color=colour, label='_points', **points)
    places, place = np.unique(x, return_inverse=True)
    mean = np.bincount(place, running_mean(values, window)) / np.bincount(place)
    axis.plot(places, mean, color=colour, linestyle=dashes, label=name, zorder=3)


def _drawable(names: Sequence[str]) -> list[str]:
    """Return names with bytes escaped that are not UTF-8, as those of old class folders: matplotlib raises for them."""
    return [name.encode(errors='backslashreplace').decode() for name in names]


def class_axis(axis, order: np.ndarray, class_names: Sequence[str] | None = None):
    """Make the horizontal axis that of the classes from the largest to the smallest, by name where they are few."""
    axis.set_xlim(0.5, len(order) + 0.5)
    axis.set_xlabel('Class, by training images (1 = most)')
    whole_numbers(axis.xaxis)
    if class_names is not None and len(order) <= _NAMED_CLASSES:
        axis.set_xlabel('Class, by training images')
        names = _drawable([class_names[c] for c in order])
        crowded = len(order) > _WRITTEN_CLASSES
        axis.set_xticks(range(1, len(order) + 1), names, ha='right', va='center' if crowded else 'top',
                        rotation=90 if crowded else 30, rotation_mode='anchor')


def group_bounds(sorted_counts: np.ndarray, groups: GroupRule) -> dict[str, tuple[int, int]]:
    """Return where each group that is not empty begins and ends among the sorted classes."""
    members = {name: ids for name, ids in groups(sorted_counts.tolist()).items() if len(ids)}
    return {name: (min(ids), max(ids) + 1) for name, ids in members.items()}


def pad_labels(middles: list[float], width: float) -> list[float]:
    """Move the middles of labels on [0, 1], in order, so that none overlaps the next or leaves."""
    placed: list[float] = []
    for k, middle in enumerate(middles):
        low = placed[-1] + width if placed else width / 2
        placed.append(max(low, min(middle, 1 - width / 2 - width * (len(middles) - 1 - k))))
    return placed


def mark_groups(axis, sorted_counts: np.ndarray, groups: GroupRule):
    """Draw the bounds of the groups over an axis of sorted classes, with names and numbers of classes above."""
    bounds, num_classes = group_bounds(sorted_counts, groups), len(sorted_counts)
    names = [f'{name.capitalize()} ({end - start})' for name, (start, end) in bounds.items()]
    middles = [(start + end) / 2 / num_classes for start, end in bounds.values()]
    for name, x in zip(names, pad_labels(middles, 0.17)):
        axis.text(x, 1.01, name, transform=axis.transAxes, ha='center', va='bottom', color='0.3')
    for start, _ in [*bounds.values()][1:]:
        axis.axvline(start + 0.5, color='0.5', linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)


def block_size(num_classes: int) -> int:
    """Return how many classes share a row of the drawn confusion."""
    return -(-num_classes // _MOST_BLOCKS)


def in_blocks(matrix: np.ndarray, size: int) -> np.ndarray:
    """Return a confusion [C, C] by blocks of neighbours, in percent: the mean of its rows of the sum of its columns.

    Args:
        matrix: Images of each class (rows) taken for each class (columns); a row without images is left out.
        size: Classes in a block; 1 for the rows in percent. The last block may have fewer.
    """
    total = matrix.sum(axis=1, keepdims=True)
    percent = 100 * matrix / np.maximum(total, np.finfo(np.float64).tiny)
    starts = np.arange(0, len(matrix), size)
    blocks = np.add.reduceat(np.add.reduceat(percent, starts, axis=1), starts, axis=0)
    seen = np.add.reduceat(1.0 * (total > 0), starts, axis=0)
    return np.where(seen > 0, blocks / np.maximum(seen, 1), np.nan)


def draw_confusion(axis, matrix: np.ndarray, bounds: dict[str, tuple[int, int]], class_names: Sequence[str] | None):
    """Draw a confusion of sorted classes, the bounds of their groups over it; returns the image.

    Args:
        axis: Of matplotlib.
        matrix: Images of each class (rows) taken for each class (columns), [C, C].
        bounds: From `group_bounds`.
        class_names: C names in the order of the rows; None for none.
    """
    import matplotlib
    from matplotlib.colors import PowerNorm
    num_classes = len(matrix)
    percent = in_blocks(matrix, block_size(num_classes))
    image = axis.imshow(
        percent, cmap=matplotlib.colormaps['Blues'].with_extremes(bad='0.75'), norm=PowerNorm(0.5, 0, 100),
        extent=(0.5, num_classes + 0.5, num_classes + 0.5, 0.5), interpolation='nearest')
    axis.grid(False)
    axis.set(xlabel='Predicted class (1 = most training images)', ylabel='True class')
    if num_classes <= _NAMED_CLASSES:
        ticks, crowded = range(1, num_classes + 1), num_classes > _WRITTEN_CLASSES
        names = None if class_names is None else _drawable(class_names)
        axis.set_xticks(ticks, names)
        axis.set_yticks(ticks, names)
        if class_names is not None:
            axis.set_xlabel('Predicted class')
            axis.tick_params('x', rotation=90)
            axis.tick_params(labelsize=7 if crowded else 8.5)
        if not crowded:
            _write_cells(axis, percent)
    for along, ha, va, place in ((axis.axvline, 'center', 'bottom', 0), (axis.axhline, 'left', 'center', 1)):
        middles = [(start + end) / 2 / num_classes for start, end in bounds.values()]
        for name, middle in zip(bounds, pad_labels(middles, 0.15)):
            x, y = (middle, 1.01) if place == 0 else (1.01, 1 - middle)
            axis.text(x, y, name.capitalize(), transform=axis.transAxes, ha=ha, va=va, color='0.3',
                      rotation=-90 * place)
        for start, _ in [*bounds.values()][1:]:
            along(start + 0.5, color='0.3', linewidth=0.8)
    return image


def _write_cells(axis, percent: np.ndarray):
    for (i, j), value in np.ndenumerate(percent):
        if value >= 0.5:  # a zero is an empty cell
            axis.text(j + 1, i + 1, f'{value:.0f}', ha='center', va='center', fontsize=7,
                      color='white' if value > 35 else 'black')


def whole_numbers(axis):
    """Put ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator
    axis.set_major_locator(MaxNLocator('auto', integer=True, steps=[1, 2, 5, 10], min_n_ticks=1))


def plain_numbers(axis):
    """Write 10, 100, 1000 at the ticks of a logarithmic axis, and between them where it is short."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    low, high = sorted(axis.get_view_interval())
    subs = (1.0,) if high > 2000 * low else (1.0, 2.0, 5.0)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter('{x:g}'))
    axis.set_minor_formatter(NullFormatter())


def legend(figure, axis, num_classes: int = 1):
    """Put the legend of an axis under the figure, where it hides no curve.

    Args:
        figure: Of matplotlib.
        axis: Its named curves are listed.
        num_classes: Of curves by `class_curve`: the legend says what their lines are.
    """
    handles, labels = axis.get_legend_handles_labels()
    if labels:
        window = smoothing(num_classes)
        most = max(1, min(4, _LEGEND_WIDTH // (8 + max(map(len, labels)))))
        rows = -(-len(labels) // most)
        figure.legend(handles, labels, loc='outside lower center', ncols=-(-len(labels) // rows),
                      title=f'Points: classes. Lines: mean of {window} neighbouring classes' if window > 1 else None,
                      title_fontsize='medium')
