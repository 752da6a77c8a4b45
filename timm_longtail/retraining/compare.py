"""Which classifier is best for given data: all are cross-validated, one is chosen, and only then is
anything tested.

Shapes: N images that are fitted and measured on, M of them measured, C classes, D width of the
features.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..data.longtail import shot_groups
from ..evaluation.intervals import bootstrap_intervals
from ..evaluation.tables import GROUPS
from ..utils.errors import UserError
from ..utils.progress import progress
from .calibration import class_balanced_ece, fit_temperature
from .compared import Compared
from .cross_validation import (
    Accuracy,
    Split,
    corrected_recalls,
    difference,
    mean_accuracy,
    mean_recall,
    overall_accuracy,
)
from .families import FAMILIES, REFERENCE, Family, LinearRule
from .representation import Features

__all__ = [
    'Compared',
    'Result',
    'Setting',
    'calibrate',
    'choose',
    'choose_setting',
    'compare_families',
    'contenders',
    'evaluate',
    'finish',
    'lead',
]

# settings of a family behind its best one that are still tried, from the most to the least regularised
_PATIENCE = 2


@dataclass
class Result:
    """A family of classifiers on one model, at the setting that was chosen for it.

    Attributes:
        name: Row of the table.
        family: The family.
        compared: Model, and what it was fitted and measured on.
        options: Setting that was chosen.
        accuracy: On images that the classifier was not fitted on, at this setting.
        count: Images of each class that were measured [C].
        recall: Recall of each class to expect, corrected for the choice of the setting [C].
        position: Place of the setting on the path of its family, from 0.
        complete: On all classes, where the setting was chosen on a part of them: once for the one
            chosen, by `calibrate`.
        rule: Classifier, fitted on all training images; None until `finish`.
        temperature: Divisor of its logits; 1 until `calibrate`.
        ece: Calibration error on the images measured, before and after, in percent, each class
            weighing the same; None until `calibrate`.
        test: Figures on the test set, with `intervals`; of a calibrated classifier `ece_before`,
            too, and `balanced_ece_before` and `balanced_ece`, as `ece` here. None until `evaluate`.
    """
    name: str
    family: Family
    compared: Compared
    options: dict[str, Any]
    accuracy: Accuracy
    count: torch.Tensor
    recall: torch.Tensor
    position: int
    complete: Accuracy | None = None
    rule: LinearRule | None = None
    temperature: float = 1.0
    ece: tuple[float, float] | None = None
    test: dict[str, Any] | None = None

    @property
    def module(self) -> nn.Linear:
        """The classifier as one linear layer on features: scale, prior and temperature are folded into it."""
        return self.rule.folded(self.compared.data.scale, self.temperature)

    def cross_validated(self) -> dict[str, tuple[float, float] | None]:
        """Return accuracies to expect and their standard errors in percent.

        `all` counts each image the same, `balanced` each class, and a group the same each of its
        classes.
        """
        groups = shot_groups(self.compared.representation.train_set.shot_counts)
        return {
            'all': overall_accuracy(self.recall, self.count),
            'balanced': mean_recall(self.recall, self.count),
            **{name: mean_recall(self.recall, self.count, groups[name]) for name in GROUPS},
        }

    @property
    def balanced(self) -> float:
        """Balanced accuracy to expect, in percent, on the classes that settings were chosen on."""
        return self.cross_validated()['balanced'][0]

    @property
    def expected(self) -> tuple[float, float]:
        """Balanced accuracy to expect on all classes, and its standard error, in percent."""
        if self.complete is not None:
            return self.complete.of_classes()
        return self.cross_validated()['balanced']


def compare_families(compared: Compared, families: dict[str, Family], prefix: str = '') -> Iterator[Result]:
    """Choose a setting for each family, by the images that its classifiers were not fitted on.

    Args:
        compared: Model and data.
        families: What to try, by name.
        prefix: Stands before each name, where there are several models.
    """
    for name, family in progress(families.items(), 'cross-validation', len(families), unit='classifier'):
        settings = _measure(compared, family)
        setting, rivals = choose_setting(settings, family.usual_tau, compared.variance_factor)
        count, recall = corrected_recalls([one.accuracy for one in rivals])
        yield Result(
            prefix + name, family, compared, setting.options, setting.accuracy, count, recall, setting.position)


@dataclass
class Setting:
    """A setting of a family, with its place on the path and its accuracy."""
    position: int
    options: dict[str, Any]
    accuracy: Accuracy


def choose_setting(
        settings: list[Setting],
        usual_tau: float | None,
        factor: float = 1.0,
) -> tuple[Setting, list[Setting]]:
    """Return the best setting, by the one-standard-error rule for the adjustment.

    Theory names a strength of the adjustment: with it the classifier tends to the best one for
    balanced classes. What is measured differs from it by chance, and by the images that rare
    classes miss in each fold, which ask for more. So the usual strength stays unless another one is
    better by more than the standard error of the difference. No simpler setting is taken otherwise:
    a stronger penalty is worth no points.

    Args:
        settings: All settings of a family.
        usual_tau: Strength that theory names; None where there is none.
        factor: See `variance_factor`.

    Returns:
        The setting, and those that it was the best of.
    """
    best = max(settings, key=_measured)
    usual = [setting for setting in settings if setting.options.get('tau') == usual_tau]
    if usual_tau is None or not usual:
        return best, settings

    best_usual = max(usual, key=_measured)
    if _may_be_chance(*difference(best.accuracy, best_usual.accuracy, factor)):
        return best_usual, usual
    return best, settings


def _may_be_chance(gap: float, error: float) -> bool:
    """Whether a difference is within its standard error; that of a single image is equal to it, but for rounding."""
    return gap <= error + 1e-9


def _measured(setting: Setting) -> float:
    return setting.accuracy.balanced


def _measure(compared: Compared, family: Family) -> list[Setting]:
    """Return the settings of a family, until they get worse and worse in the first repeat."""
    first, *others = compared.trial.repeats
    repeats = [_measure_once(compared, family, first)]
    num_steps = 1 + repeats[0][-1].position
    for splits in others:
        repeats.append(_measure_once(compared, family, splits, num_steps))

    settings = []
    for alike in zip(*repeats, strict=True):
        accuracy = mean_accuracy([setting.accuracy for setting in alike])
        settings.append(replace(alike[0], accuracy=accuracy))
    return settings


def _measure_once(
        compared: Compared,
        family: Family,
        splits: Sequence[Split],
        num_steps: int | None = None,
) -> list[Setting]:
    """Return the settings of a family in one repeat, whose folds are freed at the end.

    Args:
        compared: Model and data.
        family: Kind of classifier.
        splits: Folds of the repeat.
        num_steps: How far to go on the path; None goes on until settings get worse and worse.
    """
    settings: list[Setting] = []
    best, num_worse = None, 0
    for step in islice(_steps(compared, family, splits), num_steps):
        settings += step

        step_best = max(step, key=_measured)
        if best is None or _measured(step_best) > _measured(best):
            best, num_worse = step_best, 0
        else:
            gap, error = difference(best.accuracy, step_best.accuracy, compared.variance_factor)
            num_worse += not _may_be_chance(gap, error)
        if num_steps is None and num_worse == _PATIENCE:
            break
    return settings


def _steps(compared: Compared, family: Family, splits: Sequence[Split]) -> Iterator[list[Setting]]:
    """Yield the settings of each step on the path of a family, measured in one repeat.

    All folds go forward step by step, so that the features of all of them are held at once.
    """
    data = compared.trial.data
    measured = torch.cat([split.measure for split in splits]).sort().values
    targets = compared.trial.classes[data.targets.cpu()[measured]]
    images = compared.images_of(compared.trial.rows[measured])

    paths = [compared.candidates(family, data.take(split.fit)) for split in splits]
    for position, rules_of_folds in enumerate(zip(*paths)):
        options = [rule.options for rule in rules_of_folds[0]]
        correct = torch.zeros(len(options), len(data.targets), dtype=torch.float64)
        for split, rules in zip(splits, rules_of_folds):
            features, labels = data.values[split.measure], data.targets[split.measure]
            for row, rule in zip(correct, rules):
                row[split.measure] = (rule.logits(features).argmax(dim=1) == labels).double().cpu()

        accuracies = [Accuracy(row[measured], targets, images) for row in correct]
        yield [Setting(position, *found) for found in zip(options, accuracies)]


def choose(results: list[Result]) -> Result:
    """Return logistic regression, or what is better by more than one standard error; of several
    models the best one is taken first.

    This is the one-standard-error rule with logistic regression, adjusted for the prior, in the
    place of the simplest classifier. All families end as one linear layer, so that a simple one is
    worth no points; but the best of many measured accuracies is partly luck, and this family is the
    best one known beforehand. Where it is not there, the best accuracy decides.

    The error is that of the difference on the same images. See `contenders` for what is left aside.

    Args:
        results: Of all families and models, on the same classes.

    Raises:
        UserError: There are none.
        ValueError: They were measured on different classes.
    """
    if not results:
        raise UserError('there is no classifier to choose from')
    _require_same_classes(results)

    among = contenders(results)
    best = max(among, key=lambda result: result.balanced)
    for result in among:
        if result.compared is best.compared and result.family is FAMILIES[REFERENCE]:
            return result if _may_be_chance(*lead(best, result)) else best
    return best


def contenders(results: list[Result]) -> list[Result]:
    """Return what is chosen among: results on images that their model was not trained on, if there are any.

    Those on images that it was trained on are too high, by more than classifiers differ.

    Args:
        results: Of all families and models.
    """
    return [result for result in results if not result.compared.is_optimistic] or results


def _require_same_classes(results: Sequence[Result]):
    first, *others = (result.compared.trial.classes for result in results)
    if not all(torch.equal(classes, first) for classes in others):
        raise ValueError('results on different classes cannot be compared: make each Compared of the same ones')


def lead(better: Result, other: Result) -> tuple[float, float]:
    """Return by how much the accuracy of one result is above another's, and the error of that.

    Args:
        better: One result.
        other: Another one, on the same classes.

    Raises:
        ValueError: They were measured on different classes.
    """
    _require_same_classes([better, other])
    factor = max(better.compared.variance_factor, other.compared.variance_factor)
    _, error = difference(better.accuracy, other.accuracy, factor)
    return better.balanced - other.balanced, error


def finish(result: Result):
    """Fit a classifier at the setting that was chosen on all training images.

    Args:
        result: Gets `rule`.
    """
    result.rule = _at(result, result.compared.final_rows)


def calibrate(result: Result):
    """Fit the temperature of a classifier to images that it was not fitted on.

    Args:
        result: Gets `temperature` and `ece`; `complete`, too, where its setting was chosen on a part
            of the classes.
    """
    compared, data = result.compared, result.compared.data
    splits = compared.splits[:1] if compared.chooses_on_part else compared.splits
    logits, targets = [], []
    for split in splits:
        rule = _at(result, split.fit)
        logits.append(rule.logits(data.values[split.measure]))
        targets.append(data.targets[split.measure])
    logits, targets = torch.cat(logits), torch.cat(targets)
    measured = torch.cat([split.measure for split in splits])

    result.temperature = fit_temperature(logits, targets)
    result.ece = (
        class_balanced_ece(logits, targets),
        class_balanced_ece(logits / result.temperature, targets),
    )
    if compared.chooses_on_part:
        correct = logits.argmax(dim=1) == targets
        result.complete = Accuracy(correct.double().cpu(), targets.cpu(), compared.images_of(measured))


def _at(result: Result, rows: torch.Tensor) -> LinearRule:
    """Fit the classifier of a result on some rows."""
    compared = result.compared
    path = compared.candidates(result.family, compared.data.take(rows), first=result.position)
    return next(rule for rule in next(path) if rule.options == result.options)


def evaluate(result: Result, features: Features):
    """Evaluate a classifier on the test set.

    Args:
        result: After `finish`; gets `test`.
        features: Of the test set.
    """
    figures = features.evaluate(result.module)
    figures['intervals'] = bootstrap_intervals(
        figures['class_correct'], figures['class_total'], features.shot_counts)

    if result.ece is not None:
        uncalibrated = result.rule.folded(result.compared.data.scale)
        figures['ece_before'] = features.evaluate(uncalibrated)['ece']
        figures['balanced_ece_before'] = class_balanced_ece(features.logits(uncalibrated), features.targets)
        figures['balanced_ece'] = class_balanced_ece(features.logits(result.module), features.targets)
    result.test = figures
