"""Losses: against loops written from the papers, closed forms, invariances, precision, and what a graph can hold.

A new loss gets the generic tests by one line in CASES. Shapes: B batch, C classes, D width.
"""
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import losses as benchmark
from timm_longtail import losses
from timm_longtail.losses import _common
from timm_longtail.utils.errors import UserError

from ..support import forks
from ..support.reference import losses as reference
from ..support.reference import mixing, rotation
from ..support.reference import prototype as prototype_reference


@dataclass(frozen=True)
class Sample:
    """What a loss may ask for, by the names of its arguments."""
    logits: torch.Tensor  # [B, C]
    target: torch.Tensor  # [B]
    soft_target: torch.Tensor  # [B, C]
    class_counts: torch.Tensor  # [C]
    embeddings: torch.Tensor  # [B, D], unit rows
    prototypes: torch.Tensor  # [C, D], unit rows
    means: torch.Tensor  # [C, D], shorter than 1
    mask: torch.Tensor  # bool [B]
    class_weight: torch.Tensor  # [C]
    rotated: torch.Tensor  # [B, 3, D], unit rows
    # [B, D] and [B] of images to mix and of their mixtures, of any length
    first: torch.Tensor
    second: torch.Tensor
    mixup: torch.Tensor
    cutmix: torch.Tensor
    other_target: torch.Tensor

    def apply(self, function, *names):
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    def permute_rows(self, order):
        return self.apply(
            lambda t: t[order], 'logits', 'target', 'soft_target', 'embeddings', 'mask', 'other_target', 'rotated',
            *MIXED)

    def permute_classes(self, order):
        """Class order[c] becomes class c."""
        sample = self.apply(lambda t: order.argsort()[t], 'target', 'other_target')
        sample = sample.apply(lambda t: t[:, order], 'logits', 'soft_target')
        return sample.apply(lambda t: t[order], 'class_counts', 'class_weight', 'prototypes', 'means')

    def rotate(self, rotation):
        return self.apply(lambda t: t @ rotation, 'embeddings', 'prototypes', 'means', 'rotated', *MIXED)


MIXED = ('first', 'second', 'mixup', 'cutmix')
FLOATS = ('logits', 'soft_target', 'embeddings', 'prototypes', 'means', 'class_weight', 'rotated', *MIXED)
INTEGERS = ('target', 'other_target', 'class_counts', 'mask')

# B, C, D and what the targets are; class ids where they are given
SHAPES = {
    'random': (9, 4, 5, None),
    'wide': (6, 3, 16, None),
    'class absent': (8, 4, 3, [1, 3, 1, 3, 3, 2, 1, 1]),
    'one class': (5, 3, 4, [2] * 5),
    'every class once': (4, 4, 3, [2, 0, 3, 1]),
    'one anchor of its class': (5, 2, 3, [0, 0, 1, 0, 0]),
    'one row': (1, 3, 4, [1]),
    'one class in all': (4, 1, 3, [0] * 4),
}


def make_sample(shape='random', seed=0, dtype=torch.float64):
    batch_size, num_classes, width, target = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    sample = Sample(
        logits=2 * normal(batch_size, num_classes),
        target=torch.randint(num_classes, (batch_size,), generator=generator) if target is None
        else torch.tensor(target),
        soft_target=normal(batch_size, num_classes).softmax(1),
        class_counts=torch.tensor([int(500 * 0.4 ** c) for c in range(num_classes)]),
        embeddings=F.normalize(normal(batch_size, width)),
        prototypes=F.normalize(normal(num_classes, width)),
        means=F.normalize(normal(num_classes, width)) * torch.linspace(0.2, 0.8, num_classes)[:, None],
        mask=torch.rand(batch_size, generator=generator) < 0.6,
        class_weight=normal(num_classes).exp(),
        other_target=torch.randint(num_classes, (batch_size,), generator=generator),
        **{name: normal(batch_size, width) for name in MIXED},
        rotated=F.normalize(normal(batch_size, 3, width), dim=2),
    )
    return sample.apply(lambda t: t.to(dtype), *FLOATS)


