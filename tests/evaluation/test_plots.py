"""Figures: what is drawn is read from the artists; the files are what they should be."""
import csv
import io
import sys
from itertools import pairwise

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from PIL import Image

from timm_longtail.data.longtail import head_tail_groups, long_tail_counts, shot_groups
from timm_longtail.evaluation.confusion import confusion_rate
from timm_longtail.evaluation.plots import figures, style
from timm_longtail.utils.errors import UserError

COUNTS = [30, 500, 10, 200]  # Medium, Many, Few, Many
ORDER = [1, 3, 0, 2]
SORTED = [500, 200, 30, 10]
NAMES = ['a', 'b', 'c', 'd']


@pytest.fixture
def draw(tmp_path):
    """Draw a figure; its file is a PNG of the figure's size."""
    def draw(function, *args, **kwargs):
        path = tmp_path / 'new folder' / f'{function.__name__}.png'
        figure = function(path, *args, **kwargs)
        with Image.open(path) as image:
            image.load()
            assert image.format == 'PNG' and image.size == tuple(round(150 * s) for s in figure.get_size_inches())
            assert len(image.convert('L').getcolors()) > 5  # not blank

        assert 5_000 < path.stat().st_size < 1_000_000
        return figure

    return draw


def curves(axis):
    """The named curves of an axis: x and y by label."""
    named = [line for line in axis.get_lines() if not line.get_label().startswith('_')]
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in named}


def points(axis):
    """The x and y of what `class_curve` draws as points, in order."""
    return [(line.get_xdata(), line.get_ydata()) for line in axis.get_lines() if line.get_label() == '_points']


def legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def words(axis):
    return [text.get_text() for text in axis.texts]


def bounds(axis):
    """Where the dashed lines between the groups stand."""
    places = []
    for line in axis.get_lines():
        x = line.get_xdata()
        if len(x) == 2 and x[0] == x[1] and line.get_label().startswith('_'):
            places.append(x[0])
    return places


def equal(values, expected):
    np.testing.assert_allclose(np.asarray(values, float), np.asarray(expected, float), rtol=1e-12)


def weights_of_norm(norms):
    random = np.random.default_rng(0)
    rows = random.normal(size=(len(norms), 8))
    return torch.as_tensor(rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.asarray(norms)[:, None])


def test_weight_norms_against_images(draw):
    weights = {'joint': weights_of_norm([2, 4, 1, 3]).requires_grad_(), 'cRT': weights_of_norm([2, 2, 2, 1]).numpy()}
    figure = draw(figures.plot_weight_norms, weights, COUNTS, title='A title')
    axis, = figure.axes
    for (x, y), expected in zip(points(axis), ([4, 3, 2, 1], [2, 1, 2, 2]), strict=True):
        equal(x, SORTED)
        equal(y, expected)

    equal(curves(axis)['joint'], ([10, 30, 200, 500], [1, 2, 3, 4]))
    assert legend_labels(figure) == ['joint', 'cRT'] and figure.get_suptitle() == 'A title'
    assert axis.get_xscale() == 'log' and axis.get_yscale() == 'linear' and axis.get_ylim()[0] == 0
    assert axis.get_xlabel() == 'Training images of the class'
    assert len({line.get_color() for line in axis.get_lines()}) == 2


def test_weight_norms_against_rank(draw):
    axis, = draw(figures.plot_weight_norms, {'x': weights_of_norm([2, 4, 1, 3])}, COUNTS, against='rank').axes
    equal(curves(axis)['x'], ([1, 2, 3, 4], [4, 3, 2, 1]))
    assert words(axis) == ['Many (2)', 'Medium (1)', 'Few (1)'] and bounds(axis) == [2.5, 3.5]


def test_weight_norms_of_different_scale_get_a_logarithmic_axis(draw):
    weights = {'joint': weights_of_norm([2, 4, 1, 3]), 'small': weights_of_norm([.1, .1, .1, .1])}
    assert draw(figures.plot_weight_norms, weights, COUNTS).axes[0].get_yscale() == 'log'


