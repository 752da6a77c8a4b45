"""What a tuning costs, and what it gives: Markdown tables.

    python -m benchmarks.tuning cost                      # time and memory of a step, ViT-B/16, 224 pixels, batch 32
    python -m benchmarks.tuning control                   # a positive control on CIFAR-100, without other weights
    python -m benchmarks.tuning photos --cifar100 FOLDER  # a part of a network that knows ImageNet, on photographs

`cost` measures each tuning in a process of its own, on random images. `control` trains a small vision transformer on
classes 0 to 49 of CIFAR-100, all images, and then tunes it on classes 50 to 99, cut to an imbalance factor of 50. All
tunings and methods see equally many images; the rate of each is chosen on a tenth of the training images that is held
out, by balanced accuracy, with the first seed. `photos` tunes EfficientNet-Lite0 with ImageNet weights on 20 classes of
CIFAR-100, in the same way. Each run is a JSON line in `--output`.
"""
import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import LongTailDataset, create_dataset, long_tail_counts
from timm_longtail.data.longtail import long_tail_indices
from timm_longtail.methods import create_method
from timm_longtail.models.heads import set_head
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import build_run
from timm_longtail.training.initial_classifier import initialise_classifier
from timm_longtail.training.loop import fit
from timm_longtail.training.options import resolve_options
from timm_longtail.training.run import Run

from .pretrained import MODEL, cifar100, write_photos, write_weights

TUNINGS = ['classifier', 'bias', 'lora', 'adaptformer', 'all']


# ------------------------------------------------------------------------------------------------ cost

def memory_mb(device: torch.device) -> float:
    """Return the most that this process, or its device, has held, in 1e6 bytes."""
    if device.type != 'cpu':
        return torch.get_device_module(device).max_memory_allocated() / 1e6
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return int(status['VmHWM'].split()[0]) * 1024 / 1e6


def measure_cost(args: argparse.Namespace, tuning: str) -> dict[str, Any]:
    """Take some steps of a tuning; return the median time of one in seconds, the memory and the trained parameters."""
    device = torch.device('cpu')
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator()
    torch.manual_seed(0)
    model = set_head(timm.create_model(args.model, num_classes=args.classes), 'cosine')
    if args.grad_checkpointing:
        model.set_grad_checkpointing(True)
    method = create_method('balanced_softmax', model, [2] * args.classes, tune=tuning).to(device).train()
    optimizer = torch.optim.SGD(method.param_groups('main'), lr=0.01, momentum=0.9, weight_decay=5e-4)

    size = model.pretrained_cfg['input_size'][-1]
    images = torch.randn(args.batch_size, 3, size, size, device=device)
    target = torch.arange(args.batch_size, device=device) % args.classes

    seconds = []
    for _ in range(1 + args.steps):  # the first is a warm-up
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            loss = method(((images,), target, target))['loss']
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type != 'cpu':
            torch.accelerator.synchronize()
        seconds.append(time.perf_counter() - started)

    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return {
        'tuning': tuning,
        'step_s': statistics.median(seconds[1:]),
        'memory_mb': memory_mb(device),
        'trained': trained,
        'threads': torch.get_num_threads(),
        'device': str(device),
    }


def cost(args: argparse.Namespace):
    """Print the time and the memory of a step, a row a tuning."""
    print('| tuning | trained parameters, M | step, s | of all | peak memory, GB |\n| --- | --- | --- | --- | --- |')
    rows = []
    for tuning in args.tunings:
        # a peak is that of a whole process
        with ProcessPoolExecutor(1, get_context('spawn')) as pool:
            rows.append(pool.submit(measure_cost, args, tuning).result())
        keep(args, rows[-1])

    whole = next((row['step_s'] for row in rows if row['tuning'] == 'all'), None)
    for row in rows:
        share = f'{row["step_s"] / whole:.2f}' if whole else ''
        print(f'| `{row["tuning"]}` | {row["trained"] / 1e6:.2f} | {row["step_s"]:.2f} | {share} '
              f'| {row["memory_mb"] / 1e3:.2f} |')