@dataclass(frozen=True)
class Case:
    """A loss, its loop version, the fields of a sample it takes in order, and its options: a text names a field."""
    loss: Callable
    fields: tuple
    options: dict
    leaves: tuple  # the fields with a gradient
    block_size: int | None = None  # similarities held at a time, where not as many as usual

    def __call__(self, sample, loss=None, **options):
        given = {k: getattr(sample, v) if isinstance(v, str) else v for k, v in self.options.items()}
        return (loss or self.loss)(*(getattr(sample, field) for field in self.fields), **given, **options)

    def reference(self, sample):
        name = self.loss.__name__
        sources = reference, prototype_reference, mixing, rotation
        return self(sample, loss=next(getattr(source, name) for source in sources if hasattr(source, name)))

    def value_and_gradients(self, sample, function=None):
        sample = sample.apply(lambda t: t.detach().clone().requires_grad_(), *self.leaves)
        value = (function or self)(sample)
        value.backward()
        return value.detach(), [getattr(sample, leaf).grad for leaf in self.leaves]


def make_case(loss, *fields, leaves=None, block_size=None, **options):
    leaves = leaves or tuple(field for field in fields if field in FLOATS and 'target' not in field)
    return Case(loss, fields, options, leaves, block_size)


CASES = {
    'logit_adjusted_cross_entropy': make_case(losses.logit_adjusted_cross_entropy, 'logits', 'target', 'class_counts'),
    'logit_adjusted_cross_entropy, soft': make_case(
        losses.logit_adjusted_cross_entropy, 'logits', 'soft_target', 'class_counts', tau=1.5),
    'focal_loss': make_case(losses.focal_loss, 'logits', 'target'),
    'focal_loss, inner weight': make_case(
        losses.focal_loss, 'logits', 'target', gamma=1.0, weight='class_weight', inner_weight=True),
    'ldam_loss': make_case(losses.ldam_loss, 'logits', 'target', 'class_counts', scale=5.0),
    'sup_con_loss': make_case(losses.sup_con_loss, 'embeddings', 'target', temperature=0.1),
    'sup_con_loss, warm': make_case(losses.sup_con_loss, 'embeddings', 'target', temperature=0.7),
    'balanced_sup_con_loss': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.1),
    'balanced_sup_con_loss, warm': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.7),
    'complement_entropy_loss': make_case(losses.complement_entropy_loss, 'logits', 'target'),
    'complement_entropy_loss, masked': make_case(losses.complement_entropy_loss, 'logits', 'target', 'mask'),
    'prototype_conformity_loss': make_case(losses.prototype_conformity_loss, 'embeddings', 'target', 'prototypes'),
    'prototype_conformity_loss, masked': make_case(
        losses.prototype_conformity_loss, 'embeddings', 'target', 'prototypes', 'mask'),
    'prototype_conformity_loss, squared': make_case(
        losses.prototype_conformity_loss, 'embeddings', 'target', 'prototypes', squared=True),
    'proco_loss': make_case(losses.proco_loss, 'embeddings', 'target', 'means', 'class_counts', temperature=0.1),
    'proco_loss, capped': make_case(
        losses.proco_loss, 'embeddings', 'target', 'means', 'class_counts', temperature=0.5, max_concentration=4.0),
    # blocks of two or three anchors, the last one smaller, and blocks of one
    'sup_con_loss, in blocks': make_case(losses.sup_con_loss, 'embeddings', 'target', temperature=0.1, block_size=18),
    'balanced_sup_con_loss, in blocks': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.1, block_size=26),
    'balanced_sup_con_loss, one by one': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.1, block_size=1),
    'softmax_binary_cross_entropy': make_case(losses.softmax_binary_cross_entropy, 'logits', 'target'),
    'softmax_binary_cross_entropy, weighted': make_case(
        losses.softmax_binary_cross_entropy, 'logits', 'target', weight='class_weight'),
    'soft_cross_entropy': make_case(losses.soft_cross_entropy, 'logits', 'soft_target'),
    'soft_cross_entropy, weighted': make_case(
        losses.soft_cross_entropy, 'logits', 'soft_target', 'class_weight', leaves=('logits',)),
    'mixture_consistency_loss': make_case(losses.mixture_consistency_loss, *MIXED, leaves=('first', 'second')),
    'nt_xent_loss': make_case(losses.nt_xent_loss, 'first', 'mixup', temperature=0.1),
    'nt_xent_loss, in blocks': make_case(losses.nt_xent_loss, 'first', 'mixup', temperature=0.5, block_size=120),
    'mixing_ratio_contrastive_loss': make_case(
        losses.mixing_ratio_contrastive_loss, *MIXED, lam=0.3, temperature=0.5),
    'mixing_ratio_contrastive_loss, other class': make_case(
        losses.mixing_ratio_contrastive_loss, *MIXED, lam=0.3, temperature=0.5,
        target1='target', target2='other_target'),
    'mixing_ratio_contrastive_loss, other class, cross only': make_case(
        losses.mixing_ratio_contrastive_loss, *MIXED, lam=0.3, temperature=0.5, cross_only=True,
        target1='target', target2='other_target'),
    # the queue has one key a class here
    'pnda_loss': make_case(
        losses.pnda_loss, 'embeddings', 'first', 'rotated', 'mask', 'prototypes', temperature=0.2),
    'rotation_separation_loss': make_case(losses.rotation_separation_loss, 'logits', 'target', weight=0.3),
    'rotation_separation_loss, no margin': make_case(
        losses.rotation_separation_loss, 'logits', 'target', weight=1.5, margin=0.0),
}

