"""A `cuda` device on a machine that has none: tensors of it have a shape, a type and a place, and no values.

Under torch's FakeTensorMode an operation on tensors of two devices raises, and so does whatever needs a value on the
host: `.item()`, `.cpu()` that is looked at, `if tensor`, shapes that follow from data. A training step that runs so
reads nothing back. Two things are not seen: the engine of backward has no fake device, so steps are tried without
gradients; and small copies to the device, such as the parameters of views, for which CUDA may wait.
"""
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from timm_longtail.training.run import Run

DEVICE = torch.device('cuda', 0)

# torch 2.9 starts the driver, 2.14 does not; those between were not tried
_FAKES = (2, 14)
_VERSION = tuple(map(int, torch.__version__.split('.')[:2]))


@contextmanager
def fake_device(autocast: bool = False) -> Iterator[FakeTensorMode]:
    """Let tensors be made on DEVICE, for the length of the block.

    Args:
        autocast: Whether mixed precision is on, in bfloat16.
    """
    if _VERSION < _FAKES:
        pytest.skip('this torch starts the driver of the device for fake tensors')
    previous = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
        torch.set_autocast_enabled('cuda', autocast)
        torch.set_autocast_dtype('cuda', torch.bfloat16)
        try:
            yield mode
        finally:
            torch.set_autocast_enabled('cuda', previous[0])
            torch.set_autocast_dtype('cuda', previous[1])


def fake(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of the same shape and type on DEVICE; called in the block."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)


def move_module(module: nn.Module):
    """Move all parameters and buffers to DEVICE, and tensors that are plain attributes where `.to` would leave them."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(fake(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = fake(buffer)


def move_run(run: Run):
    """Move a run as `build_run` would have built it on DEVICE: method, moving average and loaders."""
    move_module(run.method)
    if run.ema is not None:
        move_module(run.ema.module)

    loaders = run.data.all_loaders()
    for loader in loaders:
        loader.device = DEVICE
        for name in ('images', 'targets', '_mean', '_std'):
            setattr(loader, name, fake(getattr(loader, name)))
