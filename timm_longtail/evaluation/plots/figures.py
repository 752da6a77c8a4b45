"""Figures of long-tailed recognition: arrays in, one PNG file out.

A figure is a function of its arguments and of the version of matplotlib: neither the user's
`matplotlibrc` nor the date shows in it. Arrays are tensors on any device, arrays or lists; None
and NaN are left out. Each function returns the figure, with which a notebook goes on. Groups are
those of the `class_counts` given: with a hold-out, give those before the cut (`shot_counts`).

Shapes: C classes, D width, T values of tau.
"""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...data.longtail import shot_groups
from ...utils.errors import UserError
from ..confusion import confusion_rate
from ..tables import GROUPS
from .style import (
    GroupRule,
    as_array,
    block_size,
    canvas,
    class_axis,
    class_curve,
    draw_confusion,
    group_bounds,
    legend,
    look,
    mark_groups,
    mixed,
    plain_numbers,
    require_matplotlib,
    smoothing,
    sort_classes,
    whole_numbers,
)

__all__ = [
    'plot_class_accuracy',
    'plot_confusion',
    'plot_sampler_probabilities',
    'plot_tau_curve',
    'plot_training_curves',
    'plot_weight_norms',
    'require_matplotlib',
]

# the same in all figures; a line that lies on another's shows between its dashes
_GROUP_LOOKS = {
    'many': ('#0072B2', '-'),
    'medium': ('#E69F00', '-'),
    'few': ('#D55E00', '-'),
    'all': ('#000000', '-'),
    'balanced': ('#CC79A7', '--'),
    'loss': ('#000000', '-'),
}
_LOOKS = {
    **_GROUP_LOOKS,
    **{f'eval_{name}': style for name, style in _GROUP_LOOKS.items()},
    'train_loss': ('#999999', '-'),
    'train_accuracy': ('#999999', '-'),
    'lr': ('#000000', '-'),
}

# norms that span more than this factor get a logarithmic axis
_WIDE_NORMS = 20

# a curve of fewer values shows where they are
_MARKED_VALUES = 32

_ACCURACIES = ('train_accuracy', 'eval_all', *(f'eval_{name}' for name in GROUPS))


def plot_weight_norms(
        path: str | Path,
        weights: Mapping[str, Any],
        class_counts,
        *,
        against: str = 'images',
        title: str = '',
):
    """Draw the norm of each class's weight, which grows with the class in training on all images.

    Kang et al., Decoupling Representation and Classifier, ICLR 2020
    (https://arxiv.org/abs/1910.09217), Figure 2. Norms that span more than a factor of 20 get a
    logarithmic axis: classifiers differ in scale.

    Args:
        path: PNG file.
        weights: Weight [C, D] of each classifier by name, such as before and after retraining.
        class_counts: Training images of each class [C].
        against: Horizontal axis: `images` for their number, `rank` for the classes sorted by it.
        title: Text above the figure.

    Returns:
        The figure.

    Raises:
        UserError: Another axis, or weights of another shape.
    """
    if against not in ('images', 'rank'):
        raise UserError(f'against: expected images or rank, got {against!r}')

    counts, order = sort_classes(class_counts)
    norms = {}
    for name, weight in weights.items():
        rows = as_array(weight, name, (len(counts), None))
        norms[name] = np.linalg.norm(rows, axis=1)[order]
    positive = np.concatenate([values[values > 0] for values in norms.values()])

    with canvas(path, title) as figure:
        axis = figure.subplots()
        places = counts if against == 'images' else np.arange(1, len(counts) + 1)
        for i, (name, values) in enumerate(norms.items()):
            class_curve(axis, places, values, name, i)

        if against == 'images':
            axis.set(xscale='log', xlabel='Training images of the class')
            plain_numbers(axis.xaxis)
        else:
            class_axis(axis, order)
            mark_groups(axis, counts, shot_groups)

        if len(positive) and positive.max() > _WIDE_NORMS * positive.min():
            axis.set_yscale('log')
            plain_numbers(axis.yaxis)
        else:
            axis.set_ylim(bottom=0)
        axis.set_ylabel('Norm of the weight of the class')

        legend(figure, axis, len(counts))
    return figure


