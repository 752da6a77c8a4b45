"""The registry of methods."""
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..utils.errors import UserError, near_names, unknown_name
from ..utils.ranges import check_option
from ._method import Method

__all__ = ['check_options', 'create_method', 'default_options', 'list_methods', 'method_class', 'register_method']

_METHODS: dict[str, type[Method]] = {}


def register_method(name: str) -> Callable[[type[Method]], type[Method]]:
    """Register a method class under a name, which is also its file's: `@register_method('bcl')` in `bcl.py`.

    A constructor that passes `**kwargs` on to the method it extends has the options of both.
    """
    def register(cls: type[Method]) -> type[Method]:
        cls.__signature__ = _signature(cls)
        _METHODS[name] = cls
        return cls
    return register


def _signature(cls: type[Method]) -> inspect.Signature:
    _, *own = inspect.signature(cls.__init__).parameters.values()
    if own[-1].kind is inspect.Parameter.VAR_KEYWORD:
        names = {p.name for p in own}
        inherited = inspect.signature(cls.__base__).parameters.values()
        own[-1:] = [p for p in inherited if p.kind is p.KEYWORD_ONLY and p.name not in names]
    return inspect.Signature(own)


def list_methods() -> list[str]:
    """Return the names of all registered methods."""
    return sorted(_METHODS)


def method_class(name: str) -> type[Method]:
    """Return a method's class.

    Raises:
        UserError: No method has this name.
    """
    if name not in _METHODS:
        raise unknown_name('method', name, _METHODS)
    return _METHODS[name]


def tells_classes(method: str | None, num_outputs: int) -> bool:
    """Return whether a method's model with so many outputs tells classes: MoCo's has none, those of RAIS are rotations.

    An unknown method, or none, is taken for one that does.
    """
    some = 1000
    return num_outputs > 0 and (method not in _METHODS or _METHODS[method].num_outputs(some) == some)


def create_method(name: str, model: nn.Module, class_counts, /, **kwargs) -> Method:
    """Build a method around a model.

    Args:
        name: Registered name, see `list_methods`.
        model: timm model with `num_outputs(num_classes)` outputs.
        class_counts: Training images of each class, [C].
        **kwargs: The method's hyper-parameters; its constructor has the defaults of its paper on CIFAR.

    Raises:
        UserError: Unknown method or hyper-parameter, one of another kind or out of range; a class without images.
    """
    check_options(name, kwargs)
    if min(float(n) for n in class_counts) < 1:
        raise UserError(f'class_counts must be at least 1 for every class, got {min(float(n) for n in class_counts):g}')
    return method_class(name)(model, class_counts, **kwargs)


def default_options(cls: type[Method]) -> dict[str, Any]:
    """Return the options of a method and their defaults."""
    return {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY}


# of an option by its name, or by the end of its name; a name means the same in every method
_INTERVALS = {
    # layers and queues: larger ones do not fit into memory
    'features': '[1, 65536]',
    'queue_size': '[1, 1048576]',
    'bn_groups': '[1, 4096]',
    # losses
    'temperature': '(0, inf)',
    'weight': '[0, inf)',
    'tau': '[0, 100]',
    'gamma': '[0, 100]',
    'beta': '(0, 1)',
    'margin': '[0, 2]',  # on a cosine, or in nats
    'radius': '(0, inf)',
    'smoothing': '[0, 1)',
    'power': '[0, 5]',  # of class counts in single precision
    # mixing
    'alpha': '[0, inf)',
    'remix_kappa': '[1, inf)',
    'remix_tau': '[0, 1]',
    # schedules and optimizers
    'momentum': '[0, 1)',
    'drop_rate': '[0, 1)',
    'lr': '[0, inf)',
    'decay': '[0, inf)',
    'warmup': '[0, 1)',
    'epochs': '[0, inf)',
    'start': '[0, inf)',
    # groups of classes and images
    'head': '[1, inf)',
    'accuracy': '(0, 1]',
}


def check_options(name: str, options: Mapping[str, Any]):
    """Raise a `UserError` for an unknown method, an option it does not have, a value of another kind, or out of range.

    Kinds are those of the constructor's annotations. Ranges go by the name of an option, or by its end: whatever is
    called `…_weight` is at least 0.
    """
    cls = method_class(name)
    known = default_options(cls)
    parameters = inspect.signature(cls).parameters
    for key, value in options.items():
        if key not in known:
            raise UserError(f'method {name!r} has no option {key!r}; {near_names(key, known, 1)}'
                            f'it takes {", ".join(known) or "none"}')
        check_option(f'option {key!r} of method {name!r}', key, value, parameters[key], _INTERVALS)
