"""The speed of a run, in whole epochs or in blocks of steps, alone or in alternation with a reference pipeline."""
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..data import LongTailDataset
from ..utils.errors import UserError
from .provenance import peak_memory
from .run import Run
from .timing import Timing, block_rate, rates, step_times, time_epochs, time_steps

if TYPE_CHECKING:
    from benchmarks.peers import Peers

__all__ = ['measure_blocks', 'measure_epochs']


def measure_epochs(run: Run) -> dict[str, Any]:
    """Train a run to its end as the training command does, with evaluations, without files.

    Args:
        run: The run; it stands at its beginning.

    Returns:
        Columns of the JSON line that benchmarks/README.md describes.

    Raises:
        UserError: An epoch has one step only, which cannot be timed.
    """
    if run.steps_per_epoch < 2:
        raise UserError('--epochs: an epoch has one step only; lower the batch size')

    timing, seconds = time_epochs(run)
    memory = peak_memory(run.accelerator.device)

    rows = run.history
    num_images = run.images_per_step * run.steps_per_epoch * len(rows)
    images_per_s = num_images / sum(row['train_seconds'] for row in rows)
    return {
        **rates(run, images_per_s),
        **step_times(timing.step_ms),
        'data_share': _data_share(run, [timing], run.steps_per_epoch),
        **memory,
        'run_seconds': seconds,
        'last_all': rows[-1].get('eval_all'),
        'epochs': len(rows),
        'val_interval': run.options.val_interval,
    }


def measure_blocks(
        run: Run,
        train_set: LongTailDataset,
        blocks: int,
        warmup: int,
        steps: int | None = None,
        create_peers: Callable[[], 'Peers'] | None = None,
) -> dict[str, Any]:
    """Train in blocks of steps, in alternation with the reference pipeline where there is one.

    Args:
        run: The run; it stands at its beginning.
        train_set: Its training images.
        blocks: Number of blocks; the rate is their median.
        warmup: Steps before that are not measured.
        steps: Steps of a block; None takes an epoch on a device, 20 on a CPU.
        create_peers: Builds the reference pipeline, behind the first block; None measures the run alone.

    Returns:
        Columns of the JSON line that benchmarks/README.md describes.
    """
    # workers start with each epoch, and prepare two batches each in advance
    lead = 0
    if not train_set.resident:
        lead = min(warmup + 2 * run.loaders[0].num_workers, run.steps_per_epoch // 2)
    if steps is None:
        is_cpu = run.accelerator.device.type == 'cpu'
        steps = 20 if is_cpu else run.steps_per_epoch - lead

    start = time.perf_counter()
    if warmup:
        time_steps(run, warmup)
    warmup_seconds = time.perf_counter() - start

    peers = None
    ours, theirs = [], []
    for block in range(blocks):
        ours.append(time_steps(run, steps, lead))
        if block == 0:
            memory = peak_memory(run.accelerator.device)  # ours alone
        if create_peers is None:
            continue

        if peers is None:
            peers = create_peers()
            _choose_workers(peers, steps, warmup)
        theirs.append(peers.time_steps(steps, warmup))

    row = {
        **rates(run, block_rate(ours, run.images_per_step)),
        **step_times([ms for block in ours for ms in block.step_ms]),
        'data_share': _data_share(run, ours, steps, lead),
        **memory,
    }
    if peers is not None:
        row |= _compare(row, peers, theirs, steps, warmup)
    return {**row, 'steps': steps, 'blocks': blocks, 'warmup': warmup, 'warmup_seconds': warmup_seconds}


def _choose_workers(peers: 'Peers', steps: int, lead: int):
    """Give the reference pipeline the number of workers that suits it best."""
    tried = peers.choose_workers(max(1, steps // 4), lead)
    print('peers:', ', '.join(f'{count} workers {rate:.0f} images/s' for count, rate in tried.items()))


def _data_share(run: Run, timings: list[Timing], steps: int, lead: int = 0) -> float:
    """Return the share of the time in which steps wait for data.

    Where waiting for the device would slow the blocks down, it is measured in a pass of its own.
    """
    if any(timing.data_ms is None for timing in timings):
        timings = [time_steps(run, steps, lead, synchronous=True)]
    return sum(timings, Timing()).data_share


def _compare(
        row: dict[str, Any],
        peers: 'Peers',
        timings: list[Timing],
        steps: int,
        lead: int,
) -> dict[str, Any]:
    """Return the figures of the reference pipeline, and how many times faster the run is."""
    share = timings
    if any(timing.data_ms is None for timing in timings):
        share = [peers.time_steps(steps, lead, synchronous=True)]

    rate = block_rate(timings, peers.batch_size)
    return {
        'peers_images_per_s': rate,
        'peers_data_share': sum(share, Timing()).data_share,
        'peers_workers': peers.workers,
        'speedup': row['images_per_s'] / rate,
    }
