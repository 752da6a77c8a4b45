"""The registry of methods."""
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from ..models.tuning import tune_model
from ..utils.errors import UserError, near_names, unknown_name
from ..utils.ranges import check_option
from ._method import ClassCounts, Method

__all__ = [
    'check_options',
    'create_method',
    'default_options',
    'list_methods',
    'method_class',
    'register_method',
    'tells_classes',
]

Registered = TypeVar('Registered', bound=type[Method])

_METHODS: dict[str, type[Method]] = {}


def register_method(name: str) -> Callable[[Registered], Registered]:
    """Register a method class under the name of its file: `@register_method('bcl')` in `bcl.py`.

    A constructor that passes `**kwargs` on to the method it extends has the options of both.
    """
    def register(cls: Registered) -> Registered:
        # inspect.signature reads it
        cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]
        _METHODS[name] = cls
        return cls

    return register


def _signature(cls: type[Method]) -> inspect.Signature:
    """Return the signature of a constructor, with the options of the method that it extends."""
    constructor = cls.__init__  # type: ignore[misc]  # of a class, whose sub-classes have others
    _self, *own = inspect.signature(constructor).parameters.values()
    if own[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return inspect.Signature(own)

    *own, _kwargs = own
    names = {parameter.name for parameter in own}
    for parameter in inspect.signature(cls.__bases__[0]).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in names:
            own.append(parameter)
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
    """Return whether the outputs of a method's model are classes.

    Args:
        method: Name of the method; one that is not registered, or None, is assumed to have outputs
            that are classes.
        num_outputs: Width of the model's classifier; 0 is a model without one.
    """
    if num_outputs == 0:
        return False
    if method not in _METHODS:
        return True

    # a method whose outputs are something else has other numbers of them
    num_classes = 1000
    return _METHODS[method].num_outputs(num_classes) == num_classes


def create_method(
        name: str,
        model: nn.Module,
        class_counts: ClassCounts,
        /,
        tune: str | None = None,
        **kwargs,
) -> Method:
    """Build a method around a model.

    Args:
        name: Registered name, see `list_methods`.
        model: timm model with `num_outputs(num_classes)` outputs.
        class_counts: Training images of each class, [C].
        tune: What is trained of the model, such as `classifier` or `lora(r=16)`, see
            `timm_longtail.models.list_tunings`; None is what the method wants.
        **kwargs: The method's hyper-parameters; its constructor has the defaults of its paper on
            CIFAR.

    Raises:
        UserError: Unknown method, tuning or hyper-parameter, one of another kind or out of range; a
            class without images.
    """
    check_options(name, kwargs)

    smallest = min(float(count) for count in class_counts)
    if smallest < 1:
        raise UserError(f'class_counts must be at least 1 for every class, got {smallest:g}')

    # before the method is built, which may copy the model or replace its classifier
    cls = method_class(name)
    tune_model(model, tune or cls.tune)
    return cls(model, class_counts, **kwargs)


def default_options(cls: type[Method]) -> dict[str, Any]:
    """Return the options of a method and their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


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
    """Check the options of a method by their names and values.

    Kinds are those of the constructor's annotations. Ranges go by the name of an option, or by its
    end: whatever is called `…_weight` is at least 0.

    Args:
        name: Name of the method.
        options: Values of some of its options, by name.

    Raises:
        UserError: Unknown method, an option that it does not have, a value of another kind or out
            of range.
    """
    cls = method_class(name)
    known = default_options(cls)
    parameters = inspect.signature(cls).parameters

    for key, value in options.items():
        if key not in known:
            raise UserError(f'method {name!r} has no option {key!r}; {near_names(key, known, 1)}'
                            f'it takes {", ".join(known) or "none"}')
        check_option(f'option {key!r} of method {name!r}', key, value, parameters[key], _INTERVALS)
