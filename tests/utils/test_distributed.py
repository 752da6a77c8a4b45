"""The exchange between processes: one process is the reference for the value and every gradient of two."""
import operator
import os
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_longtail.losses import _common, balanced_sup_con_loss
from timm_longtail.utils.distributed import all_gather_cat, all_reduce_sum, is_distributed, rank, world_size

from ..support.ddp import run_distributed

NUM_CLASSES, WIDTH, BATCH = 5, 6, 12


def gather_own_slot(tensor):
    """The usual mistake: the rows of other processes carry no gradient."""
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach())
    parts[rank()] = tensor
    return torch.cat(parts)


class TinyBCL(nn.Module):
    """An encoder, and prototypes that are a function of shared class weights."""

    def __init__(self, gather):
        super().__init__()
        torch.manual_seed(0)
        self.gather = gather
        self.encoder = nn.Sequential(nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, WIDTH))
        self.class_weight = nn.Parameter(torch.randn(NUM_CLASSES, WIDTH))
        self.prototype = nn.Linear(WIDTH, WIDTH)
        self.double()

    def forward(self, x, target, dtype=torch.float64):
        embeddings = self.gather(F.normalize(self.encoder(x)).to(dtype))
        prototypes = F.normalize(self.prototype(self.class_weight)).to(dtype)
        return balanced_sup_con_loss(embeddings, self.gather(target), prototypes, temperature=0.1)


def make_batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64)
    return x, torch.randint(NUM_CLASSES, (BATCH,), generator=generator)


def loss_and_gradients(model, x, target, dtype=torch.float64):
    loss = model(x, target, dtype)
    loss.backward()
    return loss.detach(), {name.removeprefix('module.'): p.grad for name, p in model.named_parameters()}


def run_ddp(rank, gather, dtype=torch.float64):
    model = DistributedDataParallel(TinyBCL(gather))
    rows = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    x, target = make_batch()
    return loss_and_gradients(model, x[rows], target[rows], dtype)


def run_ddp_in_blocks(rank, gather):
    with patch.object(_common, 'BLOCK_SIZE', 5 * (BATCH + NUM_CLASSES)):
        return run_ddp(rank, gather)


