"""Where the time of a training step goes: a Markdown table, by torch's profiler.

    python -m benchmarks.step_profile --model bcl_resnet32 --dataset cifar100_lt --batch-size 256

Takes the options of `train.py`. Times are those of the operators themselves, on the host, or on the device where there
is one.
"""
import sys
import time
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity, profile

import timm_longtail  # noqa: F401  registers the models
from timm_longtail.cli.entry import run_main
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import build_run, create_datasets
from timm_longtail.training.loop import _train_phase
from timm_longtail.training.options import resolve_options

STEPS = 8
# the first kind that has one of its words in an operator's name
KINDS = {
    'convolution, backward': ('convolution_backward',),
    'convolution, forward': ('mkldnn_convolution', 'cudnn_convolution', 'convolution', 'conv2d'),
    'BatchNorm': ('batch_norm',),
    'ReLU, additions, optimizer': ('relu', 'threshold_backward', 'aten::add', 'aten::add_', '_foreach', '_fused'),
    'matrix products': ('mm', 'matmul', 'linear'),
    'copies': ('copy_', 'clone', 'contiguous', '_to_copy', 'cat'),
}


def kind_of(name: str) -> str:
    """Return the kind of an operator."""
    return next((kind for kind, words in KINDS.items() if any(word in name for word in words)), 'all others')


def main():
    args = parse_train_args(sys.argv[1:])
    accelerator = create_accelerator(args.mixed_precision)
    args = resolve_options(args, accelerator)
    train_set, eval_set, _ = create_datasets(args)
    run = build_run(args, accelerator, train_set, eval_set)
    run.start_epoch(args.epochs)
    batches, seconds = iter(run.loaders[0]), 0.

    def step():
        nonlocal seconds
        start = time.perf_counter()
        batch = next(batches)
        seconds += time.perf_counter() - start
        _train_phase(run, run.method.phases[0], run.optimizers[0], [(batch,)])
    run.task.train()
    step()
    on_device = accelerator.device.type == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    seconds, start = 0., time.perf_counter()
    with profile(activities=activities) as recorded:
        for _ in range(STEPS):
            step()
    wall = time.perf_counter() - start
    times = defaultdict(float)
    for event in recorded.key_averages():
        times[kind_of(event.key)] += (event.self_device_time_total if on_device else event.self_cpu_time_total) / 1e3
    total = sum(times.values())
    print(f'{args.model}, {args.method}, batch {run.images_per_step}, {torch.get_num_threads()} threads, '
          f'{accelerator.device.type}: {wall / STEPS * 1e3:.0f} ms a step under the profiler; '
          f'{100 * seconds / wall:.1f} % of it in the loader\n')
    print('| What | ms a step | share |\n| --- | --- | --- |')
    for kind, value in sorted(times.items(), key=lambda item: -item[1]):
        print(f'| {kind} | {value / STEPS:.1f} | {100 * value / total:.1f} % |')


if __name__ == '__main__':
    run_main(main)
