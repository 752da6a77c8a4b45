"""`python -m benchmarks.scale check`: the numbers of `benchmarks.scale` against what can be measured on a CPU.

    python -m benchmarks.scale check                              # a table
    python -m benchmarks.scale check --only memory --batch-size 8

- flops: a convolution against a count by hand; ResNet-50 against the figure that torchvision publishes.
- memory: the step that fake tensors predict against the growth of the resident memory of a process that takes it.
- network: the bytes that leave each of two hosts of one gloo process against the formula: those of a step, and of large
  rows that are gathered. Memory once more, with DDP's copy of the gradients. The hosts are network namespaces with a
  cable between them (Linux, root, iproute2); elsewhere this check is skipped.
"""
import argparse
import ctypes
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from benchmarks.scale import Cost, create_run, print_table, step_cost, traffic, write_grey
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.flops import count_flops
from timm_longtail.training.loop import _train_phase
from timm_longtail.training.run import Run
from timm_longtail.utils.distributed import all_gather_cat

RECIPE = 'bcl_resnet50.imagenet_lt'
STEPS = 3
GATHERED = (4096, 1024)  # rows of a rank, far more than a step has: they would be lost among the gradients


def take_step(run: Run, batches: list):
    """Take a step of all phases, as the loop does."""
    for phase, optimizer in zip(run.method.phases, run.optimizers):
        _train_phase(run, phase, optimizer, [tuple(batches)])


def random_batches(run: Run, batch_size: int) -> list:
    """Return a batch of noise for each stream."""
    size, num_classes = run.data.preprocessing.img_size, len(run.method.class_counts)
    batches = []
    for _ in run.loaders:
        views = tuple(torch.rand(batch_size, 3, size, size) for _ in run.method.views)
        target = torch.randint(num_classes, (batch_size,))
        batches.append((views, target, target))
    return batches


def predict(recipe: str, world_size: int, options: list[str]) -> Cost:
    """Return the cost of a step in float32 by fake tensors."""
    accelerator = create_accelerator('no')
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(accelerator, recipe, write_grey(Path(folder)), world_size, options)
        return step_cost(run, world_size, 'no')


# ----------------------------------------------------------------------------------------------------- FLOPs

