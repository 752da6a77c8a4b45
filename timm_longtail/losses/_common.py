"""What every loss shares: its precision, its reduction and its checks of shapes."""
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec

import torch

from ..errors import UserError

P = ParamSpec('P')


def _raise_half(value: Any) -> Any:
    is_half = isinstance(value, torch.Tensor) and value.is_floating_point() and value.dtype.itemsize < 4
    return value.float() if is_half else value


def full_precision(loss: Callable[P, torch.Tensor]) -> Callable[P, torch.Tensor]:
    """Decorate a loss: half tensors are raised to float32, wider ones stay, and autocast is off inside."""

    @functools.wraps(loss)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> torch.Tensor:
        args = tuple(_raise_half(value) for value in args)
        kwargs = {name: _raise_half(value) for name, value in kwargs.items()}
        device_type = next(v.device.type for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor))
        # a device without autocast (meta) refuses even to switch it off
        has_autocast = torch.amp.is_autocast_available(device_type)
        with torch.autocast(device_type, enabled=False) if has_autocast else nullcontext():
            return loss(*args, **kwargs)

    return wrapper


def reduce_rows(loss: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce the loss of each row [B]: 'mean' or 'sum' to a scalar, 'none' leaves [B].

    Raises:
        UserError: Another reduction.
    """
    if reduction == 'mean':
        return loss.mean()
    if reduction == 'sum':
        return loss.sum()
    if reduction == 'none':
        return loss
    raise UserError(f"unknown reduction {reduction!r}, expected 'mean', 'sum' or 'none'")


def check_embeddings(embeddings: torch.Tensor, target: torch.Tensor, temperature: float):
    """Check embeddings [B, D] against target [B], by their shapes only: values are never read.

    Raises:
        UserError: Shapes that do not fit, or a temperature that is not positive.
    """
    if embeddings.ndim != 2 or target.shape != embeddings.shape[:1]:
        raise UserError(f'expected embeddings [B, D] and target [B], got {[*embeddings.shape]} and {[*target.shape]}')
    if not temperature > 0:
        raise UserError(f'temperature must be positive, got {temperature}')
