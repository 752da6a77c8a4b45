"""A run in TensorBoard, Weights & Biases or trackio, through Accelerate's trackers. The engine does not know them.

The step of a figure is the epoch it belongs to, counted from 0 as in `summary.csv`; the figures of the exported weights
(`last_all`, …) stand at the number of epochs. `accelerator.log_with` takes trackers that are built already: the output
folder is known only after the accelerator exists.
"""
import importlib.metadata
import logging
import secrets
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from ..config.parser import plain
from ..utils.errors import UserError, one_line
from ..utils.files import read_text, write_text
from .run import Run

__all__ = ['check_trackers', 'flatten', 'hyper_parameters', 'log_epoch', 'log_final', 'tracking']

RUN_ID = 'tracker_id.txt'

_logger = logging.getLogger(__name__)


def check_trackers(names: list[str]):
    """Raise a `UserError` for a tracker whose package is not installed."""
    for name in names:
        try:
            importlib.metadata.version(name)  # not find_spec: a folder `wandb` of former runs would do for it
        except importlib.metadata.PackageNotFoundError as e:
            raise UserError(
                f"--tracker {name}: the package {name} is not installed; pip install 'timm_longtail[trackers]'") from e


@contextmanager
def tracking(args: Namespace, run: Run, train_set) -> Iterator[None]:
    """Start the trackers on the main process, and close them however the block ends. A resumed run goes on in them.

    Args:
        args: Options, `tracker` and `project` among them.
        run: The run, in its output folder and at its position.
        train_set: Training data.

    Raises:
        UserError: A tracker refuses to start, as where it is not logged in.
    """
    accelerator = run.accelerator
    if args.tracker and accelerator.is_main_process:
        is_new = not (run.output_dir / RUN_ID).exists()
        run_id = _run_id(run.output_dir)
        accelerator.log_with = [_create(name, args.project, run, run_id) for name in dict.fromkeys(args.tracker)]
        try:
            accelerator.init_trackers(args.project, hyper_parameters(args, run, train_set))
        except Exception as e:  # each package has errors of its own
            accelerator.trackers.clear()  # those that did not start cannot be closed; the others close at exit
            if is_new:
                (run.output_dir / RUN_ID).unlink(missing_ok=True)
            raise UserError(f'--tracker {" ".join(args.tracker)}: {one_line(e)}') from e
    try:
        yield
    finally:
        while accelerator.trackers:
            tracker = accelerator.trackers.pop()
            with _never_ending_the_run(tracker):
                tracker.finish()


def log_epoch(run: Run):
    """Give the trackers the figures of the last epoch."""
    row = {k: v for k, v in run.history[-1].items() if k != 'epoch'}
    _log(run, _figures(row), run.history[-1]['epoch'])


def log_final(run: Run, metrics: dict[str, Any]):
    """Give the trackers the figures of the exported weights, as `last_<name>`."""
    _log(run, {f'last_{k}': v for k, v in _figures(metrics).items()}, run.epoch)


def _log(run: Run, figures: dict[str, float], step: int):
    """Give figures to all trackers; one that fails, such as for a full disk or a lost server, gets no more of them."""
    for tracker in list(run.accelerator.trackers):
        with _never_ending_the_run(tracker) as fault:
            tracker.log(figures, step=step)
        if fault:
            run.accelerator.trackers.remove(tracker)


@contextmanager
def _never_ending_the_run(tracker: GeneralTracker) -> Iterator[list[Exception]]:
    """Say in one line what a tracker raises in the block, and go on; yields a list that then holds the error."""
    fault = []
    try:
        yield fault
    except Exception as e:  # each package has errors of its own
        fault.append(e)
        _logger.warning(f'--tracker {tracker.name}: {one_line(e) or type(e).__name__}; the run goes on without it')


def hyper_parameters(args: Namespace, run: Run, train_set) -> dict[str, bool | int | float | str]:
    """Return all options, and in the place of those left open what the run found out."""
    return flatten({
        **plain(args),
        'global_batch_size': run.images_per_step,
        'imbalance_factor': train_set.imbalance_factor,
        'real_imbalance_factor': train_set.real_imbalance_factor,
        'mixed_precision': run.accelerator.mixed_precision,
        'num_classes': train_set.num_classes,
        'num_processes': run.accelerator.num_processes,
        'subset_hash': train_set.hash,
        'tree_hash': ' '.join(run.tree_hashes),
    })


def flatten(values: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Return nested options under dotted names, lists and None as strings: TensorBoard takes no others."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update({f'{name}.{k}': v for k, v in flatten(value).items()})
        else:
            flat[name] = value if isinstance(value, (bool, int, float, str)) else str(value)
    return flat


class _TensorBoard(TensorBoardTracker):
    """Keeps the hyper-parameters in the run itself, where Accelerate's starts another run for them at each start."""

    def store_init_configuration(self, values: dict):
        from torch.utils.tensorboard.summary import hparams
        # the session alone: an experiment summary would fix the columns of all runs to the options of this one
        _, session_start, _ = hparams(values, {})
        self.writer.file_writer.add_summary(session_start)
        self.writer.flush()


def _create(name: str, project: str, run: Run, run_id: str) -> GeneralTracker:
    folder = run.output_dir
    if name == 'tensorboard':  # purge_step: epochs that are trained once more replace the former ones
        return _TensorBoard(project, folder / 'tensorboard', purge_step=run.epoch)
    if name == 'wandb':
        return WandBTracker(project, name=folder.name, dir=str(folder), id=run_id, resume='allow')
    # trackio tells runs of a project apart by name, wherever their folders are
    return TrackioTracker(project, name=f'{folder.name}.{run_id}', resume='allow')


def _run_id(folder: Path) -> str:
    """Return the id of the run of an output folder: drawn once, kept in it, so that a new folder is a new run."""
    path = folder / RUN_ID
    if not path.exists():
        write_text(path, secrets.token_hex(4) + '\n')
    return read_text(path).strip()


def _figures(row: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, (int, float))}