def test_classes_with_as_many_images_share_a_place_of_the_line(draw):
    axis, = draw(figures.plot_weight_norms, {'x': weights_of_norm([5, 1, 2, 6])}, [100, 9, 9, 9]).axes
    equal(points(axis)[0], ([100, 9, 9, 9], [5, 1, 2, 6]))
    equal(curves(axis)['x'], ([9, 100], [3, 5]))


def test_sampler_probabilities(draw):
    p = np.array(COUNTS) / sum(COUNTS)
    changing = {20: np.full(4, 0.25), 0: p, 10: (p + 0.25) / 2}  # not in order
    samplers = {'uniform': p, 'progressive': changing, 'balanced': [0.25] * 4}
    figure = draw(figures.plot_sampler_probabilities, samplers, COUNTS)
    axis, = figure.axes
    labels = ['uniform', *(f'progressive, epoch {e}' for e in (0, 10, 20)), 'balanced']
    assert legend_labels(figure) == [*curves(axis)] == labels
    equal(curves(axis)['uniform'], ([1, 2, 3, 4], 100 * p[ORDER]))
    equal(curves(axis)['progressive, epoch 10'][1], 100 * (p[ORDER] + 0.25) / 2)
    assert all(sum(y) == pytest.approx(100) for _, y in curves(axis).values())
    assert axis.get_yscale() == 'log' and '(%)' in axis.get_ylabel()

    lines = {line.get_label(): line for line in axis.get_lines()}
    assert lines['progressive, epoch 0'].get_linestyle() != lines['uniform'].get_linestyle() == '-'

    shades = [sum(to_rgb(lines[f'progressive, epoch {e}'].get_color())) for e in (0, 10, 20)]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == 3  # darker and darker


def test_class_accuracy(draw):
    runs = {'early': [10.0, 90, None, 40], 'late': torch.tensor([30.0, 80, 20, 50])}
    figure = draw(figures.plot_class_accuracy, runs, COUNTS, class_names=NAMES)
    axis, images = figure.axes
    for name, expected in (('early', [90, 40, 10, np.nan]), ('late', [80, 50, 30, 20])):
        equal(curves(axis)[name], ([1, 2, 3, 4], expected))
    assert legend_labels(figure) == ['early', 'late']
    assert [label.get_text() for label in axis.get_xticklabels()] == ['b', 'd', 'a', 'c']
    assert words(axis) == ['Many (2)', 'Medium (1)', 'Few (1)'] and bounds(axis) == [2.5, 3.5]

    heights = images.collections[0].get_paths()[0].vertices
    for rank, count in enumerate(SORTED, start=1):
        beside = heights[(heights[:, 0] == rank - 0.5) | (heights[:, 0] == rank + 0.5)]
        assert count in beside[:, 1]

    assert heights[:, 1].max() == 500 and set(heights[:, 1]) == {0, *SORTED}
    assert axis.get_zorder() > images.get_zorder() and not axis.patch.get_visible()

    low, high = axis.get_ylim()
    equal(np.array(images.get_ylim()) / 500, np.array([low, high]) / 100)  # zero beside zero


def test_many_classes_have_a_running_mean(draw):
    counts = long_tail_counts(500, 100, 100)
    accuracy = np.random.default_rng(0).uniform(0, 100, 100)
    accuracy[40] = np.nan
    figure = draw(figures.plot_class_accuracy, {'x': accuracy}, counts, class_names=[str(c) for c in range(100)])
    axis = figure.axes[0]
    equal(points(axis)[0][1], accuracy)

    line = curves(axis)['x'][1]
    for c in range(100):
        around = [a for a in accuracy[max(0, c - 4):c + 5] if not np.isnan(a)]
        assert line[c] == pytest.approx(sum(around) / len(around))

    assert figure.legends[0].get_title().get_text().endswith('mean of 9 neighbouring classes')
    assert len(axis.get_xticklabels()) < 12  # a hundred names would be a black bar


