"""The temperature and the calibration error, each class weighing the same."""
import math

import pytest
import torch
from torch.nn import functional as F

from timm_longtail.retraining.calibration import class_balanced_ece, fit_temperature
from timm_longtail.utils.errors import UserError


def create_logits(counts: list[int], temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that are calibrated once they are divided by a temperature, of classes drawn from them."""
    generator = torch.Generator().manual_seed(0)
    calibrated = 2 * torch.randn(sum(counts), len(counts), generator=generator, dtype=torch.float64)
    targets = torch.multinomial(calibrated.softmax(dim=1), 1, generator=generator)[:, 0]
    return calibrated * temperature, targets


@pytest.mark.parametrize('temperature', [0.05, 1.0, 40.0])
def test_the_temperature_that_logits_were_multiplied_by_is_found(temperature):
    logits, targets = create_logits([2000] * 4, temperature)

    assert fit_temperature(logits, targets) == pytest.approx(temperature, rel=0.05)


def test_the_temperature_is_a_minimum_of_the_mean_over_classes():
    """The targets are those of as many images as make a mean of that variance: C^2 over the sum of 1 / n_c."""
    logits, targets = create_logits([50, 30, 5], 3.0)
    targets[:40] = 0  # a long tail
    counts = torch.bincount(targets).tolist()
    num_effective = 9 / sum(1 / count for count in counts)
    true, other = (num_effective + 1) / (num_effective + 2), 1 / (num_effective + 2) / 2

    def loss(temperature):
        total = 0
        for row, target in zip((logits / temperature).log_softmax(dim=1).tolist(), targets.tolist()):
            losses = [-(true if label == target else other) * value for label, value in enumerate(row)]
            total += sum(losses) / counts[target]
        return total

    found = fit_temperature(logits, targets)
    assert loss(found) <= min(loss(found * 0.99), loss(found * 1.01))


@pytest.mark.parametrize('counts', [[5, 5], [20, 20, 20, 20], [30, 6, 2]])
def test_nothing_is_certain_where_all_images_are_right(counts):
    """With one margin m for all, the probability of the true class is (n + 1) / (n + 2)."""
    num_classes, margin = len(counts), 7.0
    targets = torch.repeat_interleave(torch.arange(num_classes), torch.tensor(counts))
    logits = margin * F.one_hot(targets).double()

    temperature = fit_temperature(logits, targets)

    num_effective = num_classes ** 2 / sum(1 / count for count in counts)
    confidence = (num_effective + 1) / (num_effective + 2)
    odds = confidence / (1 - confidence)
    assert temperature == pytest.approx(margin / math.log(odds * (num_classes - 1)), rel=1e-3)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_logits_that_are_not_finite_are_refused(value):
    logits, targets = create_logits([5, 5], 1.0)
    logits[3, 1] = value

    with pytest.raises(UserError, match='the logits of the classifier are not finite'):
        fit_temperature(logits, targets)


def test_calibration_lowers_the_error():
    logits, targets = create_logits([1000] * 4, 5.0)
    temperature = fit_temperature(logits, targets)

    assert class_balanced_ece(logits, targets) > 10
    assert class_balanced_ece(logits / temperature, targets) < 3


def test_the_calibration_error_by_hand():
    """Class 0: one right of two at confidence .9; class 1: wrong at .6. Bins differ, classes weigh 1/2."""
    p = torch.tensor([[0.9, 0.1], [0.1, 0.9], [0.6, 0.4]], dtype=torch.float64)

    found = class_balanced_ece(p.log(), torch.tensor([0, 0, 1]))

    first = (0.25 * (1 - 0.9) + 0.25 * (0 - 0.9))
    assert found == pytest.approx(100 * (abs(first) + 0.5 * 0.6))
