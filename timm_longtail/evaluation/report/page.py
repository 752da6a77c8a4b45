"""The report page: one HTML file that shows runs to people who do not know the tool.

Everything is inside the file: style, script, charts as SVG, thumbnails. Names of classes come from
folders of users, so whatever is not a template is escaped.
"""
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup

from ...data import LongTailDataset
from ...utils.errors import UserError, one_line
from ...utils.files import write_text
from ...utils.version import __version__
from ..tables import GROUPS
from .charts import Axis, Chart, Curve, heat_map, linear_axis, log_axis, smoothed
from .entries import Bins, Entry, entries_of
from .pictures import add_gallery
from .reading import read_reports
from .run_report import RunReport

__all__ = ['PAGE', 'render', 'write_page', 'write_page_of_run']

PAGE = 'report.html'

# columns of the table of results: figure, title, what it is
_COLUMNS = (
    ('all', 'All', 'test images that are classified correctly'),
    ('many', 'Many', 'mean accuracy of the classes with more than 100 training images'),
    ('medium', 'Medium', 'mean accuracy of the classes with 20 to 100 training images'),
    ('few', 'Few', 'mean accuracy of the classes with fewer than 20 training images'),
    ('balanced', 'Balanced', 'mean accuracy of all classes'),
    ('few_to_many', 'Few as Many', 'images of Few classes that are misclassified as a Many class'),
    ('ece', 'Calibration error', 'how far the probabilities are from the share of right answers'),
)

# facts that stand beside the chart of the data
_OF_THE_DATA = ('Data set', 'Training images', 'Imbalance factor', 'Held out', 'Fingerprint of the images')

# entries that have room in one chart, and columns in the table of classes
_MOST_ENTRIES = 8

# points, or bars, that a chart can hold and a reader tell apart
_MOST_POINTS = 1500
_MOST_BARS = 400

# cells along one side of a confusion
_MOST_BLOCKS = 100

# confusions whose classes are named at the side
_NAMED_CLASSES = 20

# confusions that have room for numbers
_NUMBERED_CLASSES = 12

# rows of the table of confused classes, of each entry
_MOST_PAIRS = 200


def write_page_of_run(
        folder: Path,
        train_set: LongTailDataset | None = None,
        test_set: LongTailDataset | None = None,
):
    """Write the report page of a run that has just finished, into its folder, and say where.

    All else of the run is written before: what fails here ends in a line, not in an error.

    Args:
        folder: Output folder of the run.
        train_set: Training images, for thumbnails.
        test_set: Test images, for thumbnails.
    """
    try:
        reports = read_reports(folder)
        if test_set is not None:
            # of a comparison, the one that was chosen comes first
            shown = next((report for report in reports if report.predictions is not None), reports[0])
            add_gallery(shown, train_set, test_set)
        write_page(folder / PAGE, reports)
    except Exception as e:
        print(f'no report page: {one_line(e) or type(e).__name__}', flush=True)
    else:
        print(f'report: {folder / PAGE}', flush=True)


def write_page(path: Path, reports: Sequence[RunReport]):
    """Write the report page of one or more models.

    Args:
        path: HTML file.
        reports: From `read_reports`.

    Raises:
        UserError: The models cannot be compared, or the disk refuses the file.
    """
    write_text(path, render(reports))


def render(reports: Sequence[RunReport]) -> str:
    """Return the report page of one or more models as HTML.

    Args:
        reports: From `read_reports`.

    Raises:
        UserError: There are none, or models that cannot be compared.
    """
    if not reports:
        raise UserError('there is no run to report')
    entries = entries_of(reports)
    first = entries[0].first

    context: dict[str, Any] = {
        'entries': entries,
        'first': first,
        'groups': GROUPS,
        'names': first.class_names,
        'columns': _columns(entries),
        'counted': _counted(entries),
        'summary': _summary(entries),
        'facts': _facts(entries),
        'data_facts': [(title, first.facts[title]) for title in _OF_THE_DATA if title in first.facts],
        'shown': entries[:_MOST_ENTRIES],
        'has_intervals': any(len(entry.runs) == 1 for entry in entries) and first.tells_classes,
        'has_seeds': any(len(entry.runs) > 1 for entry in entries),
        'curves': _learning_curves(entries[:_MOST_ENTRIES]),
        'version': __version__,
    }
    if first.tells_classes:
        context.update(_class_sections(entries[:_MOST_ENTRIES]))
    return _template().render(context)


def _columns(entries: Sequence[Entry]) -> list[tuple[str, str, str]]:
    """Return the columns of the table of results that hold a figure of any entry."""
    columns = []
    for column in _COLUMNS:
        figures = [entry.figure(column[0]) for entry in entries]
        if any(figure.value is not None for figure in figures):
            columns.append(column)
    return columns


