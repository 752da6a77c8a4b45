"""FLOPs of convolutions, with and without groups."""
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from timm_longtail.training.flops import count_flops


@pytest.mark.parametrize('groups', [1, 4])
@pytest.mark.parametrize('needs_input_gradient', [True, False])
def test_flops_of_a_convolution(groups, needs_input_gradient):
    layer = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=groups)
    x = torch.zeros(4, 16, 9, 9, requires_grad=needs_input_gradient)
    with count_flops() as counter:
        layer(x).sum().backward()

    # each output: the products of its window and channels, two FLOPs each; forward and one backward a gradient
    outputs, products = 4 * 32 * 5 * 5, 3 * 3 * 16 // groups
    passes = 3 if needs_input_gradient else 2
    assert counter.get_total_flops() == passes * 2 * outputs * products


@pytest.mark.parametrize('layers', [
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, stride=2), nn.Flatten(), nn.Linear(8 * 9, 5)),
    nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 3, stride=2)),
], ids=['plain', 'transposed'])
def test_flops_of_whole_convolutions_are_those_of_torch(layers):
    counts = []
    for counter in (count_flops(), FlopCounterMode(display=False)):
        with counter:
            layers(torch.zeros(2, 3, 8, 8)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0
