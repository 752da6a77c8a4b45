"""Time and memory of the contrastive losses, forward and backward: `python -m benchmarks.losses --rows 512 8192`.

Prints one JSON line a size, each measured in a process of its own. `ps_per_product` is the time divided by the products
B x T x D of the similarities, T the terms of an anchor: it stays flat where time grows like the arithmetic. Memory is
the peak of the process, and what it held before the loss (Linux), or the allocator's on an accelerator.
"""
import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.nn.functional as F

from timm_longtail.losses import _common, balanced_sup_con_loss, sup_con_loss

parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
parser.add_argument('--loss', choices=['balanced_sup_con', 'sup_con'], default='balanced_sup_con')
parser.add_argument('--rows', type=int, nargs='+', default=[512, 1024, 2048, 4096, 8192],
                    help='all views of all images')
parser.add_argument('--classes', type=int, nargs='+', default=[100, 1000, 8142])
parser.add_argument('--width', type=int, default=128)
parser.add_argument('--dtype', choices=['float32', 'float64', 'bfloat16'], default='float32')
parser.add_argument('--device', default='cpu')
parser.add_argument('--repeats', type=int, default=3, help='the fastest counts')
parser.add_argument('--block-size', type=int, default=_common.BLOCK_SIZE,
                    help='similarities held at a time; a huge number is the plain form')


def memory_mb(device: str, field: str) -> float:
    """Megabytes of this process: 'VmHWM' the most it ever held, 'VmRSS' now; of the allocator on an accelerator."""
    if device != 'cpu':
        accelerator = torch.get_device_module(device)
        return {'VmHWM': accelerator.max_memory_allocated, 'VmRSS': accelerator.memory_allocated}[field]() / 1e6
    # not getrusage, whose peak is inherited from the process that started this one
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e6


def measure(args: argparse.Namespace, rows: int, classes: int) -> dict:
    """Run the loss and its backward `args.repeats` times at one size.

    Args:
        args: As parsed above.
        rows: Rows B of the batch.
        classes: Classes C; `sup_con` has no prototypes, its terms are the rows.
    """
    _common.BLOCK_SIZE = args.block_size

    # the batch; a loss with prototypes takes one a class beside it
    torch.manual_seed(0)
    target = torch.randint(classes, (rows,), device=args.device)
    sizes = [rows, classes] if args.loss == 'balanced_sup_con' else [rows]
    leaves = [
        F.normalize(torch.randn(size, args.width)).to(args.device, getattr(torch, args.dtype)).requires_grad_()
        for size in sizes
    ]

    loss = balanced_sup_con_loss if args.loss == 'balanced_sup_con' else sup_con_loss
    before = memory_mb(args.device, 'VmRSS')
    seconds, cpu_seconds = [], []

    for _ in range(args.repeats):
        start, cpu_start = time.perf_counter(), time.process_time()
        value = loss(leaves[0], target, *leaves[1:], temperature=0.1)
        gradients = torch.autograd.grad(value, leaves)
        value = value.item()  # waits for an accelerator
        norm = gradients[0].float().norm().item()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)  # of all threads; steadier on a shared machine

    return {
        'loss': args.loss, 'rows': rows, 'classes': classes, 'width': args.width, 'dtype': args.dtype,
        'device': args.device, 'threads': torch.get_num_threads(), 'block_size': args.block_size,
        'seconds': min(seconds), 'cpu_seconds': min(cpu_seconds),
        'ps_per_product': min(seconds) / (rows * sum(sizes) * args.width) * 1e12, 'before_mb': before,
        'peak_mb': memory_mb(args.device, 'VmHWM'), 'value': value, 'gradient_norm': norm,
    }


def main():
    """Measure every size, several of them each in a fresh process: a peak of memory is of the process."""
    args = parser.parse_args()
    sizes = [(rows, classes) for classes in args.classes for rows in args.rows]
    for size in sizes:
        if len(sizes) == 1:
            result = measure(args, *size)
        else:
            with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
                result = pool.submit(measure, args, *size).result()
        print(json.dumps(result), flush=True)


if __name__ == '__main__':
    main()