def _template() -> jinja2.Template:
    if _environment.globals.get('css') is None:
        folder = resources.files(__package__) / 'templates'
        for name in ('css', 'js'):
            _environment.globals[name] = Markup((folder / f'page.{name}').read_text(encoding='utf-8'))
        _environment.filters['figure'] = _figure
        _environment.filters['thousands'] = '{:,}'.format
    return _environment.get_template('page.html')


_environment = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__, 'templates'),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _figure(value: float | None, digits: int = 1) -> str:
    """Return a figure as it is shown; a defined one that is not finite, too."""
    if value is None or not math.isfinite(value):
        return 'n/a'
    return f'{value:.{digits}f}'


def _isolated(name: str) -> str:
    """Return a name for the middle of a tooltip, which a change of the direction of text does not leave."""
    return f'\u2068{name}\u2069'


# -------------------------------------------------------------------------------------- sentences

def _summary(entries: Sequence[Entry]) -> str:
    """Return in a sentence or two what the page is about."""
    entry, run = entries[0], entries[0].first
    num_images = f'{sum(run.class_total):,} test images of {len(run.class_total):,} classes'

    if len(entries) > 1:
        compared = f'{_counted(entries)} side by side'
        models = {entry.first.facts['Model'] for entry in entries}
        if len(models) == 1:
            compared += f', all of {models.pop()}'
        if not run.tells_classes:
            return f'{compared}.'
        return f'{compared}, on the same {num_images}.'

    sentence = run.facts['Model']
    if 'Method' in run.facts:
        sentence += f', trained with {run.facts["Method"].partition(" (")[0]}'
    if 'Data set' in run.facts:
        sentence += f' on {run.facts["Data set"]}'
    if any(run.class_counts):
        most, fewest = max(run.class_counts), min(run.class_counts)
        sentence += (
            f': {sum(run.class_counts):,} training images, {most:,} of the most frequent class and {fewest:,} of the '
            'rarest')
    sentence += '.'

    accuracy = entry.figure('all').value
    if accuracy is None or not run.tells_classes:
        return sentence
    sentence += f' It classifies {accuracy:.1f} % of {num_images} correctly'
    few = entry.figure('few').value
    if few is not None:
        sentence += f', and {few:.1f} % in the classes with the fewest training images'
    return sentence + '.'


def _counted(entries: Sequence[Entry]) -> str:
    """Return how many models or classifiers are compared."""
    are_classifiers = all('Classifier' in entry.first.facts for entry in entries)
    return f'{len(entries)} {"classifiers" if are_classifiers else "models"}'


@dataclass
class _Fact:
    """A row of the table of what was trained: its title, and a text for each entry."""
    title: str
    texts: list[str]


def _facts(entries: Sequence[Entry]) -> list[_Fact]:
    titles = list(dict.fromkeys(title for entry in entries for title in entry.first.facts))
    rows = [_Fact(title, [entry.first.facts.get(title, '') for entry in entries]) for title in titles]

    seeds = [', '.join(str(run.seed) for run in entry.runs if run.seed is not None) for entry in entries]
    if any(seeds):
        rows.append(_Fact('Seed', seeds))
    return rows


# -------------------------------------------------------------------------------------- classes

