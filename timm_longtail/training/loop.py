"""The train loop on Hugging Face Accelerate. It names no method, loss or sampler.

An epoch is a number of steps; a step takes `grad_accum_steps` micro-batches of every data stream
and, for each phase of the method, runs forward and backward on them and updates once. Losses stay
on the device and are read once a log interval.
"""
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from timm.utils import distribute_bn
from torch import nn

from ..methods import Batch
from ..utils.errors import UserError
from ..utils.files import last_state
from ..utils.finite import NotFinite, trained_tensors
from ..utils.progress import progress
from ..utils.signals import Interrupted, Stopped, on_stop_signal
from .loaders import TrainBatches
from .progress import Progress
from .run import Run

__all__ = ['Interrupted', 'evaluate', 'fit', 'stop_on_signal', 'train_one_epoch']


@contextmanager
def stop_on_signal(run: Run):
    """Let Ctrl-C, SIGTERM and a closed terminal save, and raise `Interrupted`.

    The current step ends first. A second signal stops one process at once; several processes still
    wait for one another.

    Args:
        run: The run that is stopped.
    """
    def handle(signum, frame):
        if run.stop_signal and run.accelerator.num_processes == 1:
            raise Stopped(signum)
        run.stop_signal = signum

    with on_stop_signal(handle):
        yield


@torch.no_grad()
def evaluate(
        model: nn.Module,
        loader,
        evaluator,
        train_batches: TrainBatches | None = None,
        reduce: bool = True,
) -> dict[str, Any]:
    """Evaluate a model in full precision. Where images have several views, logits are the mean over the views.

    Args:
        model: Model; back in its former mode afterwards.
        loader: Loader of batches in the `eval` view.
        evaluator: Evaluator, see `LongTailEvaluator`.
        train_batches: Training images for the evaluator's `start`.
        reduce: Whether to sum over the shards of all processes; False where one process evaluates
            all images alone.

    Returns:
        The evaluator's figures.

    Raises:
        NotFinite: The model's outputs are not finite.
    """
    was_training = model.training
    model.eval()

    evaluator.start(model, train_batches)
    for views, target, _ in loader:
        if len(views) == 1:
            evaluator.update(model, views[0], target)
        else:
            evaluator.add(torch.stack([model(images) for images in views]).mean(dim=0), target)

    model.train(was_training)
    return evaluator.compute(reduce=reduce)


def fit(run: Run, num_epochs: int, on_epoch_end: Callable[[Run], None] | None = None) -> list[dict[str, Any]]:
    """Train from where the run stands to `num_epochs`, evaluating and saving after each epoch.

    Args:
        run: The run, fresh or with a checkpoint loaded.
        num_epochs: Length of the run, in epochs from 0.
        on_epoch_end: Called with the run on the main process after each epoch is saved.

    Returns:
        One row of figures an epoch.

    Raises:
        UserError: The loss, a weight or an output is not finite; what is wrong is not saved.
        Interrupted: A signal asked to stop; the state is saved.
    """
    progress = Progress(run, num_epochs)
    with stop_on_signal(run):
        while run.epoch < num_epochs and not run.is_out_of_patience:
            row = _run_epoch(run, num_epochs, progress)

            # the epoch is over: saved first, then shown
            run.collect_bad_images()
            run.history.append(row)
            run.epoch += 1
            run.step = 0
            run.save()
            progress.epoch(row)
            if on_epoch_end is not None and run.accelerator.is_main_process:
                on_epoch_end(run)

            _stop_if_asked(run, run.stop_signal)

    progress.close()
    if run.is_out_of_patience and run.epoch < num_epochs and run.accelerator.is_main_process:
        print(
            f'stopped after epoch {run.epoch} of {num_epochs}: no better epoch on the hold-out since epoch '
            f'{run.best["epoch"] + 1} (--patience {run.options.patience})', flush=True)
    return run.history


