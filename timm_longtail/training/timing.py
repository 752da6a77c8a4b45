"""How fast training is: the run that `train.py` builds, timed from outside its loop.

Only the loaders are wrapped, so that whatever the loop does between two batches is in the time of a
step.
"""
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ..data import LongTailDataset
from .flops import count_flops
from .loop import fit, train_one_epoch
from .progress import Progress
from .provenance import code_state, environment
from .run import Run

__all__ = [
    'Clock',
    'Timing',
    'block_rate',
    'describe',
    'flops_share',
    'matrix_product_flops',
    'rates',
    'step_times',
    'time_epochs',
    'time_steps',
    'training_flops',
]

_DTYPES = {'no': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


@dataclass
class Timing:
    """The times of some steps.

    Attributes:
        step_ms: Time of each step, in ms.
        data_ms: Time that all steps together waited for their batches, in ms; None where it was not
            measured.
    """
    step_ms: list[float] = field(default_factory=list)
    data_ms: float | None = None

    @property
    def data_share(self) -> float:
        """Share of the time in which the steps waited for their batches."""
        return self.data_ms / sum(self.step_ms)

    def __add__(self, other: 'Timing') -> 'Timing':
        data_ms = other.data_ms
        if data_ms is not None:
            data_ms += self.data_ms or 0.
        return Timing(self.step_ms + other.step_ms, data_ms)


class Clock:
    """Marks when a step begins to wait for its batch, and when it has it.

    On CUDA marks are events, which do not hold the host up. A synchronous clock waits for the
    device at every mark instead, which separates the wait for a batch from earlier work that is
    still queued.

    Args:
        device: Device of the batches.
        synchronous: Whether to wait for the device at each mark; on a CPU always.
    """

    def __init__(self, device: torch.device, synchronous: bool = False):
        self._device = device
        self.synchronous = synchronous or device.type != 'cuda'
        self._marks: list[list[Any]] = []  # one list an epoch
        self._waits: list[list[float]] = []

    def start(self):
        """Begin an epoch."""
        self._synchronise()
        self._marks.append([])
        self._waits.append([])

    def begin(self):
        """Mark that a batch is asked for."""
        self._marks[-1].append(self._mark())

    def ready(self):
        """Mark that the batch is there."""
        if self.synchronous:
            self._waits[-1].append(self._mark() - self._marks[-1][-1])

    def stop(self):
        """Mark that the last step of an epoch is done.

        Without the mark, the time of that step is left out.
        """
        self._marks[-1].append(self._mark())

    def timing(self, lead: int = 0, batches_per_step: int = 1) -> Timing:
        """Return the times of the steps.

        Args:
            lead: First steps of each epoch to leave out.
            batches_per_step: Batches of one update.
        """
        self._synchronise()
        total = Timing()
        for marks, waits in zip(self._marks, self._waits):
            # a step lasts from its first batch to that of the next step
            starts = marks[::batches_per_step][lead:]
            step_ms = [self._between(first, second) for first, second in pairwise(starts)]

            data_ms = None
            if self.synchronous:
                first_batch = lead * batches_per_step
                end_batch = first_batch + len(step_ms) * batches_per_step
                data_ms = 1e3 * sum(waits[first_batch:end_batch])
            total += Timing(step_ms, data_ms)
        return total

    def _synchronise(self):
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)

    def _mark(self) -> float | torch.cuda.Event:
        """Return the time in seconds, or an event that will have it."""
        if self.synchronous:
            self._synchronise()
            return time.perf_counter()

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, first, second) -> float:
        """Return the time between two marks, in ms."""
        if self.synchronous:
            return 1e3 * (second - first)
        return first.elapsed_time(second)


class _TimedLoader:
    """A loader that marks on a clock when a batch is asked for and when it is there.

    In all else it is the loader.

    The loaders of several streams are asked one after the other: the first marks the beginning, the
    last the end.

    Args:
        loader: Loader of a data stream.
        clock: Clock of the run.
        is_first: Whether the stream is the first.
        is_last: Whether the stream is the last.
    """

    def __init__(self, loader, clock: Clock, is_first: bool, is_last: bool):
        self._loader = loader
        self._clock = clock
        self._is_first = is_first
        self._is_last = is_last

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator:
        batches = iter(self._loader)
        if self._is_first:
            self._clock.start()

        while True:
            if self._is_first:
                self._clock.begin()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._is_last:
                self._clock.ready()
            yield batch


@contextmanager
def _timed(run: Run, clock: Clock, steps: int | None = None):
    """Let a clock follow the loaders of a run, and cut its epochs to some steps.

    The loaders' own length is cut, not only the loop's: views may be computed for many batches at
    once.
    """
    data, optimisation = run.data, run.optimisation
    batches = [loader.batches for loader in data.loaders]

    timed = []
    for stream, loader in enumerate(data.loaders):
        is_last = stream == len(data.loaders) - 1
        timed.append(_TimedLoader(loader, clock, is_first=stream == 0, is_last=is_last))
        if steps is not None:
            num_samples = steps * run.options.grad_accum_steps * loader.batches.global_batch_size
            loader.batches = replace(loader.batches, num_samples=num_samples)

    run.data = replace(data, loaders=timed)
    run.optimisation = replace(optimisation, steps_per_epoch=steps or optimisation.steps_per_epoch)
    try:
        yield
    finally:
        run.data, run.optimisation = data, optimisation
        for loader, own in zip(data.loaders, batches):
            loader.batches = own


