#!/usr/bin/env python3
"""Measure how fast `train.py` trains on this machine; its options, and those below.

    python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --compare
    python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --mixed-precision bf16 --epochs 200 --val-interval 10

One JSON line on stdout, all else on stderr; benchmarks/README.md says what each key means.
"""
import argparse
import json
import logging
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import timm_longtail  # noqa: F401  registers the models
from benchmarks.peers import Peers
from timm_longtail.cli.entry import run_main
from timm_longtail.config.parser import Parser
from timm_longtail.config.train_options import parse_train_args, train_parser
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import build_run, create_datasets
from timm_longtail.training.provenance import peak_memory
from timm_longtail.training.run import Run
from timm_longtail.training.timing import (
    Timing,
    block_rate,
    describe,
    flops_share,
    rates,
    step_times,
    time_epochs,
    time_steps,
)
from timm_longtail.utils.errors import UserError, unknown_name
from timm_longtail.utils.files import create_text
from timm_longtail.utils.ranges import Number


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return what to measure, and the options of `train.py`."""
    parser = Parser('benchmark.py', description='Measure how fast train.py trains; `train.py --help` lists '
                    'the other options.')
    count = Number(int, '[1, 1000000]')
    parser.add_argument('--steps', type=count,
                        help='steps of a block; default an epoch on a device, 20 on a CPU')
    parser.add_argument('--warmup', type=Number(int, '[0, inf)'), default=5, help='steps before that are not measured')
    parser.add_argument('--blocks', type=count, default=3, help='blocks of steps; the rate is their median')
    parser.add_argument('--epochs', type=count, help='time whole epochs with their evaluations instead of blocks')
    parser.add_argument('--compare', action='store_true',
                        help='train in the way of published code too, block after block in alternation')
    parser.add_argument('--output', help='file that the JSON line is added to')
    options, rest = parser.parse_known_args(argv)
    known = [option for one in (parser, train_parser()) for action in one._actions for option in action.option_strings]
    for word in (word.partition('=')[0] for word in rest if word.startswith('--')):
        if word not in known:
            raise unknown_name('option', word, known)
    if options.epochs and (options.steps or options.compare):
        raise UserError('--epochs times whole epochs; --steps and --compare are for blocks of steps')
    if options.output and not Path(options.output).resolve().parent.is_dir():
        raise UserError(f'--output {options.output}: no such folder')
    epochs = ['--epochs', str(options.epochs)] if options.epochs else []
    return options, parse_train_args([*rest, *epochs])


def measure_epochs(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    """Train for `--epochs` as `train.py` does, with evaluations, without files."""
    if run.steps_per_epoch < 2:
        raise UserError('--epochs: an epoch has one step only; lower the batch size')
    timing, seconds = time_epochs(run)
    memory, rows = peak_memory(run.accelerator.device), run.history
    rate = run.images_per_step * run.steps_per_epoch * len(rows) / sum(row['train_seconds'] for row in rows)
    return {
        **rates(run, rate), **step_times(timing.step_ms), 'data_share': data_share(run, [timing], run.steps_per_epoch),
        **memory, 'run_seconds': seconds, 'last_all': rows[-1].get('eval_all'), 'epochs': len(rows),
        'val_interval': args.val_interval,
    }


def measure_blocks(args: argparse.Namespace, options: argparse.Namespace, run: Run, train_set) -> dict[str, Any]:
    """Train in blocks of steps, in alternation with the peers' way where that is asked for."""
    lead = 0
    if not train_set.resident:  # workers start with each epoch, and prepare two batches each in advance
        lead = min(options.warmup + 2 * run.loaders[0].num_workers, run.steps_per_epoch // 2)
    steps = options.steps or (20 if run.accelerator.device.type == 'cpu' else run.steps_per_epoch - lead)
    start = time.perf_counter()
    if options.warmup:
        time_steps(run, options.warmup)
    warmup_seconds, peers, ours, theirs = time.perf_counter() - start, None, [], []
    for block in range(options.blocks):
        ours.append(time_steps(run, steps, lead))
        if block == 0:
            memory = peak_memory(run.accelerator.device)  # ours alone
        if options.compare:
            peers = peers or create_peers(args, run, train_set, steps, options.warmup)
            theirs.append(peers.time_steps(steps, options.warmup))
    row = {
        **rates(run, block_rate(ours, run.images_per_step)),
        **step_times([ms for block in ours for ms in block.step_ms]),
        'data_share': data_share(run, ours, steps, lead), **memory,
    }
    if peers is not None:
        row |= compare(row, peers, theirs, steps, options.warmup)
    return {**row, 'steps': steps, 'blocks': options.blocks, 'warmup': options.warmup, 'warmup_seconds': warmup_seconds}


def create_peers(args: argparse.Namespace, run: Run, train_set, steps: int, lead: int) -> Peers:
    """Return the peers' way with the number of workers that suits it best."""
    peers = Peers(args, run, train_set)
    tried = peers.choose_workers(max(1, steps // 4), lead)
    print('peers:', ', '.join(f'{count} workers {rate:.0f} images/s' for count, rate in tried.items()))
    return peers


def data_share(run: Run, timings: list[Timing], steps: int, lead: int = 0) -> float:
    """Return the share of the time in which steps wait for data; in a pass of its own where waiting would slow down."""
    if any(timing.data_ms is None for timing in timings):
        timings = [time_steps(run, steps, lead, synchronous=True)]
    return sum(timings, Timing()).data_share


def compare(row: dict[str, Any], peers: Peers, timings: list[Timing], steps: int, lead: int) -> dict[str, Any]:
    """Return the peers' figures and how many times faster ours are."""
    share = timings
    if any(timing.data_ms is None for timing in timings):
        share = [peers.time_steps(steps, lead, synchronous=True)]
    rate = block_rate(timings, peers.batch_size)
    return {
        'peers_images_per_s': rate, 'peers_data_share': sum(share, Timing()).data_share,
        'peers_workers': peers.workers, 'speedup': row['images_per_s'] / rate,
    }


def main(argv: list[str] | None = None):
    options, args = parse_args(argv)
    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        accelerator = create_accelerator(args.mixed_precision, args.dist_timeout)
        train_set, eval_set, _ = create_datasets(args)
        run = build_run(args, accelerator, train_set, eval_set)
        row = describe(args, run, train_set)
        row |= measure_epochs(args, run) if options.epochs else measure_blocks(args, options, run, train_set)
        row.setdefault('peak_device_gb', None)
        row['flops_share'] = flops_share(run, row['step_ms_mean'])
    if accelerator.is_main_process:
        line = json.dumps(row)
        print(line, file=stdout, flush=True)
        if options.output:
            with create_text(Path(options.output), 'a') as f:
                f.write(line + '\n')
    accelerator.end_training()


if __name__ == '__main__':
    logging.basicConfig(level=logging.INFO, format='%(message)s', stream=sys.stderr)  # before `run_main` takes stdout
    run_main(main)
