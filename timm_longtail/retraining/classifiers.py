"""Classifiers retrained on a representation that stays: in closed form, or by gradient descent.

Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition`, ICLR 2020,
https://arxiv.org/abs/1910.09217.

A classifier is added by a function that fits it, in a file of its own, and by its name here.
Whatever it does to the features, such as scaling them, it folds into the layer that it returns:
what is exported is a plain linear classifier.
"""
import time
from collections.abc import Callable
from functools import partial

from ..models.layers import CosineLinear
from ..utils.errors import UserError, unknown_name
from .classifier import Classifier
from .closed_form import fit_logit_adjust, fit_nearest_means, fit_tau_norm
from .cross_validated import fit_cross_validated, fit_linear, is_cross_validated
from .gradient import train_classifier
from .representation import Representation

__all__ = ['CLASSIFIERS', 'TRAINED', 'choose_classifiers', 'make_classifiers']

TRAINED = ('crt', 'lws', 'max_norm', 'linear')
"""Classifiers that are trained by gradient descent: methods of `train.py`, by the same names."""

_Fit = Callable[[Representation], list[Classifier]]

_FITS: dict[str, _Fit] = {
    **{name: partial(train_classifier, name) for name in TRAINED},
    'tau_norm': fit_tau_norm,
    'ncm': fit_nearest_means,
    'logit_adjust': fit_logit_adjust,
}

CLASSIFIERS = tuple(_FITS)
"""Names of all classifiers, in the order of the table."""

# those that need the features of the training images
_ON_TRAINING_FEATURES = (*TRAINED, 'ncm')

# what they do to the classifier of stage 1, and so why that must be linear; for images that the
# model has not seen, and whose classes may be others, they start from a `linear` that is fitted first
_FROM_STAGE_1 = {
    'lws': 'scales the class weights',
    'max_norm': 'bounds the class weights',
    'tau_norm': 'rescales the class weights',
    'logit_adjust': 'folds the prior into the bias',
}


def choose_classifiers(
        asked: list[str],
        representation: Representation,
) -> tuple[list[str], dict[str, str]]:
    """Return the classifiers to make, and why others cannot be made.

    Args:
        asked: Names, with - or _ in them, or `all`.
        representation: Model and data that they are made from.

    Raises:
        UserError: An unknown name, or one that was asked for by name and cannot be made.
    """
    names = [name.replace('-', '_') for name in asked]
    for name in names:
        if name not in (*CLASSIFIERS, 'all'):
            raise unknown_name('classifier', name, (*CLASSIFIERS, 'all'))

    refused = {}
    for name in CLASSIFIERS:
        reason = _why_not(name, representation)
        if reason is not None:
            refused[name] = reason

    if 'all' in names:
        return [name for name in CLASSIFIERS if name not in refused], refused

    for name in names:
        if name in refused:
            raise UserError(f'--classifier {name}: {refused[name]}')
    return list(dict.fromkeys(names)), {}


def _why_not(name: str, representation: Representation) -> str | None:
    """Return why a classifier cannot be made from a representation, or None where it can."""
    trained_model, train_set = representation.trained_model, representation.train_set

    if name in _FROM_STAGE_1:
        does = _FROM_STAGE_1[name]
        if not trained_model.has_classes and representation.seen:
            return f'it {does} of the trained classifier, and this model has none'
        if not representation.same_classes and representation.seen:
            num_classes = trained_model.model.num_classes
            return (
                f'it {does} of the trained classifier, which has {num_classes} classes and the '
                f'data {train_set.num_classes}')
        if isinstance(trained_model.model.get_classifier(), CosineLinear):
            return (
                f'it {does}, and a cosine classifier has no bias and ignores the length of its '
                'weights')

    if name == 'lws' and representation.args.tune != 'classifier':
        return 'it trains one scale a class and nothing else'
    return None


def make_classifiers(name: str, representation: Representation) -> list[Classifier]:
    """Make one kind of classifier; the nearest class mean comes in three forms.

    Args:
        name: One of `CLASSIFIERS`.
        representation: Model and data that it is made from.
    """
    # features are computed once: their time is not that of the classifier
    if name in _ON_TRAINING_FEATURES:
        _ = representation.train

    started = time.perf_counter()
    if name in _FROM_STAGE_1 and not representation.same_classes and representation.linear is None:
        representation.linear = fit_linear(representation)

    if is_cross_validated(name, representation):
        made = [fit_cross_validated(name, representation)]
    else:
        made = _FITS[name](representation)
    for classifier in made:
        classifier.seconds = (time.perf_counter() - started) / len(made)
    return made