each_case = pytest.mark.parametrize('case', CASES.values(), ids=CASES, indirect=True)
each_shape = pytest.mark.parametrize('shape', SHAPES)
REDUCED = {name: case for name, case in CASES.items() if 'reduction' in inspect.signature(case.loss).parameters}
each_reduced = pytest.mark.parametrize('case', REDUCED.values(), ids=REDUCED, indirect=True)


@pytest.fixture
def case(request, monkeypatch):
    if request.param.block_size is not None:
        monkeypatch.setattr(_common, 'BLOCK_SIZE', request.param.block_size)
    return request.param


def test_every_loss_has_a_case():
    # no scalar: see test_rotation_losses.py
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


@each_case
def test_traces_into_one_graph(case):
    torch.compiler.reset()  # a function may only be traced so often
    sample = make_sample()
    compiled = replace(case, loss=torch.compile(case.loss, fullgraph=True, backend='aot_eager'))
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


# logit adjustment

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


# contrast

def identical_rows(num_rows, width=3):
    return F.normalize(torch.ones(num_rows, width, dtype=torch.float64))


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_identical_embeddings(temperature):
    target = torch.tensor([0, 0, 0, 1, 1, 2])
    value = losses.sup_con_loss(identical_rows(6), target, temperature, reduction='none')
    log_others = torch.tensor(5.).double().log()  # the last anchor has no positive
    torch.testing.assert_close(value, log_others * torch.tensor([1, 1, 1, 1, 1, 0]))
    value = losses.balanced_sup_con_loss(identical_rows(6), target, identical_rows(4), temperature, reduction='none')
    torch.testing.assert_close(value, torch.tensor(4.).double().log().expand(6))  # one term a class, however many rows


@pytest.mark.parametrize('counts', [(1, 1, 1), (3, 3, 3), (6, 2, 1), (4, 0, 2)])
def test_balanced_loss_of_collapsed_classes_is_a_softmax_over_prototypes(counts):
    prototypes = make_sample('wide').prototypes
    target = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    value = losses.balanced_sup_con_loss(prototypes[target], target, prototypes, 0.2, reduction='none')
    torch.testing.assert_close(
        value, F.cross_entropy(prototypes[target] @ prototypes.T / 0.2, target, reduction='none'))


def test_rows_equal_to_the_prototype_do_not_change_the_balanced_denominator():
    """With every row of the other classes at its prototype, any number of them leaves an anchor's loss as it is."""
    sample = make_sample('wide')

    def loss_of_the_anchor(counts):
        target = torch.repeat_interleave(torch.arange(1, 3), torch.tensor(counts))
        rows = torch.cat([sample.embeddings[:1], sample.prototypes[target]])
        target = torch.cat([torch.tensor([0]), target])
        balanced = losses.balanced_sup_con_loss(rows, target, sample.prototypes, 0.2, reduction='none')[0]
        plain = losses.sup_con_loss(torch.cat([rows, sample.prototypes[:1]]), F.pad(target, (0, 1)), 0.2, 'none')[0]
        return balanced, plain

    few, many = loss_of_the_anchor([1, 1]), loss_of_the_anchor([20, 1])
    torch.testing.assert_close(few[0], many[0])
    assert many[1] > few[1] + 0.1  # what head classes do to the plain loss


