"""Bootstrap intervals over test images."""
import pytest

from timm_longtail.evaluation.intervals import bootstrap_intervals

CORRECT, TOTAL, SHOTS = [90, 60, 30, 0], [100, 100, 100, 0], [200, 50, 5, 3]


def test_an_interval_holds_the_figure_and_has_the_width_of_a_binomial():
    intervals = bootstrap_intervals(CORRECT, TOTAL, SHOTS)

    low, high = intervals['medium']
    assert low < 60 < high
    assert (high - low) / 2 == pytest.approx(1.96 * (60 * 40 / 100) ** 0.5, rel=0.15)

    low, high = intervals['balanced']
    error = ((90 * 10 + 60 * 40 + 30 * 70) / 100) ** 0.5 / 3
    assert (low + high) / 2 == pytest.approx(60, abs=0.5)
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.15)


def test_classes_and_groups_without_test_images_are_left_out():
    intervals = bootstrap_intervals([0, 8], [0, 10], [200, 5])

    assert intervals['many'] is None
    assert intervals['medium'] is None
    assert intervals['few'] == intervals['balanced'] == intervals['all']


@pytest.mark.parametrize('coverage', [0.5, 0.99])
def test_a_larger_coverage_is_a_wider_interval(coverage):
    low, high = bootstrap_intervals(CORRECT, TOTAL, SHOTS, coverage)['all']
    usual_low, usual_high = bootstrap_intervals(CORRECT, TOTAL, SHOTS)['all']

    assert (low < usual_low) == (high > usual_high) == (coverage > 0.95)


def test_intervals_repeat_by_the_seed():
    assert bootstrap_intervals(CORRECT, TOTAL, SHOTS, seed=1) == bootstrap_intervals(CORRECT, TOTAL, SHOTS, seed=1)
    assert bootstrap_intervals(CORRECT, TOTAL, SHOTS, seed=1) != bootstrap_intervals(CORRECT, TOTAL, SHOTS, seed=2)
