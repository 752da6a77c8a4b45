"""The train loop on Hugging Face Accelerate. It names no method, loss or sampler.

An epoch is a number of steps; a step takes `grad_accum_steps` micro-batches of every data stream and, for each phase of
the method, runs forward and backward on them and updates once. Losses stay on the device and are read once a log
interval.
"""
import time
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.utils import distribute_bn
from torch import nn

from ..methods import Batch
from ..utils.errors import UserError
from ..utils.files import last_state
from ..utils.finite import NotFinite, trained_tensors
from ..utils.signals import Interrupted, Stopped, on_stop_signal
from .progress import Progress
from .run import Run, TrainBatches

__all__ = ['Interrupted', 'evaluate', 'fit', 'stop_on_signal', 'train_one_epoch']


@contextmanager
def stop_on_signal(run: Run):
    """Let Ctrl-C, SIGTERM and a closed terminal end the step that runs, save, and raise `Interrupted`.

    A second signal stops one process at once; several processes still wait for one another.
    """
    def handle(signum, frame):
        if run.stop_signal and run.accelerator.num_processes == 1:
            raise Stopped(signum)
        run.stop_signal = signum

    with on_stop_signal(handle):
        yield


@torch.no_grad()
def evaluate(model: nn.Module, loader, evaluator, train_batches: TrainBatches | None = None, reduce: bool = True):
    """Evaluate a model in full precision.

    Args:
        model: Model; back in its former mode afterwards.
        loader: Yields batches in the `eval` view.
        evaluator: Sums up, see `LongTailEvaluator`.
        train_batches: Given to the evaluator's `start`.
        reduce: Over the shards of all processes; False where one process evaluates all images alone.

    Returns:
        The evaluator's figures.

    Raises:
        NotFinite: The model's outputs are not finite.
    """
    was_training = model.training
    model.eval()
    evaluator.start(model, train_batches)
    for (images, *_), target, _ in loader:
        evaluator.update(model, images, target)
    model.train(was_training)
    return evaluator.compute(reduce=reduce)


def fit(run: Run, num_epochs: int) -> list[dict[str, Any]]:
    """Train from where the run stands to `num_epochs`, evaluating and saving after each epoch.

    Args:
        run: The run, fresh or with a checkpoint loaded.
        num_epochs: Length of the run, in epochs from 0.

    Returns:
        One row of figures an epoch.

    Raises:
        UserError: The loss, a weight or an output is not finite; what is wrong is not saved.
        Interrupted: A signal asked to stop; the state is saved.
    """
    progress = Progress(run, num_epochs)
    with stop_on_signal(run):
        while run.epoch < num_epochs:
            start = time.perf_counter()
            epoch = run.epoch
            row = {'epoch': epoch, 'lr': run.start_epoch(num_epochs), **train_one_epoch(run, progress)}
            row['train_seconds'] = time.perf_counter() - start
            if (epoch + 1) % run.val_interval == 0 or epoch + 1 == num_epochs:
                if run.accelerator.num_processes > 1:
                    for model in dict.fromkeys((run.method.model, run.eval_model)):  # in one order on all
                        distribute_bn(model, run.accelerator.num_processes, reduce=False)
                metrics = _evaluate_epoch(run)
                row.update({f'eval_{k}': v for k, v in metrics.items() if not isinstance(v, list)})
                if run.best is None or _is_better(metrics[run.headline], run.best[f'eval_{run.headline}']):
                    run.best = row
            run.collect_bad_images()
            run.history.append(row)
            run.epoch, run.step = epoch + 1, 0
            run.save()
            progress.epoch(row)
            if run.on_epoch_end is not None and run.accelerator.is_main_process:
                run.on_epoch_end(run)
            _stop_if_asked(run, run.stop_signal)
    progress.close()
    return run.history


def _evaluate_epoch(run: Run) -> dict[str, Any]:
    """Evaluate what would be exported now, on the images that an epoch is evaluated on."""
    try:
        return evaluate(run.eval_model, run.eval_loader, run.evaluator, run.train_batches)
    except NotFinite as e:
        raise NotFinite(f'epoch {run.epoch + 1}: {e}{last_state(run.output_dir)}') from e


def _is_better(figure: float | None, best: float | None) -> bool:
    """Whether a figure exceeds the best one; None, the figure of no images, is below all others."""
    if figure is None:
        return False
    return best is None or figure > best


def train_one_epoch(run: Run, progress: Progress) -> dict[str, float]:
    """Run the steps of one epoch from `run.step` on.

    Args:
        run: The run.
        progress: Shows where it stands.

    Returns:
        Mean of each logged part over the epoch and all processes; names of later phases carry the phase.
    """
    run.task.train()
    first_bad = torch.full((), -1, dtype=torch.int64, device=run.accelerator.device)
    rates: dict[int, float] = {}  # learning rate of each step since the last look at the device
    streams = zip(*run.loaders)
    while run.step < run.steps_per_epoch:
        micro_batches = [next(streams) for _ in range(run.grad_accum_steps)]
        update = run.epoch * run.steps_per_epoch + run.step
        for phase, optimizer, scheduler in zip(run.method.phases, run.optimizers, run.schedulers):
            if phase in run.method.idle_phases:
                continue
            if scheduler is not None:
                scheduler.step_update(update)
            rates.setdefault(run.step, optimizer.param_groups[0]['lr'])
            loss = _train_phase(run, phase, optimizer, micro_batches)
            first_bad = torch.where((first_bad < 0) & ~torch.isfinite(loss), run.step, first_bad)
        if run.ema is not None:
            run.ema.update(run.method.model, step=update)
        run.step += 1
        last = run.step == run.steps_per_epoch
        saves = run.save_steps > 0 and run.step % run.save_steps == 0 and not last
        stops = run.stop_signal and run.accelerator.num_processes == 1  # several processes agree at the log interval
        if run.step % run.log_interval == 0 or saves or last or stops:
            signum = _check(run, first_bad, rates)
            rates.clear()
            progress.step(run)
            if signum and not last:
                run.save()
                _stop_if_asked(run, signum)
            elif saves:
                run.save()
    return _means(run)


