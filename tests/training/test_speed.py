"""What must stay out of an epoch: waiting for the device."""
import traceback

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from timm_longtail.training.loop import train_one_epoch
from timm_longtail.training.progress import Progress

from ..support.runs import SMALL, all_methods, make_run

# `.item()`, `.tolist()`, `bool(tensor)`, `if tensor`; and what has as many rows as the data say: `x[mask]`, `unique`
READS = '_local_scalar_dense', 'nonzero', 'masked_select', 'unique', 'bincount'


class Reads(TorchDispatchMode):
    """Counts operators of the backward pass, and those for which the host waits for a device."""

    def __init__(self):
        super().__init__()
        self.count = self.backward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.backward += '_backward' in str(func)
        mask = str(func).startswith('aten.index') and any(
            t is not None and t.dtype == torch.bool for t in (args[1] if isinstance(args[1], (list, tuple)) else ()))
        if mask or any(name in str(func) for name in READS):
            # the prior is checked where that costs nothing, on the CPU: on a device the line is never reached
            self.count += not any(frame.name == 'log_prior' for frame in traceback.extract_stack(limit=30))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('method', all_methods())
def test_an_epoch_reads_the_device_at_its_log_intervals_only(method):
    reads = {}
    for batch_size in ('32', '16'):
        _, run = make_run(method, '--batch-size', batch_size, '--epochs', '1', *SMALL)
        run.start_epoch(1)
        with Reads() as counted:
            train_one_epoch(run, Progress(run, 1))
        assert counted.backward >= run.steps_per_epoch
        reads[run.steps_per_epoch] = counted.count
    assert set(reads) == {2, 4} and reads[2] == reads[4] > 0, reads


@pytest.mark.parametrize('wait', [
    lambda x: x.sum().item(),
    lambda x: bool((x > 0).any()),
    lambda x: x[x > 0],
    lambda x: x.masked_select(x > 0),
    lambda x: x.unique(),
    lambda x: x.nonzero(),
])
def test_waits_are_counted(wait):
    with Reads() as counted:
        wait(torch.arange(4.0))
    assert counted.count == 1


def test_what_does_not_wait_is_not_counted():
    x = torch.arange(4.0)
    with Reads() as counted:
        x[torch.tensor([0, 2])], x.masked_fill(x > 0, 1), torch.where(x > 0, x, 0), x.sort(), x[1:], x[:, None]
    assert counted.count == 0
