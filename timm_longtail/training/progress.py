"""What a person sees while a run trains: a bar with the time left on a terminal, plain lines elsewhere."""
import sys
import time
from typing import Any

from tqdm import tqdm

from .run import Run

__all__ = ['Progress']


class Progress:
    """Progress of a run over all its epochs, on the main process.

    Args:
        run: The run.
        num_epochs: Length of the run, in epochs.
    """

    def __init__(self, run: Run, num_epochs: int):
        self._shown = run.accelerator.is_main_process
        self._num_epochs = num_epochs
        self._total = num_epochs * run.steps_per_epoch
        self._first = run.epoch * run.steps_per_epoch + run.step
        self._started = time.perf_counter()
        on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=self._total, initial=self._first, unit='step', dynamic_ncols=True, disable=not on_terminal,
        ) if self._shown else None

    def step(self, run: Run):
        """Show the step that the run has reached; reads the mean loss of the epoch from the device."""
        if not self._shown:
            return
        done = run.epoch * run.steps_per_epoch + run.step
        total, count = run.sums['train_loss'].tolist()
        lr = run.optimizers[0].param_groups[0]['lr']
        if not self._bar.disable:
            self._bar.set_description(f'epoch {run.epoch + 1}/{self._num_epochs}')
            self._bar.set_postfix(loss=f'{total / count:.3f}', lr=f'{lr:.3g}', refresh=False)
            self._bar.update(done - self._bar.n)
        elif run.step < run.steps_per_epoch:
            seconds = time.perf_counter() - self._started
            rate = (done - self._first) / seconds
            print(
                f'epoch {run.epoch + 1}/{self._num_epochs}  step {run.step}/{run.steps_per_epoch}  '
                f'loss {total / count:.3f}  lr {lr:.3g}  {rate * run.images_per_step:.0f} images/s  '
                f'left {tqdm.format_interval((self._total - done) / rate)}',
                flush=True,
            )

    def epoch(self, row: dict[str, Any]):
        """Show the figures of a finished epoch."""
        if not self._shown:
            return
        parts = [f'epoch {row["epoch"] + 1}/{self._num_epochs}', f'loss {row["train_loss"]:.3f}']
        for name in ('all', 'many', 'medium', 'few', 'balanced', 'loss'):
            value = row.get(f'eval_{name}', 'missing')
            if value != 'missing':
                parts.append(f'{name if name != "loss" else "eval loss"} {"n/a" if value is None else f"{value:.2f}"}')
        tqdm.write('  '.join([*parts, f'{row["train_seconds"]:.1f} s']), file=sys.stdout)
        sys.stdout.flush()

    def close(self):
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
