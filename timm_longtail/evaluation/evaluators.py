"""Evaluation of a classifier trained on long-tailed data.

Counts are int64 and sums float64, so a result does not depend on how the images were batched or sharded. All figures
are percentages, but for the loss (nats).

Shapes: B batch, C classes.
"""
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..data.longtail import shot_groups
from ..models.layers import unit_rows
from ..utils.distributed import all_reduce_sum, is_distributed
from ..utils.errors import UserError, unknown_name

__all__ = [
    'GROUPS', 'KNNEvaluator', 'LongTailEvaluator', 'NotFinite', 'confusion_rate', 'first_not_finite', 'format_table',
    'trained_tensors',
]

GROUPS = ('many', 'medium', 'few')
_SUFFIXES = '', '_inclusive'  # of figures by either rule for Few: fewer than 20 images, 20 or fewer
_NOWHERE = 2 ** 62  # position of the first bad image where there is none
_OWN_SUMS = 'confusion', 'num_bad', 'first_bad'  # what no figure is made of
_NUM_BINS = 15  # of the calibration error, as in Guo et al., ICML 2017


class NotFinite(UserError):
    """What was evaluated gives NaN or infinity; the message names what is not finite."""


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what training changes in a model by its name: parameters, and the statistics of BatchNorm.

    Other buffers may hold infinity for good reasons, such as a mask of attention.
    """
    buffers = {
        name: value for name, value in model.named_buffers()
        if name.rpartition('.')[2] in ('running_mean', 'running_var')
    }
    return {**dict(model.named_parameters()), **buffers}


def first_not_finite(model: nn.Module) -> str | None:
    """Return the name of the first of `trained_tensors` that holds NaN or infinity, or None."""
    for name, value in trained_tensors(model).items():
        if not value.isfinite().all():
            return name
    return None


class LongTailEvaluator:
    """Accuracy over all images and over the classes with many, a medium number of, and few training images.

    An evaluator of another kind has the same members: `headline`, `counted`, `start`, `update` and `compute`.

    Args:
        shot_counts: Training images of each class, [C]: more than 100 is many, fewer than 20 few (Liu et al., CVPR
            2019). The figures for "20 or fewer", which part of the literature uses, stand beside them.
        confusion: Count which class each image was taken for, in C x C numbers on the device; `confusion_matrix`
            returns them. `compute` is the same with and without.
    """

    headline = 'all'
    """The figure that names the best epoch, larger is better; on a hold-out it is `balanced`."""
    counted = ''
    """What accuracies are of, where it is not the classes that the model tells."""

    def __init__(self, shot_counts, confusion: bool = False):
        self.shot_counts = [int(n) for n in shot_counts]
        self.num_classes = len(self.shot_counts)
        self.confusion = confusion
        self._groups = [shot_groups(self.shot_counts, few_inclusive=inclusive) for inclusive in (False, True)]
        self._sums: dict[str, torch.Tensor] | None = None
        self._model: nn.Module | None = None
        self._num_added = 0

    def start(self, model: nn.Module, train_batches: Callable[[], Iterator]):
        """Begin an evaluation of `model`.

        Args:
            model: Model to be evaluated, in eval mode.
            train_batches: Iterates over the training set in the `eval` view; unused here, a kNN needs it.
        """
        self._sums = None
        self._model = model
        self._num_added = 0

    def update(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor):
        """Add one batch.

        Args:
            model: As given to `start`.
            images: Normalised images [B, 3, H, W].
            target: Classes, int64 [B].
        """
        self.add(model(images), target)

    def add(self, output: torch.Tensor, target: torch.Tensor):
        """Add the class logits [B, C] of one batch with their classes [B]; no host synchronisation.

        Logits that are not finite are counted, and are the error of `compute`.
        """
        if self._sums is None:
            self._sums = self._zeros(output.device)
            self._is_many, self._is_few = (self._members(name).to(output.device) for name in ('many', 'few'))
        sums = self._sums
        is_bad = self._is_bad(output)
        self._note_bad(is_bad)

        log_probs = F.log_softmax(output.double(), dim=1)
        log_confidence, predicted = log_probs.max(dim=1)
        correct = (predicted == target).long()
        confidence = torch.where(is_bad, 0., log_confidence.exp())  # NaN has no bin
        bins = (confidence * _NUM_BINS).long().clamp_(max=_NUM_BINS - 1)
        sums['total'].index_add_(0, target, torch.ones_like(target))
        sums['correct'].index_add_(0, target, correct)
        sums['predicted'].index_add_(0, predicted, torch.ones_like(target))
        sums['bin_correct'].index_add_(0, bins, correct)
        sums['bin_confidence'].index_add_(0, bins, confidence)
        # added image by image: the order of the additions, and so the last bit, is the same for any batch size
        sums['loss'].index_add_(0, torch.zeros_like(target), F.nll_loss(log_probs, target, reduction='none'))
        sums['few_to_many'] += (self._is_few[:, target] & self._is_many[:, predicted]).sum(dim=1)
        if self.confusion:
            cells = target * self.num_classes + predicted
            sums['confusion'].index_add_(0, cells, torch.ones_like(cells))

    def _is_bad(self, output: torch.Tensor) -> torch.Tensor:
        """Return which rows of the logits [B, C] are not finite, bool [B]."""
        return ~output.isfinite().all(dim=1)

    def _note_bad(self, is_bad: torch.Tensor):
        """Count the rows that are not finite, and keep the position of the first in the order of evaluation."""
        if len(is_bad) == 0:
            return

        sums = self._sums
        positions = torch.arange(self._num_added, self._num_added + len(is_bad), device=is_bad.device)
        first = torch.where(is_bad, positions, _NOWHERE).amin()
        sums['num_bad'] += is_bad.sum()
        sums['first_bad'] = torch.minimum(sums['first_bad'], first)
        self._num_added += len(is_bad)

    def _require_finite(self, num_images: int, reduce: bool):
        """Raise a `NotFinite` on all processes where an output was not finite on one of them."""
        num_bad = int(self._total(self._counted()['num_bad'], reduce))
        if num_bad == 0:
            return

        name = None if self._model is None else first_not_finite(self._model)
        if name is not None:
            raise NotFinite(f'the model gives no finite outputs: its {name} holds NaN or infinity')

        where = f'{num_bad} of {num_images} images'
        if not (reduce and is_distributed()):  # the order of another process is not known here
            where += f', the first is image {int(self._sums["first_bad"]) + 1} of the evaluation'
        raise NotFinite(f'the outputs of the model are not finite, NaN or infinity, on {where}')

    def _zeros(self, device: torch.device) -> dict[str, torch.Tensor]:
        sizes = {'total': self.num_classes, 'correct': self.num_classes, 'predicted': self.num_classes,
                 'few_to_many': len(_SUFFIXES)}
        if self.confusion:
            sizes['confusion'] = self.num_classes ** 2
        sums = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}
        sums['bin_correct'] = torch.zeros(_NUM_BINS, dtype=torch.int64, device=device)
        sums['bin_confidence'] = torch.zeros(_NUM_BINS, dtype=torch.float64, device=device)
        sums['loss'] = torch.zeros(1, dtype=torch.float64, device=device)
        sums['num_bad'] = torch.zeros(1, dtype=torch.int64, device=device)
        sums['first_bad'] = torch.full((), _NOWHERE, dtype=torch.int64, device=device)
        return sums

    def compute(self, reduce: bool = True) -> dict[str, Any]:
        """Return the figures over all batches.

        Args:
            reduce: Over the batches of all processes; False for those of this one only.

        Returns:
            `all`, `many`, `medium`, `few` (mean of the class accuracies of the group, None for an empty group), the
            same for the other boundary rule (`medium_inclusive`, `few_inclusive`), `few_to_many` and
            `few_to_many_inclusive` (share of the images of Few classes that were taken for a Many class),
            `balanced`, `worst_class`, `macro_f1`, `ece`, `loss`, `num_images`, and per class the lists
            `class_correct`, `class_total`, `class_accuracy` (None for a class without images).

        Raises:
            NotFinite: An output was NaN or infinite; names the first weight that is, else the first such image.
        """
        added = self._counted().items()
        sums = {name: self._total(value, reduce) for name, value in added if name not in _OWN_SUMS}
        total, correct, predicted = sums['total'], sums['correct'], sums['predicted']
        seen = total > 0
        accuracy = torch.where(seen, 100.0 * correct.double() / total.clamp(min=1), torch.nan)
        f1 = 200.0 * correct.double() / (total + predicted).clamp(min=1)
        num_images = int(total.sum())
        self._require_finite(num_images, reduce)

        gap = (sums['bin_correct'] - sums['bin_confidence']).abs().sum()
        return {
            'all': _ratio(100.0 * float(correct.sum()), num_images),
            **self._group_accuracies(accuracy),
            **self._few_to_many(sums['few_to_many'], total),
            'balanced': _mean(accuracy[seen]),
            'worst_class': float(accuracy[seen].min()) if seen.any() else None,
            'macro_f1': _mean(f1[seen]),
            'ece': _ratio(100.0 * float(gap), num_images),
            'loss': _ratio(float(sums['loss']), num_images),
            'num_images': num_images,
            'class_correct': correct.tolist(),
            'class_total': total.tolist(),
            'class_accuracy': [None if torch.isnan(a) else float(a) for a in accuracy],
        }

    def confusion_matrix(self, reduce: bool = True) -> torch.Tensor:
        """Return how many images of each class (rows) were taken for each class (columns).

        Args:
            reduce: Over the batches of all processes, which all must call this; False for those of this one only.

        Returns:
            int64 [C, C], on the host.

        Raises:
            UserError: The evaluator was built without `confusion`.
        """
        if not self.confusion:
            raise UserError('nothing was counted: build the evaluator with confusion=True')
        return self._total(self._counted()['confusion'], reduce).view(self.num_classes, self.num_classes)

    def _counted(self) -> dict[str, torch.Tensor]:
        return self._sums or self._zeros(torch.device('cpu'))

    @staticmethod
    def _total(value: torch.Tensor, reduce: bool) -> torch.Tensor:
        value = value.clone()  # the sum over the processes replaces it
        return (all_reduce_sum(value) if reduce else value).cpu()

    def _group_accuracies(self, accuracy: torch.Tensor) -> dict[str, float | None]:
        result = {}
        for groups, suffix in zip(self._groups, _SUFFIXES):
            for name in GROUPS:
                if name == 'many' and suffix:
                    continue  # the rule moves classes between medium and few only
                group = accuracy[torch.as_tensor(groups[name], dtype=torch.int64)]
                result[name + suffix] = _mean(group[~torch.isnan(group)])
        return result

    def _few_to_many(self, taken: torch.Tensor, total: torch.Tensor) -> dict[str, float | None]:
        many, images = self._members('many'), (self._members('few') * total).sum(dim=1)
        return {f'few_to_many{suffix}': _ratio(100.0 * float(taken[i]), int(images[i])) if many[i].any() else None
                for i, suffix in enumerate(_SUFFIXES)}

    def _members(self, name: str) -> torch.Tensor:
        """Which classes a group holds by either rule, bool [2, C]."""
        members = torch.zeros(len(self._groups), self.num_classes, dtype=torch.bool)
        for row, groups in zip(members, self._groups):
            row[groups[name]] = True
        return members


class KNNEvaluator(LongTailEvaluator):
    """Accuracy of a vote of the most similar training images: what features are worth without a classifier.

    As Wu et al., CVPR 2018 (https://arxiv.org/abs/1805.01978): each of the k nearest by the cosine s votes for its
    class with exp(s / t). Votes are not probabilities: there is no `loss` and no `ece`.

    Args:
        shot_counts: See `LongTailEvaluator`; classes with many images have many votes.
        num_neighbors: k, at most all training images.
        temperature: t above.
        **kwargs: See `LongTailEvaluator`.
    """

    counted = 'vote of the nearest training images'

    def __init__(self, shot_counts, num_neighbors: int = 200, temperature: float = 0.1, **kwargs):
        super().__init__(shot_counts, **kwargs)
        self.num_neighbors = num_neighbors
        self.temperature = temperature

    def start(self, model: nn.Module, train_batches: Callable[[], Iterator]):
        super().start(model, train_batches)
        # by each process for itself: the main process may evaluate alone
        rows = [(self._features(model, images), target) for (images, *_), target, _ in train_batches()]
        self._bank, self._bank_targets = (torch.cat(parts) for parts in zip(*rows))

    def update(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor):
        self.add(self.vote(self._features(model, images)), target)

    def vote(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of each class's share of the votes on unit features [B, D]: [B, C]."""
        similarity, nearest = (features @ self._bank.T).topk(min(self.num_neighbors, len(self._bank)))
        weights = ((similarity - 1) / self.temperature).exp()
        votes = weights.new_zeros(len(features), self.num_classes).scatter_add_(1, self._bank_targets[nearest], weights)
        return (votes / votes.sum(dim=1, keepdim=True)).log()

    def _is_bad(self, output: torch.Tensor) -> torch.Tensor:
        return output.isnan().any(dim=1)  # a class without a vote has the logarithm of 0

    def compute(self, reduce: bool = True) -> dict[str, Any]:
        self._bank = self._bank_targets = None  # as large as the training set
        return {k: v for k, v in super().compute(reduce).items() if k not in ('loss', 'ece')}

    @staticmethod
    def _features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        return unit_rows(model.forward_head(model.forward_features(images), pre_logits=True))


def confusion_rate(
        confusion,
        class_counts,
        source: str = 'few',
        target: str = 'many',
        groups: Callable[..., dict[str, list[int]]] = shot_groups,
) -> float | None:
    """Return the percentage of the images of one group of classes that were taken for a class of another.

    With M the confusion: `100 * sum_{i in source, j in target} M_ij / sum_{i in source, j} M_ij`. By default the share
    of the images of Few classes that were predicted as any Many class. Each image weighs the same; where the test set
    is balanced, so does each class.

    Args:
        confusion: Images of each class (rows) taken for each class (columns), [C, C].
        class_counts: Training images of each class [C].
        source: Group of the images.
        target: Group of the predictions; the same as `source` gives the share that stays within the group.
        groups: Splits the counts into groups by name: `shot_groups`, or `head_tail_groups` for `head` and `tail`.

    Returns:
        A percentage; None where the source has no image or the target no class.
    """
    confusion, members = torch.as_tensor(confusion), groups(class_counts)
    if confusion.shape != (len(class_counts), len(class_counts)):
        raise UserError(f'a confusion of {len(class_counts)} classes is square, got {list(confusion.shape)}')
    for name in (source, target):
        if name not in members:
            raise unknown_name('group', name, members)
    rows = confusion[torch.as_tensor(members[source], dtype=torch.int64)].double()
    if not members[target]:
        return None
    return _ratio(100.0 * float(rows[:, members[target]].sum()), float(rows.sum()))


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(value: float, count: float) -> float | None:
    return value / count if count else None


def _cell(value: float | None) -> str:
    is_defined = value is not None and value == value  # NaN is not equal to itself
    return f'{value:.2f}' if is_defined else 'n/a'


def format_table(rows: dict[str, dict[str, Any]], columns: tuple[str, ...] = ('all', *GROUPS)) -> str:
    """Format metrics as a Markdown table, one row a name.

    Args:
        rows: Metrics as `LongTailEvaluator.compute` returns them, by row name.
        columns: Metrics to show; what is missing, None or NaN is printed as `n/a`.
    """
    width = max(map(len, rows))
    sizes = [max(6, len(c)) for c in columns]
    titles = (c.replace('_', ' ').capitalize().rjust(size) for c, size in zip(columns, sizes))
    lines = [
        f'| {"":{width}} | ' + ' | '.join(titles) + ' |',
        f'|:{"-" * width}-|' + '|'.join('-' * (size + 1) + ':' for size in sizes) + '|',
    ]
    for name, metrics in rows.items():
        cells = [_cell(metrics.get(column)) for column in columns]
        lines.append(f'| {name:{width}} | ' + ' | '.join(cell.rjust(size) for cell, size in zip(cells, sizes)) + ' |')
    return '\n'.join(lines)
