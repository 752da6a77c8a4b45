"""The registry of tunings: `all`, `classifier`, `adaptformer(bottleneck=4)`."""
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from ...utils.calls import call_by_name, complete_call

__all__ = ['Tuning', 'create_tuning', 'list_tunings', 'parse_tuning', 'register_tuning']


class Tuning:
    """Which parameters of a model are trained beside its classifier; it may add some to the model.

    Options are keyword arguments of the constructor.
    """

    freezes: bool = True
    """Whether a part of the model stays as it is."""

    def select(self, model: Any) -> list[nn.Parameter]:
        """Return the parameters of a model that are trained beside its classifier.

        A tuning that adds parameters adds them here.

        Args:
            model: timm model; changed in place.

        Raises:
            UserError: A model that this tuning does not know how to change.
        """
        raise NotImplementedError

    def chosen(self, model: Any) -> str | None:
        """Return the tuning with the options that it chose by the model, `adaptformer(bottleneck=4)`; None without any.

        Args:
            model: Model that was tuned by this.
        """
        return None

    def deploy(self, model: Any):
        """Bring a trained model into the form that is published: one that timm builds by its name.

        Args:
            model: Model that was tuned by this; changed in place.
        """


_TUNINGS: dict[str, type[Tuning]] = {}

# range of an option by its name
_INTERVALS = {
    'bottleneck': '[1, 65536]',  # a larger layer does not fit into memory
    'r': '[1, 4096]',
    'alpha': '(0, inf)',
}

Registered = TypeVar('Registered', bound=type[Tuning])


def register_tuning(name: str) -> Callable[[Registered], Registered]:
    """Register a class of tunings under a name: `@register_tuning('bias')`."""
    def register(cls: Registered) -> Registered:
        _TUNINGS[name] = cls
        return cls

    return register


def list_tunings() -> list[str]:
    """Return the names of all tunings."""
    return sorted(_TUNINGS)


def create_tuning(text: str) -> Tuning:
    """Build a tuning from its name, with keyword arguments if need be: `lora`, `lora(r=16)`.

    Args:
        text: One of `list_tunings()`, perhaps followed by keyword arguments in brackets.

    Raises:
        UserError: An unknown tuning or argument, a value out of range, or a package that is missing.
    """
    return call_by_name('tuning', text, _TUNINGS, intervals=_INTERVALS)


def parse_tuning(text: str) -> tuple[str, dict[str, Any]]:
    """Return a tuning's name and all its options: equal for two texts of one tuning.

    Args:
        text: See `create_tuning`.

    Raises:
        UserError: An unknown tuning, or a text that is not a call.
    """
    return complete_call('tuning', text, _TUNINGS)