def test_an_anchor_without_positives_counts_in_the_mean():
    sample = make_sample('every class once')
    value, (gradient,) = CASES['sup_con_loss'].value_and_gradients(sample)
    assert value == 0 and not gradient.any()
    sample = make_sample('one anchor of its class')
    rows = CASES['sup_con_loss'](sample, reduction='none')
    assert rows[2] == 0 and (rows[[0, 1, 3, 4]] > 0).all()
    torch.testing.assert_close(CASES['sup_con_loss'](sample), rows.sum() / 5)


@pytest.mark.parametrize('name', ['sup_con_loss', 'balanced_sup_con_loss'])
@pytest.mark.parametrize('change, message', [
    (dict(target=torch.zeros(8).long()), r'expected embeddings \[B, D\] and target \[B\], got \[9, 5\] and \[8\]'),
    (dict(target=torch.zeros(9, 4)), r'expected embeddings .* got \[9, 5\] and \[9, 4\]'),
    (dict(embeddings=torch.zeros(9)), r'expected embeddings .* got \[9\] and \[9\]'),
])
def test_bad_shapes(name, change, message):
    with pytest.raises(UserError, match=message):
        CASES[name](replace(make_sample(), **change))


@pytest.mark.parametrize('shape', [(4, 3), (5,)])
def test_bad_prototypes(shape):
    with pytest.raises(UserError, match=r'expected prototypes \[C, 5\]'):
        CASES['balanced_sup_con_loss'](replace(make_sample(), prototypes=torch.zeros(shape)))


@pytest.mark.parametrize('temperature', [0, -0.1, float('nan')])
def test_bad_temperature(temperature):
    sample = make_sample()
    with pytest.raises(UserError, match='temperature must be positive'):
        losses.sup_con_loss(sample.embeddings, sample.target, temperature)
    with pytest.raises(UserError, match='temperature must be positive'):
        losses.balanced_sup_con_loss(sample.embeddings, sample.target, sample.prototypes, temperature)


# at size

CONTRAST = {name: CASES[name] for name in ('sup_con_loss', 'balanced_sup_con_loss')}
each_contrast = pytest.mark.parametrize('case', CONTRAST.values(), ids=CONTRAST)


def make_large_sample(dtype=torch.float64):
    """231 rows, row 0 alone of its class, and some of 60 classes without any."""
    generator = torch.Generator().manual_seed(5)
    target = (torch.rand(231, generator=generator) ** 3 * 59).long() + 1
    target[0] = 0
    embeddings, prototypes = (
        F.normalize(torch.randn(size, 16, generator=generator, dtype=torch.float64)).to(dtype) for size in (231, 60)
    )
    assert target.bincount(minlength=60).min() == 0 and target.bincount()[0] == 1
    return replace(make_sample(), embeddings=embeddings, prototypes=prototypes, target=target)


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor has that an operation returns."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.size = max([self.size, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
        return out


@each_contrast
@pytest.mark.parametrize('reduction', ['mean', 'sum', 'none'])
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize('block_size', [1, 5000, 33333])
def test_blocks_equal_the_whole(case, reduction, dtype, tolerance, block_size, monkeypatch):
    sample = make_large_sample(dtype)
    weight = torch.linspace(-1, 2, 231).to(dtype)  # each anchor has a gradient of its own

    def weighted_loss(sample):
        loss = case(sample, reduction=reduction)
        return (loss * weight).sum() if reduction == 'none' else loss

    expected = case.value_and_gradients(sample, weighted_loss)
    monkeypatch.setattr(_common, 'BLOCK_SIZE', block_size)
    torch.testing.assert_close(
        case.value_and_gradients(sample, weighted_loss), expected, rtol=tolerance, atol=tolerance)


@each_contrast
def test_nothing_is_larger_than_a_block(case, monkeypatch):
    """Neither in the forward nor in the backward pass; embeddings and gradients [B + C, D] are smaller still."""
    sample = make_large_sample()
    with LargestTensor() as largest:
        case.value_and_gradients(sample)
    assert largest.size >= 231 ** 2  # the whole
    monkeypatch.setattr(_common, 'BLOCK_SIZE', 6000)
    with LargestTensor() as largest:
        case.value_and_gradients(sample)
    assert 5000 < largest.size <= 6000