# --------------------------------------------------------------------------------------------- control

def take_classes(dataset: LongTailDataset, first: int, last: int) -> LongTailDataset:
    """Return the images of classes `first` to `last` (exclusive), which are counted from 0."""
    part = dataset.subset(np.flatnonzero((dataset.targets >= first) & (dataset.targets < last)))
    part = replace(part, targets=part.targets - first, class_names=dataset.class_names[first:last])
    return replace(part, shot_counts=list(part.class_counts))


def cut(dataset: LongTailDataset, factor: float) -> LongTailDataset:
    """Return the long-tailed part of a balanced set."""
    counts = long_tail_counts(max(dataset.class_counts), dataset.num_classes, factor)
    part = dataset.subset(long_tail_indices(dataset.targets, counts))
    return replace(part, shot_counts=counts, imbalance_factor=factor)


def train(
        args: argparse.Namespace,
        accelerator: Accelerator,
        train_set: LongTailDataset,
        eval_set: LongTailDataset,
        model: nn.Module,
        *options: str,
) -> Run:
    """Train a model as `train.py` does; it is evaluated after the last epoch."""
    parsed = parse_train_args([
        '--model', args.model, '--img-size', str(args.img_size), '--no-recipe', '--opt', 'momentum',
        '--weight-decay', '5e-4', '--sched', 'cosine', '--val-interval', '100000', '--log-interval', '1000', *options])
    run = build_run(resolve_options(parsed, accelerator), accelerator, train_set, eval_set, model)
    initialise_classifier(run, train_set)
    fit(run, parsed.epochs)
    accelerator.free_memory()
    return run


def create_network(args: argparse.Namespace, num_classes: int, seed: int = 0) -> nn.Module:
    """Build the small vision transformer."""
    torch.manual_seed(seed)
    return timm.create_model(
        args.model, num_classes=num_classes, img_size=32, patch_size=args.patch_size, embed_dim=args.embed_dim,
        depth=args.depth, num_heads=args.num_heads)


def last_figures(run: Run) -> dict[str, float]:
    """Return the figures of the last epoch."""
    return {name: run.history[-1][f'eval_{name}'] for name in ('all', 'many', 'medium', 'few', 'balanced')}


def control(args: argparse.Namespace):
    """Pretrain, tune, and print All and Few of each tuning and method."""
    accelerator = create_accelerator('no')
    train_all, test_all = create_dataset('cifar100', 'train'), create_dataset('cifar100', 'test')
    if args.images_per_class:
        counts = [args.images_per_class] * 100
        train_all = train_all.subset(long_tail_indices(train_all.targets, counts))

    # a representation of classes 0 to 49
    backbone = pretrain(args, accelerator, take_classes(train_all, 0, 50), take_classes(test_all, 0, 50))
    train_set, test_set = cut(take_classes(train_all, 50, 100), args.imbalance_factor), take_classes(test_all, 50, 100)
    print(f'tuning: {len(train_set)} images of {max(train_set.class_counts)} to {min(train_set.class_counts)} a class, '
          f'{args.epochs} epochs', file=sys.stderr)

    def create(seed: int) -> nn.Module:
        model = create_network(args, train_set.num_classes, seed)
        model.load_state_dict(backbone, strict=False)
        return model

    compare_tunings(args, accelerator, train_set, test_set, create)


