"""What losses of class scores share: the check of their shapes, the weight of a row, the class prior.

Shapes: B batch, C classes.
"""
from collections.abc import Sequence

import torch

from ..utils.errors import UserError


def check_logits(logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None):
    """Check logits [B, C] against class ids [B] and class weights [C], by their shapes only.

    Raises:
        UserError: Shapes that do not fit.
    """
    if logits.ndim != 2 or target.shape != logits.shape[:1]:
        raise UserError(
            f'expected logits [B, C] and target [B], got {[*logits.shape]} and {[*target.shape]}')
    if weight is not None and weight.shape != logits.shape[1:]:
        raise UserError(
            f'expected {logits.shape[1]} class weights, one a column of logits, '
            f'got {[*weight.shape]}')


def is_target_class(target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return whether each class is that of the row, bool [B, C], for class ids [B]."""
    classes = torch.arange(num_classes, dtype=target.dtype, device=target.device)
    return target[:, None] == classes


def row_weight(
        weight: torch.Tensor | None,
        logits: torch.Tensor,
        target: torch.Tensor,
) -> torch.Tensor | None:
    """Return the weight of each row's class [B] in the dtype of logits; None stays None."""
    if weight is None:
        return None
    return weight.to(logits)[target]


def log_prior(class_counts: Sequence[float] | torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the log of each class's share of the training images, [C], in the dtype of logits.

    Raises:
        UserError: Not C counts, or one that is not positive (checked on the CPU only).
    """
    counts = torch.as_tensor(class_counts)
    if counts.shape != logits.shape[-1:]:
        raise UserError(
            f'expected {logits.shape[-1]} class counts, one a column of logits, '
            f'got {[*counts.shape]}')

    # reading values would wait for an accelerator, and break the graph while tracing
    can_read = counts.device.type == 'cpu' and not torch.compiler.is_compiling()
    if can_read and not (counts > 0).all():
        first = int((counts > 0).int().argmin())
        raise UserError(f'class counts must be positive, class {first} is not')

    counts = counts.to(device=logits.device, dtype=logits.dtype)
    return counts.log() - counts.sum().log()
