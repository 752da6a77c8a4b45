"""Priors of classes: the one that a model's outputs follow, and the one that is asked for.

The logits of a model that was trained by cross-entropy follow the class distribution of its
training images: log p(x | y) + log prior(y), up to a constant. Under another prior they are shifted
by the log of the ratio, see `evaluation.priors.log_ratio`.

Shapes: C classes.
"""
import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import create_sampler
from ..evaluation.priors import log_prior
from ..methods import default_options, list_methods, method_class
from ..utils.errors import UserError, one_line, unknown_name
from ..utils.files import read_json, read_text
from .trained_model import TrainedModel

__all__ = ['describe_prior', 'learned_prior', 'read_prior']

# classifiers of `retrain` that treat all classes alike
_EVEN = ('ncm_l2', 'ncm_cosine', 'ncm_centred')


def describe_prior(log_probabilities: torch.Tensor) -> str:
    """Return a prior in words: `balanced`, or the shares of its largest and its smallest class."""
    shares = 100 * log_probabilities.exp()
    smallest, largest = float(shares.min()), float(shares.max())
    if largest - smallest < 1e-6:
        return 'balanced'
    return f'classes of {largest:.3g} % to {smallest:.3g} %'


def learned_prior(trained_model: TrainedModel) -> torch.Tensor | None:
    """Return the log prior that a model's outputs follow, float64 [C]; None where it is not known.

    Args:
        trained_model: Model, and what it states of its training.
    """
    provenance = trained_model.provenance
    counts = provenance.get('class_counts')
    name = provenance.get('method')
    options = provenance.get('method_kwargs') or {}
    if not counts or min(counts) < 1 or len(counts) != trained_model.model.num_classes:
        return None
    class_counts = torch.tensor(counts, dtype=torch.float64)

    # `compare` chooses the adjustment and the temperature with equal weights of the classes; the
    # model's own classifier, and a linear one on the long tail, get a temperature alone
    is_compared = 'temperature' in options and name not in ('joint', 'linear')
    if is_compared or name in _EVEN:
        return log_prior([1.0] * len(counts))
    if name == 'logit_adjust':
        return _adjusted(provenance, counts, options)
    if name not in list_methods():
        return None

    cls = method_class(name)
    sampled = _sampled(provenance.get('sampler') or cls.sampler, counts, provenance.get('epochs') or 1)
    known = default_options(cls)
    weights = cls.learned_prior(sampled, class_counts, {**known, **options})
    if weights is None:
        return None

    # a temperature divides all of the logits, the part of the prior too
    return (log_prior(weights) / options.get('temperature', 1)).log_softmax(dim=0)


def _sampled(name: str, counts: Sequence[int], num_epochs: int) -> torch.Tensor:
    """Return the share of each class in the samples of the last epoch, float64 [C]."""
    targets = np.repeat(np.arange(len(counts)), counts)
    sampler = create_sampler(name, targets, num_epochs)
    sampler.set_epoch(num_epochs - 1)
    return torch.as_tensor(sampler.class_probabilities, dtype=torch.float64)


def _adjusted(provenance: dict[str, Any], counts: Sequence[int], options: dict[str, Any]) -> torch.Tensor | None:
    """Return the log prior of a classifier of cross-entropy, from which the prior of its sampler was taken off."""
    stage_1 = provenance.get('stage_1') or {}
    sampler, tau = options.get('prior'), options.get('tau')
    if stage_1.get('method') != 'ce' or sampler in (None, 'data') or not isinstance(tau, (int, float)):
        return None
    return log_prior(_sampled(sampler, counts, stage_1.get('epochs') or 1) ** (1 - tau))


def read_prior(
        text: str,
        option: str,
        trained_model: TrainedModel,
        class_names: Sequence[str],
) -> torch.Tensor:
    """Return the log prior that an option names, float64 [C].

    Args:
        text: `train`, `balanced`, or a file: CSV with a class and a weight a line, or JSON that
            holds `{class: weight}`, or `class_names` and `class_counts`.
        option: Name of the option, for messages.
        trained_model: Model, which knows the training images of each class.
        class_names: Name of each class [C].

    Raises:
        UserError: A file that cannot be read, or does not name each class once.
    """
    if text == 'balanced':
        return log_prior([1.0] * len(class_names))

    if text == 'train':
        counts = trained_model.provenance.get('class_counts')
        if not counts or len(counts) != len(class_names):
            raise UserError(
                f'{option} train: {trained_model.name} does not say how many training images its classes had; name a '
                'file with a class and a weight a line')
        return log_prior(counts)

    path = Path(text)
    weights = _read_json_weights(path) if path.suffix == '.json' else _read_csv_weights(path)
    for name in weights:
        if name not in class_names:
            raise UserError(f'{path}: {unknown_name("class", name, class_names)}')
    missing = [name for name in class_names if name not in weights]
    if missing:
        raise UserError(f'{path}: no weight of {len(missing)} classes, the first is {one_line(repr(missing[0]), 60)}')
    try:
        return log_prior([weights[name] for name in class_names])
    except UserError as e:
        raise UserError(f'{path}: {e}') from e


def _read_json_weights(path: Path) -> dict[str, float]:
    """Return the weight of each class by its name, of a JSON file."""
    content = read_json(path, 'prior')
    pairs = list(content.items())
    if 'class_names' in content and 'class_counts' in content:  # `class_counts.json` of a run
        names, counts = content['class_names'], content['class_counts']
        if not isinstance(names, list) or not isinstance(counts, list) or len(names) != len(counts):
            raise UserError(f'{path}: class_names and class_counts are not two lists of one length')
        pairs = list(zip(names, counts, strict=True))
    return _weights(path, pairs)


def _read_csv_weights(path: Path) -> dict[str, float]:
    """Return the weight of each class by its name, of a CSV file; a first line without a number is its head."""
    text = read_text(path, 'prior')
    rows = [row for row in csv.reader(io.StringIO(text, newline='')) if row]
    if rows and len(rows[0]) == 2 and not _is_number(rows[0][1]):
        rows = rows[1:]

    for row in rows:
        if len(row) != 2:
            raise UserError(f'{path}: expected a class and a weight a line, got {one_line(repr(row), 60)}')
    return _weights(path, [(name, weight) for name, weight in rows])


def _weights(path: Path, pairs: Sequence[tuple[Any, Any]]) -> dict[str, float]:
    weights = {}
    for name, weight in pairs:
        if not isinstance(name, str):
            raise UserError(f'{path}: {one_line(repr(name), 60)} is no name of a class')
        if isinstance(weight, bool) or not _is_number(weight):
            raise UserError(f'{path}: the weight of {one_line(repr(name), 60)} is {one_line(repr(weight), 60)}')
        if name in weights:
            raise UserError(f'{path} names {one_line(repr(name), 60)} twice')
        weights[name] = float(weight)
    return weights


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
