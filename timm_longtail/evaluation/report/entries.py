"""What a report page compares: models, those that differ in their seed alone taken together.

Shapes: C classes, R runs, K bins.
"""
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ...data.longtail import shot_groups
from ...utils.errors import UserError
from ..intervals import bootstrap_intervals
from ..tables import GROUPS
from .run_report import Predictions, RunReport

__all__ = ['Bins', 'Confused', 'Entry', 'Figure', 'entries_of']

# as the calibration error of the evaluator
_NUM_BINS = 15

_SEED_IN_NAME = re.compile(r'[._-]s(eed)?\d+(-\d+)?$')


class Figure(NamedTuple):
    """A figure of an entry.

    Attributes:
        value: The figure, or the mean over seeds; None where it is not defined.
        spread: Standard deviation over seeds; None for one run.
        interval: 95 % bootstrap interval over test images; None for several seeds, and where there
            is none.
    """
    value: float | None
    spread: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Confused:
    """Images of one class that were predicted as another one."""
    target: int
    predicted: int
    count: int
    share: float  # of the images of the class, in percent


@dataclass(frozen=True)
class Cells:
    """Cells of a confusion that hold an image, one row each.

    Attributes:
        target: Class of the images.
        predicted: Class that was predicted.
        count: Number of images.
        share: The same in percent of the images of the class.
    """
    target: np.ndarray
    predicted: np.ndarray
    count: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class Bins:
    """Predictions by their confidence: images, mean confidence and accuracy of each bin, in percent.

    Attributes:
        count: Images of each bin [K].
        confidence: Mean confidence of each bin, NaN without images [K].
        accuracy: Accuracy of each bin, NaN without images [K].
        error: Expected calibration error.
    """
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


@dataclass
class Entry:
    """Runs of one setting, which differ in their seed alone; most often one run.

    Attributes:
        name: What the page calls it.
        runs: The runs, of the same classes and test images.
    """
    name: str
    runs: list[RunReport]

    @property
    def first(self) -> RunReport:
        """The run that stands for what all have in common."""
        return self.runs[0]

    @property
    def num_classes(self) -> int:
        return len(self.first.class_total)

    @cached_property
    def groups(self) -> dict[str, list[int]]:
        """Classes of each of Many, Medium and Few."""
        return {name: [int(c) for c in classes] for name, classes in shot_groups(self.first.shot_counts).items()}

    @cached_property
    def group_of(self) -> list[str]:
        """Group of each class [C]."""
        names = [''] * self.num_classes
        for group, classes in self.groups.items():
            for label in classes:
                names[label] = group
        return names

    @cached_property
    def order(self) -> list[int]:
        """Classes from the most to the least frequent."""
        counts = np.asarray(self.first.class_counts)
        return [int(label) for label in np.argsort(-counts, kind='stable')]

    @cached_property
    def _intervals(self) -> dict[str, tuple[float, float] | None]:
        run = self.first
        if len(self.runs) > 1 or not run.tells_classes:
            return {}
        return bootstrap_intervals(run.class_correct, run.class_total, run.shot_counts)

    def figure(self, name: str) -> Figure:
        """Return a figure with its interval, or with the spread over seeds.

        Args:
            name: Such as `all` or `ece`.
        """
        found = [run.figures.get(name) for run in self.runs]
        values = [value for value in found if value is not None]
        if not values:
            return Figure(None)
        if len(values) == 1:
            return Figure(values[0], interval=self._intervals.get(name))
        return Figure(float(np.mean(values)), spread=float(np.std(values, ddof=1)))

    @cached_property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy of each class in percent, the mean over seeds; NaN without test images [C]."""
        return self._accuracies.mean(axis=0)

    @cached_property
    def class_spread(self) -> np.ndarray | None:
        """Standard deviation of the accuracy of each class over seeds [C]; None for one run."""
        if len(self.runs) == 1:
            return None
        return self._accuracies.std(axis=0, ddof=1)

    @property
    def _accuracies(self) -> np.ndarray:
        """Accuracy of each class in each run [R, C]."""
        correct = np.array([run.class_correct for run in self.runs], np.float64)
        total = np.array([run.class_total for run in self.runs], np.float64)
        return np.where(total > 0, 100 * correct / np.maximum(total, 1), np.nan)

    @property
    def predictions(self) -> list[Predictions]:
        """Those of the runs that saved them."""
        return [run.predictions for run in self.runs if run.predictions is not None]

    @cached_property
    def cells(self) -> Cells | None:
        """Cells of the confusion that hold an image, the sum over seeds; None without predictions."""
        if not self.predictions:
            return None
        places = [found.target * self.num_classes + found.predicted for found in self.predictions]
        place, count = np.unique(np.concatenate(places), return_counts=True)
        target, predicted = np.divmod(place, self.num_classes)
        total = np.bincount(target, count, minlength=self.num_classes)
        return Cells(target, predicted, count, 100 * count / total[target])

    @cached_property
    def group_confusion(self) -> dict[str, dict[str, float | None]]:
        """Percentage of the images of each group that were predicted as a class of each group."""
        assert self.cells is not None
        number = np.array([GROUPS.index(group) for group in self.group_of])
        sums = np.zeros((len(GROUPS), len(GROUPS)))
        np.add.at(sums, (number[self.cells.target], number[self.cells.predicted]), self.cells.count)

        table: dict[str, dict[str, float | None]] = {}
        for group, row in zip(GROUPS, sums):
            shares = [100 * float(value) / row.sum() if row.sum() else None for value in row]
            table[group] = dict(zip(GROUPS, shares))
        return table

    def confusion(self, num_blocks: int) -> np.ndarray:
        """Return the confusion in percent of the rows, sorted by training images [B, B].

        Args:
            num_blocks: B; fewer than the classes make a cell a block of neighbours: the mean over
                its rows of the sum over its columns.
        """
        assert self.cells is not None
        block = np.empty(self.num_classes, np.int64)
        block[self.order] = np.arange(self.num_classes) * num_blocks // self.num_classes

        matrix = np.zeros((num_blocks, num_blocks))
        np.add.at(matrix, (block[self.cells.target], block[self.cells.predicted]), self.cells.share)
        with_images = np.unique(self.cells.target)
        num_rows = np.bincount(block[with_images], minlength=num_blocks)
        return matrix / np.maximum(num_rows, 1)[:, None]

    @cached_property
    def confused(self) -> list[Confused]:
        """Pairs of classes that were confused, those with most images first."""
        if self.cells is None:
            return []
        cells = self.cells
        pairs = []
        for target, predicted, count, share in zip(cells.target, cells.predicted, cells.count, cells.share):
            if target != predicted:
                pairs.append(Confused(int(target), int(predicted), int(count), float(share)))
        return sorted(pairs, key=lambda pair: (-pair.count, -pair.share, pair.target, pair.predicted))

    @cached_property
    def most_confused_with(self) -> dict[int, Confused]:
        """For each class with mistakes, the one that it is most often misclassified as."""
        found: dict[int, Confused] = {}
        for pair in self.confused:
            found.setdefault(pair.target, pair)
        return found

    def reliability(self, calibrated: bool = True) -> Bins | None:
        """Return how often predictions of each confidence are right; None without predictions.

        Args:
            calibrated: As the model is exported; False before its temperature was fitted.
        """
        confidences, corrects = [], []
        for found in self.predictions:
            confidence = found.confidence if calibrated else found.uncalibrated
            if confidence is None:
                return None
            confidences.append(confidence)
            corrects.append(found.target == found.predicted)
        if not confidences or not sum(map(len, confidences)):
            return None
        return _bins(np.concatenate(confidences), np.concatenate(corrects))

    @cached_property
    def weight_norms(self) -> np.ndarray | None:
        """Length of the classifier's weight of each class, the mean over seeds [C]; None without."""
        norms = [run.weight_norms for run in self.runs if run.weight_norms is not None]
        norms = [values for values in norms if len(values) == self.num_classes]
        return np.mean(norms, axis=0) if norms else None


