"""Logit adjustment: closed forms, kinds of targets and of counts."""
import pytest
import torch
import torch.nn.functional as F

from timm_longtail import losses
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import CASES, make_sample


@pytest.mark.parametrize('tau', [0.5, 1.0, 2.0])
def test_uniform_counts_are_cross_entropy(tau):
    sample = make_sample()
    value = losses.logit_adjusted_cross_entropy(sample.logits, sample.target, [7] * 4, tau)
    torch.testing.assert_close(value, F.cross_entropy(sample.logits, sample.target))


def test_tau_0_is_cross_entropy():
    sample = make_sample()
    value = losses.logit_adjusted_cross_entropy(sample.logits, sample.target, sample.class_counts, tau=0.0)
    torch.testing.assert_close(value, F.cross_entropy(sample.logits, sample.target))


def test_zero_logits_give_the_prior():
    value = losses.logit_adjusted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 1]), [3, 1])
    torch.testing.assert_close(value, -torch.tensor([3 / 4, 1 / 4]).log().mean())


@pytest.mark.parametrize('dtype', [torch.float64, torch.int64, torch.bool])
def test_one_hot_targets_equal_ids(dtype):
    sample = make_sample()
    one_hot = F.one_hot(sample.target, 4).to(dtype)
    torch.testing.assert_close(
        losses.logit_adjusted_cross_entropy(sample.logits, one_hot, sample.class_counts),
        losses.logit_adjusted_cross_entropy(sample.logits, sample.target, sample.class_counts))


@pytest.mark.parametrize('convert', [
    torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.double, torch.Tensor.float, torch.Tensor.int,
    lambda counts: counts / counts.sum(),
], ids=['list', 'array', 'float64', 'float32', 'int32', 'frequencies'])
def test_any_kind_of_counts(convert):
    sample = make_sample(dtype=torch.float32)
    value = losses.logit_adjusted_cross_entropy(sample.logits, sample.target, convert(sample.class_counts))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, CASES['logit_adjusted_cross_entropy'](sample))


@pytest.mark.parametrize('counts, message', [
    ([5, 0, 2, 1], 'class counts must be positive, class 1 is not'),
    ([5, 3, 2, -1], 'class counts must be positive, class 3 is not'),
    ([5, 3, float('nan'), 1], 'class counts must be positive, class 2 is not'),
    ([5, 3, 2], r'expected 4 class counts, one a column of logits, got \[3\]'),
    (5, r'expected 4 class counts, one a column of logits, got \[\]'),
])
def test_bad_counts(counts, message):
    sample = make_sample()
    with pytest.raises(UserError, match=message):
        losses.logit_adjusted_cross_entropy(sample.logits, sample.target, counts)
