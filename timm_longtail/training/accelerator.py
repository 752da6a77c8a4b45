"""The machines a run is on: processes, devices, precision; and what its processes must agree on."""
import logging
import os
import socket
import time
from argparse import Namespace
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch.distributed.distributed_c10d import _get_default_store

from ..data import LongTailDataset
from ..utils.errors import UserError
from ..utils.memory import keep_freed_memory

__all__ = [
    'check_agreement', 'cpu_has_bf16', 'create_accelerator', 'memory_format', 'single_device', 'usable_cores',
    'wait_for_main',
]

_logger = logging.getLogger(__name__)

# options that may differ from host to host: paths, and what the main process alone reads
_OWN = (
    'config', 'data_dir', 'dataset', 'experiment', 'initial_checkpoint', 'no_recipe', 'output', 'project', 'recipe',
    'results', 'resume', 'tracker', 'workers',
)


def create_accelerator(mixed_precision: str | None = None, dist_timeout: float = 30.) -> Accelerator:
    """Return the Accelerator of this process, and join the other processes where there are any.

    On a CPU memory that is freed is kept, see `keep_freed_memory`.

    Args:
        mixed_precision: `no`, `bf16` or `fp16`; None takes that of `accelerate launch`. On a CPU
            without bf16 instructions torch computes bf16 convolutions 15 times slower than fp32, so
            fp32 is used there instead, with a warning.
        dist_timeout: Minutes that a collective waits for the other processes.

    Raises:
        UserError: Several processes were launched that Accelerate does not see as one run; fp16
            without a device.
    """
    on_cpu = not torch.accelerator.is_available()
    mixed_precision = mixed_precision or os.environ.get('ACCELERATE_MIXED_PRECISION', 'no')

    # what every process has whole: weights that are evaluated, averaged, saved and compared
    for name in ('FSDP', 'DEEPSPEED'):
        if os.environ.get(f'ACCELERATE_USE_{name}', 'false').lower() in ('true', '1', 'yes'):
            raise UserError(
                f'accelerate launch with {name} is not supported: methods read whole weights of their model, which it '
                'cuts up; --tune and --grad-checkpointing save memory under plain accelerate launch')

    if on_cpu:
        keep_freed_memory()

    # what this machine can do
    if not 0 < dist_timeout < 1e6:
        raise UserError(f'--dist-timeout must be a number of minutes above 0, got {dist_timeout:g}')
    if on_cpu and mixed_precision == 'fp16':
        raise UserError('--mixed-precision fp16 needs a device')
    if on_cpu and mixed_precision == 'bf16' and not cpu_has_bf16():
        _logger.warning('mixed precision: bf16 was asked for and fp32 is used: this CPU has no bf16 instructions')
        mixed_precision = 'no'

    # processes on several hosts
    world_size = int(os.environ.get('WORLD_SIZE', 1))
    local_world_size = int(os.environ.get('LOCAL_WORLD_SIZE', world_size))
    if world_size > local_world_size:
        _choose_interface()

    timeout = InitProcessGroupKwargs(timeout=timedelta(minutes=dist_timeout))
    try:
        # `cpu` is given where there is no device, or the launcher's settings decide
        accelerator = Accelerator(cpu=on_cpu, mixed_precision=mixed_precision, kwargs_handlers=[timeout])
    except ValueError as e:
        raise UserError(f'Accelerate: {e}') from e

    if world_size != accelerator.num_processes:
        raise UserError(
            f'{world_size} processes were launched, Accelerate sees {accelerator.num_processes}: '
            'set ACCELERATE_USE_CPU=true on a machine without a device, or use distributed_train.sh'
        )
    return accelerator


def usable_cores() -> int:
    """Return the number of cores that this process may use.

    All of the machine where it does not say, as on macOS.
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def single_device() -> torch.device:
    """Return the device of a command that is one process; on a CPU it keeps freed memory, as a run does."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator()
    keep_freed_memory()
    return torch.device('cpu')


def memory_format(device: torch.device) -> torch.memory_format:
    """Return the memory format of weights that was measured to be the faster one.

    See benchmarks/README.md.

    Args:
        device: Device of the weights.
    """
    if device.type == 'cpu':
        return torch.channels_last
    return torch.contiguous_format


def cpu_has_bf16() -> bool:
    """Return whether this CPU has bf16 instructions, which torch uses."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _choose_interface():
    """Let gloo speak through the interface that leads to host 0.

    By itself it takes the address of this host's name, which is 127.0.1.1 on a freshly installed
    Debian.
    """
    import psutil
    if 'GLOO_SOCKET_IFNAME' in os.environ:
        return

    # the address of this host that leads there
    target = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    family, kind, _, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # of a datagram: asks the routes, sends nothing
        own = probe.getsockname()[0]

    # and the interface that has this address
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            os.environ['GLOO_SOCKET_IFNAME'] = name


def check_agreement(
        accelerator: Accelerator,
        args: Namespace,
        train_set: LongTailDataset,
        test_set: LongTailDataset,
        code: dict[str, Any],
):
    """Compare options, data and code of all processes. A collective call.

    Args:
        accelerator: Accelerator of this process.
        args: Options; paths may differ.
        train_set: Training images.
        test_set: Test images.
        code: From `provenance.code_state`.

    Raises:
        UserError: A process has something else than the main process; names it and the rank.
    """
    if accelerator.num_processes == 1:
        return

    mine = {}
    for name, value in vars(args).items():
        if name not in _OWN:
            mine[f'--{name.replace("_", "-")}'] = value
    mine.update({
        'mixed precision': accelerator.mixed_precision,
        'training images': train_set.hash,
        'order of the training images': train_set.order,
        'test images': test_set.hash,
        'code': code['tree_hash'][:12],
        'torch': torch.__version__,
    })

    first, *others = gather_object([mine])
    for rank, other in enumerate(others, start=1):
        differing = []
        for name in first | other:
            if first.get(name) != other.get(name):
                differing.append(f'{name} {other.get(name)} there, {first.get(name)} on rank 0')
        if differing:
            shown = ', '.join(differing[:4])
            raise UserError(f'rank {rank} is started for another run than rank 0: {shown}')


def wait_for_main(accelerator: Accelerator):
    """Wait until the main process comes here too, however long it works alone.

    A collective would time out.

    Args:
        accelerator: Accelerator of this process.
    """
    if accelerator.num_processes == 1:
        return

    store = _get_default_store()
    key = 'timm_longtail/main_is_done'
    if accelerator.is_main_process:
        store.set(key, '')
    while not store.check([key]):
        time.sleep(0.2)
    accelerator.wait_for_everyone()