def compare_tunings(
        args: argparse.Namespace,
        accelerator: Accelerator,
        train_set: LongTailDataset,
        test_set: LongTailDataset,
        create: Callable[[int], nn.Module],
):
    """Tune by each tuning and method, print All and Few.

    Args:
        args: Options.
        accelerator: Where to compute.
        train_set: Images to tune on.
        test_set: Images to evaluate on.
        create: Builds the network with its backbone's weights, for a seed.
    """
    def tune(tuning: str, method: str, seed: int, rate: str, *sets: LongTailDataset) -> dict[str, float]:
        model = set_head(create(seed), 'cosine')
        run = train(
            args, accelerator, *sets, model, '--tune', tuning, '--method', method, '--head', 'cosine',
            '--init-classifier', 'class_means', '--epochs', str(args.epochs), '--batch-size', str(args.batch_size),
            '--lr', rate, '--seed', str(seed))
        trained = sum(p.numel() for p in run.method.parameters() if p.requires_grad)
        return {**last_figures(run), 'trained': trained}

    rest, held = train_set.hold_out(0.1, seed=0)
    rows = []
    for tuning in args.tunings:
        for method in args.methods:
            rate = args.rates[0]
            if len(args.rates) > 1:
                tried = {r: tune(tuning, method, args.seeds[0], r, rest, held)['balanced'] for r in args.rates}
                rate = max(tried, key=lambda r: tried[r])
            for seed in args.seeds:
                figures = tune(tuning, method, seed, rate, train_set, test_set)
                rows.append({'tuning': tuning, 'method': method, 'seed': seed, 'lr': float(rate), **figures})
                keep(args, rows[-1])
    print_control(args, rows)


