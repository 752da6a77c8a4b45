"""The machine a run is on: processes, device, precision."""
import logging
import os

import torch
from accelerate import Accelerator

from .errors import UserError

__all__ = ['create_accelerator']

_logger = logging.getLogger(__name__)


def create_accelerator(mixed_precision: str | None = None) -> Accelerator:
    """Return the Accelerator of this process.

    Args:
        mixed_precision: `no`, `bf16`, `fp16`; None takes what `accelerate launch` was told. On a CPU without bf16
            instructions torch computes bf16 convolutions 15 times slower than fp32, so fp32 is used there instead, and
            said.

    Raises:
        UserError: Several processes were launched that Accelerate does not see as one run; fp16 without a device.
    """
    on_cpu = not torch.accelerator.is_available()
    mixed_precision = mixed_precision or os.environ.get('ACCELERATE_MIXED_PRECISION', 'no')
    if on_cpu and mixed_precision == 'fp16':
        raise UserError('--mixed-precision fp16 needs a device')
    if on_cpu and mixed_precision == 'bf16' and not _cpu_has_bf16():
        _logger.warning('mixed precision: bf16 was asked for and fp32 is used: this CPU has no bf16 instructions')
        mixed_precision = 'no'
    # without a device it must be told so, or its launcher's settings decide
    try:
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision)
    except ValueError as e:
        raise UserError(f'Accelerate: {e}') from e
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    if world_size != accelerator.num_processes:
        raise UserError(
            f'{world_size} processes were launched, Accelerate sees {accelerator.num_processes}: '
            'set ACCELERATE_USE_CPU=true on a machine without a device, or use distributed_train.sh'
        )
    return accelerator


def _cpu_has_bf16() -> bool:
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()
