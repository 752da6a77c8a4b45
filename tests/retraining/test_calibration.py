"""The temperature and the calibration error, each class weighing the same."""
import pytest
import torch
from torch.nn import functional as F

from timm_longtail.retraining.calibration import class_balanced_ece, fit_temperature


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
    logits, targets = create_logits([50, 30, 5], 3.0)
    targets[:40] = 0  # a long tail

    def loss(temperature):
        losses = F.cross_entropy(logits / temperature, targets, reduction='none')
        return torch.stack([losses[targets == label].mean() for label in range(3)]).mean()

    found = fit_temperature(logits, targets)
    assert loss(found) <= min(loss(found * 0.99), loss(found * 1.01))


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
