"""Figures of long-tailed recognition: arrays in, one PNG file out.

A figure is a function of its arguments and of the version of matplotlib: neither the user's `matplotlibrc` nor the date
shows in it. Arrays are tensors on any device, arrays or lists; None and NaN are left out. Each function returns the
figure, with which a notebook goes on. Groups are those of the `class_counts` given: with a hold-out, give those before
the cut (`shot_counts`).

Shapes: C classes, D width, T values of tau.
"""
from collections.abc import Mapping, Sequence
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
    sort_classes,
    whole_numbers,
)

__all__ = [
    'plot_class_accuracy', 'plot_confusion', 'plot_sampler_probabilities', 'plot_tau_curve', 'plot_training_curves',
    'plot_weight_norms', 'require_matplotlib',
]

# the same in all figures; a line that lies on another's shows between its dashes
_GROUP_LOOKS = {
    'many': ('#0072B2', '-'), 'medium': ('#E69F00', '-'), 'few': ('#D55E00', '-'), 'all': ('#000000', '-'),
    'balanced': ('#CC79A7', '--'), 'loss': ('#000000', '-'),
}
_LOOKS = {
    **_GROUP_LOOKS, **{f'eval_{name}': style for name, style in _GROUP_LOOKS.items()},
    'train_loss': ('#999999', '-'), 'train_accuracy': ('#999999', '-'), 'lr': ('#000000', '-'),
}


def plot_weight_norms(path, weights: Mapping[str, Any], class_counts, *, against: str = 'images', title: str = ''):
    """Draw the norm of each class's weight: after training on all images alike it grows with the class.

    Kang et al., Decoupling Representation and Classifier, ICLR 2020 (https://arxiv.org/abs/1910.09217), Figure 2. Norms
    that span more than a factor of 20 get a logarithmic axis: classifiers differ in scale.

    Args:
        path: PNG file.
        weights: Weight [C, D] of each classifier by name, such as before and after it was trained again.
        class_counts: Training images of each class [C].
        against: Horizontal axis: `images` for their number, `rank` for the classes in the order of it.
        title: Above the figure.
    """
    if against not in ('images', 'rank'):
        raise UserError(f'against: expected images or rank, got {against!r}')
    counts, order = sort_classes(class_counts)
    norms = {name: np.linalg.norm(as_array(w, name, (len(counts), None)), axis=1)[order] for name, w in weights.items()}
    positive = np.concatenate([values[values > 0] for values in norms.values()])
    with canvas(path, title) as figure:
        axis = figure.subplots()
        for i, (name, values) in enumerate(norms.items()):
            class_curve(axis, counts if against == 'images' else np.arange(1, len(counts) + 1), values, name, i)
        if against == 'images':
            axis.set(xscale='log', xlabel='Training images of the class')
            plain_numbers(axis.xaxis)
        else:
            class_axis(axis, order)
            mark_groups(axis, counts, shot_groups)
        if len(positive) and positive.max() > 20 * positive.min():
            axis.set_yscale('log')
            plain_numbers(axis.yaxis)
        else:
            axis.set_ylim(bottom=0)
        axis.set_ylabel('Norm of the weight of the class')
        legend(figure, axis, len(counts))
    return figure


def plot_sampler_probabilities(path, probabilities: Mapping[str, Any], class_counts, *, title: str = ''):
    """Draw how likely each sampler draws an image of each class, the classes sorted by training images.

    Kang et al., ICLR 2020 (https://arxiv.org/abs/1910.09217), section 3 and appendix: instance-balanced, square-root,
    class-balanced, and the progressive sampler, which goes from the first to the last over the epochs.

    Args:
        path: PNG file.
        probabilities: Probabilities [C], which sum to 1, by the sampler's name; of a sampler that changes, a mapping
            from epochs to them, drawn in one colour that darkens with the epoch.
        class_counts: Training images of each class [C].
        title: Above the figure.
    """
    counts, order = sort_classes(class_counts)
    rank = np.arange(1, len(counts) + 1)
    with canvas(path, title) as figure:
        axis = figure.subplots()
        for i, (name, values) in enumerate(probabilities.items()):
            curves, style = {name: values}, {'linestyle': '-'}
            if isinstance(values, Mapping):
                curves = {f'{name}, epoch {epoch}': values[epoch] for epoch in sorted(values)}
                style = {'linestyle': (0, (3, 3)), 'zorder': 3}  # its first and last lie on those of other samplers
            for k, (label, p) in enumerate(curves.items(), start=1):
                axis.plot(rank, 100 * as_array(p, label, (len(counts),))[order], label=label, **style,
                          color=mixed(look(i)[0], 0.3 + 0.7 * k / len(curves)), marker='.' if len(counts) < 24 else '')
        axis.set(yscale='log', ylabel='Probability of the class in a draw (%)')
        plain_numbers(axis.yaxis)
        class_axis(axis, order)
        mark_groups(axis, counts, shot_groups)
        legend(figure, axis)
    return figure