def _class_sections(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return what is shown of models that tell classes."""
    confused = [(number, entry) for number, entry in enumerate(entries) if entry.cells is not None]
    without = [entry for entry in entries if entry.cells is None]
    return {
        'counts': _count_charts(entries),
        'accuracy': _accuracy_chart(entries),
        'confusions': [_confusion(number, entry) for number, entry in confused],
        'pairs': [(number, pair) for number, entry in confused for pair in entry.confused[:_MOST_PAIRS]],
        'num_pairs': sum(len(entry.confused) for _, entry in confused),
        'reliability': [chart for number, entry in confused for chart in _reliability_charts(number, entry)],
        'is_calibrated': any(entry.reliability(calibrated=False) is not None for entry in entries),
        'norms': _norm_chart(entries),
        'galleries': [entry for entry in entries if entry.first.gallery is not None],
        'no_gallery': next((entry.first.no_gallery for entry in entries if entry.first.no_gallery), ''),
        'no_norms': next((entry.first.no_norms for entry in entries if entry.first.no_norms), ''),
        'without_predictions': [entry for entry in without if entry.first.saves_predictions],
        'never_saved': [entry for entry in without if not entry.first.saves_predictions],
    }


def _curve(number: int, entry: Entry) -> Curve:
    return Curve(entry.name, f'entry-{number}', number)


def _count_charts(entries: Sequence[Entry]) -> list[Chart]:
    """Draw the training images of each class, once for all entries that have the same."""
    charts: list[Chart] = []
    drawn: list[list[int]] = []
    for entry in entries:
        if entry.first.class_counts not in drawn:
            drawn.append(entry.first.class_counts)
            charts.append(_count_chart(entry))
    if len(charts) > 1:
        for chart, counts in zip(charts, drawn):
            chart.title = ', '.join(entry.name for entry in entries if entry.first.class_counts == counts)
    return charts


def _count_chart(entry: Entry) -> Chart:
    run, order, num_classes = entry.first, entry.order, entry.num_classes
    chart = Chart(
        '',
        _rank_axis(num_classes),
        log_axis('Training images', 1, 1.5 * max(run.class_counts)),
    )

    # one bar a class; of very many classes, one for neighbours
    per_bar = math.ceil(num_classes / _MOST_BARS)
    for start in range(0, num_classes, per_bar):
        classes = order[start:start + per_bar]
        mean = sum(run.class_counts[label] for label in classes) / len(classes)
        label = classes[0]
        tip = f'{_isolated(run.class_names[label])}: {run.class_counts[label]:,} training images'
        if per_bar > 1:
            tip = f'{len(classes)} classes from {_isolated(run.class_names[label])} on: {mean:,.0f} images each'
        # with no gap between bars that are thin anyway
        gap = 0.1 if num_classes < 60 else 0
        end = start + len(classes)
        chart.bars.append(chart.bar(start + 0.5 + gap, end + 0.5 - gap, mean, f'group-{entry.group_of[label]}', tip))

    chart.bands = _group_bands(chart, entry)
    return chart


def _rank_axis(num_classes: int) -> Axis:
    """Return the axis of classes from the most to the least frequent, numbered from 1."""
    axis = linear_axis('Class, from the most to the least frequent', 0.5, num_classes + 0.5, min(num_classes, 8))
    axis.ticks = [(value, text) for value, text in axis.ticks if value == int(value) and value > 0]
    return axis


def _group_bands(chart: Chart, entry: Entry) -> list[Any]:
    """Return where Many, Medium and Few lie on an axis of classes."""
    bands, start = [], 0.5
    for group in GROUPS:
        size = sum(entry.group_of[label] == group for label in entry.order)
        if size:
            bands.append(chart.band(start, start + size, f'{group.capitalize()}: {size}'))
        start += size
    return bands


def _accuracy_chart(entries: Sequence[Entry]) -> Chart:
    """Draw the accuracy of each class over its training images."""
    counts = [count for entry in entries for count in entry.first.class_counts]
    chart = Chart(
        '',
        log_axis('Training images of the class', max(min(counts), 1), max(counts)),
        linear_axis('Accuracy of the class (%)', 0, 109, 6),
    )
    # thresholds of the groups
    for low, high, group in ((0.1, 20, 'Few'), (20, 100.5, 'Medium'), (100.5, math.inf, 'Many')):
        band = chart.band(low, high, group)
        if band.width > 0:
            chart.bands.append(band)

    has_room = sum(entry.num_classes for entry in entries) <= _MOST_POINTS
    for number, entry in enumerate(entries):
        run, curve = entry.first, _curve(number, entry)
        accuracy = entry.class_accuracy
        curve.paths.append(_trend(chart, entry, accuracy))
        if has_room:
            for label in entry.order:
                if math.isfinite(accuracy[label]):
                    curve.marks.append(chart.mark(
                        max(run.class_counts[label], 1), accuracy[label], _class_tip(entry, label)))
        chart.curves.append(curve)
    return chart


def _trend(chart: Chart, entry: Entry, values: np.ndarray) -> str:
    """Return the path of a running mean over training images; classes of one count are one place.

    Args:
        chart: Chart of values over training images.
        entry: Whose classes they are.
        values: Value of each class [C].
    """
    counts = np.maximum(np.asarray(entry.first.class_counts)[entry.order], 1)
    means = smoothed(values[entry.order])
    places = []
    for count in np.unique(counts):
        here = means[counts == count]
        if np.isfinite(here).any():
            places.append((float(count), float(np.nanmean(here))))
    return chart.line(places)


def _class_tip(entry: Entry, label: int) -> str:
    """Return what is told of a class: accuracy, images, what it is misclassified as."""
    run = entry.first
    spread = ''
    if entry.class_spread is not None:
        spread = f' ± {_figure(entry.class_spread[label])}'
    lines = [
        f'{_isolated(run.class_names[label])}: {_figure(entry.class_accuracy[label])}{spread} %',
        f'{run.class_counts[label]:,} training images, {run.class_total[label]:,} test images',
    ]
    confused = entry.most_confused_with.get(label)
    if confused is not None:
        lines.append(f'{confused.share:.0f} % misclassified as {_isolated(run.class_names[confused.predicted])}')
    return '\n'.join(lines)


# ------------------------------------------------------------------------------------- confusion

@dataclass
class _Confusion:
    """A confusion as the page shows it.

    Attributes:
        entry: Whose it is.
        number: Number of the entry.
        image: PNG with a pixel a cell.
        size: Cells along one side, B.
        data: What the script needs to describe a cell: labels of the blocks [B], and for each cell
            that is not empty row, column and percent.
        bounds: Names of the groups, and where they start and end along a side, in cells.
        labels: Class names at the side [B]; empty where they would not fit.
        margin: Room for them.
        numbers: Place and percent of each cell; empty where they would not fit.
    """
    entry: Entry
    number: int
    image: str
    size: int
    data: dict[str, Any]
    bounds: list[tuple[str, float, float]]
    labels: list[str]
    margin: float = 1.0
    numbers: list[tuple[float, float, float]] = field(default_factory=list)


def _confusion(number: int, entry: Entry) -> _Confusion:
    run, num_classes = entry.first, entry.num_classes
    size = min(num_classes, _MOST_BLOCKS)
    matrix = entry.confusion(size)

    blocks: list[list[int]] = [[] for _ in range(size)]
    for rank, label in enumerate(entry.order):
        blocks[rank * size // num_classes].append(label)
    titles = []
    for classes in blocks:
        title = _isolated(run.class_names[classes[0]])
        if len(classes) > 1:
            title += f' … {_isolated(run.class_names[classes[-1]])} ({len(classes)} classes)'
        titles.append(title)

    rows, columns = np.nonzero(matrix >= 0.05)
    cells = [[int(row), int(column), round(float(matrix[row, column]), 1)] for row, column in zip(rows, columns)]

    bounds, start = [], 0.0
    for group in GROUPS:
        end = start + len(entry.groups[group]) * size / num_classes
        if end > start:
            bounds.append((group.capitalize(), start, end))
        start = end

    confusion = _Confusion(entry, number, heat_map(matrix), size, {'titles': titles, 'cells': cells}, bounds, [])
    if num_classes <= _NAMED_CLASSES:
        confusion.labels = [run.class_names[label] for label in entry.order]
        longest = min(max(map(len, confusion.labels)), 13)
        confusion.margin = 3 + 2 * longest
    if num_classes <= _NUMBERED_CLASSES:
        side = 100 / size
        confusion.numbers = [((column + 0.5) * side, (row + 0.5) * side + 1, share) for row, column, share in cells]
    return confusion


# -------------------------------------------------------------------- curves, calibration, norms

def _learning_curves(entries: Sequence[Entry]) -> list[Chart]:
    """Draw loss and accuracies over the epochs: of one entry all of them, of several one by one."""
    if not any(run.history for entry in entries for run in entry.runs):
        return []
    if len(entries) == 1:
        losses = [('train_loss', 'Training loss', 0), ('eval_loss', 'Evaluation loss', 1)]
        accuracies = [('eval_all', 'All', 0), *((f'eval_{group}', group.capitalize(), number + 2)
                                                for number, group in enumerate(GROUPS))]
        wanted = [('Loss', losses), ('Accuracy (%)', accuracies)]
        charts = [_curves_of_one(label, columns, entries[0]) for label, columns in wanted]
    else:
        columns = [('train_loss', 'Training loss'), ('eval_all', 'All (%)'), ('eval_balanced', 'Balanced (%)'),
                   ('eval_few', 'Few (%)')]
        charts = [_curves_of_many(column, label, entries) for column, label in columns]
    return [chart for chart in charts if chart is not None]


def _curves_of_one(label: str, columns: list[tuple[str, str, int]], entry: Entry) -> Chart | None:
    lines = []
    for column, name, colour in columns:
        lines.append((Curve(name, f'{column}', colour), column, entry.runs))
    return _epoch_chart(label, label, lines)


def _curves_of_many(column: str, label: str, entries: Sequence[Entry]) -> Chart | None:
    lines = [(_curve(number, entry), column, entry.runs) for number, entry in enumerate(entries)]
    return _epoch_chart(label, label, lines)


def _epoch_chart(title: str, label: str, lines: list[tuple[Curve, str, list[RunReport]]]) -> Chart | None:
    """Draw figures over the epochs; None where no run has them."""
    found = [(curve, run, column) for curve, column, runs in lines for run in runs]
    points = [
        (curve, [(row['epoch'] + 1, row.get(column, math.nan)) for row in run.history], run)
        for curve, run, column in found
    ]
    values = [y for _, line, _ in points for _, y in line if math.isfinite(y)]
    if not values:
        return None

    last = max(x for _, line, _ in points for x, _ in line)
    low, high = (0.0, 100.0) if '%' in label else (min(0.0, min(values)), _top(values))
    chart = Chart(title, linear_axis('Epoch', 1, max(last, 2), 6), linear_axis(label, low, high))
    chart.x.ticks = [(value, text) for value, text in chart.x.ticks if value == int(value)]
    for curve, line, run in points:
        shown = [(x, min(y, high)) for x, y in line if math.isfinite(y)]
        if not shown:
            continue
        curve.paths.append(chart.line(shown))
        seed = f', seed {run.seed}' if len({id(r) for _, _, r in points}) > 1 and run.seed is not None else ''
        places = shown if len(shown) <= 60 else shown[::math.ceil(len(shown) / 60)]
        for x, y in places:
            curve.marks.append(chart.mark(x, y, f'{_isolated(curve.name)}{seed}\nepoch {x:.0f}: {y:.4g}'))
        if curve not in chart.curves:
            chart.curves.append(curve)
    return chart


def _top(values: list[float]) -> float:
    """Return where an axis of losses ends: a spike of the first epochs does not flatten the rest."""
    ordered = sorted(values)
    usual = ordered[int(0.9 * (len(ordered) - 1))]
    return min(ordered[-1], 3 * usual) * 1.05 or 1.0


@dataclass
class _Reliability:
    """A reliability chart, its title and the calibration error."""
    chart: Chart
    title: str
    error: float


def _reliability_charts(number: int, entry: Entry) -> list[_Reliability]:
    """Draw calibration before and after a temperature was fitted, or as it is where none was."""
    charts = []
    before, after = entry.reliability(calibrated=False), entry.reliability()
    if before is not None:
        charts.append(_reliability(f'{entry.name}: before calibration', number, before))
    if after is not None:
        state = 'after calibration' if before is not None else 'as trained'
        charts.append(_reliability(f'{entry.name}: {state}', number, after))
    return charts


def _reliability(title: str, number: int, bins: Bins) -> _Reliability:
    chart = Chart(
        title, linear_axis('Probability of the predicted class (%)', 0, 100), linear_axis('Right (%)', 0, 100))
    chart.paths.append(chart.line([(0, 0), (100, 100)]))

    curve = Curve(title, f'entry-{number}', number)
    width = 100 / len(bins.count)
    most = bins.count.max()
    for place, (count, confidence, accuracy) in enumerate(zip(bins.count, bins.confidence, bins.accuracy)):
        if not count:
            continue
        tip = f'{count:,} images: {confidence:.1f} % sure, {accuracy:.1f} % right'
        # how many images there are, in the lower quarter
        chart.bars.append(chart.bar(place * width, (place + 1) * width, 25 * count / most, 'images', tip))
        curve.marks.append(chart.mark(confidence, accuracy, tip))
    seen = bins.count > 0
    curve.paths.append(chart.line(list(zip(bins.confidence[seen], bins.accuracy[seen]))))
    chart.curves.append(curve)
    return _Reliability(chart, title, bins.error)


def _norm_chart(entries: Sequence[Entry]) -> Chart | None:
    """Draw the lengths of the classifier's weights over the training images; None where none are known."""
    known = [(number, entry, entry.weight_norms) for number, entry in enumerate(entries)]
    shown = [(number, entry, norms) for number, entry, norms in known if norms is not None]
    if not shown:
        return None

    counts = [count for _, entry, _ in shown for count in entry.first.class_counts]
    highest = max(float(norms.max()) for _, _, norms in shown)
    chart = Chart(
        '',
        log_axis('Training images of the class', max(min(counts), 1), max(counts)),
        linear_axis('Length of the weight', 0, 1.05 * highest),
    )
    has_room = sum(entry.num_classes for _, entry, _ in shown) <= _MOST_POINTS
    for number, entry, norms in shown:
        run, curve = entry.first, _curve(number, entry)
        curve.paths.append(_trend(chart, entry, norms))
        if has_room:
            for label in entry.order:
                name, count = _isolated(run.class_names[label]), run.class_counts[label]
                tip = f'{name}: {norms[label]:.3f}\n{count:,} training images'
                curve.marks.append(chart.mark(max(count, 1), float(norms[label]), tip))
        chart.curves.append(curve)
    return chart
