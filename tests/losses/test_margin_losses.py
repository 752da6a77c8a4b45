"""Focal and margin losses beyond the generic tests, class weights, and the methods that are made of them.

Shapes: B batch, C classes.
"""
import itertools
import math

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.losses import focal_loss, ldam_loss, logit_adjusted_cross_entropy, softmax_binary_cross_entropy
from timm_longtail.methods import create_method
from timm_longtail.methods._mixup import remix_share, swap_neighbours
from timm_longtail.methods._reweight import DeferredWeights
from timm_longtail.training.loop import fit
from timm_longtail.utils.distributed import weighted_mean
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST

from ..support.ddp import run_distributed
from ..support.reference import margins
from ..support.runs import assert_same_state, make_run

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


def make_rows(num_rows=9, dtype=torch.float64, requires_grad=True):
    """Return cosines, or logits, [B, C], class ids [B] and class weights [C]."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.rand(num_rows, 4, generator=generator, dtype=torch.float64) - 1
    target = torch.randint(4, (num_rows,), generator=generator)
    weight = torch.tensor([0.1, 0.5, 1.0, 2.4], dtype=torch.float64)
    return logits.to(dtype).requires_grad_(requires_grad), target, weight


def value_and_gradient(loss, logits, *args, **options):
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


# deferred re-weighting

@pytest.mark.parametrize('beta', [0.9, 0.999, 0.9999])
def test_class_balanced_weights(beta):
    weight = DeferredWeights(torch.tensor(COUNTS), beta).weight
    torch.testing.assert_close(weight, torch.tensor(margins.class_balanced_weights(COUNTS, beta)), rtol=1e-5, atol=0)
    assert float(weight.sum()) == pytest.approx(4)


@pytest.mark.parametrize('start, num_epochs, first', [
    (0, 10, 0), (0.8, 200, 160), (0.8, 400, 320), (0.8, 2, 2), (0.5, 2, 1), (0.29, 100, 29), (1, 10, 10), (1.0, 10, 10),
    (161, 200, 160), (2, 10, 1), (10, 10, 9), (10.0, 10, 9),
])
def test_first_epoch_that_is_reweighted(start, num_epochs, first):
    weights = DeferredWeights(torch.tensor(COUNTS), start=start)
    assert weights.active == (start == 0)
    order = torch.randperm(num_epochs, generator=torch.Generator().manual_seed(0)).tolist()
    for epoch in order:  # from the epoch alone, whatever came before
        weights.start_epoch(epoch, num_epochs)
        assert weights.active == (epoch >= first)
    assert weights.state_dict() == {}


def test_reweighting_begins_with_the_first_drop_of_the_rate():
    """However the recipe is stretched."""
    recipe = 'resnet32_cifar.ldam_drw.cifar100_lt_if100'
    for num_epochs in (200, 400, 100, 30, 15, 13, 7, 3):
        args = parse_train_args(['-c', recipe, '--epochs', str(num_epochs)])
        weights = DeferredWeights(torch.tensor(COUNTS), start=args.method_kwargs['reweight_start'])
        epochs = range(1, num_epochs + 1)
        for epoch in epochs:
            weights.start_epoch(epoch - 1, num_epochs)
            assert weights.active == (epoch >= args.decay_milestones[0])


@pytest.mark.parametrize('options, message', [
    (dict(beta=1.0), 'beta must be between 0 and 1, got 1.0'),
    (dict(beta=0.0), 'beta must be between 0 and 1, got 0.0'),
    (dict(start=-0.1), 'got -0.1'),
    (dict(start=1.5), r'at a share of the run in \[0, 1\] or at a whole epoch, got 1.5'),
    (dict(start=float('nan')), 'got nan'),
])
def test_weights_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        DeferredWeights(torch.tensor(COUNTS), **options)


def test_an_epoch_that_the_run_does_not_have():
    weights = DeferredWeights(torch.tensor(COUNTS), start=161)
    with pytest.raises(UserError, match='starts at epoch 161, and the run has 160; a share of the run, such as 0.8'):
        weights.start_epoch(0, 160)
    weights.start_epoch(0, 161)


def test_deferred_weights_are_a_mean_and_then_a_weighted_mean():
    logits, target, _ = make_rows()
    weights = DeferredWeights(torch.tensor(COUNTS), start=0.5).double()
    rows = focal_loss(logits, target, reduction='none')
    for epoch, weight in enumerate((None, weights.weight)):
        weights.start_epoch(epoch, 2)
        torch.testing.assert_close(weights(rows, target), focal_loss(logits, target, weight=weight))


# weighted means over processes

class Weighted(nn.Module):
    """A classifier with a loss weighted by class, and the mean that is asked for."""

    def __init__(self, mean):
        super().__init__()
        torch.manual_seed(0)
        self.mean = mean
        self.classifier = nn.Linear(6, 4).double()
        self.register_buffer('weight', make_rows()[2])

    def forward(self, x, target):
        return self.mean(F.cross_entropy(self.classifier(x), target, reduction='none'), self.weight[target])


def local_mean(values, weights):
    """The usual mistake: each process divides by its own weights."""
    return (weights * values).sum() / weights.sum()


def gradients_of_shard(rank, mean, world_size=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 0, 0, 1, 0, 0, 3, 2, 3, 3, 1, 3])  # the processes have very different weights
    rows = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    model = Weighted(mean)
    task = DistributedDataParallel(model) if world_size > 1 else model
    loss = task(x[rows], target[rows])
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.ddp
def test_two_processes_have_the_weighted_mean_of_one():
    loss, gradients = gradients_of_shard(0, weighted_mean, world_size=1)
    torch.testing.assert_close((loss, gradients), gradients_of_shard(0, local_mean, world_size=1))
    answers = run_distributed(gradients_of_shard, weighted_mean)
    torch.testing.assert_close(sum(value for value, _ in answers) / 2, loss, rtol=1e-12, atol=0)
    for _, shared in answers:
        torch.testing.assert_close(shared, gradients, rtol=1e-12, atol=1e-14)
    (_, wrong), _ = run_distributed(gradients_of_shard, local_mean)
    assert max((a - b).abs().max() for a, b in zip(wrong, gradients)) > 0.01


# methods

def forward(name, *options):
    """Return the method on the tiny network, its first batch and what its forward makes of it; nothing is random."""
    _, run = make_run(name, '--method-kwargs', *options)
    run.method.double()
    run.start_epoch(2)
    run.method.eval()
    (x, *views), target, index = next(iter(run.loaders[0]))
    batch = tuple(view.double() for view in (x, *views)), target, index
    return run.method, batch, run.method(batch)


@pytest.mark.parametrize('start, weighted', [('0', True), ('1', False)])
def test_ldam_drw_compares_cosines(start, weighted):
    method, ((x,), target, _), result = forward('ldam_drw', f'reweight_start={start}', 'max_margin=0.3')
    head = method.model.get_classifier()
    assert head.scale == 16
    cosines = F.normalize(method.features(x)) @ F.normalize(head.weight).T
    weight = torch.tensor(margins.class_balanced_weights(method.class_counts, 0.9999)) if weighted else None
    expected = margins.ldam_loss(cosines, target, method.class_counts, 0.3, 16.0, weight)
    torch.testing.assert_close(result['loss'], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(result['output'], method.model(x))  # what is deployed


def test_ldam_drw_refuses_a_linear_classifier():
    model = timm.create_model('resnet20_cifar', num_classes=4)
    with pytest.raises(UserError, match='ldam_drw needs a cosine classifier, ResNetCifar has Linear; --model-kwargs'):
        create_method('ldam_drw', model, COUNTS)


@pytest.mark.parametrize('name, options', [
    ('focal', ['gamma=0']), ('class_balanced', ['reweight_start=1']), ('balanced_softmax', ['tau=0']),
    ('ldam_drw', ['reweight_start=1', 'max_margin=0']),
    ('sup_con', ['tau=0', 'ce_weight=1', 'contrastive_weight=0', 'views=("eval","sim","sim")']),
])
def test_options_that_leave_cross_entropy(name, options):
    _, (_, target, _), result = forward(name, *options)
    torch.testing.assert_close(result['loss'], F.cross_entropy(result['output'], target))


def test_class_balanced_focal_loss():
    method, (_, target, _), result = forward('class_balanced', 'gamma=1', 'beta=0.9')
    weight = margins.class_balanced_weights(method.class_counts, 0.9)
    assert max(weight) > 1.01 * min(weight)
    torch.testing.assert_close(
        result['loss'], margins.focal_loss(result['output'], target, 1.0, weight), rtol=1e-6, atol=0)


@pytest.mark.parametrize('start, weighted', [('0', True), ('1', False)])
def test_class_balanced_focal_loss_of_ldams_code(start, weighted):
    options = 'gamma=1', 'beta=0.9', 'inner_weights=True', f'reweight_start={start}'
    method, (_, target, _), result = forward('class_balanced', *options)
    weight = margins.class_balanced_weights(method.class_counts, 0.9) if weighted else None
    expected = margins.focal_loss(result['output'], target, 1.0, weight, inner_weight=True)
    torch.testing.assert_close(result['loss'], expected, rtol=1e-6, atol=0)


def test_balanced_softmax_is_logit_adjustment():
    method, (_, target, _), result = forward('balanced_softmax')
    torch.testing.assert_close(
        result['loss'], logit_adjusted_cross_entropy(result['output'], target, method.class_counts))


def test_sup_con_trains_a_projector_alone():
    method, _, _ = forward('sup_con', 'hidden_features=12', 'out_features=6')
    assert {name.split('.')[2] for name, _ in method.named_parameters() if 'branches' in name} == {'projector'}
    assert [p.shape for p in method.model.branches.parameters() if p.ndim == 2] == [(12, 32), (6, 12)]
    model = timm.create_model('bcl_resnet20', num_classes=4, branches=True)
    with pytest.raises(UserError, match=r'has branches already \(projector, prototype\)'):
        create_method('sup_con', model, COUNTS)
    with pytest.raises(UserError, match="'views' of method 'sup_con' must be 3 names"):
        create_method('sup_con', timm.create_model('resnet20_cifar', num_classes=4), COUNTS, views=('sim', 'sim'))


# mixup and Remix

@pytest.mark.parametrize('num_rows, order', [(4, [1, 0, 3, 2]), (5, [1, 0, 3, 2, 4]), (1, [0])])
def test_neighbours_swap(num_rows, order):
    x = torch.arange(2 * num_rows).reshape(num_rows, 2)
    assert torch.equal(swap_neighbours(x), x[order])


def test_pairs_do_not_know_the_number_of_processes():
    x = torch.randn(24, 3)
    for world_size in (1, 2, 3, 4, 6):
        assert torch.equal(torch.cat([swap_neighbours(part) for part in x.chunk(world_size)]), swap_neighbours(x))


@pytest.mark.parametrize('kappa, tau', [(3.0, 0.5), (1.0, 0.5), (2.0, 0.8), (3.0, 0.0), (3.0, 1.0)])
def test_remix_equals_the_cases_of_the_paper(kappa, tau):
    counts, other = zip(*itertools.product([1.0, 2.0, 3.0, 6.0, 100.0], repeat=2))
    for lam in (0.0, 0.1, 0.4, 0.5, 0.6, 0.9, 1.0):
        share = remix_share(lam, torch.tensor(counts), torch.tensor(other), kappa, tau)
        assert share.tolist() == [
            pytest.approx(margins.remix_share(lam, n, m, kappa, tau)) for n, m in zip(counts, other)]


@pytest.mark.parametrize('options', [['mixup_alpha=0.7'], ['mixup_alpha=1', 'remix_tau=0.5', 'remix_kappa=1.1']])
def test_ce_of_mixed_images(options):
    method, ((x,), target, _), first = forward('ce', *options)
    state = method.rng.bit_generator.state
    second = method(((x,), target, None))
    assert second['loss'] != first['loss']  # a lambda of its own each step
    method.rng.bit_generator.state = state
    lam = method.rng.beta(method.mixup_alpha, method.mixup_alpha)
    order = [i ^ 1 for i in range(len(x))]
    log_probs = method.logits(method.features(lam * x + (1 - lam) * x[order])).log_softmax(1)
    losses = []
    for i, j in enumerate(order):
        count, other_count = (float(method.class_counts[target[k]]) for k in (i, j))
        share = margins.remix_share(lam, count, other_count, *method.remix)
        losses.append(-share * log_probs[i, target[i]] - (1 - share) * log_probs[i, target[j]])
    torch.testing.assert_close(second['loss'], sum(losses) / len(losses), rtol=1e-6, atol=0)


@pytest.mark.parametrize('options', [
    dict(mixup_alpha=-1.0), dict(remix_tau=0.5), dict(mixup_alpha=1.0, remix_kappa=5.0),
    dict(mixup_alpha=1.0, remix_tau=0.5, remix_kappa=0.5),
])
def test_mixing_that_cannot_be(options):
    with pytest.raises(UserError, match='mixup needs a positive mixup_alpha|must be at least'):
        create_method('ce', timm.create_model('resnet20_cifar', num_classes=4), COUNTS, **options)


@pytest.mark.parametrize('name, options', [
    ('ldam_drw', ['reweight_start=0.5', 'beta=0.9']), ('ce', ['mixup_alpha=1', 'remix_tau=0.5', 'remix_kappa=1.1']),
])
def test_options_resume_to_the_same_bits(name, options, tmp_path):
    """Inside the second epoch, which is re-weighted, and whose next lambda is not the epoch's first."""
    options = ['--save-steps', '1', '--method-kwargs', *options]
    _, whole = make_run(name, *options)
    fit(whole, 2)
    _, broken = make_run(name, *options)
    broken.output_dir, save = tmp_path, broken.save

    def save_and_die():
        save()
        if (broken.epoch, broken.step) == (1, 2):
            raise SystemError('killed')
    broken.save = save_and_die
    with pytest.raises(SystemError):
        fit(broken, 2)
    _, resumed = make_run(name, *options)
    resumed.load_state_dict(torch.load(tmp_path / LAST, weights_only=True))
    assert (resumed.epoch, resumed.step) == (1, 2)
    fit(resumed, 2)
    assert_same_state(whole, resumed)