def photos(args: argparse.Namespace):
    """Tune EfficientNet-Lite0 on photographs, and print All and Few of each tuning and method."""
    args.folder.mkdir(parents=True, exist_ok=True)
    weights = args.folder / 'weights.safetensors'
    write_weights(weights)
    classes = np.random.default_rng(0).choice(np.arange(50, 100), 20, replace=False).tolist()
    counts = long_tail_counts(200, 20, imbalance_factor=50)
    write_photos(args.folder / 'photos', partial(cifar100, args.cifar100), classes, counts, num_test=50)

    def create(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = timm.create_model(args.model, num_classes=1000)
        model.load_state_dict(load_file(weights))
        model.reset_classifier(train_set.num_classes)
        return model

    train_set = create_dataset('folder', 'train', args.folder / 'photos')
    test_set = create_dataset('folder', 'test', args.folder / 'photos')
    compare_tunings(args, create_accelerator('no'), train_set, test_set, create)


def pretrain(
        args: argparse.Namespace,
        accelerator: Accelerator,
        train_set: LongTailDataset,
        test_set: LongTailDataset,
) -> dict[str, torch.Tensor]:
    """Return the weights of the backbone, trained here or kept from an earlier call; without its classifier."""
    path = args.output.with_suffix('.backbone.pt') if args.output else None
    if path is not None and path.is_file():
        print(f'backbone: {path}', file=sys.stderr)
        return torch.load(path, weights_only=True)

    run = train(
        args, accelerator, train_set, test_set, create_network(args, train_set.num_classes), '--method', 'ce', '--opt',
        'adamw', '--lr', str(args.pretrain_lr), '--weight-decay', '0.05', '--warmup-epochs', '1', '--sched-on-updates',
        '--epochs', str(args.pretrain_epochs), '--batch-size', str(args.batch_size))
    row = {'pretrained': len(train_set), 'epochs': args.pretrain_epochs, **last_figures(run)}
    print(f'backbone: {row["all"]:.1f} of classes 0 to 49', file=sys.stderr)
    keep(args, row)

    state = copy.deepcopy(run.method.model).cpu().state_dict()
    state = {name: value for name, value in state.items() if not name.startswith('head.')}
    if path is not None:
        torch.save(state, path)
    return state


def print_control(args: argparse.Namespace, rows: list[dict[str, Any]]):
    """Print the mean and the range over the seeds."""
    columns = ' | '.join(f'{method} All | {method} Few | {method} lr' for method in args.methods)
    print(f'| tuning | trained parameters | {columns} |\n| --- | --- |{" --- | --- | --- |" * len(args.methods)}')
    for tuning in args.tunings:
        cells = []
        for method in args.methods:
            runs = [row for row in rows if (row['tuning'], row['method']) == (tuning, method)]
            cells += [spread([row['all'] for row in runs]), spread([row['few'] for row in runs]), f'{runs[0]["lr"]:g}']
        trained = next(row['trained'] for row in rows if row['tuning'] == tuning)
        print(f'| `{tuning}` | {trained} | {" | ".join(cells)} |')


def spread(values: list[float | None]) -> str:
    """Return the mean of some figures, and the lowest and the highest of them; '' for those of an empty group."""
    known = [value for value in values if value is not None]
    if not known:
        return ''
    return f'{statistics.mean(known):.1f} ({min(known):.1f} to {max(known):.1f})'


def keep(args: argparse.Namespace, row: dict[str, Any]):
    """Say a row, and add it to the file."""
    line = json.dumps({'command': args.command, **row})
    print(line, file=sys.stderr, flush=True)
    if args.output is not None:
        with open(args.output, 'a', encoding='utf-8') as f:
            f.write(f'{line}\n')


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the commands."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    commands = parser.add_subparsers(dest='command', required=True)
    formatter = argparse.ArgumentDefaultsHelpFormatter

    step = commands.add_parser('cost', help='time and memory of a step', formatter_class=formatter)
    step.add_argument('--model', default='vit_base_patch16_224')
    step.add_argument('--classes', type=int, default=1000)
    step.add_argument('--steps', type=int, default=3, help='measured, after one that is not')
    step.add_argument('--bf16', action='store_true', help='autocast to bf16')
    step.add_argument('--grad-checkpointing', action='store_true')
    step.add_argument('--batch-size', type=int, default=32)
    step.set_defaults(run=cost, tunings=['classifier', 'last_block', *TUNINGS[1:]])

    tuned = commands.add_parser('control', help='a positive control on CIFAR-100', formatter_class=formatter)
    tuned.add_argument('--model', default='vit_tiny_patch16_224')
    tuned.add_argument('--patch-size', type=int, default=4)
    tuned.add_argument('--embed-dim', type=int, default=128)
    tuned.add_argument('--depth', type=int, default=6)
    tuned.add_argument('--num-heads', type=int, default=4)
    tuned.add_argument('--batch-size', type=int, default=128)
    tuned.add_argument('--pretrain-epochs', type=int, default=40)
    tuned.add_argument('--pretrain-lr', type=float, default=1e-3)
    tuned.add_argument('--imbalance-factor', type=float, default=50)
    tuned.add_argument('--epochs', type=int, default=20, help='of tuning')
    tuned.add_argument('--methods', nargs='+', default=['ce', 'balanced_softmax'])
    tuned.add_argument('--rates', nargs='+', default=['0.003', '0.01', '0.03', '0.1'], help='of several one is chosen')
    tuned.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    tuned.add_argument('--images-per-class', type=int, help='of CIFAR-100 before the cut; default all 500')
    tuned.set_defaults(run=control, img_size=32)

    taught = commands.add_parser('photos', help='EfficientNet-Lite0 on photographs', formatter_class=formatter)
    taught.add_argument('--cifar100', type=Path, required=True, help='folder of its Parquet files')
    taught.add_argument('--folder', type=Path, default=Path('output/tuning'), help='for photographs and weights')
    taught.add_argument('--model', default=MODEL, choices=[MODEL], help='the network that the weights are of')
    taught.add_argument('--img-size', type=int, default=112)
    taught.add_argument('--batch-size', type=int, default=32)
    taught.add_argument('--epochs', type=int, default=5)
    taught.add_argument('--methods', nargs='+', default=['ce', 'balanced_softmax'])
    taught.add_argument('--rates', nargs='+', default=['0.003', '0.03'], help='of several one is chosen')
    taught.add_argument('--seeds', type=int, nargs='+', default=[0])
    taught.set_defaults(run=photos, tunings=['classifier', 'last_block', 'all'])

    for command in (step, tuned, taught):
        command.add_argument('--tunings', nargs='+', default=command.get_default('tunings') or TUNINGS)
        command.add_argument('--output', type=Path, help='JSON lines; the backbone of the control is kept beside it')
    return parser


if __name__ == '__main__':
    arguments = create_parser().parse_args()
    arguments.run(arguments)
