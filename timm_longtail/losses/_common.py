"""What every loss shares: its precision, its reduction and its checks of shapes; and for contrast, its blocks."""
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar, cast

import torch
from torch.utils.checkpoint import checkpoint

from ..utils.errors import UserError

# Similarities held at a time, 16 MB in float32. Smaller blocks pay for their overhead, and larger
# ones for memory that the CPU's allocator returns to the system and requests again each time.
BLOCK_SIZE = 2 ** 22

Loss = TypeVar('Loss', bound=Callable[..., Any])

# asked once, since torch.compile of torch 2.9 cannot trace the question
_WITHOUT_AUTOCAST = {kind for kind in ('meta', 'mps') if not torch.amp.is_autocast_available(kind)}


def full_precision(loss: Loss) -> Loss:
    """Decorate a loss: half tensors become float32, wider ones stay, and autocast is off inside."""

    @functools.wraps(loss)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        args = tuple(_raise_half(value) for value in args)
        kwargs = {name: _raise_half(value) for name, value in kwargs.items()}

        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        device_type = tensors[0].device.type

        # a device without autocast refuses even to switch it off
        has_autocast = device_type not in _WITHOUT_AUTOCAST
        with torch.autocast(device_type, enabled=False) if has_autocast else nullcontext():
            return loss(*args, **kwargs)

    return cast(Loss, wrapper)


def _raise_half(value: Any) -> Any:
    """Return a half tensor in float32, and any other value as it is."""
    if not isinstance(value, torch.Tensor):
        return value

    is_half = value.is_floating_point() and value.dtype.itemsize < 4
    return value.float() if is_half else value


def reduce_rows(
        loss: torch.Tensor,
        reduction: str,
        weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """Reduce the loss of each row to a scalar, or leave it as it is.

    Args:
        loss: Loss of each row, [B].
        reduction: 'mean' or 'sum' for a scalar, 'none' for [B].
        weight: Weight of each row, [B], as in PyTorch: it multiplies the loss, and the mean is
            sum(w l) / sum(w).

    Raises:
        UserError: Another reduction.
    """
    if weight is not None:
        loss = weight * loss

    if reduction == 'none':
        return loss
    if reduction == 'sum':
        return loss.sum()
    if reduction == 'mean':
        return loss.mean() if weight is None else loss.sum() / weight.sum()
    raise UserError(f"unknown reduction {reduction!r}, expected 'mean', 'sum' or 'none'")


def mean_over_batch(loss: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Sum the loss of the rows that a mask selects, divided by the size of the whole batch.

    The mean of such values over processes of equal batches is exact, however many rows each process
    selects.

    Args:
        loss: Loss of each row, [B].
        mask: Rows that count, bool [B]; None counts all.

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
        raise UserError(
            f'expected embeddings [B, D] and target [B], '
            f'got {[*embeddings.shape]} and {[*target.shape]}')
    if not temperature > 0:
        raise UserError(f'temperature must be positive, got {temperature}')


def loss_of_anchors(
        block_loss: Callable[..., torch.Tensor],
        embeddings: torch.Tensor,
        target: torch.Tensor,
        num_terms: int,
        *others: Any,
) -> torch.Tensor:
    """Compute the loss of each row as an anchor against T terms, in blocks of anchors.

    The matrix [B, T] never exists as a whole. A block holds up to `BLOCK_SIZE` similarities, and
    the backward pass computes them again. A batch of one block is computed once and keeps them.

    Args:
        block_loss: Function `block_loss(first, anchors, anchor_target, *others)` that returns the
            loss [R] of the R rows from row `first` on.
        embeddings: Rows [B, D].
        target: Class ids [B].
        num_terms: Number T of columns of the similarities.
        *others: Arguments that every block is given whole; gradients reach the tensors among them.

    Returns:
        Loss of each row, [B].
    """
    if len(target) * num_terms <= BLOCK_SIZE:
        return block_loss(0, embeddings, target, *others)

    block_rows = max(1, BLOCK_SIZE // num_terms)
    losses = []
    blocks = zip(embeddings.split(block_rows), target.split(block_rows))
    for block, (anchors, anchor_target) in enumerate(blocks):
        losses.append(checkpoint(
            block_loss,
            block * block_rows,
            anchors,
            anchor_target,
            *others,
            use_reentrant=False,
            preserve_rng_state=False,
        ))
    return torch.cat(losses)
