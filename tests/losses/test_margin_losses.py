"""Focal loss, margins and the binary cross-entropy of a softmax: weights of classes, closed forms, edges.

What every loss is held to is in test_losses.py. Shapes: B batch, C classes.
"""
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from timm_longtail.losses import focal_loss, ldam_loss, softmax_binary_cross_entropy
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import make_rows
from ..support.reference import margins

COUNTS = [500, 60, 20, 3]
LOSSES = {
    'focal 0': (focal_loss, dict(gamma=0.0)),
    'focal 0.5': (focal_loss, dict(gamma=0.5)),
    'focal 2': (focal_loss, dict(gamma=2.0)),
    'focal 5': (focal_loss, dict(gamma=5.0)),
    'ldam': (ldam_loss, dict(class_counts=COUNTS)),
    'ldam, wide': (ldam_loss, dict(class_counts=COUNTS, max_margin=1.5, scale=4.0)),
}
each_loss = pytest.mark.parametrize('loss, options', LOSSES.values(), ids=LOSSES)


def value_and_gradient(
        loss: Callable[..., torch.Tensor],
        logits: torch.Tensor,
        *args: Any,
        **options: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    value = loss(logits, *args, **options)
    return value.detach(), torch.autograd.grad(value, logits)[0]


# weights of classes

@each_loss
def test_weighted_loss_equals_the_loops(loss, options):
    logits, target, weight = make_rows()
    expected = value_and_gradient(getattr(margins, loss.__name__), logits, target, **options, weight=weight)
    found = value_and_gradient(loss, logits, target, **options, weight=weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(loss(logits, target, **options, weight=7 * weight), found[0])  # ratios count
    torch.testing.assert_close(loss(logits.float(), target, **options, weight=weight), found[0].float())


@each_loss
def test_weighted_gradcheck(loss, options):
    logits, target, weight = make_rows()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, **options, weight=weight), logits)


@each_loss
def test_weighted_rows_and_their_sum(loss, options):
    logits, target, weight = make_rows(requires_grad=False)
    plain, rows, total = (
        loss(logits, target, **options, weight=w, reduction=r)
        for w, r in ((None, 'none'), (weight, 'none'), (weight, 'sum')))
    torch.testing.assert_close(rows, weight[target] * plain)
    torch.testing.assert_close(total, rows.sum())