def test_confusion(draw):
    confusion = np.array([[6, 2, 1, 1], [0, 9, 0, 1], [1, 5, 4, 0], [0, 0, 0, 0]])
    other = torch.eye(4, dtype=torch.int64) * 7
    figure = draw(figures.plot_confusion, {'CE': confusion, 'BCL': other}, COUNTS, class_names=NAMES)
    first, second, bar = figure.axes
    drawn = first.images[0].get_array()
    for i, row in enumerate(ORDER):
        for j, column in enumerate(ORDER):
            if row == 3:
                assert drawn.mask[i, j]  # no image of this class
            else:
                assert drawn[i, j] == pytest.approx(100 * confusion[row, column] / confusion[row].sum())

    equal(second.images[0].get_array(), 100 * np.eye(4))
    assert confusion_rate(confusion, COUNTS) == 50  # Many are classes 1 and 3, Few is class 2
    assert first.get_title() == 'CE\nFew predicted as Many: 50.0 %'
    assert second.get_title() == 'BCL\nFew predicted as Many: 0.0 %'
    assert [label.get_text() for label in first.get_yticklabels()] == ['b', 'd', 'a', 'c']
    assert [text for text in words(first) if text.isalpha()] == 2 * ['Many', 'Medium', 'Few']

    numbers = [text for text in words(first) if text.isdigit()]
    assert numbers == ['90', '10', '20', '10', '60', '10', '50', '10', '40']  # row by row, a zero is not written
    assert bounds(first) == [2.5, 3.5]
    assert bar.get_ylabel() == 'Share of the images of the class (%), colours by its square root'


def test_confusion_of_other_groups(draw):
    confusion = np.array([[1, 3], [0, 4]])
    figure = draw(figures.plot_confusion, {'x': confusion}, [20, 500], groups=head_tail_groups)
    assert figure.axes[0].get_title() == 'x\nTail predicted as Head: 75.0 %'
    figure = draw(figures.plot_confusion, {'x': confusion}, [50, 500])  # no Few class
    assert figure.axes[0].get_title() == 'x\nMedium predicted as Many: 75.0 %'
    figure = draw(figures.plot_confusion, {'x': confusion}, [200, 500])
    assert figure.axes[0].get_title().endswith('n/a') and bounds(figure.axes[0]) == []


def test_confusion_in_blocks():
    confusion = np.random.default_rng(0).integers(0, 9, (7, 7))
    confusion[3:6] = 0
    confusion[2] = 0
    blocks = style.in_blocks(confusion, 3)
    for i in range(3):
        for j in range(3):
            rows = [row for row in confusion[3 * i:3 * i + 3] if row.sum()]
            shares = [100 * row[3 * j:3 * j + 3].sum() / row.sum() for row in rows]
            assert np.isnan(blocks[i, j]) if i == 1 else blocks[i, j] == pytest.approx(sum(shares) / len(shares))

    assert np.isnan(blocks[1]).all()
    equal(style.in_blocks(np.eye(7), 1), 100 * np.eye(7))
    assert [style.block_size(n) for n in (1, 200, 201, 1000, 8142)] == [1, 1, 2, 5, 41]


def test_tau_curve(draw):
    few = {2: 10, 0: 0, 1: None}
    metrics = [
        {'balanced': 40, 'many': 60, 'medium': None, 'few': few[tau], 'class_correct': []}
        for tau in (2, 0, 1)
    ]
    figure = draw(figures.plot_tau_curve, [2, 0, 1], metrics, 1)
    axis, = figure.axes

    assert legend_labels(figure) == ['Balanced', 'Many', 'Few', 'Chosen: τ = 1']
    equal(curves(axis)['Few'], ([0, 2], [0, 10]))
    equal(curves(axis)['Many'], ([0, 1, 2], [60, 60, 60]))
    assert [*curves(axis)['Chosen: τ = 1'][0]] == [1, 1]
    assert axis.get_xlabel() == 'τ' and '(%)' in axis.get_ylabel()
    assert len(draw(figures.plot_tau_curve, [0], metrics[:1]).axes[0].get_lines()) == 3  # without a choice


