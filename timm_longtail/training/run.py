"""One training run: what it consists of, where it stands, and how that is saved and resumed."""
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..evaluation.predictions import Recorder
from ..methods import Method, default_options
from ..models.tuning import load_trained_state_dict, trained_state_dict
from ..utils import rng
from ..utils.errors import UserError
from ..utils.files import BEST, LAST
from ..utils.version import __version__
from .checkpoint import load_method_state, method_state, restoring, write_checkpoint
from .loaders import RunData, TrainBatches
from .options import Options, plain
from .protocol import Protocol, differences

__all__ = ['EpochState', 'Optimisation', 'Run', 'Stopwatch']


@dataclass
class Optimisation:
    """How the weights of a run are updated.

    Attributes:
        optimizers: One a phase of the method, prepared by the accelerator.
        schedulers: timm's schedules, one an optimizer, not prepared; None for a rate that stays.
        steps_per_epoch: Updates in an epoch.
        images_per_step: Images of the first stream in an update, over all processes and
            micro-batches.
    """
    optimizers: list
    schedulers: list
    steps_per_epoch: int
    images_per_step: int


@dataclass
class EpochState:
    """What an epoch has while it runs.

    Attributes:
        rng: Generator that the hooks of the method were given.
        sums: Sum and count of each logged figure, float64 [2] on the device, by name.
    """
    rng: np.random.Generator
    sums: dict[str, torch.Tensor] = field(default_factory=dict)


class Stopwatch:
    """The time of a run, over all processes that it was resumed by."""

    def __init__(self):
        self._started = time.perf_counter()
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """Time since the run was built, plus that of the processes before this one."""
        return self._before + time.perf_counter() - self._started

    def resume(self, seconds: float):
        """Add the time that a checkpoint has."""
        self._before = seconds


