"""Two processes are one process with the same global batch: loss, gradients, and whole runs of the toy."""
import os
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_longtail.data import create_loader
from timm_longtail.training.loop import fit
from timm_longtail.utils.files import LAST

from ..support.ddp import run_distributed
from ..support.runs import all_methods, assert_same_state, digits, make_run

pytestmark = pytest.mark.ddp


def as_double(batch):
    views, target, index = batch
    return tuple(x.double() for x in views), target, index


def loss_and_gradients(rank: int, name: str, world_size: int, *options: str):
    """Return the loss, averaged over the processes, and all gradients after one batch of 32 images, in float64."""
    _, run = make_run(name, *options)
    run.method.double()
    run.method.drop_rate = 0.0  # the toy's noise is of one process
    torch.manual_seed(0)
    for parameter in run.method.parameters():  # nothing at zero, where a gradient could hide
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    run.epoch = 1  # a schedule may leave a part out of the first
    run.start_epoch(2)
    run.method.train()
    for module in run.method.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.eval()  # its statistics are of one process; all else trains
    samplers = run.method.samplers(digits().targets)
    batches = [
        as_double(next(iter(create_loader(
            digits(), run.method.views, sampler, batch_size=32 // world_size, stream=stream, img_size=16,
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


@pytest.mark.parametrize('name, options', [
    *((name, []) for name in all_methods()),
    # what is off by default, or early in a run
    ('ce', ['mixup_alpha=1', 'remix_tau=0.5', 'remix_kappa=1']),
    ('ldam_drw', ['reweight_start=0']),
], ids=lambda value: value if isinstance(value, str) else ','.join(value) or 'defaults')
def test_two_processes_give_the_loss_and_gradients_of_one(name, options):
    options = ['--method-kwargs', *options]
    loss, gradients = loss_and_gradients(0, name, 1, *options)
    for other_loss, other_gradients in run_distributed(loss_and_gradients, name, 2, *options):
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-10)
        assert other_gradients.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[parameter], gradient, rtol=1e-8, atol=1e-10)


@contextmanager
def launched(rank: int):
    """Let Accelerate see this process of the pool as one of two, as its launcher would have it."""
    environment = {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': '2', 'ACCELERATE_USE_CPU': 'true',
                'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': '29500'}
    AcceleratorState._reset_state(reset_partial_state=True)
    with patch.dict(os.environ, environment):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train_toy(rank: int):
    """Train the toy for two epochs; return its state and figures."""
    with launched(rank):
        _, run = make_run('toy', '--batch-size', '8')
        history = fit(run, 2)
    figures = [{k: v for k, v in row.items() if 'seconds' not in k} for row in history]
    buffers = {name for name, _ in run.method.model.named_buffers(prefix='model')}
    return {k: v for k, v in run.method.state_dict().items() if k not in buffers}, figures


def test_the_toy_trains_alike_on_both_processes():
    (state, figures), (other_state, other_figures) = run_distributed(train_toy)
    assert figures == other_figures
    assert [name for name in state if not torch.equal(state[name], other_state[name])] == []
    assert state['steps'].tolist() == [8, 8]


def resume_toy(rank: int, folder: str):
    """Train the toy whole, and again with a stop inside the second epoch; compare on this process."""
    options = '--batch-size', '8', '--save-steps', '3', '--model-ema', '--model-ema-decay', '0.9'
    with launched(rank):
        _, whole = make_run('toy', *options)
        fit(whole, 2)

        _, broken = make_run('toy', *options)
        broken.output_dir = Path(folder)
        save = broken.save

        def save_and_stop():
            save()
            if (broken.epoch, broken.step) == (1, 3):
                raise SystemError('stopped')
        broken.save = save_and_stop
        with pytest.raises(SystemError):
            fit(broken, 2)
        torch.distributed.barrier()

        _, resumed = make_run('toy', *options)
        resumed.load_state_dict(torch.load(Path(folder, LAST), weights_only=True))
        assert (resumed.epoch, resumed.step) == (1, 3)
        fit(resumed, 2)
    if rank == 0:  # the one that is evaluated alone and exported
        assert_same_state(whole, resumed)
        for name, value in whole.ema.module.state_dict().items():
            assert torch.equal(value, resumed.ema.module.state_dict()[name]), name
    return [row['eval_all'] for row in whole.history] == [row['eval_all'] for row in resumed.history]


def test_two_processes_resume_to_the_same_bits(tmp_path):
    assert run_distributed(resume_toy, str(tmp_path)) == [True, True]


def test_accumulated_micro_batches_are_one_batch():
    vit = ['--model', 'vit_tiny_patch16_224', '--model-kwargs', 'img_size=32', 'patch_size=8', 'depth=1',
           'embed_dim=32', 'num_heads=2']  # no BatchNorm, whose statistics are of a micro-batch
    _, one = make_run('ce', *vit, '--batch-size', '16')
    _, two = make_run('ce', *vit, '--batch-size', '8', '--grad-accum-steps', '2')
    fit(one, 1)
    fit(two, 1)
    for name, value in one.method.state_dict().items():
        torch.testing.assert_close(two.method.state_dict()[name], value, rtol=1e-4, atol=1e-6)
    assert one.images_per_step == two.images_per_step and one.steps_per_epoch == two.steps_per_epoch
