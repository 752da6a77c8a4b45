"""Tables of results, from rows that are made for the purpose."""
import json

import pytest

from tools import result_tables

BASELINE = 'cifar100_lt_if100.resnet20_cifar.ce.e300.s0.json'
ROW = json.loads((result_tables.RESULTS / BASELINE).read_text())


@pytest.fixture
def keep(tmp_path, monkeypatch):
    """Return a function that adds a row like the baseline's, with other columns and options typed behind its own."""
    monkeypatch.setattr(result_tables, 'RESULTS', tmp_path)

    def write(options: str = '', all_correct: float | None = None, **columns):
        row = {**ROW, 'command': f'{ROW["command"]} {options}', **columns}
        if all_correct is not None:
            row['last'] = {**row['last'], 'all': all_correct}
        (tmp_path / f'{len(list(tmp_path.iterdir()))}.json').write_text(json.dumps(row))
        return row

    return write


def lines(page: str) -> list[list[str]]:
    """Return the cells of each row of the tables on a page, without their titles."""
    rows = []
    in_table = False
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.split('|')[1:-1]]
        if not cells:
            in_table = False
        elif set(cells) == {'---'}:
            in_table = True
        elif in_table:
            rows.append(cells)
    return rows


@pytest.mark.parametrize('options, columns, published', [
    ('', {}, True),
    ('--seed 3 --mixed-precision no --val-interval 5 --no-channels-last', {'mixed_precision': 'no'}, True),
    ('--sampler sqrt', {'sampler': 'sqrt'}, False),
    ('--lr 0.2', {}, False),
    ('--weight-decay 2e-4', {}, False),
    ('--method-kwargs label_smoothing=0.1', {'method_kwargs': {'label_smoothing': 0.1}}, False),
    ('--val-fraction 0.1', {'val_fraction': 0.1}, False),
    ('-b 64', {'global_batch_size': 64}, False),
    ('--imbalance-factor 50', {'imbalance_factor': 50}, False),
    ('--data-seed 1', {'data_seed': 1}, False),
    ('--subset-order content', {'subset_order': 'content'}, False),
])
def test_a_published_figure_stands_beside_its_own_setting_only(keep, options, columns, published):
    keep(options, **columns)
    page = result_tables.published_table()

    (line,) = lines(page)
    assert line[-1] == ('41.14' if published else '')
    source = '- 41.14: an abstract in Japanese on losses and their combinations in long-tailed recognition, table 1'
    assert page.endswith(source) == published
    assert len(lines(result_tables.study_table())) == published


def test_precisions_are_apart_and_seeds_are_not(keep):
    keep(seed=0, all_correct=40.0)
    keep(seed=1, all_correct=42.0)
    keep(seed=0, all_correct=30.0, mixed_precision='no')

    page = result_tables.published_table()
    assert [line[2:4] for line in lines(page)] == [['2', '41.00 ± 1.41 (40.89)'], ['1', '30.00 (40.89)']]
    assert page.index(', bf16:') < page.index('41.00') < page.index(', fp32:') < page.index('30.00')

    study = lines(result_tables.study_table())
    assert [line[3:6] for line in study] == [['bf16', '2', '41.00 ± 1.41'], ['fp32', '1', '30.00']]
    assert lines(result_tables.short_table()) == []


def test_a_run_of_another_length_is_short(keep):
    keep('--epochs 10', epochs=10)
    assert lines(result_tables.published_table()) == lines(result_tables.study_table()) == []
    assert len(lines(result_tables.short_table())) == 1


def test_settings_of_fast_training_have_a_table_of_their_own(keep):
    columns = {'dataset_name': result_tables.HELD_OUT, 'recipe': None, 'epochs': 30}
    keep(
        '--no-recipe --lr 0.05 --opt adamw --head cosine', all_correct=20.0, forward_passes=300000,
        method_kwargs={'tau': 0.5}, **columns)
    keep('--no-recipe --lr 0.07', all_correct=25.0, seed=0, forward_passes=600000, **columns)
    keep('--no-recipe --lr 0.07', all_correct=27.0, seed=1, forward_passes=600000, **columns)
    keep()

    better, other = lines(result_tables.fast_table())
    batch = str(ROW['global_batch_size'])
    assert better[:6] == ['`resnet20_cifar`, `ce`', '`momentum`, 0.07, 0.0005', batch, '30', '600,000', '26.00 ± 1.41']
    assert [other[0], other[1], other[5]] == [
        '`resnet20_cifar`, `ce`, tau=0.5 head=cosine', '`adamw`, 0.05, 0.0005', '20.00']
    assert lines(result_tables.short_table()) == []


