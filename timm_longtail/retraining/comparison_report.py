"""What `compare` says and writes: tables, the recommendation in a sentence, `compare.json`."""
from typing import Any

from ..evaluation.tables import GROUPS
from .compare import Result, contenders, lead
from .compared import Compared

__all__ = ['chosen_how', 'comparison_json', 'cross_validated_table', 'recommendation', 'test_table']

_COLUMNS = ('all', 'balanced', *GROUPS)


def cross_validated_table(results: list[Result]) -> str:
    """Return accuracies on images that were not fitted on, with standard errors, as Markdown.

    Args:
        results: In the order of the rows.
    """
    rows = []
    for result in results:
        figures = result.cross_validated()
        cells = [_with_error(figures[name]) for name in _COLUMNS]
        rows.append([result.name, *cells, _settings(result.options)])
    return _table([_measured_how(results), *map(str.capitalize, _COLUMNS), 'Setting'], rows)


def _measured_how(results: list[Result]) -> str:
    """Return what stands above the names of classifiers: they are measured alike, or not."""
    with_hold_out = {result.compared.uses_hold_out for result in results}
    if len(with_hold_out) > 1:
        return 'not fitted on'
    return 'hold-out' if with_hold_out.pop() else 'cross-validated'


def test_table(results: list[Result], chosen: Result) -> str:
    """Return the figures on the test set, with 95 % bootstrap intervals, as Markdown.

    Args:
        results: In the order of the rows, each after `evaluate`.
        chosen: The one that was chosen, which is marked.
    """
    rows = []
    for result in results:
        cells = [_with_interval(result.test[name], result.test['intervals'][name]) for name in _COLUMNS]
        mark = ' *' if result is chosen else ''
        rows.append([result.name + mark, *cells])
    return _table(['test set', *map(str.capitalize, _COLUMNS)], rows)


def _with_error(figure: tuple[float, float] | None) -> str:
    if figure is None:
        return 'n/a'
    mean, error = figure
    return f'{mean:.1f} ± {error:.1f}'


def _with_interval(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None or interval is None:
        return 'n/a'
    low, high = interval
    return f'{value:.1f} [{low:.1f}, {high:.1f}]'


def _settings(options: dict[str, Any]) -> str:
    return ', '.join(f'{name} {value:g}' for name, value in options.items())


def _table(titles: list[str], rows: list[list[str]]) -> str:
    """Lay out a Markdown table; the first and the last column are texts, the others are set to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows)]
    lines = []
    for cells in (titles, *rows):
        middle = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        lines.append(f'| {" | ".join([cells[0].ljust(widths[0]), *middle])} |')

    rule = [f':{"-" * widths[0]}-', *('-' * width + '-:' for width in widths[1:])]
    lines.insert(1, f'|{"|".join(rule)}|')
    return '\n'.join(lines)


def chosen_how(compared: Compared) -> str:
    """Return what the settings of classifiers were chosen by, in words that go on after `chosen`.

    Args:
        compared: Model and data.
    """
    how = 'on the hold-out' if compared.uses_hold_out else 'by cross-validation'
    if compared.chooses_on_part:
        how += f', on {len(compared.trial.classes)} of the {compared.data.num_classes} classes'
    return how


def recommendation(results: list[Result], chosen: Result) -> str:
    """Return in a few sentences what to use, how good it is and how sure that is.

    Args:
        results: All results.
        chosen: From `choose`, after `calibrate`.
    """
    mean, error = chosen.expected
    settings = f' ({_settings(chosen.options)})' if chosen.options else ''
    how = 'by cross-validation'
    if chosen.compared.uses_hold_out:
        how = 'on the hold-out'
    elif chosen.compared.chooses_on_part:
        how = 'on one fold of all classes'
    lines = [
        f'Use {chosen.name}, {chosen.family.title}{settings}: balanced accuracy {mean:.1f} ± {error:.1f} {how}.']

    among = contenders(results)
    others = [result for result in among if result is not chosen]
    if others:
        second = max(others, key=lambda result: result.balanced)
        lines.append(_beside(second, chosen))

    left_aside = [result for result in results if result.compared.is_optimistic]
    if left_aside and not chosen.compared.is_optimistic:
        labels = dict.fromkeys(result.compared.label for result in left_aside)
        lines.append(f'Left aside, measured on images that the model was trained on: {", ".join(labels)}.')
    if chosen.compared.is_optimistic:
        lines.append(
            'The model was trained on these very images, so that all figures but those of the test set are too high; '
            'train with --val-fraction to choose on images that it has not seen.')
    return ' '.join(lines)


def _beside(second: Result, chosen: Result) -> str:
    """Return how far apart the chosen classifier and the next one are."""
    gap, error = lead(second, chosen)
    size = f'{abs(gap):.1f} ± {error:.1f}'

    # differences are known on the classes that settings were chosen on
    where = ' on the part of the classes' if chosen.complete is not None else ''
    if f'{abs(gap):.1f}' == '0.0':
        return f'The next, {second.name}, is as good{where}: the difference is {size}.'
    if gap < 0:
        return f'The next, {second.name}, is {size} below it{where}.'
    return (
        f'{second.name} is {size} above it{where}, which may be luck: another classifier must be better by more than '
        'the standard error.')


def comparison_json(results: list[Result], chosen: Result) -> dict[str, Any]:
    """Return the content of `compare.json`, all accuracies in percent.

    `cv` is the balanced accuracy on images that were not fitted on, corrected for the choice of the
    setting, `cv_uncorrected` without that, `cv_se` the standard error,
    `test` the balanced accuracy on the test set. `cv` is of the `cv_classes` classes that settings
    were chosen on, `cv_all_classes` and its standard error of all of them, null but for the one
    chosen from a part of the classes. `cv_groups` has `cv` and its standard error, too, the share of
    all images, and the same of each group. `temperature` is 1 and `cv_ece`, before and after, each
    class weighing the same, null where nothing was calibrated.

    Args:
        results: Each after `evaluate`.
        chosen: From `choose`.
    """
    return {
        'chosen': chosen.name,
        'recommendation': recommendation(results, chosen),
        'rows': [_row(result) for result in results],
    }


def _row(result: Result) -> dict[str, Any]:
    mean, error = result.cross_validated()['balanced']
    compared, test = result.compared, result.test
    return {
        'name': result.name,
        'cv': mean,
        'cv_se': error,
        'cv_uncorrected': result.accuracy.balanced,
        'cv_classes': len(compared.trial.classes),
        'cv_all_classes': None if result.complete is None else result.complete.of_classes(),
        'test': test['balanced'],

        # what it is, and how it was measured
        'title': result.family.title,
        'model': compared.label,
        'options': result.options,
        'measured_on': 'hold-out' if compared.uses_hold_out else 'folds',
        'num_folds': len(compared.trial.splits) // compared.trial.num_repeats,
        'num_repeats': compared.trial.num_repeats,
        'optimistic': compared.is_optimistic,

        # all figures
        'cv_groups': result.cross_validated(),
        'temperature': result.temperature,
        'cv_ece': result.ece,
        'test_figures': test,
        'intervals': test['intervals'],
    }
