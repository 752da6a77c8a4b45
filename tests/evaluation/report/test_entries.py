"""What the report page compares: confusion, calibration and seeds, beside loops and the evaluator."""
import numpy as np
import pytest
import torch

from timm_longtail.evaluation.confusion import confusion_rate
from timm_longtail.evaluation.report.entries import entries_of
from timm_longtail.evaluation.report.reading import read_reports

from ...support.run_folders import write_run


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    return [write_run(folder / f'bcl.s{seed}', seed=seed, num_test=20) for seed in range(3)]


@pytest.fixture(scope='module')
def entry(runs):
    return entries_of(read_reports(runs[0]))[0]


def confusion_by_loop(entry) -> np.ndarray:
    matrix = np.zeros((entry.num_classes, entry.num_classes), np.int64)
    for predictions in entry.predictions:
        for target, predicted in zip(predictions.target, predictions.predicted):
            matrix[target, predicted] += 1
    return matrix


def test_the_confusion_is_sorted_by_training_images(entry):
    counted = confusion_by_loop(entry)[np.ix_(entry.order, entry.order)]

    assert entry.confusion(10) == pytest.approx(100 * counted / counted.sum(axis=1, keepdims=True))


def test_blocks_hold_the_mean_over_rows_of_the_sum_over_columns(entry):
    whole = entry.confusion(10)

    blocks = entry.confusion(5)

    for row in range(5):
        for column in range(5):
            cells = whole[2 * row:2 * row + 2, 2 * column:2 * column + 2]
            assert blocks[row, column] == pytest.approx(cells.sum(axis=1).mean())


def test_groups_are_confused_as_the_confusion_rate_says(entry):
    matrix = torch.from_numpy(confusion_by_loop(entry))

    for source, row in entry.group_confusion.items():
        for target, share in row.items():
            assert share == pytest.approx(confusion_rate(matrix, entry.first.shot_counts, source, target))


def test_pairs_are_sorted_by_images_and_hold_all_mistakes(entry):
    matrix = confusion_by_loop(entry)

    counts = [pair.count for pair in entry.confused]

    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == matrix.sum() - matrix.trace()
    for pair in entry.confused:
        assert pair.count == matrix[pair.target, pair.predicted]
        assert entry.most_confused_with[pair.target].count >= pair.count


def test_the_calibration_error_is_that_of_the_evaluator(entry):
    bins = entry.reliability()

    # the file has six digits
    assert bins.error == pytest.approx(entry.first.figures['ece'], abs=1e-3)
    assert bins.count.sum() == len(entry.first.predictions.target)
    assert entry.reliability(calibrated=False) is None


def test_one_run_has_intervals_and_seeds_have_a_spread(runs, entry):
    reports = [report for run in runs for report in read_reports(run)]
    seeds, = entries_of(reports)

    low, high = entry.figure('few').interval
    assert low <= entry.figure('few').value <= high and entry.figure('few').spread is None

    values = [report.figures['few'] for report in reports]
    assert seeds.figure('few').value == pytest.approx(np.mean(values))
    assert seeds.figure('few').spread == pytest.approx(np.std(values, ddof=1))
    assert seeds.figure('few').interval is None
    accuracies = [100 * np.array(report.class_correct) / report.class_total for report in reports]
    assert seeds.class_accuracy == pytest.approx(np.mean(accuracies, axis=0))
    assert seeds.class_spread == pytest.approx(np.std(accuracies, axis=0, ddof=1))


def test_runs_that_differ_in_more_than_the_seed_stay_apart(runs):
    reports = [read_reports(run)[0] for run in runs]
    reports[1].setting += ', another rate'
    assert [len(entry.runs) for entry in entries_of(reports)] == [2, 1]

    # those of one command and one that was run alone
    path = runs[2] / 'args.yaml'
    path.write_text(path.read_text() + 'seeds: [0, 1]\n')
    assert [len(entry.runs) for entry in entries_of([read_reports(run)[0] for run in runs])] == [3]

    # the same seed twice is no second seed
    reports[2].seed = reports[0].seed
    assert [len(entry.runs) for entry in entries_of(reports)] == [1, 1, 1]


def test_weights_have_their_lengths(entry):
    # the rows are log(count) * (0.6, 0.8)
    assert entry.weight_norms == pytest.approx(np.log(entry.first.class_counts), rel=1e-5)