@pytest.mark.parametrize('typed, columns', [
    ('--lr 0.1', {}), ('--lr 0.07 --weight-decay 0.001', {}), ('--lr 0.07 --opt adamw', {}),
    ('--lr 0.07 --head cosine', {}), ('--lr 0.07 --sched cosine', {}),
    ('--lr 0.07', {'global_batch_size': 99}), ('--lr 0.07', {'subset_hash': 'another'}),
])
def test_other_settings_of_fast_training_are_no_other_seeds(typed, columns, keep):
    kept = {'dataset_name': result_tables.HELD_OUT, 'recipe': None, 'forward_passes': 300000}
    keep('--no-recipe --lr 0.07', seed=0, **kept)
    keep(f'--no-recipe {typed}', seed=1, **{**kept, **columns})

    assert len(lines(result_tables.fast_table())) == 2


def test_the_recipe_of_an_hour_at_every_length(keep):
    command = f'python train.py -c {result_tables.HOUR}'
    columns = {'recipe': result_tables.HOUR, 'command': command}
    keep(epochs=75, seed=0, all_correct=40.0, forward_passes=800000, **columns)
    keep(epochs=75, seed=1, all_correct=42.0, forward_passes=800000, **columns)
    keep(epochs=200, experiment='longer', all_correct=46.0, forward_passes=2000000, **columns)
    keep()

    rows = sorted(lines(result_tables.hour_table()))
    assert [row[:3] for row in rows] == [['200', '2,000,000', '1'], ['75', '800,000', '2']]
    assert [row[3].split(' (')[0] for row in rows] == ['46.00', '41.00 ± 1.41']
    assert lines(result_tables.short_table()) == []


@pytest.mark.parametrize('typed, columns', [
    ('--lr 0.01', {}),
    ('--method-kwargs label_smoothing=0.1', {'method_kwargs': {'label_smoothing': 0.1}}),
    ('--epochs 10', {'epochs': 10}),
])
def test_the_readme_has_recipes_as_they_are(keep, typed, columns):
    keep()
    keep(typed, experiment='another', **columns)
    assert len(lines(result_tables.readme_table())) == 1


def keep_of_study(keep, **options):
    """Keep a row of the study's recipe with these options of its method."""
    typed = ' '.join(f'{name}={value}' for name, value in options.items())
    keep(
        recipe=result_tables.STUDY, method='pc_comp', method_kwargs=options,
        command=f'python train.py -c {result_tables.STUDY} --method-kwargs {typed}',
    )


def test_settings_of_the_study_stand_beside_their_own_figures(keep):
    keep()
    keep_of_study(keep, pc='head', complement='none')

    assert [[*line[:2], line[-1]] for line in lines(result_tables.study_table())] == [
        ['none', 'none', '41.14 / 69.34 / 25.95'], ['head', 'none', '43.14 / 70.45 / 28.43']]
    assert [line[-1] for line in lines(result_tables.published_table())] == ['41.14', '']


def test_further_options_of_the_study_have_a_column_and_no_figure_beside_them(keep):
    keep_of_study(keep, pc='head', complement='tail', squared=True, complement_weight_decay=0.0)
    keep_of_study(keep, pc='all', complement='all')
    keep_of_study(keep, pc='head', complement='tail')

    assert [[*line[:3], line[-1]] for line in lines(result_tables.study_table())] == [
        ['head', 'tail', '', '43.61 / 69.95 / 29.47'],
        ['head', 'tail', 'complement_weight_decay=0.0 squared=True', ''],
        ['all', 'all', '', ''],
    ]


def test_the_combinations_are_runs_that_vary_the_classes_alone(keep):
    def started(epochs, **options):
        keep(
            recipe=None, method='pc_comp', initial_checkpoint='export', epochs=epochs,
            method_kwargs={'warmup': 0, **options})

    started(8, pc='head', complement='tail')
    started(8, pc='none', complement='none')
    started(300, pc='head', complement='none', squared=True)  # with a rate of its own, in another table
    assert [line[:2] for line in lines(result_tables.combinations_table())] == [['none', 'none'], ['head', 'tail']]

    started(300, pc='head', complement='none')
    with pytest.raises(ValueError, match='several lengths'):
        result_tables.combinations_table()


def test_head_and_tail_are_means_over_their_classes():
    found = result_tables._head_tail({
        'shot_counts': [500, 100, 99, 5], 'last': {'all': 1., 'class_accuracy': [80., 60., 30., 10.]}})
    assert found == {'all': 1., 'head': 70., 'tail': 20.}