def history(num_epochs=4):
    """Rows of a run that is evaluated every second epoch."""
    rows = []
    for e in range(num_epochs):
        rows.append({
            'epoch': e,
            'lr': 0.1 / (e + 1),
            'train_accuracy': e / 10,
            'train_loss': 4.0 - e,
            'train_seconds': 1.0,
        })
        if e % 2:
            rows[-1].update(
                {'eval_all': 10.0 * e, 'eval_many': 20.0 * e, 'eval_few': None, 'eval_loss': 5.0})
    return rows


def check_training_curves(figure):
    losses, accuracies, rate = figure.axes

    assert [*curves(losses)] == ['Train loss: 1', 'Eval loss: 5']
    equal(curves(losses)['Train loss: 1'], ([0, 1, 2, 3], [4, 3, 2, 1]))
    assert [*curves(accuracies)] == ['Train accuracy: 30', 'Eval all: 30', 'Eval many: 60']
    equal(curves(accuracies)['Train accuracy: 30'], ([0, 1, 2, 3], [0, 10, 20, 30]))
    equal(curves(accuracies)['Eval many: 60'], ([1, 3], [20, 60]))  # evaluated every second epoch
    equal(rate.get_lines()[0].get_ydata(), [0.1, 0.05, 0.1 / 3, 0.025])
    assert rate.get_legend() is None and rate.get_xlabel() == 'Epoch, from 0'
    assert [text.get_text() for text in losses.get_legend().get_texts()] == [*curves(losses)]


def test_training_curves(draw):
    check_training_curves(draw(figures.plot_training_curves, history()))


def test_training_curves_from_a_summary(draw):
    text = io.StringIO()
    writer = csv.DictWriter(text, ['epoch', *dict.fromkeys(name for row in history() for name in row)])
    writer.writeheader()
    writer.writerows(history())
    text.seek(0)
    check_training_curves(draw(figures.plot_training_curves, list(csv.DictReader(text))))


def test_training_curves_of_one_epoch_without_evaluation(draw):
    losses, accuracies, _ = draw(figures.plot_training_curves, history(1), accuracies=('eval_all', 'nonsense')).axes
    assert [line.get_marker() for line in losses.get_lines()] == ['.']  # a line of one place would not be seen
    assert curves(accuracies) == {} and accuracies.get_legend() is None


@pytest.mark.parametrize('num_classes', [1, 1000])
def test_number_of_classes(draw, num_classes):
    counts = long_tail_counts(1280, num_classes, 256)
    random = np.random.default_rng(0)
    p = np.array(counts) / sum(counts)
    draw(figures.plot_weight_norms, {'a': random.normal(size=(num_classes, 4)), 'b': np.ones((num_classes, 4))}, counts)
    draw(figures.plot_sampler_probabilities, {'a': p, 'b': {0: p, 9: p ** 0 / num_classes}}, counts)
    figure = draw(figures.plot_class_accuracy, {'a': random.uniform(0, 100, num_classes)}, counts)
    assert figure.axes[0].get_xlim() == (0.5, num_classes + 0.5)

    confusion = random.integers(0, 5, (num_classes, num_classes)) + 50 * np.eye(num_classes)
    first, bar = draw(figures.plot_confusion, {'a': confusion}, counts).axes
    if num_classes == 1000:
        assert first.images[0].get_array().shape == (200, 200) and '5 x 5 classes' in bar.get_ylabel()
        assert bounds(first) == [len(shot_groups(counts)['many']) + 0.5, 1000.5 - len(shot_groups(counts)['few'])]


def test_accuracies_without_a_number(draw):
    figure = draw(figures.plot_class_accuracy, {'none': [None] * 4, 'nan': [float('nan')] * 4}, COUNTS)
    assert legend_labels(figure) == ['none', 'nan']
    draw(figures.plot_tau_curve, [0, 1], [{}, {}])


