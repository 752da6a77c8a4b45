"""What `compare` says: figures of both tables, and how sure the recommendation is."""
from types import SimpleNamespace

import pytest
import torch

from timm_longtail.retraining.compare import Result
from timm_longtail.retraining.comparison_report import chosen_how, cross_validated_table, recommendation
from timm_longtail.retraining.comparison_report import test_table as table_of_test_set
from timm_longtail.retraining.cross_validation import Accuracy, class_means
from timm_longtail.retraining.families import FAMILIES

# one class of 30 images, one of 10
TARGETS = torch.arange(2).repeat_interleave(torch.tensor([30, 10]))


def model(label: str = 'net', is_optimistic: bool = False, uses_hold_out: bool = False) -> SimpleNamespace:
    return SimpleNamespace(
        label=label, is_optimistic=is_optimistic, uses_hold_out=uses_hold_out, chooses_on_part=False,
        variance_factor=1.0, trial=SimpleNamespace(classes=torch.arange(2)), data=SimpleNamespace(num_classes=2),
        representation=SimpleNamespace(train_set=SimpleNamespace(shot_counts=[200, 30])))


def result(name: str, many: int, few: int, compared: SimpleNamespace, **options) -> Result:
    """Return a result with so many images of each class right."""
    correct = torch.cat([torch.arange(30) < many, torch.arange(10) < few]).double()
    accuracy = Accuracy(correct, TARGETS, 'the same')
    return Result(name, FAMILIES[name], compared, options, accuracy, *class_means(correct, TARGETS), 0)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in table.splitlines()]


def test_images_and_classes_weigh_the_same_in_a_column_each():
    """27 of 30 and 4 of 10 are right: 31 of 40, and the mean of 90 % and 40 %."""
    titles, _, row = cells(cross_validated_table([result('lda', 27, 4, model(), shrinkage=0.5)]))

    assert titles == ['cross-validated', 'All', 'Balanced', 'Many', 'Medium', 'Few', 'Setting']
    assert [cell.partition(' ')[0] for cell in row] == ['lda', '77.5', '65.0', '90.0', '40.0', 'n/a', 'shrinkage']


def test_the_test_set_has_the_columns_of_the_choice():
    one = result('lda', 27, 4, model())
    figures = {'all': 70.0, 'balanced': 60.0, 'many': 80.0, 'medium': 40.0, 'few': None}
    intervals = {name: None if value is None else (value - 5, value + 5) for name, value in figures.items()}
    one.test = {**figures, 'intervals': intervals}

    titles, _, row = cells(table_of_test_set([one], one))

    assert titles == ['test set', 'All', 'Balanced', 'Many', 'Medium', 'Few']
    assert row[:3] == ['lda *', '70.0 [65.0, 75.0]', '60.0 [55.0, 65.0]']


@pytest.mark.parametrize('hold_outs, title', [
    ([False, False], 'cross-validated'),
    ([True, True], 'hold-out'),
    ([True, False], 'not fitted on'),
])
def test_a_table_is_called_by_what_was_measured_on(hold_outs, title):
    results = [result('lda', 27, 4, model(uses_hold_out=uses_hold_out)) for uses_hold_out in hold_outs]
    assert cells(cross_validated_table(results))[0][0] == title


@pytest.mark.parametrize('right, words', [
    ((27, 4), 'The next, lda, is as good: the difference is 0.0 ± 0.0.'),
    ((26, 4), 'The next, lda, is 1.7 ± 1.7 below it.'),
    ((28, 4), 'lda is 1.7 ± 1.7 above it, which may be luck'),
])
def test_the_next_one_is_set_beside_the_chosen(right, words):
    compared = model()
    chosen = result('logistic', 27, 4, compared)

    said = recommendation([result('lda', *right, compared), chosen], chosen)

    assert said.startswith('Use logistic, logistic regression, adjusted for the prior: balanced accuracy 65.0 ± ')
    assert words in said


def test_what_has_seen_the_images_is_said_to_be_left_aside():
    """It is not the next one, either."""
    honest, seen = model(), model('old run', is_optimistic=True)
    chosen, other = result('logistic', 27, 4, honest), result('ncm_l2', 20, 4, honest)

    said = recommendation([result('lda', 30, 10, seen), result('crt', 30, 9, seen), chosen, other], chosen)

    assert said.endswith('Left aside, measured on images that the model was trained on: old run.')
    assert 'The next, ncm_l2, ' in said and 'too high' not in said


def test_where_all_have_seen_the_images_the_figures_are_said_to_be_too_high():
    seen = model(is_optimistic=True)
    chosen = result('logistic', 27, 4, seen)

    said = recommendation([chosen, result('lda', 27, 3, seen)], chosen)

    assert 'all figures but those of the test set are too high' in said
    assert 'Left aside' not in said


@pytest.mark.parametrize('uses_hold_out, chooses_on_part, words', [
    (False, False, 'by cross-validation'),
    (True, False, 'on the hold-out'),
    (False, True, 'by cross-validation, on 2 of the 9 classes'),
])
def test_the_export_says_what_the_settings_were_chosen_by(uses_hold_out, chooses_on_part, words):
    compared = model(uses_hold_out=uses_hold_out)
    compared.chooses_on_part = chooses_on_part
    compared.data.num_classes = 9

    assert chosen_how(compared) == words