@each_loss
def test_a_class_of_weight_zero_is_left_out(loss, options):
    logits, target, _ = make_rows(requires_grad=False)
    kept = target != 1
    value = loss(logits, target, **options, weight=torch.tensor([1.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(value, loss(logits[kept], target[kept], **options))


# closed forms

@pytest.mark.parametrize('weighted', [False, True])
def test_focal_loss_without_focus_is_cross_entropy(weighted):
    logits, target, weight = make_rows()
    weight = weight if weighted else None
    expected = value_and_gradient(F.cross_entropy, logits, target, weight=weight)
    torch.testing.assert_close(value_and_gradient(focal_loss, logits, target, 0.0, weight), expected)


@pytest.mark.parametrize('gamma', [0.5, 1.0, 2.0])
def test_focal_loss_of_equal_logits(gamma):
    value = focal_loss(torch.full((3, 4), 7.0), torch.tensor([0, 2, 3]), gamma)
    assert value == pytest.approx(0.75 ** gamma * math.log(4), rel=1e-6)


@pytest.mark.parametrize('weighted', [False, True])
def test_ldam_without_margins_is_cross_entropy(weighted):
    logits, target, weight = make_rows()
    weight = weight if weighted else None
    torch.testing.assert_close(
        ldam_loss(logits, target, COUNTS, max_margin=0.0, weight=weight),
        F.cross_entropy(30 * logits, target, weight=weight))


def test_ldam_margins_by_hand():
    """Fourth roots of 1296, 16 and 1 are 6, 2 and 1; at equal cosines the loss is log(1 + (C - 1) e^(s m))."""
    rows = ldam_loss(torch.zeros(3, 3), torch.arange(3), [1296, 16, 1], max_margin=0.6, scale=10.0, reduction='none')
    assert rows.tolist() == [pytest.approx(math.log1p(2 * math.exp(10 * m)), rel=1e-6) for m in (0.1, 0.3, 0.6)]


def test_ldam_knows_the_ratios_of_counts_only():
    logits, target, _ = make_rows()
    value = ldam_loss(logits, target, COUNTS)
    for counts in ([10 * n for n in COUNTS], torch.tensor(COUNTS), np.array(COUNTS), torch.tensor(COUNTS) / 583):
        torch.testing.assert_close(ldam_loss(logits, target, counts), value, rtol=1e-6, atol=0)
    balanced = ldam_loss(logits, target, [7] * 4)
    torch.testing.assert_close(balanced, ldam_loss(logits, target, [1] * 4))
    assert balanced > value  # every margin is the largest


# weights inside the focal loss, and the binary cross-entropy of a softmax

def test_inner_weights_by_hand():
    """Equal logits of four classes: p = 1/4, and to the power of the weight 2 it is 1/16."""
    weight = torch.tensor([2.0, 1.0, 1.0, 1.0])
    rows = focal_loss(torch.zeros(2, 4), torch.tensor([0, 1]), 1.0, weight, 'none', inner_weight=True)
    assert rows.tolist() == [pytest.approx(15 / 16 * 2 * math.log(4)), pytest.approx(3 / 4 * math.log(4))]


def test_inner_weights_without_focus_weigh_the_mean_over_rows():
    logits, target, weight = make_rows()
    rows = F.cross_entropy(logits, target, reduction='none', weight=weight)
    torch.testing.assert_close(focal_loss(logits, target, 0.0, weight, inner_weight=True), rows.mean())
    torch.testing.assert_close(focal_loss(logits, target, 2.0, inner_weight=True), focal_loss(logits, target, 2.0))


def test_binary_cross_entropy_is_pytorchs_on_probabilities():
    """As the released second stage of weight balancing computes it, where nothing is below its bound of e^-100."""
    logits, target, weight = make_rows()
    expected = value_and_gradient(
        lambda x: F.binary_cross_entropy(
            x.softmax(1), F.one_hot(target, 4).double(), weight=weight[target][:, None].expand(-1, 4)), logits)
    found = value_and_gradient(softmax_binary_cross_entropy, logits, target, weight=weight)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_binary_cross_entropy_of_sure_rows(dtype):
    """Right or wrong by a gap of g: log(1 - p) is -g of the class that is missed, as is log p of the right one."""
    gaps = torch.tensor([60.0, 200.0, 1e4])
    logits = torch.stack([gaps, torch.zeros(3)], dim=1).to(dtype).requires_grad_()
    for column, factor in ((0, 0), (1, 1)):
        target = torch.full((3,), column)
        value, gradient = value_and_gradient(softmax_binary_cross_entropy, logits, target)
        assert float(value) == pytest.approx(factor * float(logits.detach()[:, 0].float().mean()), rel=1e-5, abs=1e-20)
        assert gradient.isfinite().all()


# edges

@pytest.mark.parametrize('gamma', [0.0, 0.25, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize('inner_weight', [False, True])
def test_focal_loss_of_sure_rows_is_finite(gamma, dtype, inner_weight):
    """Right or wrong beyond doubt, by gaps at which 1 - p, or p itself, is 0 in every precision."""
    largest = torch.finfo(dtype).max / 4 if dtype == torch.float16 else 1e30
    gaps = torch.tensor([10.0, 20.0, 60.0, 200.0, 1e4, largest])
    logits = torch.stack([torch.zeros(6), gaps], dim=1).to(dtype).requires_grad_()
    for column in (0, 1):
        target = torch.full((6,), column)
        value, gradient = value_and_gradient(
            focal_loss, logits, target, gamma, reduction='sum', inner_weight=inner_weight)
        assert value.isfinite() and gradient.isfinite().all()
    rows = focal_loss(logits, torch.zeros(6).long(), gamma, reduction='none', inner_weight=inner_weight)
    torch.testing.assert_close(rows, logits.detach()[:, 1].to(rows.dtype), rtol=1e-3, atol=0)  # p = e^-gap


@pytest.mark.parametrize('inner_weight', [False, True])
def test_focal_loss_keeps_its_digits_where_p_is_close_to_one(inner_weight):
    logits = torch.stack([torch.tensor([5.0, 8.0, 12.0]), torch.zeros(3)], dim=1)
    target = torch.zeros(3).long()
    options = dict(gamma=0.5, inner_weight=inner_weight)
    single = value_and_gradient(focal_loss, logits.requires_grad_(), target, **options)
    double = value_and_gradient(focal_loss, logits.detach().double().requires_grad_(), target, **options)
    torch.testing.assert_close(single[0].double(), double[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(single[1].double(), double[1], rtol=1e-2, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@each_loss
def test_one_class_has_nothing_to_learn(loss, options, dtype):
    options = {**options, 'class_counts': [5]} if 'class_counts' in options else options
    logits = torch.tensor([[3.0], [-2.0]], dtype=dtype, requires_grad=True)
    value, gradient = value_and_gradient(loss, logits, torch.zeros(2).long(), **options)
    assert value == 0 and value.dtype == torch.float32
    assert not gradient.any() and gradient.dtype == dtype


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_ldam_at_its_bounds(dtype):
    """Cosines of 1 and -1, right and wrong, with counts ten orders of magnitude apart."""
    logits = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=dtype, requires_grad=True)
    value, gradient = value_and_gradient(ldam_loss, logits, torch.zeros(2).long(), [1, 1e10], scale=1e4)
    assert value == pytest.approx(1e4 * 2.5 / 2, rel=1e-4) and gradient.isfinite().all()


@pytest.mark.parametrize('call, message', [
    (lambda x, y: focal_loss(x, y[:3]), r'expected logits \[B, C\] and target \[B\], got \[9, 4\] and \[3\]'),
    (lambda x, y: focal_loss(x[0], y), r'expected logits \[B, C\] and target \[B\], got \[4\] and \[9\]'),
    (lambda x, y: focal_loss(x, y, weight=torch.ones(3)), r'expected 4 class weights, .* got \[3\]'),
    (lambda x, y: focal_loss(x, y, -1.0), 'gamma must be at least 0, got -1'),
    (lambda x, y: focal_loss(x, y, float('nan')), 'gamma must be at least 0, got nan'),
    (lambda x, y: focal_loss(x, y, reduction='average'), "unknown reduction 'average'"),
    (lambda x, y: ldam_loss(x, F.one_hot(y), COUNTS), r'expected logits \[B, C\] and target \[B\]'),
    (lambda x, y: ldam_loss(x, y, COUNTS[1:]), r'expected 4 class counts, .* got \[3\]'),
    (lambda x, y: ldam_loss(x, y, [3, 2, 0, 1]), 'class counts must be positive, class 2 is not'),
    (lambda x, y: ldam_loss(x, y, COUNTS, scale=0), 'scale must be positive, got 0'),
    (lambda x, y: ldam_loss(x, y, COUNTS, weight=torch.ones(4, 1)), r'expected 4 class weights, .* got \[4, 1\]'),
])
def test_what_does_not_fit_is_refused(call, message):
    logits, target, _ = make_rows()
    with pytest.raises(UserError, match=message):
        call(logits, target)
