"""Evaluation of a classifier trained on long-tailed data.

Counts are int64 and sums float64, so a result does not depend on how the images were batched or
sharded. All figures are percentages, but for the loss (nats).

Shapes: B batch, C classes, D width of the features, N training images.
"""
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..data.longtail import shot_groups
from ..models.layers import unit_rows
from ..utils.distributed import all_reduce_sum, is_distributed
from ..utils.errors import UserError
from ..utils.finite import NotFinite, describe_not_finite, trained_tensors
from .intervals import bootstrap_intervals
from .ranking import ranking_figures
from .shifted_priors import shifted_accuracies
from .tables import GROUPS

__all__ = ['KNNEvaluator', 'LongTailEvaluator']

# of figures by either rule for Few: fewer than 20 images, 20 or fewer
_SUFFIXES = '', '_inclusive'

# position of the first bad image where there is none
_NOWHERE = 2 ** 62

# sums that no figure is made of
_OWN_SUMS = 'confusion', 'num_bad', 'first_bad'

# bins of the calibration error, as in Guo et al., ICML 2017
_NUM_BINS = 15

_TOP = 5


class LongTailEvaluator:
    """Accuracy over all images, and over classes with many, a medium number of and few images.

    An evaluator of another kind has the same members: `headline`, `counted`, `start`, `update` and
    `compute`.

    Args:
        shot_counts: Training images of each class [C]: more than 100 is many, fewer than 20 few
            (Liu et al., CVPR 2019). The figures for "20 or fewer", which part of the literature
            uses, stand beside them.
        confusion: Count as which class each image was predicted, in C x C numbers on the device;
            `confusion_matrix` returns them. `compute` is the same with and without.
    """

    keeps_scores: bool = False
    """Whether the log probabilities of all images are kept on the host, float32 [N, C], for `full_figures`.

    May be set between two evaluations.
    """

    headline = 'all'
    """The figure that names the best epoch, larger is better; on a hold-out it is `balanced`."""

    counted = ''
    """What accuracies are of, where it is not the classes that the model predicts."""

    def __init__(self, shot_counts, confusion: bool = False):
        self.shot_counts = [int(n) for n in shot_counts]
        self.num_classes = len(self.shot_counts)
        self.confusion = confusion
        self._groups = [
            shot_groups(self.shot_counts, few_inclusive=False),
            shot_groups(self.shot_counts, few_inclusive=True),
        ]

        self._scores: list[torch.Tensor] = []
        self._targets: list[torch.Tensor] = []

        # on the device of the first batch
        self._sums: dict[str, torch.Tensor] = {}
        self._is_many = self._is_few = torch.empty(0)

        self._model: nn.Module | None = None
        self._num_added = 0

    def start(self, model: nn.Module, train_batches: Callable[[], Iterator]):
        """Begin an evaluation.

        Args:
            model: Model to be evaluated, in eval mode.
            train_batches: Iterates over the training set in the `eval` view; unused here, a kNN
                needs it.
        """
        self._sums = {}
        self.drop_scores()
        self._model = model
        self._num_added = 0

    def update(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor):
        """Add one batch.

        Args:
            model: Model that `start` was given.
            images: Normalised images [B, 3, H, W].
            target: Classes, int64 [B].
        """
        self.add(model(images), target)

    def add(self, output: torch.Tensor, target: torch.Tensor):
        """Add the outputs of one batch; without a host synchronisation, unless scores are kept.

        Logits that are not finite are counted, and are the error of `compute`.

        Args:
            output: Class logits, float [B, C].
            target: Classes, int64 [B].
        """
        if not self._sums:
            self._sums = self._zeros(output.device)
            self._is_many = self._members('many').to(output.device)
            self._is_few = self._members('few').to(output.device)
        sums = self._sums
        is_bad = self._is_bad(output)
        self._note_bad(is_bad)

        log_probs = F.log_softmax(output.double(), dim=1)
        log_confidence, predicted = log_probs.max(dim=1)
        correct = (predicted == target).long()

        # accuracy and F1 of each class
        ones = torch.ones_like(target)
        sums['total'].index_add_(0, target, ones)
        sums['correct'].index_add_(0, target, correct)
        sums['predicted'].index_add_(0, predicted, ones)

        # calibration: NaN has no bin
        confidence = torch.where(is_bad, 0., log_confidence.exp())
        bins = (confidence * _NUM_BINS).long().clamp_(max=_NUM_BINS - 1)
        sums['bin_total'].index_add_(0, bins, ones)
        sums['bin_correct'].index_add_(0, bins, correct)
        sums['bin_confidence'].index_add_(0, bins, confidence)

        # image by image: the order of the additions, and so the last bit, is that of any batch size
        losses = F.nll_loss(log_probs, target, reduction='none')
        sums['loss'].index_add_(0, torch.zeros_like(target), losses)

        # the five most probable; of equal ones the first
        own = log_probs.gather(1, target[:, None])  # [B, 1]
        is_before = torch.arange(log_probs.shape[1], device=target.device) < target[:, None]
        num_above = ((log_probs > own) | ((log_probs == own) & is_before)).sum(dim=1)
        sums['top5'] += (num_above < _TOP).sum()

        if self.keeps_scores:
            self._scores.append(log_probs.float().cpu())
            self._targets.append(target.cpu())

        # what is confused
        is_few_as_many = self._is_few[:, target] & self._is_many[:, predicted]
        sums['few_to_many'] += is_few_as_many.sum(dim=1)
        if self.confusion:
            sums['confusion'].index_add_(0, target * self.num_classes + predicted, ones)

    def _is_bad(self, output: torch.Tensor) -> torch.Tensor:
        """Return which rows of the logits [B, C] are not finite, bool [B]."""
        return ~output.isfinite().all(dim=1)

    def _note_bad(self, is_bad: torch.Tensor):
        """Count the rows that are not finite, and keep the position of the first."""
        if len(is_bad) == 0:
            return

        sums = self._sums
        end = self._num_added + len(is_bad)
        positions = torch.arange(self._num_added, end, device=is_bad.device)
        first = torch.where(is_bad, positions, _NOWHERE).amin()

        sums['num_bad'] += is_bad.sum()
        sums['first_bad'] = torch.minimum(sums['first_bad'], first)
        self._num_added = end

    def _require_finite(self, num_images: int, reduce: bool):
        """Raise a `NotFinite` on all processes where an output was not finite on one of them."""
        num_bad = int(self._total(self._counted()['num_bad'], reduce))
        if num_bad == 0:
            return

        # a weight that is not finite explains all of it
        if self._model is not None:
            found = describe_not_finite(trained_tensors(self._model))
            if found is not None:
                raise NotFinite(f'the model gives no finite outputs: its {found}')

        where = f'{num_bad} of {num_images} images'
        if not (reduce and is_distributed()):  # the order of another process is not known here
            first = int(self._sums['first_bad']) + 1
            where += f', the first is image {first} of the evaluation'
        raise NotFinite(f'the outputs of the model are not finite, NaN or infinity, on {where}')

    def _zeros(self, device: torch.device) -> dict[str, torch.Tensor]:
        """Return all sums before the first batch."""
        def zeros(size: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        sums = {
            'total': zeros(self.num_classes),
            'correct': zeros(self.num_classes),
            'predicted': zeros(self.num_classes),
            'few_to_many': zeros(len(_SUFFIXES)),
            'top5': zeros(1),
            'bin_total': zeros(_NUM_BINS),
            'bin_correct': zeros(_NUM_BINS),
            'bin_confidence': zeros(_NUM_BINS, torch.float64),
            'loss': zeros(1, torch.float64),
            'num_bad': zeros(1),
            'first_bad': torch.full((), _NOWHERE, dtype=torch.int64, device=device),
        }
        if self.confusion:
            sums['confusion'] = zeros(self.num_classes ** 2)
        return sums

    def compute(self, reduce: bool = True) -> dict[str, Any]:
        """Return the figures over all batches.

        Args:
            reduce: Sum over the batches of all processes; False for those of this one only.

        Returns:
            `all`, `many`, `medium`, `few` (mean of the class accuracies of the group, None for an
            empty group), the same for the other boundary rule (`medium_inclusive`,
            `few_inclusive`), `few_to_many` and `few_to_many_inclusive` (share of the images of Few
            classes that were predicted as a Many class), `balanced`, `worst_class`, `macro_f1`,
            `top5` (None for up to five classes), `ece`, `loss`, `num_images`, per class the lists
            `class_correct`, `class_total`, `class_accuracy` (None for a class without images), and
            per bin of the confidence, of 15 equal ones, `bin_total`, `bin_correct` and the mean
            `bin_confidence` (None for an empty bin).

        Raises:
            NotFinite: An output was NaN or infinite; names the first weight that is, else the first
                such image.
        """
        sums = {}
        for name, value in self._counted().items():
            if name not in _OWN_SUMS:
                sums[name] = self._total(value, reduce)
        total, correct, predicted = sums['total'], sums['correct'], sums['predicted']
        num_images = int(total.sum())
        self._require_finite(num_images, reduce)

        # of each class; a class without images has no accuracy
        seen = total > 0
        accuracy = torch.where(seen, 100.0 * correct.double() / total.clamp(min=1), torch.nan)
        class_accuracy = [None if torch.isnan(a) else float(a) for a in accuracy]

        # F1 = 2 TP / (TP + FN + TP + FP)
        f1 = 200.0 * correct.double() / (total + predicted).clamp(min=1)

        # ECE = sum over the bins of |correct - sum of confidences| / images
        gap = (sums['bin_correct'] - sums['bin_confidence']).abs().sum()
        bin_total = sums['bin_total'].tolist()
        bin_confidence = [_ratio(c, n) for c, n in zip(sums['bin_confidence'].tolist(), bin_total, strict=True)]

        top5 = None
        if self.num_classes > _TOP:
            top5 = _ratio(100.0 * float(sums['top5']), num_images)

        return {
            'all': _ratio(100.0 * float(correct.sum()), num_images),
            **self._group_accuracies(accuracy),
            **self._few_to_many(sums['few_to_many'], total),
            'balanced': _mean(accuracy[seen]),
            'worst_class': float(accuracy[seen].min()) if seen.any() else None,
            'macro_f1': _mean(f1[seen]),
            'top5': top5,
            'ece': _ratio(100.0 * float(gap), num_images),
            'loss': _ratio(float(sums['loss']), num_images),
            'num_images': num_images,
            'class_correct': correct.tolist(),
            'class_total': total.tolist(),
            'class_accuracy': class_accuracy,
            'bin_total': bin_total,
            'bin_correct': sums['bin_correct'].tolist(),
            'bin_confidence': bin_confidence,
        }

    def scores(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log probabilities of all images of this process, float32 [N, C], and their classes, int64 [N].

        Raises:
            UserError: The evaluator did not keep them, see `keeps_scores`.
        """
        if not self._scores:
            raise UserError('no scores were kept: set keeps_scores before the evaluation')
        if len(self._scores) > 1:  # joined once: they may be a gigabyte
            self._scores, self._targets = [torch.cat(self._scores)], [torch.cat(self._targets)]
        return self._scores[0], self._targets[0]

    def drop_scores(self):
        """Free the scores that were kept."""
        self._scores, self._targets = [], []

    def full_figures(self) -> dict[str, Any]:
        """Return the figures over all batches of this process, and those that an epoch is not asked for.

        Returns:
            Those of `compute`; `intervals`, of 95 % over test images, by the name of the figure;
            `shifted`, accuracies on other class distributions by `shifted_priors.SHIFTS`; and where
            scores were kept, `macro_auroc` and `macro_ap`.
        """
        metrics = self.compute(reduce=False)
        if 'class_correct' not in metrics:  # outputs that are no classes
            return metrics

        if self._scores:
            metrics.update(ranking_figures(*self.scores()))
        counted = metrics['class_correct'], metrics['class_total'], self.shot_counts
        intervals = bootstrap_intervals(*counted)
        metrics['intervals'] = {name: list(ends) for name, ends in intervals.items() if ends is not None}
        metrics['shifted'] = shifted_accuracies(*counted)
        return metrics

    def confusion_matrix(self, reduce: bool = True) -> torch.Tensor:
        """Return how many images of each class (rows) were predicted as each class (columns).

        Args:
            reduce: Sum over the batches of all processes, which all must call this; False for those
                of this one only.

        Returns:
            int64 [C, C], on the host.

        Raises:
            UserError: The evaluator was built without `confusion`.
        """
        if not self.confusion:
            raise UserError('nothing was counted: build the evaluator with confusion=True')

        cells = self._total(self._counted()['confusion'], reduce)
        return cells.view(self.num_classes, self.num_classes)

    def _counted(self) -> dict[str, torch.Tensor]:
        return self._sums or self._zeros(torch.device('cpu'))

    @staticmethod
    def _total(value: torch.Tensor, reduce: bool) -> torch.Tensor:
        """Return a sum on the host, over all processes if asked for."""
        value = value.clone()  # the sum over the processes replaces it
        if reduce:
            value = all_reduce_sum(value)
        return value.cpu()

    def _group_accuracies(self, accuracy: torch.Tensor) -> dict[str, float | None]:
        """Return the mean accuracy of each group by either rule, of classes with images.

        Args:
            accuracy: Accuracy of each class [C], NaN for a class without images.
        """
        result = {}
        for groups, suffix in zip(self._groups, _SUFFIXES):
            for name in GROUPS:
                if name == 'many' and suffix:
                    continue  # the rule moves classes between medium and few only
                group = accuracy[torch.as_tensor(groups[name], dtype=torch.int64)]
                result[name + suffix] = _mean(group[~torch.isnan(group)])
        return result

    def _few_to_many(self, confused: torch.Tensor, total: torch.Tensor) -> dict[str, float | None]:
        """Return the share of the images of Few classes that were predicted as a Many class.

        Args:
            confused: Number of such images by either rule [2].
            total: Images of each class [C].
        """
        is_many = self._members('many')
        num_few = (self._members('few') * total).sum(dim=1)

        result: dict[str, float | None] = {}
        for i, suffix in enumerate(_SUFFIXES):
            share = _ratio(100.0 * float(confused[i]), int(num_few[i]))
            result[f'few_to_many{suffix}'] = share if is_many[i].any() else None
        return result

    def _members(self, name: str) -> torch.Tensor:
        """Return which classes a group holds by either rule, bool [2, C]."""
        members = torch.zeros(len(self._groups), self.num_classes, dtype=torch.bool)
        for row, groups in zip(members, self._groups):
            row[groups[name]] = True
        return members


class KNNEvaluator(LongTailEvaluator):
    """Accuracy of a vote of the most similar training images: features without a classifier.

    As Wu et al., CVPR 2018 (https://arxiv.org/abs/1805.01978): each of the k nearest by the cosine
    s votes for its class with exp(s / t). Votes are not probabilities: there is no `loss` and no
    `ece`.

    Args:
        shot_counts: Training images of each class [C], see `LongTailEvaluator`; classes with many
            images have many votes.
        num_neighbors: Number k of votes, at most that of all training images.
        temperature: Temperature t of the votes.
        **kwargs: Further options of `LongTailEvaluator`.
    """

    counted = 'vote of the nearest training images'

    def __init__(
            self,
            shot_counts,
            num_neighbors: int = 200,
            temperature: float = 0.1,
            **kwargs,
    ):
        super().__init__(shot_counts, **kwargs)
        self.num_neighbors = num_neighbors
        self.temperature = temperature
        self._bank = self._bank_targets = torch.empty(0)

    def start(self, model: nn.Module, train_batches: Callable[[], Iterator]):
        super().start(model, train_batches)

        # by each process for itself: the main process may evaluate alone
        features, targets = [], []
        for (images, *_), target, _ in train_batches():
            features.append(self._features(model, images))
            targets.append(target)
        self._bank = torch.cat(features)
        self._bank_targets = torch.cat(targets)

    def update(self, model: nn.Module, images: torch.Tensor, target: torch.Tensor):
        self.add(self.vote(self._features(model, images)), target)

    def vote(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logarithm of each class's share of the votes, [B, C].

        Args:
            features: L2-normalised features, float [B, D].
        """
        num_neighbors = min(self.num_neighbors, len(self._bank))
        similarity, nearest = (features @ self._bank.T).topk(num_neighbors)  # [B, N] -> [B, k]

        # exp(s / t), divided by exp(1 / t) so that nothing overflows
        weights = ((similarity - 1) / self.temperature).exp()

        votes = weights.new_zeros(len(features), self.num_classes)
        votes.scatter_add_(1, self._bank_targets[nearest], weights)
        return (votes / votes.sum(dim=1, keepdim=True)).log()

    def _is_bad(self, output: torch.Tensor) -> torch.Tensor:
        return output.isnan().any(dim=1)  # a class without a vote has the logarithm of 0

    def compute(self, reduce: bool = True) -> dict[str, Any]:
        # as large as the training set
        self._bank = self._bank_targets = torch.empty(0)

        metrics = super().compute(reduce)
        for name in ('loss', 'ece', 'bin_total', 'bin_correct', 'bin_confidence'):
            del metrics[name]
        return metrics

    @staticmethod
    def _features(model: Any, images: torch.Tensor) -> torch.Tensor:
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        return unit_rows(features)


def _mean(values: torch.Tensor) -> float | None:
    if len(values) == 0:
        return None
    return float(values.mean())


def _ratio(value: float, count: float) -> float | None:
    if count == 0:
        return None
    return value / count