def _train_phase(run: Run, phase: str, optimizer, micro_batches: list[tuple[Batch, ...]]) -> torch.Tensor:
    """One update of one phase; returns its loss."""
    accelerator = run.accelerator
    total = 0.0
    for i, batches in enumerate(micro_batches):
        last = i + 1 == len(micro_batches)
        with nullcontext() if last else accelerator.no_sync(run.task):
            result = run.task(*batches, phase=phase)
            accelerator.backward(result['loss'] / len(micro_batches))
        total = total + result['loss'].detach() / len(micro_batches)
        _add(run, phase, result, batches[0][1])
    if run.clip_grad is not None:
        accelerator.clip_grad_norm_([p for g in optimizer.param_groups for p in g['params']], run.clip_grad)
    _step(run, optimizer)
    run.method.zero_grad(set_to_none=True)  # of all phases: no gradient waits for the step of another
    with torch.no_grad():
        run.method.after_step(phase)
    return total


def _step(run: Run, optimizer):
    """Update the weights once.

    Raises:
        UserError: An option is beyond the largest number of the weights' type, such as a learning rate of 1e308.
    """
    try:
        optimizer.step()
    except RuntimeError as e:
        if 'cannot be converted' not in str(e):  # torch: value cannot be converted to type float without overflow
            raise
        place = f'step {run.step + 1} of epoch {run.epoch + 1}'
        group = optimizer.param_groups[0]
        options = ', '.join(f'{name} {group[name]:g}' for name in ('lr', 'weight_decay', 'momentum') if name in group)
        raise UserError(
            f'{place}: the optimizer cannot update the weights with {options}: {e}{last_state(run.output_dir)}') from e


@torch.no_grad()
def _add(run: Run, phase: str, result: dict[str, torch.Tensor | None], target: torch.Tensor):
    """Add what one forward returned to the epoch's sums, on the device."""
    prefix = '' if phase == run.method.phases[0] else f'{phase}_'
    parts = {f'train_{prefix}{k}': v.detach().double() for k, v in result.items() if k != 'output' and v is not None}
    output = result['output']
    if output is not None and prefix == '':
        parts['train_accuracy'] = (output.argmax(dim=1) == target).double().mean()
    for name, value in parts.items():
        sums = run.sums.setdefault(name, torch.zeros(2, dtype=torch.float64, device=value.device))
        sums[0] += value
        sums[1] += 1


def _check(run: Run, first_bad: torch.Tensor, rates: dict[int, float]) -> int:
    """Read the device; returns the signal of any process.

    Args:
        run: The run, after a step.
        first_bad: First step of the epoch whose loss is not finite on this process, int64 scalar; -1 for none.
        rates: Learning rate of each step since the last look.

    Raises:
        UserError: A loss is not finite, or what training has changed: weights, averages, statistics of BatchNorm.
    """
    tensors = trained_tensors(run.method)
    if run.ema is not None:
        tensors.update({f'{name} (moving average)': value for name, value in trained_tensors(run.ema.module).items()})
    bad_tensors = torch.stack([~value.isfinite().all() for value in tensors.values()])

    flags = torch.stack([first_bad, bad_tensors.any().long(), torch.full_like(first_bad, run.stop_signal)])
    bad_step, has_bad_tensor, signum = run.accelerator.gather(flags[None]).amax(dim=0).tolist()

    kept = last_state(run.output_dir)
    if bad_step >= 0:
        raise UserError(
            f'the loss is not finite: NaN or infinite in step {bad_step + 1} of epoch {run.epoch + 1}, '
            f'at a learning rate of {rates[bad_step]:g}{kept}')
    if has_bad_tensor:
        named = [name for name, bad in zip(tensors, bad_tensors.tolist()) if bad]
        found = f'{named[0]} is' if named else 'a weight of another process is'
        raise UserError(
            f'{found} not finite after step {run.step} of epoch {run.epoch + 1}, '
            f'at a learning rate of {rates[run.step - 1]:g}{kept}')
    return signum


def _stop_if_asked(run: Run, signum: int):
    if run.accelerator.num_processes > 1:
        signum = int(run.accelerator.gather(torch.tensor([signum], device=run.accelerator.device)).max())
    if signum:
        raise Interrupted(signum)


def _means(run: Run) -> dict[str, float]:
    names = sorted(run.sums)
    sums = run.accelerator.reduce(torch.stack([run.sums[name] for name in names])).cpu()
    return {name: float(total / count) for name, (total, count) in zip(names, sums)}