def _run_epoch(run: Run, num_epochs: int, progress: Progress) -> dict[str, Any]:
    """Train one epoch, evaluate it where that is due, and return its row of figures."""
    start = time.perf_counter()
    row = {'epoch': run.epoch, 'lr': run.start_epoch(num_epochs)}
    row.update(train_one_epoch(run, progress))
    row['train_seconds'] = time.perf_counter() - start

    num_finished = run.epoch + 1
    is_due = num_finished % run.options.val_interval == 0 or num_finished == num_epochs
    if is_due:
        metrics = _evaluate_epoch(run)
        row.update({f'eval_{name}': value for name, value in metrics.items() if not isinstance(value, list)})
        if run.best is None or _is_better(metrics[run.headline], run.best[f'eval_{run.headline}']):
            run.best = row
    return row


def _evaluate_epoch(run: Run) -> dict[str, Any]:
    """Evaluate what would be exported now, on the images that an epoch is evaluated on."""
    num_processes = run.accelerator.num_processes

    # the statistics of BatchNorm are the main process's: in one order on all
    if num_processes > 1:
        for model in dict.fromkeys((run.method.model, run.eval_model)):
            distribute_bn(model, num_processes, reduce=False)

    try:
        batches = progress(run.data.eval_loader, 'evaluation', unit='batch')
        return evaluate(run.eval_model, batches, run.evaluator, run.train_batches)
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
        progress: Display of the steps.

    Returns:
        Mean of each logged part over the epoch and all processes; names of later phases carry the
        phase.
    """
    options = run.options
    first_bad = torch.full((), -1, dtype=torch.int64, device=run.accelerator.device)
    rates: dict[int, float] = {}  # learning rate of each step since the last look at the device

    run.task.train()
    streams = zip(*run.loaders)
    while run.step < run.steps_per_epoch:
        micro_batches = [next(streams) for _ in range(options.grad_accum_steps)]
        update = run.epoch * run.steps_per_epoch + run.step

        # one update a phase
        for phase, optimizer, scheduler in zip(run.method.phases, run.optimizers, run.optimisation.schedulers):
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

        # several processes agree to stop at the log interval only
        is_last = run.step == run.steps_per_epoch
        is_save_due = options.save_steps > 0 and run.step % options.save_steps == 0 and not is_last
        is_log_due = run.step % options.log_interval == 0
        stops_now = run.stop_signal and run.accelerator.num_processes == 1
        if not (is_log_due or is_save_due or is_last or stops_now):
            continue

        # nothing that is not finite is saved
        signum = _check(run, first_bad, rates)
        rates.clear()
        progress.step(run)
        if signum and not is_last:
            run.save()
            _stop_if_asked(run, signum)
        elif is_save_due:
            run.save()

    return _means(run)


def _train_phase(run: Run, phase: str, optimizer, micro_batches: list[tuple[Batch, ...]]) -> torch.Tensor:
    """One update of one phase; returns its loss."""
    accelerator = run.accelerator
    num_micro_batches = len(micro_batches)
    total = 0.0

    # gradients are reduced over the processes with those of the last micro-batch
    for i, batches in enumerate(micro_batches):
        is_last = i + 1 == num_micro_batches
        with nullcontext() if is_last else accelerator.no_sync(run.task):
            result = run.task(*batches, phase=phase)
            accelerator.backward(result['loss'] / num_micro_batches)
        total = total + result['loss'].detach() / num_micro_batches
        _add(run, phase, result, batches[0][1])

    if run.options.clip_grad is not None:
        parameters = [p for group in optimizer.param_groups for p in group['params']]
        accelerator.clip_grad_norm_(parameters, run.options.clip_grad)
    _step(run, optimizer)

    # of all phases: no gradient waits for the step of another
    run.method.zero_grad(set_to_none=True)
    with torch.no_grad():
        run.method.after_step(phase)
    return total


def _step(run: Run, optimizer):
    """Update the weights once.

    Raises:
        UserError: An option is beyond the largest number of the weights' type, such as a learning
            rate of 1e308.
    """
    try:
        optimizer.step()
    except RuntimeError as e:
        # torch: value cannot be converted to type float without overflow
        if 'cannot be converted' not in str(e):
            raise

        place = f'step {run.step + 1} of epoch {run.epoch + 1}'
        group = optimizer.param_groups[0]
        options = ', '.join(f'{name} {group[name]:g}' for name in ('lr', 'weight_decay', 'momentum') if name in group)
        kept = last_state(run.output_dir)
        raise UserError(f'{place}: the optimizer cannot update the weights with {options}: {e}{kept}') from e


@torch.no_grad()
def _add(run: Run, phase: str, result: dict[str, torch.Tensor | None], target: torch.Tensor):
    """Add what one forward returned to the epoch's sums, on the device."""
    is_first_phase = phase == run.method.phases[0]
    prefix = 'train_' if is_first_phase else f'train_{phase}_'

    # losses, and the accuracy on the training images
    parts = {}
    for name, value in result.items():
        if name != 'output' and value is not None:
            parts[f'{prefix}{name}'] = value.detach().double()
    output = result['output']
    if output is not None and is_first_phase:
        parts['train_accuracy'] = (output.argmax(dim=1) == target).double().mean()

    all_sums = run.epoch_state.sums
    for name, value in parts.items():
        sums = all_sums.setdefault(name, torch.zeros(2, dtype=torch.float64, device=value.device))
        sums[0] += value
        sums[1] += 1


