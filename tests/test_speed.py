"""What must stay out of an epoch: waiting for the device."""
import traceback

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from timm_longtail.engine import train_one_epoch
from timm_longtail.progress import Progress

from .runs import SMALL, all_methods, make_run


class Reads(TorchDispatchMode):
    """Counts operators, and those that read a scalar: `.item()`, `.tolist()`, `bool(tensor)`, `if tensor`."""

    def __init__(self):
        super().__init__()
        self.count = self.backward = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.backward += '_backward' in str(func)
        if '_local_scalar_dense' in str(func):
            # the prior is checked where that costs nothing, on the CPU: on a device the line is never reached
            self.count += not any(frame.name == 'log_prior' for frame in traceback.extract_stack(limit=30))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('method', all_methods())
def test_an_epoch_reads_the_device_at_its_log_intervals_only(method):
    reads = {}
    for batch_size in ('32', '8'):
        _, run = make_run(method, '--batch-size', batch_size, '--epochs', '1', *SMALL)
        run.start_epoch(1)
        with Reads() as counted:
            train_one_epoch(run, Progress(run, 1))
        assert counted.backward >= run.steps_per_epoch
        reads[run.steps_per_epoch] = counted.count
    assert set(reads) == {2, 8} and reads[2] == reads[8] > 0, reads