def plot_class_accuracy(
        path,
        accuracies: Mapping[str, Any],
        class_counts,
        *,
        class_names: Sequence[str] | None = None,
        title: str = '',
):
    """Draw the accuracy of each class, sorted by training images, in front of the area of their numbers.

    Compares runs, or one run early and late in training. From 24 classes on a point is a class, a line a running mean.

    Args:
        path: PNG file.
        accuracies: `class_accuracy` [C] in percent by the name of the run or epoch; None for a class without images.
        class_counts: Training images of each class [C].
        class_names: C names, shown for up to 20 classes.
        title: Above the figure.
    """
    counts, order = sort_classes(class_counts)
    rank = np.arange(1, len(counts) + 1)
    with canvas(path, title) as figure:
        axis = figure.subplots()
        images = axis.twinx()
        images.fill_between(
            np.append(rank, rank[-1] + 1) - 0.5, np.append(counts, counts[-1]), step='post', color='0.88', linewidth=0)
        images.set_ylim(-0.02 * counts.max(), 1.02 * counts.max())  # zero beside zero
        images.set_ylabel('Training images of the class (area)', color='0.4')
        images.tick_params(colors='0.4')
        images.spines['right'].set(visible=True, color='0.6')
        images.grid(False)
        axis.set_zorder(images.get_zorder() + 1)  # the lines in front of the area
        axis.patch.set_visible(False)
        for i, (name, values) in enumerate(accuracies.items()):
            class_curve(axis, rank, as_array(values, name, (len(counts),))[order], name, i)
        axis.set(ylabel='Accuracy of the class (%)', ylim=(-2, 102))
        class_axis(axis, order, class_names)
        mark_groups(axis, counts, shot_groups)
        legend(figure, axis, len(counts))
    return figure


def plot_confusion(
        path,
        confusions: Mapping[str, Any],
        class_counts,
        *,
        groups: GroupRule = shot_groups,
        class_names: Sequence[str] | None = None,
        title: str = '',
):
    """Draw the confusion of models side by side, rows in percent, the classes sorted by training images.

    The title of each has its `confusion_rate`: the share of the images of the rarest classes (Few, or the last group
    that is not empty) predicted as one of the most frequent (Many). Beyond 200 classes a cell is a block of neighbours:
    the mean over its rows of the sum over its columns. The colour is that of the square root, so that the few percent
    beside the diagonal show. A row without images is grey.

    Args:
        path: PNG file.
        confusions: Images of each class (rows) taken for each class (columns), [C, C], by the model's name.
        class_counts: Training images of each class [C].
        groups: Splits the counts, most frequent classes first: `shot_groups` or `head_tail_groups`.
        class_names: C names, shown for up to 20 classes.
        title: Above the figure.
    """
    counts, order = sort_classes(class_counts)
    bounds = group_bounds(counts, groups)
    head, *_, tail = [*bounds, *bounds]  # one group is both
    matrices = {name: as_array(m, name, (len(counts), len(counts))) for name, m in confusions.items()}
    names = None if class_names is None else [class_names[c] for c in order]
    with canvas(path, title, (1.4 + 4.2 * len(matrices), 5.2)) as figure:
        axes = figure.subplots(1, len(matrices), squeeze=False)[0]
        for axis, (name, matrix) in zip(axes, matrices.items()):
            image = draw_confusion(axis, matrix[np.ix_(order, order)], bounds, names)
            rate = confusion_rate(matrix, class_counts, tail, head, groups)
            rate = 'n/a' if rate is None or head == tail else f'{rate:.1f} %'
            axis.set_title(f'{name}\n{tail.capitalize()} predicted as {head.capitalize()}: {rate}', pad=18)
        size = block_size(len(counts))
        blocks = f' (%), blocks of {size} x {size} classes' if size > 1 else ' of the class (%)'
        label = f'Share of the images{blocks}, colours by its square root'
        bar = figure.colorbar(image, ax=axes, label=label, shrink=0.8)
        bar.set_ticks([0, 1, 5, 20, 50, 100])
    return figure


