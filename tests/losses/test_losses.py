"""What every loss is held to: loops written from the papers, invariances, precision, and what a graph can hold.

A new loss gets these tests by one line in `CASES` of tests/support/loss_cases.py. Shapes: B batch, C classes, D width.
"""
import inspect
from dataclasses import replace

import pytest
import torch

from timm_longtail import losses
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import CASES, FLOATS, INTEGERS, SHAPES, make_sample

REDUCED = {name: case for name, case in CASES.items() if 'reduction' in inspect.signature(case.loss).parameters}

# one of those that differ in the values of their numbers alone: the same operations are traced
FORMS = {(case.loss, case.fields, tuple(case.options)): name for name, case in reversed(CASES.items())}

each_case = pytest.mark.parametrize('case', CASES.values(), ids=CASES, indirect=True)
each_form = pytest.mark.parametrize('case', [CASES[name] for name in FORMS.values()], ids=FORMS.values(), indirect=True)
each_reduced = pytest.mark.parametrize('case', REDUCED.values(), ids=REDUCED, indirect=True)
each_shape = pytest.mark.parametrize('shape', SHAPES)


def test_every_loss_has_a_case():
    # rotation_entropy is no scalar: see test_rotation_losses.py
    assert {case.loss.__name__ for case in CASES.values()} == set(losses.__all__) - {'rotation_entropy'}


# against the loops

@each_case
@each_shape
def test_equals_the_loops(case, shape):
    sample = make_sample(shape)
    value, gradients = case.value_and_gradients(sample)
    expected, expected_gradients = case.value_and_gradients(sample, case.reference)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-9, atol=1e-11)


@each_case
def test_gradcheck(case):
    sample = make_sample()
    leaves = [getattr(sample, leaf).requires_grad_() for leaf in case.leaves]
    assert torch.autograd.gradcheck(
        lambda *tensors: case(replace(sample, **dict(zip(case.leaves, tensors, strict=True)))), leaves)


# invariances

@each_case
def test_order_of_rows(case):
    sample = make_sample()
    order = torch.randperm(len(sample.target), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(case(sample.permute_rows(order)), case(sample), rtol=1e-12, atol=1e-12)


@each_case
def test_names_of_classes(case):
    sample = make_sample()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(case(sample.permute_classes(order)), case(sample), rtol=1e-12, atol=1e-12)


@each_case
def test_rotation(case):
    sample = make_sample()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    torch.testing.assert_close(case(sample.rotate(rotation)), case(sample), rtol=1e-12, atol=1e-12)


# precision

@each_case
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_precision(case, dtype):
    sample = make_sample()
    value, gradients = case.value_and_gradients(sample.apply(lambda t: t.to(dtype), *FLOATS))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert all(gradient.dtype == dtype for gradient in gradients)
    # what a half type loses is the rounding of its input, nothing on the way
    rounded = sample.apply(lambda t: t.to(dtype).double(), *FLOATS)
    torch.testing.assert_close(value.double(), case(rounded), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        value.double(), case(sample), rtol={torch.bfloat16: 3e-2, torch.float16: 3e-3}.get(dtype, 1e-5), atol=1e-6)


@each_case
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(case, dtype):
    sample = make_sample(dtype=dtype)

    @torch.autocast('cpu', dtype=torch.bfloat16)
    def under_autocast(sample):
        value = case(sample)
        assert torch.is_autocast_enabled('cpu')  # and so it stays for the caller
        return value

    expected = case.value_and_gradients(sample)
    torch.testing.assert_close(case.value_and_gradients(sample, under_autocast), expected, rtol=0, atol=0)


@each_case
def test_large_and_small_numbers_stay_finite(case):
    sample = make_sample(dtype=torch.float32).apply(lambda t: 1e4 * t, 'logits')
    case = replace(case, options={key: 1e-3 if key == 'temperature' else v for key, v in case.options.items()})
    value, gradients = case.value_and_gradients(sample)
    expected, _ = case.value_and_gradients(sample.apply(torch.Tensor.double, *FLOATS))
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)
    assert all(gradient.isfinite().all() for gradient in gradients)


# reductions

@each_reduced
@each_shape
def test_reductions(case, shape):
    sample = make_sample(shape)
    rows = case(sample, reduction='none')
    assert rows.shape == sample.target.shape
    torch.testing.assert_close(case(sample, reduction='mean'), rows.mean())
    torch.testing.assert_close(case(sample, reduction='sum'), rows.sum())
    assert torch.equal(case(sample), case(sample, reduction='mean'))


@each_reduced
def test_unknown_reduction(case):
    with pytest.raises(UserError, match="unknown reduction 'average', expected 'mean', 'sum' or 'none'"):
        case(make_sample(), reduction='average')


# no operation that needs the values of a tensor

@each_case
@each_shape
def test_runs_without_values(case, shape):
    sample = make_sample(shape, dtype=torch.float32)
    sample = sample.apply(lambda t: t.to('meta'), *FLOATS, *INTEGERS)
    value, gradients = case.value_and_gradients(sample)
    assert value.is_meta and value.shape == () and value.dtype == torch.float32
    assert [g.shape for g in gradients] == [getattr(sample, leaf).shape for leaf in case.leaves]


@each_form
def test_traces_into_one_graph(case):
    torch.compiler.reset()  # a function may only be traced so often
    sample = make_sample()
    compiled = replace(case, loss=torch.compile(case.loss, fullgraph=True, backend='eager'))
    torch.testing.assert_close(compiled.value_and_gradients(sample), case.value_and_gradients(sample))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@each_case
def test_never_waits_for_the_device(case):
    sample = make_sample(dtype=torch.float32)
    on_device = sample.apply(lambda t: t.cuda(), *FLOATS, *INTEGERS)
    torch.cuda.set_sync_debug_mode('error')
    try:
        value, _ = case.value_and_gradients(on_device)
    finally:
        torch.cuda.set_sync_debug_mode('default')
    torch.testing.assert_close(value.cpu(), case(sample), rtol=1e-4, atol=1e-5)