def _bins(confidence: np.ndarray, correct: np.ndarray) -> Bins:
    """Return predictions by confidence, in bins of equal width."""
    place = np.minimum((confidence * _NUM_BINS).astype(np.int64), _NUM_BINS - 1)
    count = np.bincount(place, minlength=_NUM_BINS)
    right = np.bincount(place, correct, minlength=_NUM_BINS)
    sure = np.bincount(place, confidence, minlength=_NUM_BINS)

    with np.errstate(invalid='ignore'):
        return Bins(
            count,
            100 * sure / count,
            100 * right / count,
            100 * float(np.abs(right - sure).sum()) / len(confidence),
        )


def entries_of(reports: Sequence[RunReport]) -> list[Entry]:
    """Return what the page compares, in the order of the runs.

    Args:
        reports: One or more models.

    Raises:
        UserError: The models are of other classes or other test images, so that no figure of one
            can be compared with that of another.
    """
    first = reports[0]
    for report in reports[1:]:
        if (report.class_names, report.class_total) != (first.class_names, first.class_total):
            raise UserError(
                f'{first.name} and {report.name} have other classes or test images: write a report of each')

    by_setting: dict[str, list[RunReport]] = {}
    for report in reports:
        by_setting.setdefault(report.setting, []).append(report)

    entries = []
    for runs in by_setting.values():
        seeds = {run.seed for run in runs}
        if len(runs) > 1 and len(seeds) == len(runs):
            name = _SEED_IN_NAME.sub('', runs[0].name) or runs[0].name
            entries.append(Entry(f'{name}, {len(runs)} seeds', runs))
        else:
            entries += [Entry(run.name, [run]) for run in runs]
    return _named_apart(entries)


def _named_apart(entries: list[Entry]) -> list[Entry]:
    """Number entries of one name."""
    names = [entry.name for entry in entries]
    for number, entry in enumerate(entries):
        if names.count(entry.name) > 1:
            before = names[:number + 1].count(names[number])
            entry.name = f'{names[number]} ({before})'
    return entries
