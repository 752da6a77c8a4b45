"""One training run: what it consists of, where it stands, and how that is saved and taken up again."""
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..data import Preprocessing
from ..methods import Batch, Method, default_options
from ..models import deployed_state_dict
from ..utils import rng
from ..utils.errors import UserError
from ..utils.files import BEST, LAST
from ..utils.version import __version__
from .checkpoint import load_method_state, method_state, restoring, write_checkpoint

__all__ = ['Run', 'TrainBatches']


class TrainBatches:
    """`batches` of `Method.start_epoch`: called, it iterates over the whole training set in the `eval` view."""

    def __init__(self, dataset, loader):
        self._dataset = dataset
        self.loader = loader

    @property
    def digests(self):
        """sha256 of each training image's uint8 HWC pixels, by index."""
        return self._dataset.digests

    def __call__(self) -> Iterator[Batch]:
        return iter(self.loader)


@dataclass
class Run:
    """Everything that one training run consists of; what `state_dict` returns is all that resuming needs.

    Attributes:
        accelerator: Owns devices, mixed precision and gradient scaling.
        method: The method; `task` is the same, prepared (wrapped by DDP).
        optimizers: One a phase of the method, prepared; `schedulers` likewise, timm's, not prepared.
        loaders: One a data stream.
        eval_loader: Images that each epoch is evaluated on, sharded over the processes.
        evaluator: From `Method.create_evaluator`.
        train_batches: Given to the method's hooks.
        preprocessing: What becomes of an image, in training, evaluation and export.
        output_dir: Folder of the run; None keeps nothing.
        ema: timm's `ModelEmaV3` of the model, or None.
        seed: Training seed.
        headline: The evaluator's figure that chooses the best epoch.
        grad_accum_steps: Micro-batches of an update.
        clip_grad: Largest norm of an update's gradient, or None.
        log_interval, save_steps, val_interval: Steps, steps and epochs between looks at the loss, saves inside an
            epoch (0 for none) and evaluations.
        on_epoch_end: Called on the main process after each epoch is saved.
        steps_per_epoch: Optimizer updates in an epoch.
        images_per_step: Images of the first stream in an update, over all processes.
        arch, args: Written to the checkpoint, under timm's keys.
        about: What evaluating a checkpoint takes beyond its weights: `model_args`, `shot_counts`, `preprocessing`.
        protocol: What a checkpoint must agree on to be resumed, by name.
        epoch, step: Position: epochs finished, steps taken in the epoch that runs.
        history, best: One row of figures an epoch, and the best of them.
        tree_hashes: Hash of the code that trained, of all codes where a run was resumed by another.
        pending: Checkpoint from inside an epoch, until that epoch begins.
        stop_signal: Signal that this process received, or 0.
        bad_images: Names of images that no process could read, and why.
    """

    accelerator: Accelerator
    method: Method
    task: nn.Module
    optimizers: list
    schedulers: list
    loaders: list
    eval_loader: Any
    evaluator: Any
    train_batches: TrainBatches
    preprocessing: Preprocessing
    steps_per_epoch: int
    images_per_step: int
    output_dir: Path | None = None
    ema: Any = None
    seed: int = 0
    headline: str = 'all'
    grad_accum_steps: int = 1
    clip_grad: float | None = None
    log_interval: int = 50
    save_steps: int = 0
    val_interval: int = 1
    arch: str = ''
    args: dict[str, Any] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    on_epoch_end: Callable[['Run'], None] | None = None
    # where the run stands
    epoch: int = 0
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    tree_hashes: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)
    method_rng: np.random.Generator | None = None
    pending: dict[str, Any] | None = None
    stop_signal: int = 0
    bad_images: dict[str, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """Time since the run was built, plus that of the processes it was resumed from."""
        return self.seconds_before + time.perf_counter() - self.started

    @property
    def eval_model(self) -> nn.Module:
        """The model that is evaluated and exported: the moving average where there is one."""
        return self.ema.module if self.ema is not None else self.method.model

    def state_dict(self) -> dict[str, Any]:
        """Return the run's state: timm's checkpoint keys, and the position. A collective call inside an epoch."""
        state = {
            'epoch': self.epoch,
            'arch': self.arch,
            **method_state(self.method),
            'optimizer': self.optimizers[0].state_dict(),
            'optimizers': [optimizer.state_dict() for optimizer in self.optimizers[1:]],
            'args': self.args,
            'about': self.about,
            'metric': self.best[f'eval_{self.headline}'] if self.best else None,
            'version': 2,
            'timm_longtail': __version__,
            'step': self.step,
            'protocol': self.protocol,
            'tree_hashes': self.tree_hashes,
            'seconds': self.seconds,
            'history': self.history,
            'best': self.best,
            'bad_images': self.bad_images,
        }
        if self.ema is not None:
            state['state_dict_ema'] = deployed_state_dict(self.ema.module)
        if self.accelerator.scaler is not None:
            state['scaler'] = self.accelerator.scaler.state_dict()
        if self.step:
            cuda = [torch.cuda.get_rng_state()] if self.accelerator.device.type == 'cuda' else []
            state['torch_rng'] = gather_object([[torch.get_rng_state(), *cuda]])
            state['method_rng'] = self.method_rng.bit_generator.state
            state['sums'] = gather_object([{k: v.cpu() for k, v in self.sums.items()}])
        return state

    def load_state_dict(self, state: dict[str, Any], source: str = 'checkpoint'):
        """Take up the position and weights of a checkpoint.

        Raises:
            UserError: The checkpoint is of another architecture, data set, method, seed, or of other options.
        """
        load_method_state(self.method, state, source)
        with restoring(source):
            differing = self._differences(state['protocol'])
        if differing:
            raise UserError(f'{source} is of another run: {", ".join(differing)}')

        with restoring(source):
            for optimizer, saved in zip(self.optimizers, [state['optimizer'], *state['optimizers']], strict=True):
                optimizer.load_state_dict(saved)
            if self.ema is not None:
                self.ema.module.load_state_dict(state.get('state_dict_ema', state['state_dict']), strict=False)
            if self.accelerator.scaler is not None and 'scaler' in state:
                self.accelerator.scaler.load_state_dict(state['scaler'])

            self.epoch, self.step = state['epoch'], state['step']
            self.history, self.best = list(state['history']), state['best']
            self.bad_images = dict(state.get('bad_images', {}))
            self.tree_hashes = list(dict.fromkeys([*state['tree_hashes'], *self.tree_hashes]))
            self.seconds_before = state['seconds']
        self.pending = state if self.step else None

    def _differences(self, saved: dict[str, Any]) -> list[str]:
        """Return what a checkpoint's protocol has otherwise than this run's, in words, each option by itself."""
        found = []
        for name, here in self.protocol.items():
            there = saved.get(name)
            if name == 'method_kwargs':  # older checkpoints hold what was typed
                there = {**default_options(type(self.method)), **(there or {})}
            options = {f'{name} {k}': (there.get(k), here.get(k)) for k in {**here, **there}} if (
                isinstance(here, dict) and isinstance(there, dict)) else {name: (there, here)}
            found += [f'{k} {a} there, {b} here' for k, (a, b) in options.items() if _plain(a) != _plain(b)]
        return found

    def collect_bad_images(self):
        """Gather what the loaders of all processes could not read. A collective call."""
        loaders = [*self.loaders, self.eval_loader, *([self.train_batches.loader] if self.train_batches else [])]
        found = {name: reason for loader in loaders for name, reason in loader.bad_images.items()}
        for part in gather_object([found]):
            self.bad_images.update(part)

    def save(self):
        """Write `checkpoint-last.pth.tar`, keeping the one before."""
        state = self.state_dict()
        if self.output_dir is not None and self.accelerator.is_main_process:
            if self.step == 0 and self.best is self.history[-1]:  # first: the last checkpoint speaks of it
                write_checkpoint(state, self.output_dir / BEST)
            write_checkpoint(state, self.output_dir / LAST, keep_previous=True)

    def start_epoch(self, num_epochs: int) -> float:
        """Set all that an epoch begins with, as a function of its number; returns its first learning rate."""
        rank = self.accelerator.process_index
        for loader in self.loaders:
            loader.set_epoch(self.epoch, start_batch=self.step * self.grad_accum_steps)
        for scheduler in filter(None, self.schedulers):
            scheduler.step(self.epoch)
            scheduler.step_update(self.epoch * self.steps_per_epoch)  # whatever update the run is resumed at
        rng.seed_torch(self.seed, self.epoch, rank)
        self.method_rng = rng.generator(self.seed, self.epoch, purpose='method')
        self.sums = {}
        self.method.start_epoch(self.epoch, num_epochs, self.method_rng, self.train_batches)
        if self.pending is not None:
            with restoring('checkpoint'):
                self._enter_epoch(self.pending, rank)
            self.pending = None
        return self.optimizers[0].param_groups[0]['lr']

    def _enter_epoch(self, state: dict[str, Any], rank: int):
        """Go on inside an epoch: what `Method.start_epoch` changed is overwritten by what was saved."""
        load_method_state(self.method, state, 'checkpoint')
        self.method_rng.bit_generator.state = state['method_rng']
        cpu, *cuda = state['torch_rng'][min(rank, len(state['torch_rng']) - 1)]
        torch.set_rng_state(cpu)
        for rng_state in cuda:
            torch.cuda.set_rng_state(rng_state)
        sums = state['sums']
        if len(sums) != self.accelerator.num_processes:  # then the main process takes them all
            sums = [{k: sum(part[k] for part in sums) for k in sums[0]}, *[{}] * self.accelerator.num_processes]
        self.sums = {k: v.to(self.accelerator.device) for k, v in sums[rank].items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
