"""Classifiers that a model can be given, by name: `linear`, `cosine(scale=25)`."""
from collections.abc import Callable
from typing import Any

from torch import nn

from ..utils.calls import call_by_name, complete_call
from ..utils.errors import UserError
from .feature_classifier import set_classifier

__all__ = ['check_head', 'parse_head', 'set_head', 'single_classifier']

_INTERVALS = {'scale': '(0, 10000]'}


def _linear() -> None:
    return None


def _cosine(scale: float = 25.) -> float:
    return scale


# each returns the scale of a cosine classifier; None for a linear one
_SCALES: dict[str, Callable[..., float | None]] = {'linear': _linear, 'cosine': _cosine}


def check_head(text: str) -> float | None:
    """Return the scale of the cosine classifier that a text names; None for a linear one.

    Args:
        text: `linear`, `cosine`, or that with its scale in brackets; 25 is LIFT's.

    Raises:
        UserError: Another name, or a scale out of range.
    """
    return call_by_name('head', text, _SCALES, intervals=_INTERVALS)


def parse_head(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a classifier and all its options: equal for two texts of one classifier.

    Args:
        text: See `check_head`.

    Raises:
        UserError: An unknown classifier, or a text that is not a call.
    """
    return complete_call('head', text, _SCALES)


def set_head(model: nn.Module, text: str) -> nn.Module:
    """Give a model the classifier that a text names; one of this kind stays as it is.

    Args:
        model: timm model; changed in place.
        text: See `check_head`.

    Returns:
        The same model.

    Raises:
        UserError: An unknown classifier, or a model whose classifier is not one linear layer.
    """
    return set_classifier(model, check_head(text))


def single_classifier(model: nn.Module) -> nn.Module:
    """Return the classifier of a model.

    Args:
        model: timm model; without classes, its classifier is the identity.

    Raises:
        UserError: A model with several, as those that are distilled have, or without one.
    """
    timm_model: Any = model  # timm has no class that declares what its models share
    classifier = timm_model.get_classifier() if hasattr(model, 'get_classifier') else None
    if not isinstance(classifier, nn.Module):
        raise UserError(f'{type(model).__name__} has no single classifier')
    return classifier