def plot_tau_curve(
        path,
        taus: Sequence[float],
        metrics: Sequence[Mapping[str, Any]],
        chosen: float | None = None,
        *,
        columns: Sequence[str] = ('balanced', *GROUPS),
        title: str = '',
):
    """Draw accuracies over tau, the power by which tau-normalisation divides weights, and the tau that was chosen.

    Kang et al., ICLR 2020 (https://arxiv.org/abs/1910.09217), Figure 2, right. The title should say on which images tau
    was chosen and on which the accuracies were measured.

    Args:
        path: PNG file.
        taus: Values of tau [T], in any order.
        metrics: What `LongTailEvaluator.compute` returned for each, [T].
        chosen: The tau to mark.
        columns: Metrics to draw; one that is None or missing everywhere is left out.
        title: Above the figure.
    """
    taus = as_array(taus, 'taus', (len(metrics),))
    order = np.argsort(taus, kind='stable')
    with canvas(path, title) as figure:
        axis = figure.subplots()
        for i, (name, values) in enumerate(_columns(metrics, columns).items()):
            _curve(axis, taus[order], values[order], _title(name), _LOOKS.get(name) or look(i))
        if chosen is not None:
            axis.axvline(chosen, color='0.4', linewidth=1, linestyle=':', label=f'Chosen: τ = {chosen:g}')
        axis.set(xlabel='τ', ylabel='Accuracy (%)')
        legend(figure, axis)
    return figure


def plot_training_curves(
        path,
        history: Sequence[Mapping[str, Any]],
        *,
        losses: Sequence[str] = ('train_loss', 'eval_loss'),
        accuracies: Sequence[str] = ('train_accuracy', 'eval_all', *(f'eval_{name}' for name in GROUPS)),
        title: str = '',
):
    """Draw losses, accuracies and the learning rate over the epochs, with the last figures in the legend.

    The training accuracy is that of augmented images while the weights change, so it may lie below the other.

    Args:
        path: PNG file.
        history: Rows of a run (`run.history`), or of its `summary.csv` as `csv.DictReader` gives them.
        losses: Columns of the upper panel, in nats; one that is empty or missing is left out.
        accuracies: Columns of the middle panel, in percent but for `train_accuracy`, a share.
        title: Above the figure.
    """
    panels = {'Loss (nats)': losses, 'Accuracy (%)': accuracies, 'Learning rate': ('lr',)}
    epochs = as_array([row['epoch'] for row in history], 'epoch', (len(history),))
    with canvas(path, title, (6.4, 6.0)) as figure:
        axes = figure.subplots(len(panels), sharex=True, height_ratios=(3, 4, 1.3))
        for axis, (label, columns) in zip(axes, panels.items()):
            for i, (name, values) in enumerate(_columns(history, columns).items()):
                values = 100 * values if name == 'train_accuracy' else values
                last = values[~np.isnan(values)][-1]
                _curve(axis, epochs, values, f'{_title(name)}: {last:.4g}', _LOOKS.get(name) or look(i))
            axis.set_ylabel(label)
            if columns != ('lr',) and axis.lines:
                axis.legend(loc='upper left', bbox_to_anchor=(1, 1), title='Last value', alignment='left')
        axes[-1].set_xlabel('Epoch, from 0')
        whole_numbers(axes[-1].xaxis)
    return figure


def _columns(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the columns that have a number in any row, NaN where a row has none; a CSV file writes none as ''."""
    columns = {name: [row.get(name) for row in rows] for name in names}
    arrays = {name: as_array([None if v == '' else v for v in column], name, (len(rows),))
              for name, column in columns.items()}
    return {name: values for name, values in arrays.items() if not np.isnan(values).all()}


def _title(name: str) -> str:
    return name.replace('_', ' ').capitalize()


def _curve(axis, x: np.ndarray, values: np.ndarray, label: str, style: tuple[str, str]):
    """Draw a line through those values that are numbers."""
    seen = ~np.isnan(values)
    axis.plot(x[seen], values[seen], label=label, color=style[0], linestyle=style[1],
              marker='.' if seen.sum() < 32 else '')