def _check(run: Run, first_bad: torch.Tensor, rates: dict[int, float]) -> int:
    """Read the device; returns the signal of any process.

    Args:
        run: The run, after a step.
        first_bad: First step of the epoch whose loss is not finite on this process, int64 scalar;
            -1 for none.
        rates: Learning rate of each step since the last look.

    Raises:
        UserError: A loss is not finite, or what training has changed: weights, averages, statistics
            of BatchNorm.
    """
    tensors = trained_tensors(run.method)
    if run.ema is not None:
        for name, value in trained_tensors(run.ema.module).items():
            tensors[f'{name} (moving average)'] = value
    bad_tensors = torch.stack([~value.isfinite().all() for value in tensors.values()])

    # one transfer from the device for all three, from all processes
    flags = torch.stack([first_bad, bad_tensors.any().long(), torch.full_like(first_bad, run.stop_signal)])
    bad_step, has_bad_tensor, signum = run.accelerator.gather(flags[None]).amax(dim=0).tolist()

    kept = last_state(run.output_dir)
    if bad_step >= 0:
        raise UserError(
            f'the loss is not finite: NaN or infinite in step {bad_step + 1} of epoch {run.epoch + 1}, '
            f'at a learning rate of {rates[bad_step]:g}{kept}')
    if has_bad_tensor:
        named = [name for name, is_bad in zip(tensors, bad_tensors.tolist()) if is_bad]
        found = f'{named[0]} is' if named else 'a weight of another process is'
        raise UserError(
            f'{found} not finite after step {run.step} of epoch {run.epoch + 1}, '
            f'at a learning rate of {rates[run.step - 1]:g}{kept}')
    return signum


def _stop_if_asked(run: Run, signum: int):
    """Raise `Interrupted` where a process received a signal. A collective call."""
    if run.accelerator.num_processes > 1:
        signums = run.accelerator.gather(torch.tensor([signum], device=run.accelerator.device))
        signum = int(signums.max())
    if signum:
        raise Interrupted(signum)


def _means(run: Run) -> dict[str, float]:
    """Return the mean of each of the epoch's sums over all processes."""
    all_sums = run.epoch_state.sums
    names = sorted(all_sums)
    reduced = run.accelerator.reduce(torch.stack([all_sums[name] for name in names])).cpu()

    means = {}
    for name, (total, count) in zip(names, reduced):
        means[name] = float(total / count)
    return means
