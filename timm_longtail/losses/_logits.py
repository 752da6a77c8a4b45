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
        raise UserError(f'expected logits [B, C] and target [B], got {[*logits.shape]} and {[*target.shape]}')
    if weight is not None and weight.shape != logits.shape[1:]:
        raise UserError(f'expected {logits.shape[1]} class weights, one a column of logits, got {[*weight.shape]}')


def row_weight(weight: torch.Tensor | None, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor | None:
    """Return the weight of each row's class [B] in the dtype of logits; None stays None."""
    return None if weight is None else weight.to(logits)[target]


def log_prior(class_counts: Sequence[float] | torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """Return the log of each class's share of the training images [C], where and in the dtype that logits are.

    Raises:
        UserError: Not C counts, or one that is not positive (looked at on the CPU only).
    """
    counts = torch.as_tensor(class_counts)
    if counts.shape != logits.shape[-1:]:
        raise UserError(f'expected {logits.shape[-1]} class counts, one a column of logits, got {[*counts.shape]}')
    # reading values on an accelerator would wait for it, reading them while tracing would break the graph
    if counts.device.type == 'cpu' and not torch.compiler.is_compiling() and not (counts > 0).all():
        raise UserError(f'class counts must be positive, class {int((counts > 0).int().argmin())} is not')
    counts = counts.to(device=logits.device, dtype=logits.dtype)
    return counts.log() - counts.sum().log()
