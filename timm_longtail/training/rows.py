"""Rows of results: what they say about the data, and the files that keep them."""
import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data import LongTailDataset
from ..data.titles import file_title
from ..utils.errors import UserError
from ..utils.files import read_json
from ..utils.output_lock import make_folders
from ..utils.private_paths import without_folders

__all__ = [
    'RETRAINED_COLUMNS',
    'data_columns',
    'data_tag',
    'experiment_of',
    'published_columns',
    'read_row',
    'require_new_row',
    'results_file',
    'results_path',
    'row_path',
    'variant_of',
]

# what the rows of all versions have: those of training, and those of classifiers that were
# retrained
ROW_COLUMNS = (
    'tag', 'model', 'method', 'method_kwargs', 'dataset', 'imbalance_factor', 'recipe', 'epochs', 'seed', 'command',
    'last', 'best',
)
RETRAINED_COLUMNS = ('tag', 'model', 'command', 'stage_1', 'classifiers', 'features')


# ------------------------------------------------------------------------------------------ columns

def data_tag(train_set: LongTailDataset) -> str:
    """Return the name of a data set in file names, such as `cifar100_lt_if100`.

    It has no factor where nothing was cut.

    Args:
        train_set: Training images.
    """
    name = file_title(train_set.name)
    if train_set.imbalance_factor == 1:
        return name

    profile = '' if train_set.profile == 'exp' else f'_{train_set.profile}'
    return f'{name}{profile}_if{train_set.imbalance_factor:g}'


def data_columns(train_set: LongTailDataset) -> dict[str, Any]:
    """Return what a row says about its training images.

    Args:
        train_set: Training images.
    """
    return {
        'tag': data_tag(train_set),
        'dataset': train_set.name,
        'dataset_name': train_set.name,
        'hub_id': train_set.hub_id,
        'imbalance_factor': train_set.imbalance_factor,
        'imbalance_profile': train_set.profile,
        'subset_hash': train_set.hash,
        'subset_order': train_set.subset_order,
        'class_counts': list(train_set.class_counts),
        'shot_counts': list(train_set.shot_counts),
        'resident': train_set.resident,
        'data_seed': train_set.seed,
    }


def published_columns(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return the columns of a row that an export holds.

    An export is published, so it must not name folders of this machine.

    Args:
        row: Columns of a row of results, `command` and `environment` among them.
        names: Columns to take, in their order.

    Returns:
        The columns, with the last names of paths only, and `device_type`.
    """
    published = {name: row[name] for name in names}
    published['device_type'] = row['environment']['device_type']
    published['command'] = without_folders(row['command'])
    if published.get('experiment'):  # may be typed as a path
        published['experiment'] = Path(published['experiment']).name

    if 'initial_checkpoint' in published:
        start = Path(row['initial_checkpoint'])
        is_in_export = start.name == 'export'  # which is called as its run
        published['initial_checkpoint'] = start.parent.name if is_in_export else start.name
    return published


# -------------------------------------------------------------------------------------------- files

def results_file(args: Namespace, train_set: LongTailDataset) -> Path:
    """Return the file of a training run's row of results, which may be there already.

    A variant of a method, by its options or its sampler, is told apart by `--experiment`, or by its
    recipe's name.

    Args:
        args: Options of `train.py`.
        train_set: Training images.
    """
    model = args.model.rpartition('/')[2]
    names = (data_tag(train_set), model, args.method, experiment_of(args))
    return _row_file(Path(args.results), names, f'e{args.epochs}.s{args.seed}')


def results_path(args: Namespace, train_set: LongTailDataset) -> Path:
    """Return the file of a training run's row of results, see `results_file`.

    Args:
        args: Options of `train.py`.
        train_set: Training images.

    Raises:
        UserError: It is there already: a row is measured once; or it could not be written.
    """
    path = results_file(args, train_set)
    require_new_row(path)
    return path


def row_path(folder: Path, names: Sequence[str | None], suffix: str) -> Path:
    """Return the file of a new row of results, `<name>.<name>.<suffix>.json`.

    Args:
        folder: Folder of the rows.
        names: Parts of the file name; None and '' are left out.
        suffix: Last part of the name, such as `s0` for the seed.

    Raises:
        UserError: It is there already: a row is measured once; or it could not be written.
    """
    path = _row_file(folder, names, suffix)
    require_new_row(path)
    return path


def _row_file(folder: Path, names: Sequence[str | None], suffix: str) -> Path:
    name = '.'.join(part for part in names if part)
    return folder / f'{name}.{suffix}.json'


def require_new_row(path: Path):
    """Refuse the file of a row that is there already, or could not be written once the run is over.

    Its folder is made; on the main process alone, since others may be on hosts that do not have it.

    Args:
        path: File to be written.

    Raises:
        UserError: Says why.
    """
    try:
        is_there = path.exists()
        is_main_process = int(os.environ.get('RANK', 0)) == 0
        if not is_there and is_main_process:
            make_folders(path.parent)
            # as long a name as `write_text` takes
            trial = path.with_name(f'{path.name}.tmp')
            trial.touch()
            trial.unlink()
    except UserError as e:
        raise UserError(f'--results: {e}') from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UserError(f'--results: cannot write {path}: {getattr(e, "strerror", None) or e}') from e

    if is_there:
        raise UserError(f'--results: {path} is there already; name a variant by --experiment, or move the file away')


def read_row(path: Path, columns: tuple[str, ...] = ROW_COLUMNS) -> dict[str, Any]:
    """Read a row of results.

    Args:
        path: JSON file.
        columns: Columns that it must hold.

    Raises:
        UserError: The file is missing, damaged, or something else.
    """
    row = read_json(path, 'row of results')
    for column in columns:
        if column not in row:
            raise UserError(f'{path} is not a row of results: it has no {column}')
    return row


# ----------------------------------------------------------------------------------------- variants

def experiment_of(args: Namespace) -> str | None:
    """Return the name of a variant: what was typed, or that in the name of its recipe.

    Args:
        args: Options `experiment` and `recipe`.
    """
    if args.experiment:
        return args.experiment
    if args.recipe:
        return variant_of(Path(args.recipe))
    return None


def variant_of(recipe: Path) -> str | None:
    """Return `sqrt` of `resnet32_cifar.ce-sqrt.cifar100_lt_if100.yaml`.

    None of a recipe that is no variant.

    Args:
        recipe: Path of the recipe.
    """
    found = re.search(r'\.\w+-(\w+)\.', recipe.name)
    return found[1] if found else None
