"""The options of a run: resolved once, recorded as plain types, and frozen from then on."""
from argparse import Namespace
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from ..config.parser import plain
from ..utils.errors import UserError
from .accelerator import memory_format

__all__ = ['Options', 'micro_batch_size', 'plain', 'resolve_options']


class Options(Namespace):
    """Options of `train.py` that a run is built from; an assignment is refused.

    Args:
        **values: Options by name.
    """

    def __init__(self, **values: Any):
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f'options are frozen: {name} is changed by `replace`, which returns other options')

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f'options are frozen: {name} cannot be deleted')

    def replace(self, **changes: Any) -> 'Options':
        """Return the same options with other values of some.

        Raises:
            AttributeError: There is no option of a name.
        """
        for name in changes:
            if name not in self:
                raise AttributeError(f'there is no option {name}')
        return Options(**{**vars(self), **changes})


def resolve_options(args: Namespace, accelerator: Accelerator) -> Options:
    """Decide the options that depend on device and processes, and freeze all of them.

    The method and the sampler are resolved by `parse_train_args`.

    Args:
        args: Parsed options of `train.py`.
        accelerator: Accelerator of this process.

    Raises:
        UserError: The global batch size cannot be divided among the processes.
    """
    micro_batch_size(args, accelerator.num_processes)

    channels_last = args.channels_last
    if channels_last is None:
        channels_last = memory_format(accelerator.device) is torch.channels_last
    return Options(**{**vars(args), 'channels_last': channels_last})


def micro_batch_size(args: Namespace, num_processes: int) -> int:
    """Return the number of images in a micro-batch of one process.

    It is not an option itself: what is recorded is the batch size that was asked for, so that a
    recorded run can be repeated on another number of processes.

    Args:
        args: Options `batch_size`, `global_batch_size` and `grad_accum_steps`.
        num_processes: Number of training processes.

    Raises:
        UserError: The global batch size cannot be divided among the processes.
    """
    if args.global_batch_size is None:
        return args.batch_size

    num_parts = num_processes * args.grad_accum_steps
    if args.global_batch_size % num_parts:
        raise UserError(
            f'--global-batch-size {args.global_batch_size} cannot be cut into {num_processes} processes x '
            f'{args.grad_accum_steps} accumulated micro-batches'
        )
    return args.global_batch_size // num_parts