@each_contrast
def test_blocks_without_gradients(case, monkeypatch):
    sample = make_large_sample()
    expected = case(sample)
    monkeypatch.setattr(_common, 'BLOCK_SIZE', 5000)
    with torch.no_grad():
        torch.testing.assert_close(case(sample), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('name, terms', [('sup_con', 24), ('balanced_sup_con', 27)])
def test_benchmark(name, terms, monkeypatch, capsys):
    monkeypatch.setattr(_common, 'BLOCK_SIZE', _common.BLOCK_SIZE)  # it sets its own, which ends with this test
    for block_size in ('60', '9999'):
        monkeypatch.setattr(sys, 'argv', [
            'losses.py', '--loss', name, '--rows', '24', '--classes', '3', '--width', '4', '--repeats', '1',
            '--block-size', block_size])
        benchmark.main()
    blocks, plain = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (blocks['rows'], blocks['classes'], blocks['block_size'], plain['block_size']) == (24, 3, 60, 9999)
    assert blocks['ps_per_product'] == pytest.approx(blocks['seconds'] * 1e12 / (24 * terms * 4))
    assert blocks['value'] == pytest.approx(plain['value'], rel=1e-5)
    assert blocks['gradient_norm'] == pytest.approx(plain['gradient_norm'], rel=1e-5)
    assert 0 < blocks['before_mb'] <= blocks['peak_mb']


MEASURE_BOTH = """
import ctypes, json
# what is freed goes back to the system at once, so that the peak is what was held (3 is M_MMAP_THRESHOLD)
ctypes.CDLL(None).mallopt(-3, 1000000)
from benchmarks.losses import measure, parser
args = parser.parse_args(['--width', '8', '--repeats', '1', '--block-size', str(2 ** 20)])
blocks = measure(args, rows=4096, classes=500)
args.block_size = 2 ** 40
print(json.dumps([blocks, measure(args, rows=4096, classes=500)]))
"""


@pytest.mark.script
@pytest.mark.skipif(sys.platform != 'linux', reason='reads /proc')
def test_memory():
    """One matrix of 4096 x 4596 similarities is 75 MB; the plain form holds four and more of them."""
    done = forks.run('-c', MEASURE_BOTH, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    blocks, plain = json.loads(done.stdout)
    assert blocks['value'] == pytest.approx(plain['value'], rel=1e-5)
    assert blocks['peak_mb'] - blocks['before_mb'] < 70  # more if the blocks were kept for the backward pass
    assert plain['peak_mb'] - plain['before_mb'] > 280


# the theorem of the paper on balanced contrastive learning

CLASS_COUNTS = torch.tensor([40, 20, 10, 6, 4])


def distance_from_simplex(balanced, temperature, class_average=True, width=8):
    """Minimise over free unit features and prototypes.

    Returns:
        The largest |cosine + 1 / (C - 1)| between class means.
    """
    num_classes = len(CLASS_COUNTS)
    target = torch.repeat_interleave(torch.arange(num_classes), CLASS_COUNTS)
    share = 1 / (num_classes * CLASS_COUNTS.double())[target] if class_average else 1 / CLASS_COUNTS.sum()
    generator = torch.Generator().manual_seed(0)
    features, prototypes = (
        torch.randn(size, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (len(target), num_classes)
    )
    optimizer = torch.optim.LBFGS(
        [features, prototypes], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12, history_size=20,
        line_search_fn='strong_wolfe')

    def closure():
        optimizer.zero_grad()
        z, c = F.normalize(features), F.normalize(prototypes)
        if balanced:
            rows = losses.balanced_sup_con_loss(z, target, c, temperature, reduction='none')
        else:
            rows = losses.sup_con_loss(z, target, temperature, reduction='none')
        loss = (share * rows).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    z = F.normalize(features.detach())
    means = torch.stack([z[target == k].mean(0) for k in range(num_classes)])
    assert (means.norm(dim=1) > 0.99).all()  # converged: each class in one point
    means = F.normalize(means)
    cosines = (means @ means.T)[~torch.eye(num_classes, dtype=torch.bool)]
    return (cosines + 1 / (num_classes - 1)).abs().max().item()


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_balanced_loss_reaches_the_simplex(temperature):
    assert distance_from_simplex(True, temperature) < 0.02


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_plain_contrast_misses_the_simplex(temperature):
    assert distance_from_simplex(False, temperature) > 0.05


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_mean_over_anchors_misses_the_simplex(temperature):
    assert distance_from_simplex(True, temperature, class_average=False) > 0.05
