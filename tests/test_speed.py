"""What must stay out of an epoch: waiting for the device."""
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from timm_longtail.engine import train_one_epoch
from timm_longtail.progress import Progress

from .runs import all_methods, make_run


@pytest.mark.parametrize('method', all_methods())
def test_an_epoch_reads_the_device_at_its_log_intervals_only(method):
    """`.item()`, `.tolist()` and `bool(tensor)` all read a scalar; their number must not grow with the steps."""
    reads = {}
    for batch_size in ('32', '4'):
        _, run = make_run(method, '--batch-size', batch_size, '--epochs', '1')
        run.start_epoch(1)
        progress = Progress(run, 1)
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            train_one_epoch(run, progress)
        names = {event.key: event.count for event in recorded.key_averages()}
        assert sum(count for name, count in names.items() if 'convolution_backward' in name) > 0
        reads[run.steps_per_epoch] = sum(names.get(f'aten::{name}', 0) for name in ('_local_scalar_dense', 'item'))
        assert torch.is_tensor(next(iter(run.sums.values())))
    assert len(reads) == 2 and len(set(reads.values())) == 1, reads
