"""Which tensor holds NaN or infinity: of what is loaded, evaluated, trained or exported."""
from collections.abc import Mapping

import torch
from torch import nn

from .errors import UserError

__all__ = [
    'NotFinite',
    'check_finite',
    'describe_not_finite',
    'trained_tensors',
]


class NotFinite(UserError):
    """Weights or outputs of a model are NaN or infinite; the message names what is not finite."""


def trained_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what training changes in a model: parameters, and the statistics of BatchNorm.

    Other buffers may hold infinity for good reasons, such as a mask of attention.

    Args:
        model: Any module.
    """
    tensors: dict[str, torch.Tensor] = dict(model.named_parameters())
    for name, value in model.named_buffers():
        if name.rpartition('.')[2] in ('running_mean', 'running_var'):
            tensors[name] = value
    return tensors


def describe_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Say which tensor is the first that is not finite, and in how many values; None for none.

    Args:
        tensors: Tensors of any shape and type by name.
    """
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or tensor.is_complex()):
            continue

        finite = torch.isfinite(tensor)
        if not finite.all():
            count = int((~finite).sum())
            return f'{name} holds NaN or infinity in {count} of {tensor.numel()} values'
    return None


def check_finite(tensors: Mapping[str, torch.Tensor], source: object):
    """Refuse tensors of which one is not finite.

    Args:
        tensors: Tensors of any shape and type by name.
        source: Where they are from, for the message.

    Raises:
        NotFinite: Names the source and the first such tensor.
    """
    found = describe_not_finite(tensors)
    if found is not None:
        raise NotFinite(f'{source}: {found}')
