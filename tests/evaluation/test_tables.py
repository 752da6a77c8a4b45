"""Tables of metrics: Markdown for people, CSV with a row a class."""
import csv

import pytest

from timm_longtail.evaluation.tables import GROUPS, format_table, write_per_class

from ..support.predictions import SHOT_COUNTS, evaluate, predictions


def test_table_of_a_perfect_model():
    perfect = dict.fromkeys(('all', *GROUPS), 100.0)
    assert format_table({'x': perfect}) == '\n'.join([
        '|   |    All |   Many | Medium |    Few |',
        '|:--|-------:|-------:|-------:|-------:|',
        '| x | 100.00 | 100.00 | 100.00 | 100.00 |',
    ])


def test_what_is_not_defined_is_no_number_in_the_table():
    row = format_table({'x': {'all': float('nan'), 'many': None, 'few': 0.0}}).splitlines()[-1]
    assert [cell.strip() for cell in row.strip('|').split('|')] == ['x', 'n/a', 'n/a', 'n/a', '0.00']


@pytest.mark.parametrize('columns', [('all', *GROUPS), ('all', 'few_inclusive', 'worst_class'), ('ece',)])
@pytest.mark.parametrize('names', [('a',), ('last epoch', 'best epoch (12, by hold-out)')])
def test_table_is_well_formed_markdown(columns, names):
    metrics = evaluate(*predictions())
    rows = {name: {**metrics, 'few_inclusive': None} for name in names}
    rows[names[0]].pop('many')
    header, rule, *body = format_table(rows, columns).splitlines()
    assert len(body) == len(names)

    bars = [i for i, character in enumerate(header) if character == '|']
    assert len(bars) == len(columns) + 2 and bars[0] == 0 and bars[-1] == len(header) - 1
    for line in (rule, *body):
        assert [i for i, character in enumerate(line) if character == '|'] == bars and len(line) == len(header)

    left, *right = rule.strip('|').split('|')
    assert set(left) == {':', '-'} and left[0] == ':'
    assert all(set(cell) == {'-', ':'} and cell[-1] == ':' and len(cell) >= 4 for cell in right)
    for name, line in zip(names, body):
        title, *cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert title == name
        values = [rows[name].get(column) for column in columns]
        assert cells == ['n/a' if value is None else f'{value:.2f}' for value in values]


def test_a_row_of_each_class(tmp_path):
    metrics = evaluate(*predictions())
    names = [f'name {c}' for c in range(10)]
    trained = [count - 1 for count in SHOT_COUNTS]  # the groups are those before a hold-out
    write_per_class(tmp_path / 'classes.csv', names, trained, SHOT_COUNTS, metrics)

    with open(tmp_path / 'classes.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert [int(row['class']) for row in rows] == list(range(10))
    assert [row['name'] for row in rows] == names
    assert [int(row['train_images']) for row in rows] == trained
    assert [row['group'] for row in rows] == 2 * ['many'] + 6 * ['medium'] + 2 * ['few']
    for c, row in enumerate(rows):
        assert int(row['correct']) == metrics['class_correct'][c]
        assert int(row['total']) == metrics['class_total'][c]
        assert float(row['accuracy']) == pytest.approx(100 * int(row['correct']) / int(row['total']))


def test_a_class_without_test_images_has_no_accuracy_in_its_row(tmp_path):
    logits, target = predictions()
    metrics = evaluate(logits[target != 9], target[target != 9])
    write_per_class(tmp_path / 'classes.csv', [*'abcdefghij'], SHOT_COUNTS, SHOT_COUNTS, metrics)
    assert (tmp_path / 'classes.csv').read_text().splitlines()[-1] == '9,j,5,few,0,0,'


def test_names_of_other_classes_are_not_written(tmp_path):
    with pytest.raises(ValueError, match='zip'):
        write_per_class(tmp_path / 'classes.csv', ['a'], SHOT_COUNTS, SHOT_COUNTS, evaluate(*predictions()))