def plot_sampler_probabilities(
        path: str | Path,
        probabilities: Mapping[str, Any],
        class_counts,
        *,
        title: str = '',
):
    """Draw how likely each sampler draws an image of each class, sorted by training images.

    Kang et al., ICLR 2020 (https://arxiv.org/abs/1910.09217), section 3 and appendix:
    instance-balanced, square-root, class-balanced, and the progressive sampler, which goes from the
    first to the last over the epochs.

    Args:
        path: PNG file.
        probabilities: Probabilities [C], which sum to 1, by the sampler's name; of a sampler that
            changes, a mapping from epochs to them, drawn in one colour that darkens with the epoch.
        class_counts: Training images of each class [C].
        title: Text above the figure.

    Returns:
        The figure.

    Raises:
        UserError: Probabilities of another number of classes.
    """
    counts, order = sort_classes(class_counts)
    rank = np.arange(1, len(counts) + 1)
    marker = '.' if smoothing(len(counts)) == 1 else ''

    with canvas(path, title) as figure:
        axis = figure.subplots()
        for i, (name, values) in enumerate(probabilities.items()):
            colour, _ = look(i)
            curves = {name: values}
            style: dict[str, Any] = {'linestyle': '-'}
            if isinstance(values, Mapping):
                curves = {f'{name}, epoch {epoch}': values[epoch] for epoch in sorted(values)}
                # dashed: its first and last lie on those of other samplers
                style = {'linestyle': (0, (3, 3)), 'zorder': 3}

            for k, (label, p) in enumerate(curves.items(), start=1):
                percent = 100 * as_array(p, label, (len(counts),))[order]
                shade = mixed(colour, 0.3 + 0.7 * k / len(curves))
                axis.plot(rank, percent, label=label, color=shade, marker=marker, **style)

        axis.set(yscale='log', ylabel='Probability of the class in a draw (%)')
        plain_numbers(axis.yaxis)
        class_axis(axis, order)
        mark_groups(axis, counts, shot_groups)
        legend(figure, axis)
    return figure


def plot_class_accuracy(
        path: str | Path,
        accuracies: Mapping[str, Any],
        class_counts,
        *,
        class_names: Sequence[str] | None = None,
        title: str = '',
):
    """Draw the accuracy of each class, in front of the area of the numbers of training images.

    Compares runs, or one run early and late in training. The classes are sorted by training images;
    from 24 classes on a point is a class, a line a running mean.

    Args:
        path: PNG file.
        accuracies: Accuracy of each class [C] in percent, as `class_accuracy` has it, by the name
            of the run or epoch; None for a class without images.
        class_counts: Training images of each class [C].
        class_names: Name of each class [C], shown for up to 20 classes.
        title: Text above the figure.

    Returns:
        The figure.

    Raises:
        UserError: Accuracies of another number of classes.
    """
    counts, order = sort_classes(class_counts)
    rank = np.arange(1, len(counts) + 1)

    with canvas(path, title) as figure:
        axis = figure.subplots()

        # the area: a step a class, which the last one needs a second end for
        images = axis.twinx()
        edges = np.append(rank, rank[-1] + 1) - 0.5
        heights = np.append(counts, counts[-1])
        images.fill_between(edges, heights, step='post', color='0.88', linewidth=0)
        images.set_ylim(-0.02 * counts.max(), 1.02 * counts.max())  # zero beside zero
        images.set_ylabel('Training images of the class (area)', color='0.4')
        images.tick_params(colors='0.4')
        images.spines['right'].set(visible=True, color='0.6')
        images.grid(False)

        # the lines in front of it
        axis.set_zorder(images.get_zorder() + 1)
        axis.patch.set_visible(False)
        for i, (name, values) in enumerate(accuracies.items()):
            class_curve(axis, rank, as_array(values, name, (len(counts),))[order], name, i)

        axis.set(ylabel='Accuracy of the class (%)', ylim=(-2, 102))
        class_axis(axis, order, class_names)
        mark_groups(axis, counts, shot_groups)
        legend(figure, axis, len(counts))
    return figure


def plot_confusion(
        path: str | Path,
        confusions: Mapping[str, Any],
        class_counts,
        *,
        groups: GroupRule = shot_groups,
        class_names: Sequence[str] | None = None,
        title: str = '',
):
    """Draw the confusion of models side by side, rows in percent, sorted by training images.

    The title of each has its `confusion_rate`: the share of the images of the rarest classes (Few,
    or the last group that is not empty) predicted as one of the most frequent (Many). Beyond 200
    classes a cell is a block of neighbours: the mean over its rows of the sum over its columns.
    The colour is that of the square root, so that the few percent beside the diagonal show. A row
    without images is grey.

    Args:
        path: PNG file.
        confusions: Images of each class (rows) predicted as each class (columns), [C, C], by the
            model's name.
        class_counts: Training images of each class [C].
        groups: Function that splits the counts, most frequent classes first: `shot_groups` or
            `head_tail_groups`.
        class_names: Name of each class [C], shown for up to 20 classes.
        title: Text above the figure.

    Returns:
        The figure.

    Raises:
        UserError: A confusion of another shape.
    """
    counts, order = sort_classes(class_counts)
    num_classes = len(counts)
    bounds = group_bounds(counts, groups)
    group_names = list(bounds)
    head, tail = group_names[0], group_names[-1]  # one group is both

    matrices = {}
    for name, matrix in confusions.items():
        matrices[name] = as_array(matrix, name, (num_classes, num_classes))
    sorted_names = None if class_names is None else [class_names[c] for c in order]

    with canvas(path, title, (1.4 + 4.2 * len(matrices), 5.2)) as figure:
        axes = figure.subplots(1, len(matrices), squeeze=False)[0]
        for axis, (name, matrix) in zip(axes, matrices.items()):
            image = draw_confusion(axis, matrix[np.ix_(order, order)], bounds, sorted_names)

            rate = confusion_rate(matrix, class_counts, tail, head, groups)
            shown = 'n/a' if rate is None or head == tail else f'{rate:.1f} %'
            words = f'{tail.capitalize()} predicted as {head.capitalize()}: {shown}'
            axis.set_title(f'{name}\n{words}', pad=18)

        size = block_size(num_classes)
        cell = f' (%), blocks of {size} x {size} classes' if size > 1 else ' of the class (%)'
        label = f'Share of the images{cell}, colours by its square root'
        bar = figure.colorbar(image, ax=axes, label=label, shrink=0.8)
        bar.set_ticks([0, 1, 5, 20, 50, 100])
    return figure


