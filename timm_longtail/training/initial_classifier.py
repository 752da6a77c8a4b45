"""Where a cosine classifier starts: at the class means of the training images, or at texts that name the classes.

N images, K classes, D width of the features, E width of the text features.
"""
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch.nn import functional as F

from ..data import LongTailDataset
from ..models.layers import CosineLinear
from ..utils.calls import call_by_name
from ..utils.distributed import all_reduce_sum
from ..utils.errors import UserError, one_line
from ..utils.files import reading, require_regular_file
from .loaders import create_eval_loader
from .run import Run
from .start import list_some

__all__ = ['check_initial_classifier', 'initialise_classifier', 'read_text_features']

_TEXT = 'text:'
_INTERVALS = {'images': '[1, inf)'}


def _class_means(images: int | None = None) -> int | None:
    """Return how many images of a class its mean is of; None for all."""
    return images


_MEANS = {'class_means': _class_means}


def check_initial_classifier(text: str) -> int | None:
    """Check what `--init-classifier` names, as far as no file is read.

    Args:
        text: `class_means`, `class_means(images=100)`, or `text:FILE.safetensors`.

    Returns:
        The number of images that the mean of a class is of; None for all, and for texts.

    Raises:
        UserError: Another name.
    """
    if text.startswith(_TEXT):
        return None
    return call_by_name('initial classifier', text, _MEANS, intervals=_INTERVALS)


def initialise_classifier(run: Run, train_set: LongTailDataset):
    """Set the class weights that training starts from, as `--init-classifier` says. A collective call.

    Args:
        run: Run that has not begun.
        train_set: Training images.

    Raises:
        UserError: A classifier that is not a cosine one; a file of texts that does not fit.
    """
    text, method = run.options.init_classifier, run.method
    if text is None:
        return

    head = method.model.get_classifier()
    if not isinstance(head, CosineLinear):
        raise UserError(
            f'--init-classifier needs a cosine classifier, whose class weights have no length: add --head cosine; '
            f'{run.options.model} has a {type(head).__name__}')
    if method.linear_classifier or head.out_features != train_set.num_classes:
        raise UserError(
            f'--init-classifier: {run.options.method} has no classifier of its own of the '
            f'{train_set.num_classes} classes')

    if text.startswith(_TEXT):
        weight = read_text_features(text.removeprefix(_TEXT), train_set.class_names, head.in_features)
    else:
        weight = class_means(run, train_set, check_initial_classifier(text))

    models = [method.model] if run.ema is None else [method.model, run.ema.module]
    with torch.no_grad():
        for model in models:
            model.get_classifier().weight.copy_(weight)


@torch.no_grad()
def class_means(run: Run, train_set: LongTailDataset, images: int | None = None) -> torch.Tensor:
    """Return the normalised mean of each class's features, in the `eval` view: float32 [K, D]. A collective call.

    A class without features keeps its weight.

    Args:
        run: Run whose model computes the features.
        train_set: Training images.
        images: Number of images of a class that are looked at, the first ones; None for all.
    """
    accelerator, model = run.accelerator, run.method.model
    subset = train_set if images is None else train_set.subset(_first_rows(train_set.targets, images))
    loader = create_eval_loader(
        subset,
        run.options,
        run.data.preprocessing,
        accelerator.device,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )

    was_training = run.method.training
    run.method.eval()
    sums = torch.zeros(
        train_set.num_classes, model.head_hidden_size, dtype=torch.float64, device=accelerator.device)
    for (x, *_), target, _ in loader:
        sums.index_add_(0, target, run.method.features(x).double())
    run.method.train(was_training)

    # the mean and the sum have one direction; a class of which no image could be read has none
    directions = F.normalize(all_reduce_sum(sums), dim=1).float()
    has_direction = directions.any(dim=1, keepdim=True)
    return torch.where(has_direction, directions, model.get_classifier().weight)


def _first_rows(targets: np.ndarray, images: int) -> np.ndarray:
    """Return the rows of the first images of each class, in the order of the data set."""
    rows = [np.flatnonzero(targets == label)[:images] for label in np.unique(targets)]
    return np.sort(np.concatenate(rows))


def read_text_features(path: str | Path, class_names: Sequence[str], width: int) -> torch.Tensor:
    """Return one row a class from a file of text features, float32 [K, D].

    The file is of safetensors: `features`, normalised, [N, E], and in its metadata `class_names`, a
    JSON list of N names. Where the texts live in another space than the model's features, as those
    of CLIP do, the file has the image tower's `projection` too, [D, E], and a row is
    `normalize(features P^T)`. Classes are found by name; the file may hold more of them.

    Args:
        path: File.
        class_names: Names of the K classes, in the order of the data set.
        width: Width D of the model's features.

    Raises:
        UserError: No such file; one of another kind; a class that it does not have; other widths.
    """
    path = Path(path)
    require_regular_file(path, 'file of text features')
    with reading(path, 'file of text features'), safe_open(path, 'pt') as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata() or {}

    features, projection = tensors.get('features'), tensors.get('projection')
    if features is None or features.ndim != 2:
        found = ', '.join(tensors) or 'nothing'
        raise UserError(f'{path} has no features [N, E] of texts: it holds {found}')
    rows = _rows_by_name(metadata, len(features), path)

    missing = [name for name in class_names if name not in rows]
    if missing:
        shown = one_line(', '.join(missing), 60)
        held = one_line(list_some(list(rows)), 60) or 'no names'
        raise UserError(f'{path} lacks {len(missing)} of the {len(class_names)} classes: {shown}; it has {held}')

    weight = features[[rows[name] for name in class_names]]  # [K, E]
    if projection is not None:
        expected = [width, weight.shape[1]]
        if list(projection.shape) != expected:
            raise UserError(f'{path}: projection is {list(projection.shape)}, expected {expected}')
        weight = weight @ projection.T
    elif weight.shape[1] != width:
        raise UserError(
            f'{path}: texts are {weight.shape[1]} wide, the features of the model {width}; '
            f'the file can hold a projection [{width}, {features.shape[1]}]')
    if not weight.isfinite().all() or not weight.any(dim=1).all():
        raise UserError(f'{path}: features of a class are zero, NaN or infinite')
    return F.normalize(weight, dim=1)


def _rows_by_name(metadata: dict[str, str], num_rows: int, path: Path) -> dict[str, int]:
    """Return the row of each name of a file."""
    try:
        names: Any = json.loads(metadata['class_names'])
    except (KeyError, ValueError) as e:
        raise UserError(f'{path} has no class_names in its metadata, expected a JSON list of names') from e

    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not is_list or len(names) != num_rows:
        raise UserError(f'{path}: class_names is not a list of {num_rows} names, one a row of features')

    rows = {name: row for row, name in enumerate(names)}
    if len(rows) < num_rows:
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f'{path}: class_names has {twice!r} twice')
    return rows
