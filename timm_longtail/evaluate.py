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

from .data.longtail import shot_groups
from .distributed import all_reduce_sum

__all__ = ['GROUPS', 'LongTailEvaluator', 'format_table']

GROUPS = ('many', 'medium', 'few')
_NUM_BINS = 15  # of the calibration error, as in Guo et al., ICML 2017


class LongTailEvaluator:
    """Accuracy over all images and over the classes with many, a medium number of, and few training images.

    An evaluator of another kind has the same four members: `headline`, `start`, `update` and `compute`.

    Args:
        shot_counts: Training images of each class, [C]: more than 100 is many, fewer than 20 few (Liu et al., CVPR
            2019). The figures for "20 or fewer", which part of the literature uses, stand beside them.
    """

    headline = 'all'
    """The figure that names the best epoch, larger is better; on a hold-out it is `balanced`."""

    def __init__(self, shot_counts):
        self.shot_counts = [int(n) for n in shot_counts]
        self.num_classes = len(self.shot_counts)
        self._sums: dict[str, torch.Tensor] | None = None

    def start(self, model: nn.Module, train_batches: Callable[[], Iterator]):
        """Begin an evaluation of `model`.

        Args:
            model: Model to be evaluated, in eval mode.
            train_batches: Iterates over the training set in the `eval` view; unused here, a kNN needs it.
        """
        self._sums = None

    def update(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor):
        """Add one batch.

        Args:
            model: As given to `start`.
            images: Normalised images [B, 3, H, W].
            target: Classes, int64 [B].
        """
        self.add(model(images), target)

    def add(self, output: torch.Tensor, target: torch.Tensor):
        """Add the class logits [B, C] of one batch with their classes [B]; no host synchronisation."""
        if self._sums is None:
            self._sums = self._zeros(output.device)
        sums = self._sums
        log_probs = F.log_softmax(output.double(), dim=1)
        log_confidence, predicted = log_probs.max(dim=1)
        correct = (predicted == target).long()
        confidence = log_confidence.exp()
        bins = (confidence * _NUM_BINS).long().clamp_(max=_NUM_BINS - 1)
        sums['total'].index_add_(0, target, torch.ones_like(target))
        sums['correct'].index_add_(0, target, correct)
        sums['predicted'].index_add_(0, predicted, torch.ones_like(target))
        sums['bin_correct'].index_add_(0, bins, correct)
        sums['bin_confidence'].index_add_(0, bins, confidence)
        # added image by image: the order of the additions, and so the last bit, is the same for any batch size
        sums['loss'].index_add_(0, torch.zeros_like(target), F.nll_loss(log_probs, target, reduction='none'))

    def _zeros(self, device: torch.device) -> dict[str, torch.Tensor]:
        sizes = {'total': self.num_classes, 'correct': self.num_classes, 'predicted': self.num_classes}
        sums = {name: torch.zeros(size, dtype=torch.int64, device=device) for name, size in sizes.items()}
        sums['bin_correct'] = torch.zeros(_NUM_BINS, dtype=torch.int64, device=device)
        sums['bin_confidence'] = torch.zeros(_NUM_BINS, dtype=torch.float64, device=device)
        sums['loss'] = torch.zeros(1, dtype=torch.float64, device=device)
        return sums

    def compute(self, reduce: bool = True) -> dict[str, Any]:
        """Return the figures over all batches.

        Args:
            reduce: Over the batches of all processes; False for those of this one only.

        Returns:
            `all`, `many`, `medium`, `few` (mean of the class accuracies of the group, None for an empty group), the
            same for the other boundary rule (`medium_inclusive`, `few_inclusive`), `balanced`, `worst_class`,
            `macro_f1`, `ece`, `loss`, `num_images`, and per class the lists `class_correct`, `class_total`,
            `class_accuracy` (None for a class without images).
        """
        device = self._sums['total'].device if self._sums else torch.device('cpu')
        sums = self._sums or self._zeros(device)
        sums = {name: (all_reduce_sum(value.clone()) if reduce else value).cpu() for name, value in sums.items()}
        total, correct, predicted = sums['total'], sums['correct'], sums['predicted']
        seen = total > 0
        accuracy = torch.where(seen, 100.0 * correct.double() / total.clamp(min=1), torch.nan)
        f1 = 200.0 * correct.double() / (total + predicted).clamp(min=1)
        num_images = int(total.sum())
        gap = (sums['bin_correct'] - sums['bin_confidence']).abs().sum()
        return {
            'all': _ratio(100.0 * float(correct.sum()), num_images),
            **self._groups(accuracy),
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

    def _groups(self, accuracy: torch.Tensor) -> dict[str, float | None]:
        result = {}
        for few_inclusive, suffix in ((False, ''), (True, '_inclusive')):
            groups = shot_groups(self.shot_counts, few_inclusive=few_inclusive)
            for name in GROUPS:
                if name == 'many' and few_inclusive:
                    continue  # the rule moves classes between medium and few only
                group = accuracy[torch.as_tensor(groups[name], dtype=torch.int64)]
                result[name + suffix] = _mean(group[~torch.isnan(group)])
        return result


def _mean(values: torch.Tensor) -> float | None:
    return float(values.mean()) if len(values) else None


def _ratio(value: float, count: int) -> float | None:
    return value / count if count else None


def format_table(rows: dict[str, dict[str, Any]], columns: tuple[str, ...] = ('all', *GROUPS)) -> str:
    """Format metrics as a Markdown table, one row a name.

    Args:
        rows: Metrics as `LongTailEvaluator.compute` returns them, by row name.
        columns: Metrics to show; a missing one or None is printed as `n/a`.
    """
    width = max(map(len, rows))
    sizes = [max(6, len(c)) for c in columns]
    titles = (c.replace('_', ' ').capitalize().rjust(size) for c, size in zip(columns, sizes))
    lines = [
        f'| {"":{width}} | ' + ' | '.join(titles) + ' |',
        f'|:{"-" * width}-|' + '|'.join('-' * (size + 1) + ':' for size in sizes) + '|',
    ]
    for name, metrics in rows.items():
        cells = ('n/a' if metrics.get(c) is None else f'{metrics[c]:.2f}' for c in columns)
        lines.append(f'| {name:{width}} | ' + ' | '.join(cell.rjust(size) for cell, size in zip(cells, sizes)) + ' |')
    return '\n'.join(lines)