@pytest.mark.parametrize('function, args, words', [
    (figures.plot_weight_norms, ({'cRT': np.ones((3, 8))}, COUNTS), r'cRT: expected .* \[4, any\], got \[3, 8\]'),
    (figures.plot_sampler_probabilities, ({'p': [1.0]}, COUNTS), r'p: expected .* \[4\], got \[1\]'),
    (figures.plot_class_accuracy, ({'run': [1.0] * 5}, COUNTS), r'run: expected .* \[4\], got \[5\]'),
    (figures.plot_confusion, ({'CE': np.ones((4, 5))}, COUNTS), r'CE: expected .* \[4, 4\], got \[4, 5\]'),
    (figures.plot_tau_curve, ([1, 2], [{}]), r'taus: expected .* \[1\], got \[2\]'),
])
def test_a_wrong_shape_is_named(tmp_path, function, args, words):
    with pytest.raises(UserError, match=words):
        function(tmp_path / 'x.png', *args)
    assert not (tmp_path / 'x.png').exists()


def test_against_something_else(tmp_path):
    with pytest.raises(UserError, match="expected images or rank, got 'epoch'"):
        figures.plot_weight_norms(tmp_path / 'x.png', {}, COUNTS, against='epoch')


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot write'):
        figures.plot_tau_curve(tmp_path / 'file' / 'x.png', [0], [{'many': 1.0}])


@pytest.mark.parametrize('name', ['$x_$', 'a_b^c', '{'])
def test_names_are_taken_as_they_are(draw, name):
    figure = draw(figures.plot_class_accuracy, {name: [1.0] * 4}, COUNTS, class_names=[name] * 4, title=name)
    assert legend_labels(figure) == [name]


def test_a_figure_is_a_function_of_its_arguments(tmp_path):
    def draw(name):
        figures.plot_class_accuracy(tmp_path / name, {'run': [10.0, 90, None, 40]}, COUNTS)
        return (tmp_path / name).read_bytes()

    first = draw('a.png')
    with matplotlib.rc_context({'lines.linewidth': 9, 'font.size': 20, 'savefig.dpi': 30, 'figure.facecolor': 'red'}):
        assert draw('b.png') == first
        assert matplotlib.rcParams['lines.linewidth'] == 9  # the user's settings are as they were

    with Image.open(tmp_path / 'a.png') as image:
        assert image.info.keys() <= {'dpi'}  # no date, no program


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    for call in (figures.require_matplotlib, lambda: figures.plot_tau_curve(tmp_path / 'x.png', [0], [{'many': 1.0}])):
        with pytest.raises(UserError, match=r"pip install 'timm_longtail\[plots\]'"):
            call()


def luminance(colour):
    return np.dot([0.2126, 0.7152, 0.0722], [c ** 2.2 for c in to_rgb(colour)])


def test_curves_are_told_apart():
    assert len({style.look(i) for i in range(28)}) == 28
    colours = {style.look(i)[0] for i in range(7)}
    assert len(colours) == 7
    for colour in colours:
        assert 1.05 / (luminance(colour) + 0.05) > 2  # contrast to white
    assert len({figures._LOOKS[name] for name in ('all', 'balanced', 'many', 'medium', 'few')}) == 5


@pytest.mark.parametrize('middles', [[0.5], [0.01, 0.02, 0.5], [0.4, 0.98, 0.99], [0.2, 0.5, 0.8], [0.49, 0.5, 0.51]])
def test_labels_do_not_overlap(middles):
    placed = style.pad_labels(middles, 0.17)
    assert all(b - a >= 0.17 - 1e-9 for a, b in pairwise(placed))
    assert placed[0] >= 0.085 - 1e-9 and placed[-1] <= 0.915 + 1e-9
    if middles == [0.2, 0.5, 0.8]:
        assert placed == middles


def test_legends_are_as_wide_as_the_figure(draw):
    many = {f'a run with quite a long name, {i}': [1.0 * i] * 4 for i in range(9)}
    figure = draw(figures.plot_class_accuracy, many, COUNTS)
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1
