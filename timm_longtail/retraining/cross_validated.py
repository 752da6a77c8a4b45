"""Classifiers of `retrain` that are fitted as `compare` fits them: on scaled features, with an L2 penalty whose
strength is chosen by cross-validation.
"""
from dataclasses import replace

from torch import nn

from .classifier import Classifier
from .compare import Compared, Result, calibrate, compare_families, finish
from .comparison_report import chosen_how
from .families import FAMILIES
from .representation import Representation

__all__ = ['CROSS_VALIDATED', 'fit_cross_validated', 'fit_linear', 'is_cross_validated']

CROSS_VALIDATED = {
    'crt': FAMILIES['crt'],
    'linear': replace(FAMILIES['logistic'], taus=(), usual_tau=None),
}
"""Families by the name of the classifier; `linear` takes the long tail as it is."""


def is_cross_validated(name: str, representation: Representation) -> bool:
    """Return whether a classifier is fitted by cross-validation, and not by the schedule of its method.

    That is so on features of a model that was trained elsewhere, whose length no published rate
    fits. Features of images that the model was trained on say nothing about new ones: there, and
    where an option of the schedule is given, the method trains as published.

    Args:
        name: Name of the classifier.
        representation: Model and data, with the options of `retrain.py`.
    """
    args = representation.args
    given = (args.epochs, args.lr, args.weight_decay)
    has_schedule = any(value is not None for value in given) or bool(args.classifier_kwargs)
    return (
        name in CROSS_VALIDATED and args.features == 'cached' and not representation.seen and not has_schedule)


def fit_cross_validated(name: str, representation: Representation) -> Classifier:
    """Choose the settings of a classifier on images that it was not fitted on, and calibrate it.

    Args:
        name: One of `CROSS_VALIDATED`.
        representation: Model and data.
    """
    result = _fit(name, representation)
    calibrate(result)

    mean, error = result.expected
    return Classifier(
        name,
        result.module,
        options={**result.options, 'temperature': result.temperature},
        note=f'settings chosen {chosen_how(result.compared)}, balanced accuracy {mean:.1f} ± {error:.1f}',
    )


def fit_linear(representation: Representation) -> nn.Linear:
    """Return the linear classifier that others start from, where the model has none of these classes.

    Its logits are those that it was fitted with, not divided by a temperature: what an adjustment
    for the prior takes off them is the prior of the fit.

    Args:
        representation: Model and data.
    """
    return _fit('linear', representation).module


def _fit(name: str, representation: Representation) -> Result:
    """Choose the settings of a classifier, and fit it to all training images; it is not calibrated."""
    compared = Compared(representation.trained_model.name, representation)
    result, = compare_families(compared, {name: CROSS_VALIDATED[name]})
    finish(result)
    return result
