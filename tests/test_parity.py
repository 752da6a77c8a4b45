"""Two processes are one process with the same global batch: loss, gradients, and whole runs of the toy."""
import os
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_longtail.data import create_loader
from timm_longtail.engine import fit
from timm_longtail.methods import list_methods

from .ddp import run_distributed
from .runs import digits, make_run

pytestmark = pytest.mark.ddp


def as_double(batch):
    views, target, index = batch
    return tuple(x.double() for x in views), target, index


def loss_and_gradients(rank: int, name: str, world_size: int):
    """Return the loss, averaged over the processes, and all gradients after one batch of 32 images, in float64."""
    _, run = make_run(name)
    run.method.double()
    torch.manual_seed(0)
    for parameter in run.method.parameters():  # nothing at zero, where a gradient could hide
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    run.start_epoch(2)
    run.method.train()
    for module in run.method.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eval()  # its statistics are of one process; all else trains
    samplers = run.method.samplers(digits().targets)
    batches = [
        as_double(next(iter(create_loader(
            digits(), run.method.views, sampler, batch_size=32 // world_size, stream=stream,
            rank=rank, world_size=world_size))))
        for stream, sampler in enumerate(samplers)
    ]
    task = DistributedDataParallel(run.method) if world_size > 1 else run.method
    total = torch.zeros((), dtype=torch.float64)
    for phase in run.method.phases:
        loss = task(*batches, phase=phase)['loss']
        loss.backward()
        total += loss.detach()
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return total / world_size, {n: p.grad for n, p in run.method.named_parameters()}


@pytest.mark.parametrize('name', list_methods())
def test_two_processes_give_the_loss_and_gradients_of_one(name):
    loss, gradients = loss_and_gradients(0, name, 1)
    for other_loss, other_gradients in run_distributed(loss_and_gradients, name, 2):
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-10)
        assert other_gradients.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[parameter], gradient, rtol=1e-8, atol=1e-10)


def train_toy(rank: int):
    """Train the toy for two epochs; return its state and figures."""
    launched = {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'ACCELERATE_USE_CPU': 'true',
                'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'}
    with patch.dict(os.environ, launched):
        AcceleratorState._reset_state(reset_partial_state=True)
        _, run = make_run('toy', '--batch-size', '8')
        history = fit(run, 2)
    AcceleratorState._reset_state(reset_partial_state=True)
    figures = [{k: v for k, v in row.items() if 'seconds' not in k} for row in history]
    buffers = {name for name, _ in run.method.model.named_buffers(prefix='model')}
    return {k: v for k, v in run.method.state_dict().items() if k not in buffers}, figures


def test_the_toy_trains_alike_on_both_processes():
    (state, figures), (other_state, other_figures) = run_distributed(train_toy)
    assert figures == other_figures
    assert [name for name in state if not torch.equal(state[name], other_state[name])] == []
    assert state['steps'].tolist() == [8, 8]