def time_steps(run: Run, steps: int, lead: int = 0, synchronous: bool = False) -> Timing:
    """Time some steps of `loop.train_one_epoch`, in as many epochs as it takes.

    What comes between two epochs is not part of it.

    Args:
        run: The run; it stands at the beginning of an epoch, before and after.
        steps: Steps to time.
        lead: Steps at the beginning of each epoch that are not timed: workers start up.
        synchronous: Whether to wait for the device at each mark, see `Clock`.
    """
    total = Timing()
    lead = min(lead, run.steps_per_epoch - 1)
    num_epochs = run.options.epochs

    while len(total.step_ms) < steps:
        # the rest of the steps, or as many as an epoch has
        part = min(steps - len(total.step_ms), run.steps_per_epoch - lead)
        clock = Clock(run.accelerator.device, synchronous)
        with _timed(run, clock, lead + part):
            run.start_epoch(num_epochs)
            train_one_epoch(run, Progress(run, num_epochs))
            clock.stop()
        total += clock.timing(lead, run.options.grad_accum_steps)

        run.epoch = (run.epoch + 1) % num_epochs
        run.step = 0
    return total


def time_epochs(run: Run) -> tuple[Timing, float]:
    """Train a run from its first step to its last figure with `loop.fit`.

    Args:
        run: Run at its beginning.

    Returns:
        The steps, without the last one of each epoch, which evaluation follows; and the seconds of
        it all, which leave out what comes before the first step and after the last figure (reading
        the data, export).
    """
    clock = Clock(run.accelerator.device)
    start = time.perf_counter()
    with _timed(run, clock):
        fit(run, run.options.epochs)
    seconds = time.perf_counter() - start
    run.epoch = 0
    return clock.timing(batches_per_step=run.options.grad_accum_steps), seconds


def block_rate(blocks: list[Timing], batch_size: int) -> float:
    """Return images a second: the median over blocks of steps.

    Args:
        blocks: Timings of the blocks.
        batch_size: Images of a step.
    """
    return statistics.median(1e3 * batch_size * len(block.step_ms) / sum(block.step_ms) for block in blocks)


def rates(run: Run, images_per_s: float) -> dict[str, float]:
    """Return images a second, and views: an image counts once, whatever its views and streams.

    Args:
        run: The run.
        images_per_s: Images of the first stream a second.
    """
    views_per_image = len(run.method.views) * len(run.loaders)
    return {'images_per_s': images_per_s, 'views_per_s': images_per_s * views_per_image}


def step_times(step_ms: list[float]) -> dict[str, float]:
    """Return the mean, the median and the 95th percentile of the times of steps, in ms.

    Args:
        step_ms: Time of each step, in ms.
    """
    p50, p95 = np.percentile(step_ms, [50, 95])
    return {'step_ms_mean': statistics.fmean(step_ms), 'step_ms_p50': float(p50), 'step_ms_p95': float(p95)}


def training_flops(run: Run) -> int:
    """Return the FLOPs of one step of this process: forward and backward of all views and phases.

    They run once more, eagerly and with batch statistics, and change no weight: call it when all is
    measured.

    Args:
        run: The run.
    """
    batches = next(zip(*run.loaders))
    run.method.train()

    # not through DDP: nothing is reduced
    with torch.compiler.set_stance('force_eager'), count_flops() as counter:
        for phase in run.method.phases:
            run.method(*batches, phase=phase)['loss'].backward()
    run.method.zero_grad()

    return counter.get_total_flops() * run.options.grad_accum_steps


def matrix_product_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the best FLOP/s of a product of two square matrices.

    In float32 on CUDA it may use TF32 if convolutions may, or the share of a network could exceed
    1.

    Args:
        device: Device of the product.
        dtype: Type of the matrices.
    """
    size, repeats = 1024, 2
    if device.type == 'cuda':
        size, repeats = 8192, 20
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = torch.backends.cudnn.conv.fp32_precision
    try:
        # the best of 20: others may use the machine, too
        seconds = []
        for _ in range(20):
            clock = Clock(device, synchronous=True)
            clock.start()
            clock.begin()
            for _ in range(repeats):
                a @ b
            clock.stop()
            seconds.append(clock.timing().step_ms[0] / 1e3)
    finally:
        matmul.fp32_precision = before

    return 2 * size ** 3 * repeats / min(seconds)


def flops_share(run: Run, step_ms: float) -> float:
    """Return the share of the device's matrix products that training reaches.

    Args:
        run: Run of which all else is measured, see `training_flops`.
        step_ms: Time of a step, in ms.
    """
    best = matrix_product_flops(run.accelerator.device, _DTYPES[run.accelerator.mixed_precision])
    return training_flops(run) / (step_ms / 1e3) / best


def describe(run: Run, train_set: LongTailDataset) -> dict[str, Any]:
    """Return what ran, as it ran: the precision is the one used, not the one asked for.

    Args:
        run: The run.
        train_set: Training images.
    """
    options, device = run.options, run.accelerator.device
    dtype = _DTYPES[run.accelerator.mixed_precision]
    uses_tf32 = device.type == 'cuda' and torch.backends.cudnn.conv.fp32_precision == 'tf32'

    return {
        # what is trained
        'model': options.model,
        'method': options.method,
        'views': list(run.method.views),
        'dataset': options.dataset,
        'subset': train_set.hash,
        'img_size': run.data.preprocessing.img_size,

        # how
        'batch_size': run.images_per_step,
        'processes': run.accelerator.num_processes,
        'grad_accum_steps': options.grad_accum_steps,
        'dtype': str(dtype).removeprefix('torch.'),
        'tf32': uses_tf32,
        'torchcompile': options.torchcompile,
        'channels_last': options.channels_last,
        'loader': 'resident' if train_set.resident else 'worker',
        'workers': 0 if train_set.resident else run.loaders[0].num_workers,

        # on which machine, by which code
        **environment(device),
        'tree_hash': code_state()['tree_hash'],
    }
