"""Layers of heads and branches: closed forms and invariances."""
import math

import pytest
import timm
import torch
import torch.nn.functional as F

from timm_longtail.models.layers import CosineLinear, projection_mlp
from timm_longtail.utils.errors import UserError


def test_cosine_linear():
    head = CosineLinear(5, 3, scale=7.0, dtype=torch.float64)
    x = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(head.weight.norm(dim=1), torch.ones(3, dtype=torch.float64))

    expected = 7 * F.cosine_similarity(x[..., None, :], head.weight, dim=-1)
    torch.testing.assert_close(head(x), expected)
    torch.testing.assert_close(head(1e3 * x), expected)  # blind to the length of a feature ...

    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [1.0], [50.0]]))
    torch.testing.assert_close(head(x), expected)  # ... and of a class weight
    torch.testing.assert_close(head(head.weight).diagonal(), torch.full((3,), 7.0, dtype=torch.float64))
    assert head(-head.weight).diagonal().min() >= -7 - 1e-12 and not head(torch.zeros(1, 5).double()).any()
    assert torch.autograd.gradcheck(head, x)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_cosine_linear_normalises_in_fp32(dtype):
    torch.manual_seed(0)
    head = CosineLinear(64, 10, dtype=dtype)
    x = (300 * torch.randn(8, 64)).to(dtype)  # the square of its length overflows fp16
    exact = 30 * F.normalize(x.double()) @ F.normalize(head.weight.double()).T
    assert head(x).dtype == dtype
    torch.testing.assert_close(head(x).double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)

    with torch.autocast('cpu', torch.bfloat16):
        assert head(x).isfinite().all()


def test_projection_mlp():
    mlp = projection_mlp(6, 16, 4, dtype=torch.float64).eval()
    first, _, _, last = mlp
    x = torch.randn(3, 6, dtype=torch.float64)
    hidden = F.relu(first(x) / (1 + 1e-5) ** 0.5)  # BatchNorm before it has seen a batch
    torch.testing.assert_close(mlp(x), last(hidden))
    assert mlp(x).shape == (3, 4)


@pytest.mark.parametrize('scale', [0, -1, math.nan, math.inf])
def test_the_scale_of_a_cosine_classifier_is_positive(scale):
    with pytest.raises(UserError, match='cosine classifier must be in'):
        timm.create_model('resnet20_cifar', cosine_scale=scale)