def check_flops() -> list[list[str]]:
    """Return rows of the table: layer, predicted, by hand, deviation."""
    from torchvision.models import ResNet50_Weights, resnet50

    # 4 images of 9 x 9 pixels; each output of 32 channels is 16 / groups channels x 3 x 3 products of two FLOPs
    rows = []
    for groups in (1, 4):
        layer = nn.Conv2d(16, 32, 3, padding=1, groups=groups)
        with count_flops() as counter:
            layer(torch.zeros(4, 16, 9, 9, requires_grad=True)).sum().backward()
        by_hand = 3 * 2 * (4 * 32 * 9 * 9) * (16 // groups * 3 * 3)
        rows.append(compare(f'convolution of {groups} groups, MFLOP', counter.get_total_flops() / 1e6, by_hand / 1e6))

    with count_flops() as counter, torch.no_grad():
        resnet50().eval()(torch.zeros(1, 3, 224, 224))
    published = 2e9 * ResNet50_Weights.IMAGENET1K_V1.meta['_ops']  # which counts products
    rows.append(compare('ResNet-50, forward, GFLOP', counter.get_total_flops() / 1e9, published / 1e9))
    return rows


# ---------------------------------------------------------------------------------------------------- memory

def resident(field: str) -> int:
    """Return bytes of this process: 'VmRSS' now, 'VmHWM' the most since it was last reset."""
    status = Path('/proc/self/status').read_text()
    return int(re.search(rf'{field}:\s*(\d+)', status)[1]) * 1024


def return_freed_memory():
    """Let the allocator of this process (glibc) return what is freed at once, and not keep it for later.

    It takes back what `create_accelerator` has chosen, so it is called behind that.
    """
    trim_threshold, mmap_threshold = -1, -3
    library = ctypes.CDLL(None)
    library.mallopt(mmap_threshold, 1 << 16)
    library.mallopt(trim_threshold, 1 << 16)
    library.malloc_trim(0)


def measure_memory(recipe: str, batch_size: int, options: list[str]) -> int:
    """Return the bytes that two steps add at their peak to what a built run holds; in a process of its own."""
    accelerator = create_accelerator('no')
    return_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(accelerator, recipe, write_grey(Path(folder)), options=options)
    run.task.train()

    Path('/proc/self/clear_refs').write_text('5')  # resets the peak
    before = resident('VmRSS')
    for _ in range(2):
        take_step(run, random_batches(run, batch_size))
    return resident('VmHWM') - before


def check_memory(recipe: str, batch_size: int, options: list[str]) -> list[list[str]]:
    """Return a row of the table: step, predicted, measured, deviation."""
    options = ['--global-batch-size', str(batch_size), *options]
    with ProcessPoolExecutor(1, get_context('spawn')) as pool:
        measured = pool.submit(measure_memory, recipe, batch_size, options).result()

    cost = predict(recipe, 1, options)
    predicted = cost.step + cost.optimizer
    return [compare(f'step of {cost.views} views and optimizer, GB', predicted / 1e9, measured / 1e9)]


# --------------------------------------------------------------------------------------------------- network

def ip(words: str):
    subprocess.run(['ip', *words.split()], check=True, capture_output=True)


@contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Make two network namespaces with a cable between them; give their names. Host 0 is 10.78.0.1."""
    names = [f'scale{rank}-{os.getpid()}' for rank in range(2)]
    made = []
    try:
        for name in names:
            ip(f'netns add {name}')
            made.append(name)

        ip(f'link add eth0 netns {names[0]} type veth peer name eth0 netns {names[1]}')
        for rank, name in enumerate(names):
            ip(f'-n {name} addr add 10.78.0.{rank + 1}/24 dev eth0')
            ip(f'-n {name} link set eth0 up')
            ip(f'-n {name} link set lo up')

        yield names
    finally:
        for name in made:
            ip(f'netns del {name}')


def sent_bytes() -> int:
    """Return the bytes that this host has sent, headers included."""
    line = next(line for line in Path('/proc/self/net/dev').read_text().splitlines() if 'eth0:' in line)
    return int(line.split(':')[1].split()[8])


def sent_by(act: Callable[[], object], times: int) -> int:
    """Return the bytes that this host sends while all do something; the mean of some times."""
    dist.barrier()
    start = sent_bytes()
    for _ in range(times):
        act()
    dist.barrier()
    sent = sent_bytes() - start
    dist.barrier()  # nobody goes on before all have read
    return sent // times


def measure_rank(recipe: str, options: list[str]) -> dict[str, int]:
    """Return what this rank sends and holds.

    Returns:
        `sent`, bytes of a step; `memory`, the most that it held over what it held before the run was built; `gathered`,
        bytes of `all_gather_cat` of GATHERED, forward and backward.
    """
    accelerator = create_accelerator('no')
    return_freed_memory()
    before = resident('VmRSS')
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(accelerator, recipe, write_grey(Path(folder)), options=options)
    run.task.train()
    batches = random_batches(run, run.images_per_step // accelerator.num_processes)

    # DDP orders its buckets anew behind the first step
    for _ in range(2):
        take_step(run, batches)
    sent = sent_by(lambda: take_step(run, batches), STEPS)
    memory = resident('VmHWM') - before

    rows = torch.rand(GATHERED, requires_grad=True)
    gathered = sent_by(lambda: all_gather_cat(rows).sum().backward(), STEPS)
    return {'sent': sent, 'memory': memory, 'gathered': gathered}


def measure_hosts(recipe: str, options: list[str]) -> list[dict[str, int]]:
    """Return `measure_rank` of each of two hosts."""
    meet = {'MASTER_ADDR': '10.78.0.1', 'MASTER_PORT': '29500', 'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '1',
            'LOCAL_RANK': '0', 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
    with two_hosts() as names:
        processes = []
        for rank, name in enumerate(names):
            command = ['ip', 'netns', 'exec', name, sys.executable, '-m', 'benchmarks.scale_check', 'rank', recipe]
            processes.append(subprocess.Popen(
                [*command, *options], env={**os.environ, **meet, 'RANK': str(rank)}, stdout=subprocess.PIPE, text=True))
        return [json.loads(process.communicate()[0].splitlines()[-1]) for process in processes]


def check_network(recipe: str, options: list[str]) -> list[list[str]]:
    """Return rows of the table: rank, predicted, measured, deviation; none where there are no namespaces."""
    options = ['--global-batch-size', '8', '--img-size', '64', *options]
    try:
        with two_hosts():
            pass
    except (OSError, subprocess.CalledProcessError) as error:
        print(f'network: skipped, needs root and iproute2: {error}', file=sys.stderr)
        return []

    cost = predict(recipe, 2, options)
    sent = traffic(cost, 2)
    whole = 2 * 4 * math.prod(GATHERED)
    # gloo scatters by reducing all, and sends twice what NCCL sends
    gathered = traffic(replace(cost, collectives=[('gather', whole), ('reduce', whole)]), 2).gathered
    rows = []
    for rank, measured in enumerate(measure_hosts(recipe, options)):
        # the last of the ring passes the buffers on to nobody
        predicted = sent.total if rank == 0 else sent.total - sent.buffers
        rows.append(compare(f'sent by rank {rank} of 2, MB', predicted / 1e6, measured['sent'] / 1e6))
        rows.append(compare(f'gathered and scattered by rank {rank}, MB', gathered / 1e6, measured['gathered'] / 1e6))
    rows.append(compare('memory of rank 1 of 2, GB', cost.memory / 1e9, measured['memory'] / 1e9))
    return rows


def compare(what: str, predicted: float, measured: float) -> list[str]:
    """Return a row of the table."""
    return [what, f'{predicted:.4g}', f'{measured:.4g}', f'{100 * (predicted / measured - 1):+.1f} %']


def main(argv: list[str]):
    checks = ['flops', 'memory', 'network']
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.scale check', description='Compare predictions with measurements on a CPU.',
        epilog='Other options are those of train.py.')
    parser.add_argument('--only', nargs='+', choices=checks, default=checks, help='checks to make')
    parser.add_argument('--recipe', default=RECIPE)
    parser.add_argument('--batch-size', type=int, default=4, help='images of the step whose memory is measured')
    args, options = parser.parse_known_args(argv)

    rows = []
    if 'flops' in args.only:
        rows += check_flops()
    if 'memory' in args.only:
        rows += check_memory(args.recipe, args.batch_size, options)
    if 'network' in args.only:
        rows += check_network(args.recipe, options)
    print_table(['', 'predicted', 'measured', 'deviation'], rows)


if __name__ == '__main__':
    # one of the hosts of `measure_hosts`
    if sys.argv[1] == 'rank':
        print(json.dumps(measure_rank(sys.argv[2], sys.argv[3:])))
