"""Which tensor is not finite."""
import pytest
import torch
from torch import nn

from timm_longtail.utils.errors import UserError
from timm_longtail.utils.finite import NotFinite, check_finite, describe_not_finite, trained_tensors

BAD = [float('nan'), float('inf'), -float('inf')]


@pytest.mark.parametrize('value', BAD)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_the_first_tensor_that_is_not_finite_is_named(value, dtype):
    tensors = {
        'number': torch.tensor(3),
        'good': torch.ones(4, dtype=dtype),
        'bad': torch.tensor([[0, value, 1], [value, 2, 3]], dtype=dtype),
        'worse': torch.full((9,), value, dtype=dtype),
    }

    assert describe_not_finite(tensors) == 'bad holds NaN or infinity in 2 of 6 values'
    with pytest.raises(NotFinite, match='^file: bad holds NaN or infinity in 2 of 6 values$'):
        check_finite(tensors, 'file')
    assert issubclass(NotFinite, UserError)


@pytest.mark.parametrize('tensors', [
    {},
    {'empty': torch.empty(0)},
    {'largest': torch.tensor(torch.finfo(torch.float32).max), 'integers': torch.arange(3)},
])
def test_what_is_finite_passes(tensors):
    assert describe_not_finite(tensors) is None
    check_finite(tensors, 'file')


def test_trained_tensors_are_parameters_and_statistics():
    """Not the counter of BatchNorm, nor a mask that is infinite for good reasons."""
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    model.register_buffer('mask', torch.tensor([0., -torch.inf]))

    assert trained_tensors(model).keys() == {
        '0.weight', '0.bias', '1.weight', '1.bias', '0.running_mean', '0.running_var'}
    check_finite(trained_tensors(model), 'model')
