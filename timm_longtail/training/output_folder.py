"""The output folder of a run, and the checkpoint in it that the run is resumed from."""
from argparse import Namespace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ..utils.errors import UserError
from ..utils.output_lock import create_folder, hold_folder, join_folder
from .checkpoint import find_checkpoint, read_checkpoint
from .rows import data_tag
from .run import Run

__all__ = ['enter_output_folder', 'run_name']


def run_name(args: Namespace, train_set) -> str:
    """Return what the folder of a run is called where `--experiment` does not say.

    Args:
        args: Options of `train.py`.
        train_set: Training images.
    """
    # every export is called so, and the run that made it has a name of its own
    place = args.model.rstrip('/').removesuffix('/export')
    model = place.rpartition('/')[2].rpartition(':')[2]
    return f'{model}.{args.method}.{data_tag(train_set)}.s{args.seed}'


def enter_output_folder(run: Run, name: str) -> Path | None:
    """Make the output folder of a run, or find it and load its checkpoint.

    A collective call.

    The main process alone looks for it: others may be on hosts that do not have it.

    Args:
        run: Run that is built; its `output_dir` is set, and its position where it is resumed.
        name: Name of the folder where `--experiment` does not say.

    Returns:
        The checkpoint that the run was resumed from, or None.

    Raises:
        UserError: `--resume` names nothing, another process writes the folder, or the checkpoint
            does not fit.
    """
    found = (None, None, None)
    if run.accelerator.is_main_process:
        found = _hold_output_folder(run.options, name)

    run.output_dir, checkpoint, state = broadcast_object_list(list(found))
    if not run.accelerator.is_main_process:
        join_folder(run.output_dir)

    if checkpoint is not None:
        run.load_state_dict(state, str(checkpoint))
    return checkpoint


def _hold_output_folder(args: Namespace, name: str) -> tuple[Path, Path | None, dict[str, Any] | None]:
    """Return the folder, held from now on, and the checkpoint to resume with its content."""
    folder, checkpoint = _choose_output_folder(args, name)
    hold_folder(folder)
    if checkpoint is None:
        return folder, None, None

    if not checkpoint.is_dir():
        return folder, checkpoint, read_checkpoint(checkpoint)

    found = find_checkpoint(checkpoint)
    if found is None:
        raise UserError(f'--resume {checkpoint}: no checkpoint in this folder')
    return folder, *found


def _choose_output_folder(args: Namespace, name: str) -> tuple[Path, Path | None]:
    """Return the folder to write and the checkpoint, or the folder of one, to resume."""
    experiment = args.experiment
    if experiment and args.seeds:  # a folder for each
        experiment = f'{experiment}.s{args.seed}'
    base = Path(args.output) / (experiment or name)
    if not args.resume:
        return create_folder(base), None

    if args.resume == 'auto':
        newest = _newest_folder(base)
        has_checkpoint = any(newest.glob('checkpoint-*.pth.tar'))
        return newest, newest if has_checkpoint else None

    path = Path(args.resume)
    if not path.exists():
        raise UserError(f'--resume {path}: no such file or folder')
    folder = path if path.is_dir() else path.parent
    return folder, path


def _newest_folder(base: Path) -> Path:
    """Return the last of the folders RUN, RUN-2, RUN-3, …; RUN where there is none."""
    newest = base
    number = 2
    while newest.exists():
        following = base.with_name(f'{base.name}-{number}')
        if not following.exists():
            break
        newest = following
        number += 1
    return newest