@pytest.mark.ddp
@pytest.mark.parametrize('run', [run_ddp, run_ddp_in_blocks])
def test_two_processes_equal_one(run):
    loss, gradients = loss_and_gradients(TinyBCL(all_gather_cat), *make_batch())
    assert set(gradients) >= {'encoder.0.weight', 'encoder.2.bias', 'class_weight', 'prototype.weight'}
    for ddp_loss, ddp_gradients in run_distributed(run, all_gather_cat):
        torch.testing.assert_close(ddp_loss, loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(ddp_gradients, gradients, rtol=1e-10, atol=1e-12)
        assert all(gradient.norm() > 1e-4 for gradient in ddp_gradients.values())


@pytest.mark.ddp
def test_a_gather_without_gradients_is_noticed():
    loss, gradients = loss_and_gradients(TinyBCL(all_gather_cat), *make_batch())
    for ddp_loss, ddp_gradients in run_distributed(run_ddp, gather_own_slot):
        torch.testing.assert_close(ddp_loss, loss)
        for name, gradient in gradients.items():  # the encoder's are half of what they should be
            share = 1 / 2 if name.startswith('encoder') else 1
            torch.testing.assert_close(ddp_gradients[name], share * gradient)


@pytest.mark.ddp
def test_bfloat16_embeddings():
    loss, gradients = loss_and_gradients(TinyBCL(all_gather_cat), *make_batch(), dtype=torch.bfloat16)
    for ddp_loss, ddp_gradients in run_distributed(run_ddp, all_gather_cat, torch.bfloat16):
        torch.testing.assert_close(ddp_loss, loss, rtol=1e-6, atol=1e-6)
        # two bfloat16 gradients are added on the way back
        torch.testing.assert_close(ddp_gradients, gradients, rtol=2e-2, atol=1e-2)


def gather_row_numbers(rank, shape, dtype, requires_grad):
    start = torch.arange(torch.Size(shape).numel()).reshape(shape) + 100 * rank
    tensor = start.to(dtype).requires_grad_(requires_grad)
    gathered = all_gather_cat(tensor)
    if not requires_grad:
        return gathered, None
    (gathered * torch.arange(1, len(gathered) + 1).to(dtype).view(-1, *[1] * (len(shape) - 1))).sum().backward()
    return gathered.detach().clone(), tensor.grad


@pytest.mark.ddp
@pytest.mark.parametrize('dtype', [torch.int64, torch.int32, torch.uint8, torch.bool, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', [(3,), (2, 3)])
def test_gather_order(shape, dtype):
    expected = torch.cat([torch.arange(torch.Size(shape).numel()).reshape(shape) + 100 * r for r in range(2)]).to(dtype)
    for gathered, _ in run_distributed(gather_row_numbers, shape, dtype, False):
        assert gathered.dtype == dtype
        assert torch.equal(gathered, expected)


@pytest.mark.ddp
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('shape', [(3,), (2, 3), (2, 3, 2)])
def test_gradient_is_the_sum_over_processes(shape, dtype):
    for r, (gathered, gradient) in enumerate(run_distributed(gather_row_numbers, shape, dtype, True)):
        assert gathered.shape == (2 * shape[0], *shape[1:])
        rows = torch.arange(1, 2 * shape[0] + 1)[r * shape[0]:(r + 1) * shape[0]]
        expected = 2. * rows.view(-1, *[1] * (len(shape) - 1)).expand(shape)
        assert torch.equal(gradient, expected.to(dtype))


def gather_transposed(rank):
    tensor = (torch.arange(6.).reshape(2, 3) + 10 * rank).T.requires_grad_()
    gathered = all_gather_cat(tensor)
    with torch.no_grad():
        without_grad = all_gather_cat(tensor)
    return gathered.detach().clone(), without_grad, without_grad.requires_grad


@pytest.mark.ddp
def test_gather_of_a_transposed_tensor_and_under_no_grad():
    expected = torch.cat([torch.arange(6.).reshape(2, 3).T, (torch.arange(6.).reshape(2, 3) + 10).T])
    for gathered, without_grad, requires_grad in run_distributed(gather_transposed):
        assert torch.equal(gathered, expected)
        assert torch.equal(without_grad, expected)
        assert not requires_grad


def gather_with(rank, names):
    """Gather where torch has only these of the functional collectives' names, all of one meaning."""
    newest = getattr(collectives, 'all_gather_single_autograd', None) or collectives.all_gather_tensor_autograd
    with pytest.MonkeyPatch.context() as patch:
        for name in ('all_gather_single_autograd', 'all_gather_tensor_autograd'):
            patch.delattr(collectives, name, raising=False)
        for name in names:
            patch.setattr(collectives, name, newest, raising=False)
        return gather_row_numbers(rank, (2, 3), torch.float32, True)


@pytest.mark.ddp
@pytest.mark.parametrize('names', [
    pytest.param((), id='public function'),
    pytest.param(('all_gather_tensor_autograd',), id='older name'),
])
def test_gather_of_older_torch(names):
    for r, (gathered, gradient) in enumerate(run_distributed(gather_with, names)):
        assert gathered[:, 0].tolist() == [0, 3, 100, 103]
        assert gradient[:, 0].tolist() == [2 + 4 * r, 4 + 4 * r]


def sums_and_names(rank_given):
    counts, total = torch.tensor([1, 10]) * (rank_given + 1), torch.tensor(0.1, dtype=torch.float64)
    returned = all_reduce_sum(counts)
    return counts, returned is counts, all_reduce_sum(total), (rank(), world_size(), is_distributed())


@pytest.mark.ddp
def test_all_reduce_sum_and_names():
    for r, (counts, in_place, total, names) in enumerate(run_distributed(sums_and_names)):
        assert counts.tolist() == [3, 30] and in_place
        assert total.dtype == torch.float64 and total.item() == 0.2
        assert names == (r, 2, True)


def test_one_process_exchanges_nothing():
    tensor = torch.randn(2, 3, requires_grad=True)
    assert all_gather_cat(tensor) is tensor
    assert all_reduce_sum(tensor) is tensor
    assert (rank(), world_size(), is_distributed()) == (0, 1, False)


@pytest.mark.ddp
def test_the_pool_reports_failures_and_starts_again():
    # world_size=1: the pool of two, which other tests share, stays
    with pytest.raises(RuntimeError, match='truediv failed on rank 0:(.|\n)*ZeroDivisionError'):
        run_distributed(operator.truediv, 0, world_size=1)
    with pytest.raises(TimeoutError, match=r'add: no answer from ranks \[0\] in 0.01 s'):
        run_distributed(operator.add, 1, world_size=1, timeout=0.01)
    assert run_distributed(operator.add, 1, world_size=1) == [1]
    with pytest.raises(RuntimeError, match='the process died'):
        run_distributed(os._exit, world_size=1)
