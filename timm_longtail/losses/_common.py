"""What every loss shares: its precision, its reduction and its checks of shapes; and for contrast, its blocks."""
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ParamSpec

import torch
from torch.utils.checkpoint import checkpoint

from ..utils.errors import UserError

# similarities held at a time, 16 MB in float32: smaller blocks pay for their overhead, and larger ones for memory that
# a CPU's allocator asks the system for anew each time
BLOCK_SIZE = 2 ** 22

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


def reduce_rows(loss: torch.Tensor, reduction: str, weight: torch.Tensor | None = None) -> torch.Tensor:
    """Reduce the loss of each row [B]: 'mean' or 'sum' to a scalar, 'none' leaves [B].

    Args:
        loss: Of each row [B].
        reduction: As above.
        weight: Of each row [B], as in PyTorch: it multiplies the loss, and the mean is sum(w l) / sum(w).

    Raises:
        UserError: Another reduction.
    """
    if weight is not None:
        loss = weight * loss
    if reduction == 'mean':
        return loss.mean() if weight is None else loss.sum() / weight.sum()
    if reduction == 'sum':
        return loss.sum()
    if reduction == 'none':
        return loss
    raise UserError(f"unknown reduction {reduction!r}, expected 'mean', 'sum' or 'none'")


def mean_over_batch(loss: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the loss of the rows [B] that a mask, bool [B], leaves in, over B: the mean of these parts over processes of
    equal batches is exact, whatever rows each process has. None leaves all in.

    Raises:
        UserError: A mask of another shape or type.
    """
    if mask is None:
        return loss.mean()
    if mask.shape != loss.shape or mask.dtype != torch.bool:
        raise UserError(f'expected a mask bool {[*loss.shape]}, got {mask.dtype} {[*mask.shape]}')
    return loss.masked_fill(~mask, 0).mean()


def check_embeddings(embeddings: torch.Tensor, target: torch.Tensor, temperature: float):
    """Check embeddings [B, D] against target [B], by their shapes only: values are never read.

    Raises:
        UserError: Shapes that do not fit, or a temperature that is not positive.
    """
    if embeddings.ndim != 2 or target.shape != embeddings.shape[:1]:
        raise UserError(f'expected embeddings [B, D] and target [B], got {[*embeddings.shape]} and {[*target.shape]}')
    if not temperature > 0:
        raise UserError(f'temperature must be positive, got {temperature}')


def loss_of_anchors(
        block_loss: Callable[..., torch.Tensor],
        embeddings: torch.Tensor,
        target: torch.Tensor,
        num_terms: int,
        *others: Any,
) -> torch.Tensor:
    """Loss of each row as an anchor against T terms, in blocks of anchors so that [B, T] never exists as a whole.

    A block holds up to `BLOCK_SIZE` similarities, and the backward pass computes them again. A batch of one block is
    computed once and keeps them.

    Args:
        block_loss: `block_loss(first, anchors, anchor_target, *others)` gives the loss [R] of R rows from row `first`.
        embeddings: Rows [B, D].
        target: Class ids [B].
        num_terms: Columns T of the similarities.
        others: What every block sees whole; tensors get their gradients.

    Returns:
        [B].
    """
    if len(target) * num_terms <= BLOCK_SIZE:
        return block_loss(0, embeddings, target, *others)
    block_rows = max(1, BLOCK_SIZE // num_terms)
    blocks = zip(range(0, len(target), block_rows), embeddings.split(block_rows), target.split(block_rows))
    return torch.cat([
        checkpoint(block_loss, *block, *others, use_reentrant=False, preserve_rng_state=False) for block in blocks
    ])
