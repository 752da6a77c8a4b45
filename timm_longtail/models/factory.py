"""Models of timm by their names: built as asked for, or on no device only to see what they say of themselves."""
import copy
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from ..utils.errors import UserError, one_line

__all__ = ['create_timm_model', 'default_method', 'pretrained_config']

# names of models that are read from elsewhere, where they may change while this process runs
_ELSEWHERE = ('hf-hub:', 'hf_hub:', 'local-dir:')


def create_timm_model(name: str, /, **kwargs) -> nn.Module:
    """Call `timm.create_model`; what it refuses becomes a `UserError`.

    Args:
        name: Name of a model that timm knows.
        **kwargs: Arguments of `timm.create_model`.

    Raises:
        UserError: No such model, or arguments that it does not take.
    """
    try:
        return timm.create_model(name, **kwargs)
    except Exception as e:  # constructors fail in ways of their own where an option is of the wrong kind
        options = f' with {one_line(kwargs, 100)}' if kwargs else ''
        raise UserError(f'--model {name}{options}: {one_line(e) or type(e).__name__}') from e


def default_method(name: str, /, **kwargs) -> str:
    """Return the method that `train.py` takes for a model, unless one is named.

    Args:
        name: Name of a model that timm knows.
        **kwargs: Arguments of `timm.create_model`.
    """
    return _describe(name, kwargs).default_method


def pretrained_config(name: str, /, **kwargs) -> dict[str, Any]:
    """Return timm's `pretrained_cfg` of a model, without building its weights; {} for a model that has none.

    Args:
        name: Name of a model that timm knows.
        **kwargs: Arguments of `timm.create_model`.
    """
    return copy.deepcopy(_describe(name, kwargs).pretrained_config)


class _Description(NamedTuple):
    default_method: str
    pretrained_config: dict[str, Any]


_described: dict[str, _Description] = {}


def _describe(name: str, kwargs: dict[str, Any]) -> _Description:
    """Return what a model says of itself; one that is registered in this process is built for it once."""
    key = repr((name, sorted(kwargs.items())))
    if key in _described:
        return _described[key]

    # whether a description was at hand must not show in the random numbers of a run
    with torch.random.fork_rng(devices=[]), torch.device('meta'):
        model = create_timm_model(name, **kwargs)
    description = _Description(
        default_method=getattr(model, 'default_method', 'ce'),
        pretrained_config=getattr(model, 'pretrained_cfg', None) or {},
    )

    if not name.startswith(_ELSEWHERE):
        _described[key] = description
    return description