@dataclass
class Run:
    """Everything that one training run consists of.

    What `state_dict` returns is all that resuming needs.

    Attributes:
        options: Resolved options; of a resumed run with the options of the method as the run was
            begun.
        accelerator: Owns devices, mixed precision and gradient scaling.
        method: The method.
        task: The same, prepared (wrapped by DDP).
        data: Loaders and preprocessing.
        optimisation: Optimizers, schedules and the size of an update.
        evaluator: From `Method.create_evaluator`.
        protocol: What checkpoints say about the run.
        ema: timm's `ModelEmaV3` of the model, or None.
        output_dir: Folder of the run; None keeps nothing.
        epoch: Number of finished epochs.
        step: Steps taken in the epoch that runs.
        history: One row of figures an epoch.
        best: The best row of `history`.
        epoch_state: State of the epoch that runs; None before the first.
        tree_hashes: Hash of the code that trained, of all codes where the run was resumed by
            another.
        bad_images: Reason by name of each image that no process could read.
        stopwatch: Time of the run.
        pending: Checkpoint from inside an epoch, until that epoch begins.
        stop_signal: Signal that this process received, or 0.
        recorder: Predictions for the test images by the weights that were exported; None before
            that, and of a model that tells no classes.
    """

    options: Options
    accelerator: Accelerator
    method: Method
    task: nn.Module
    data: RunData
    optimisation: Optimisation
    evaluator: Any
    protocol: Protocol = field(default_factory=Protocol)
    ema: Any = None
    output_dir: Path | None = None
    # where the run stands
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    epoch_state: EpochState | None = None
    tree_hashes: list[str] = field(default_factory=list)
    bad_images: dict[str, str] = field(default_factory=dict)
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    pending: dict[str, Any] | None = None
    stop_signal: int = 0
    recorder: Recorder | None = None

    @property
    def loaders(self) -> list:
        """Loaders of the data streams."""
        return self.data.loaders

    @property
    def train_batches(self) -> TrainBatches | None:
        """Training images as the hooks of the method get them."""
        return self.data.train_batches

    @property
    def optimizers(self) -> list:
        """Optimizers of the phases."""
        return self.optimisation.optimizers

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.optimisation.steps_per_epoch

    @property
    def images_per_step(self) -> int:
        """Images of the first stream in an update, over all processes and micro-batches."""
        return self.optimisation.images_per_step

    @property
    def headline(self) -> str:
        """The figure that chooses the best epoch.

        Balanced accuracy on a hold-out, else the evaluator's own.
        """
        return 'balanced' if self.options.val_fraction > 0 else self.evaluator.headline

    @property
    def is_out_of_patience(self) -> bool:
        """Whether `--patience` epochs have passed since the best one on the hold-out; asked after an evaluation only.

        A function of what a checkpoint holds, so that a resumed run stops at the same epoch.
        """
        if not self.options.patience or self.best is None or self.step:
            return False
        was_evaluated = f'eval_{self.headline}' in self.history[-1]
        num_since = self.history[-1]['epoch'] - self.best['epoch']
        return was_evaluated and num_since >= self.options.patience

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and exported: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.method.model

    def state_dict(self) -> dict[str, Any]:
        """Return the run's state: timm's checkpoint keys, and the position.

        A collective call inside an epoch.
        """
        first_optimizer, *other_optimizers = self.optimizers
        headline = self.best[f'eval_{self.headline}'] if self.best else None
        state = {
            # keys of timm's checkpoints, which its scripts read
            'epoch': self.epoch,
            'arch': self.protocol.arch,
            **method_state(self.method),
            'optimizer': first_optimizer.state_dict(),
            'args': plain(self.options),
            'metric': headline,
            'version': 2,

            # what resuming takes beyond them
            'optimizers': [optimizer.state_dict() for optimizer in other_optimizers],
            'step': self.step,
            'protocol': self.protocol.agreed,
            'about': self.protocol.about,
            'timm_longtail': __version__,
            'tree_hashes': self.tree_hashes,

            # what the run has found so far
            'seconds': self.stopwatch.seconds,
            'history': self.history,
            'best': self.best,
            'bad_images': self.bad_images,
        }

        if self.ema is not None:
            state['state_dict_ema'] = trained_state_dict(self.ema.module)
        if self.accelerator.scaler is not None:
            state['scaler'] = self.accelerator.scaler.state_dict()
        if self.step:
            state.update(self._state_inside_epoch())
        return state

    def _state_inside_epoch(self) -> dict[str, Any]:
        """Return what resuming inside an epoch takes beyond the rest, of all processes."""
        rng_states = [torch.get_rng_state()]
        if self.accelerator.device.type == 'cuda':
            rng_states.append(torch.cuda.get_rng_state())
        sums = {name: value.cpu() for name, value in self.epoch_state.sums.items()}

        return {
            'torch_rng': gather_object([rng_states]),
            'method_rng': self.epoch_state.rng.bit_generator.state,
            'sums': gather_object([sums]),
        }

    def load_state_dict(self, state: dict[str, Any], source: str = 'checkpoint'):
        """Continue from the position and weights of a checkpoint.

        Args:
            state: Content of the checkpoint.
            source: Name of the checkpoint, for messages.

        Raises:
            UserError: The checkpoint is of another architecture, data set, method, seed, or of
                other options.
        """
        # another tuning or classifier has other tensors: say so, and not which of them differ
        self._check_protocol(state, source, ('tune', 'head'))
        load_method_state(self.method, state, source)
        self._check_protocol(state, source, self.protocol.agreed)

        with restoring(source):
            self._load_optimisation(state)
            self._load_position(state)

    def _check_protocol(self, state: dict[str, Any], source: str, names: Iterable[str]):
        """Raise a `UserError` unless a checkpoint agrees with the run on what has these names."""
        here = {name: self.protocol.agreed[name] for name in names}
        with restoring(source):
            differing = differences(here, state['protocol'], method_defaults=default_options(type(self.method)))
        if differing:
            raise UserError(
                f'{source} is of another run: {", ".join(differing)} (--experiment names a folder for a new one)')

    def _load_optimisation(self, state: dict[str, Any]):
        """Load the state of the optimizers, the moving average and the gradient scaler."""
        for optimizer, saved in zip(self.optimizers, [state['optimizer'], *state['optimizers']], strict=True):
            optimizer.load_state_dict(saved)
        if self.ema is not None:
            load_trained_state_dict(self.ema.module, state.get('state_dict_ema', state['state_dict']))
        if self.accelerator.scaler is not None and 'scaler' in state:
            self.accelerator.scaler.load_state_dict(state['scaler'])

    def _load_position(self, state: dict[str, Any]):
        """Load where the run stood, and what it recorded."""
        self.epoch = state['epoch']
        self.step = state['step']
        self.history = list(state['history'])
        self.best = state['best']
        self.bad_images = dict(state.get('bad_images', {}))
        self.stopwatch.resume(state['seconds'])

        # the codes of the run so far, then that of this process if it is another
        self.tree_hashes = list(dict.fromkeys([*state['tree_hashes'], *self.tree_hashes]))

        # the same options, however they are spelled now
        self.options = self.options.replace(method_kwargs=state['args']['method_kwargs'])

        self.pending = state if self.step else None

    def save(self):
        """Write `checkpoint-last.pth.tar`, keeping the one before.

        A collective call inside an epoch.
        """
        state = self.state_dict()
        if self.output_dir is None or not self.accelerator.is_main_process:
            return

        # first the best, of which the last checkpoint speaks
        is_best = self.step == 0 and self.best is self.history[-1]
        if is_best:
            write_checkpoint(state, self.output_dir / BEST)
        write_checkpoint(state, self.output_dir / LAST, keep_previous=True)

    def start_epoch(self, num_epochs: int) -> float:
        """Set all that an epoch begins with, as a function of its number.

        Args:
            num_epochs: Length of the run, in epochs.

        Returns:
            The learning rate of the epoch's first step.
        """
        rank = self.accelerator.process_index
        seed = self.options.seed

        # data and rates, at the step where the run stands
        for loader in self.loaders:
            loader.set_epoch(self.epoch, start_batch=self.step * self.options.grad_accum_steps)
        for scheduler in self.optimisation.schedulers:
            if scheduler is not None:
                scheduler.step(self.epoch)
                scheduler.step_update(self.epoch * self.steps_per_epoch)  # whatever update the run is resumed at

        # random streams, then the method
        rng.seed_torch(seed, self.epoch, rank)
        self.epoch_state = EpochState(rng.generator(seed, self.epoch, purpose='method'))
        self.method.start_epoch(self.epoch, num_epochs, self.epoch_state.rng, self.train_batches)

        if self.pending is not None:
            with restoring('checkpoint'):
                self._enter_epoch(self.pending, rank)
            self.pending = None
        return self.optimizers[0].param_groups[0]['lr']

    def _enter_epoch(self, state: dict[str, Any], rank: int):
        """Continue inside an epoch: what was saved replaces what its start has set."""
        load_method_state(self.method, state, 'checkpoint')
        self.epoch_state.rng.bit_generator.state = state['method_rng']

        # a run may be resumed by more processes than it was saved by
        saved_rank = min(rank, len(state['torch_rng']) - 1)
        cpu, *cuda = state['torch_rng'][saved_rank]
        torch.set_rng_state(cpu)
        for rng_state in cuda:
            torch.cuda.set_rng_state(rng_state)

        # by another number of processes: the main process takes the sums of all
        sums = state['sums']
        num_processes = self.accelerator.num_processes
        if len(sums) != num_processes:
            total = {name: sum(part[name] for part in sums) for name in sums[0]}
            sums = [total] + [{}] * (num_processes - 1)
        self.epoch_state.sums = {name: value.to(self.accelerator.device) for name, value in sums[rank].items()}

    def collect_bad_images(self):
        """Gather what the loaders of all processes could not read. A collective call."""
        found = {}
        for loader in self.data.all_loaders():
            found.update(loader.bad_images)
        for part in gather_object([found]):
            self.bad_images.update(part)
