"""What a person sees while a run trains: a bar on a terminal, plain lines elsewhere."""
import sys
import time
from typing import Any

from tqdm import tqdm

from ..utils.progress import shows_progress
from .run import Run

__all__ = ['Progress']

# figures of an evaluation that a line shows, where an epoch has them, by what they are called there
_SHOWN = {'all': 'all', 'many': 'many', 'medium': 'medium', 'few': 'few', 'balanced': 'balanced', 'loss': 'eval loss'}


class Progress:
    """Progress of a run over all its epochs, on the main process.

    Args:
        run: The run.
        num_epochs: Length of the run, in epochs.
    """

    def __init__(self, run: Run, num_epochs: int):
        self._num_epochs = num_epochs
        self._total = num_epochs * run.steps_per_epoch
        self._first = run.epoch * run.steps_per_epoch + run.step
        self._started = time.perf_counter()

        self._bar = None
        if run.accelerator.is_main_process:
            self._bar = tqdm(
                total=self._total,
                initial=self._first,
                unit='step',
                dynamic_ncols=True,
                disable=not shows_progress(),
            )

    def step(self, run: Run):
        """Show the step that the run has reached; reads the mean loss of the epoch from the device.

        Args:
            run: The run, after a step.
        """
        if self._bar is None:
            return

        done = run.epoch * run.steps_per_epoch + run.step
        total, count = run.epoch_state.sums['train_loss'].tolist()
        lr = run.optimizers[0].param_groups[0]['lr']
        epoch = f'epoch {run.epoch + 1}/{self._num_epochs}'
        loss = f'{total / count:.3f}'

        # a terminal
        if not self._bar.disable:
            self._bar.set_description(epoch)
            self._bar.set_postfix(loss=loss, lr=f'{lr:.3g}', refresh=False)
            self._bar.update(done - self._bar.n)
            return

        # the line of a finished epoch follows that of its last step
        if run.step < run.steps_per_epoch:
            rate = (done - self._first) / (time.perf_counter() - self._started)
            left = tqdm.format_interval((self._total - done) / rate)
            print(
                f'{epoch}  step {run.step}/{run.steps_per_epoch}  loss {loss}  lr {lr:.3g}  '
                f'{rate * run.images_per_step:.0f} images/s  left {left}',
                flush=True,
            )

    def epoch(self, row: dict[str, Any]):
        """Show the figures of a finished epoch.

        Args:
            row: Row of `Run.history`.
        """
        if self._bar is None:
            return

        parts = [f'epoch {row["epoch"] + 1}/{self._num_epochs}', f'loss {row["train_loss"]:.3f}']
        for name, label in _SHOWN.items():
            if f'eval_{name}' not in row:
                continue
            value = row[f'eval_{name}']
            shown = 'n/a' if value is None else f'{value:.2f}'
            parts.append(f'{label} {shown}')
        parts.append(f'{row["train_seconds"]:.1f} s')

        tqdm.write('  '.join(parts), file=sys.stdout)
        sys.stdout.flush()

    def close(self):
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