def plot_tau_curve(
        path: str | Path,
        taus: Sequence[float],
        metrics: Sequence[Mapping[str, Any]],
        chosen: float | None = None,
        *,
        columns: Sequence[str] = ('balanced', *GROUPS),
        title: str = '',
):
    """Draw accuracies over tau, the power by which tau-normalisation divides weights.

    Kang et al., ICLR 2020 (https://arxiv.org/abs/1910.09217), Figure 2, right. The title should say
    on which images tau was chosen and on which the accuracies were measured.

    Args:
        path: PNG file.
        taus: Values of tau [T], in any order.
        metrics: What `LongTailEvaluator.compute` returned for each value [T].
        chosen: Value of tau to mark.
        columns: Metrics to draw; one that is None or missing everywhere is left out.
        title: Text above the figure.

    Returns:
        The figure.

    Raises:
        UserError: Not one value of tau for each of the metrics.
    """
    places = as_array(taus, 'taus', (len(metrics),))
    order = np.argsort(places, kind='stable')

    with canvas(path, title) as figure:
        axis = figure.subplots()
        for i, (name, values) in enumerate(_columns(metrics, columns).items()):
            _curve(axis, places[order], values[order], _title(name), _LOOKS.get(name) or look(i))

        if chosen is not None:
            label = f'Chosen: τ = {chosen:g}'
            axis.axvline(chosen, color='0.4', linewidth=1, linestyle=':', label=label)
        axis.set(xlabel='τ', ylabel='Accuracy (%)')
        legend(figure, axis)
    return figure


def plot_training_curves(
        path: str | Path,
        history: Sequence[Mapping[str, Any]],
        *,
        losses: Sequence[str] = ('train_loss', 'eval_loss'),
        accuracies: Sequence[str] = _ACCURACIES,
        title: str = '',
):
    """Draw losses, accuracies and learning rate over the epochs, with last values in the legend.

    The training accuracy is that of augmented images while the weights change, so it may lie below
    the other.

    Args:
        path: PNG file.
        history: Rows of a run (`run.history`), or of its `summary.csv` as `csv.DictReader` gives
            them.
        losses: Columns of the upper panel, in nats; one that is empty or missing is left out.
        accuracies: Columns of the middle panel, in percent but for `train_accuracy`, a share.
        title: Text above the figure.

    Returns:
        The figure.
    """
    epochs = as_array([row['epoch'] for row in history], 'epoch', (len(history),))

    with canvas(path, title, (6.4, 6.0)) as figure:
        axes = figure.subplots(3, sharex=True, height_ratios=(3, 4, 1.3))
        panels = (losses, accuracies, ['lr'])
        labels = ('Loss (nats)', 'Accuracy (%)', 'Learning rate')

        for axis, columns, label in zip(axes, panels, labels):
            for i, (name, values) in enumerate(_columns(history, columns).items()):
                if name == 'train_accuracy':
                    values = 100 * values
                last = values[~np.isnan(values)][-1]
                words = f'{_title(name)}: {last:.4g}'
                _curve(axis, epochs, values, words, _LOOKS.get(name) or look(i))
            axis.set_ylabel(label)

        for axis in axes[:2]:  # the learning rate needs no legend
            if axis.lines:
                axis.legend(
                    loc='upper left', bbox_to_anchor=(1, 1), title='Last value', alignment='left')
        axes[-1].set_xlabel('Epoch, from 0')
        whole_numbers(axes[-1].xaxis)
    return figure


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns that have a number in any row, as arrays with NaN where a row has none."""
    columns = {}
    for name in names:
        cells = [row.get(name) for row in rows]
        numbers = [None if cell == '' else cell for cell in cells]  # as a CSV file writes None
        values = as_array(numbers, name, (len(rows),))
        if not np.isnan(values).all():
            columns[name] = values
    return columns


def _title(name: str) -> str:
    return name.replace('_', ' ').capitalize()


def _curve(axis, x: np.ndarray, values: np.ndarray, label: str, style: tuple[str, str]):
    """Draw a line through those values that are numbers."""
    colour, dashes = style
    seen = ~np.isnan(values)
    marker = '.' if seen.sum() < _MARKED_VALUES else ''
    axis.plot(x[seen], values[seen], label=label, color=colour, linestyle=dashes, marker=marker)
