"""Time and memory of `compare` at the size of ImageNet-LT: `python -m benchmarks.comparison`.

Made-up features of 115,846 images, 2048 wide, of 1000 classes with 1280 to 5 images. Each part is measured in a process
of its own and prints a JSON line: CPU seconds of all threads, seconds, and the peak of the memory beside that of the
features. `--parts all` is the whole comparison: settings are chosen on a part of the classes, all classifiers are
fitted to all images, and the one chosen is calibrated. The other parts are what it is made of.
"""
import argparse
import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import torch

from timm_longtail.data.longtail import long_tail_counts
from timm_longtail.retraining.compare import calibrate, choose, compare_families, finish
from timm_longtail.retraining.compared import Compared
from timm_longtail.retraining.families import FAMILIES
from timm_longtail.retraining.logistic import logistic_path

from .losses import memory_mb

PARTS = ('torch', 'scikit-learn', 'path', 'ncm_l2', 'lda', 'all')

parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
parser.add_argument('--parts', nargs='+', choices=PARTS, default=['torch', 'scikit-learn', 'ncm_l2', 'lda'],
                    help='one fit of logistic regression, its whole path of penalties, families, or everything')
parser.add_argument('--images', type=int, default=115846)
parser.add_argument('--width', type=int, default=2048)
parser.add_argument('--classes', type=int, default=1000)
parser.add_argument('--strength', type=float, default=10.0, help='C of the one fit')
parser.add_argument('--iterations', type=int, help='ends a fit early, to extrapolate from')
parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')


def class_counts(images: int, classes: int) -> list[int]:
    """Return counts from 1280 to 5 in shape that add up to about `images`."""
    counts = np.array(long_tail_counts(1280, classes, imbalance_factor=256))
    return np.maximum(2, counts * images // counts.sum()).tolist()


def create_features(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features as a network ends with, positive and of mean norm 1, and classes."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor(class_counts(args.images, args.classes))
    targets = torch.repeat_interleave(torch.arange(args.classes), counts)
    means = torch.randn(args.classes, args.width, generator=generator)

    # class by class: no second copy of all features
    values = torch.empty(len(targets), args.width)
    for rows, label in zip(values.split(counts.tolist()), range(args.classes)):
        rows.normal_(generator=generator).mul_(2).add_(means[label]).relu_()
    return values.div_(values.norm(dim=1).mean()), targets


def compared(values: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> Compared:
    """Return the features as the features of a model."""
    representation = SimpleNamespace(
        train=SimpleNamespace(values=values, targets=targets, index=torch.arange(len(targets))), held=None, seen=False,
        train_set=SimpleNamespace(
            num_classes=args.classes, shot_counts=torch.bincount(targets).tolist(), hash='made up', order=0),
        trained_model=SimpleNamespace(name='features'), accelerator=SimpleNamespace(device=torch.device(args.device)),
        stage_1_sampler=lambda: None)
    return Compared('features', representation, num_repeats=2)


def scikit_learn(values: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> dict:
    """Fit once by scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=args.strength, max_iter=args.iterations or 1000)
    model.fit(values.numpy(), targets.numpy())
    return {'iterations': int(model.n_iter_[0]), 'train_accuracy': model.score(values[:2000], targets[:2000])}


def torch_fit(values: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> dict:
    """Fit once by torch."""
    from timm_longtail.retraining import logistic

    if args.iterations:
        logistic._MAX_ITERATIONS = args.iterations
    values, targets = values.to(args.device), targets.to(args.device)
    weight, bias = next(logistic_path(values, targets, args.classes, [args.strength]))
    correct = (values[:2000] @ weight.T + bias).argmax(1) == targets[:2000]
    return {'train_accuracy': float(correct.float().mean())}


def whole(values: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> dict:
    """Compare all families as `compare` does, but for the features and the test set."""
    chosen = {name: family for name, family in FAMILIES.items() if not family.own}
    seconds = {}

    def timed(what: str, call: Callable, *arguments):
        started = time.perf_counter()
        found = call(*arguments)
        seconds[what] = round(time.perf_counter() - started, 1)
        print(f'{what}: {seconds[what]} s', file=sys.stderr, flush=True)
        return found

    data = timed('divided', compared, values, targets, args)
    results = []
    for name, family in chosen.items():
        results += timed(f'chosen {name}', lambda: list(compare_families(data, {name: family})))  # noqa: B023
    best = choose(results)
    timed(f'calibrated {best.name}', calibrate, best)
    for result in results:
        timed(f'fitted {result.name}', finish, result)

    return {
        'chosen_on_classes': len(data.trial.classes),
        'stages': seconds,
        'options': {result.name: result.options for result in results},
        'balanced_of_part': {result.name: round(result.balanced, 2) for result in results},
        'expected': best.expected,
    }


def families(names: list[str]) -> Callable[..., dict]:
    """Return the part that cross-validates some families."""
    def part(values: torch.Tensor, targets: torch.Tensor, args: argparse.Namespace) -> dict:
        chosen = {name: FAMILIES[name] for name in names}
        results = list(compare_families(compared(values, targets, args), chosen))
        return {'balanced': {result.name: result.balanced for result in results}}
    return part


MEASURED = {
    'torch': torch_fit,
    'scikit-learn': scikit_learn,
    'path': families(['logistic']),
    'ncm_l2': families(['ncm_l2']),
    'lda': families(['lda']),
    'all': whole,
}


def measure(args: argparse.Namespace, part: str) -> dict:
    """Run one part; returns its line."""
    values, targets = create_features(args)
    held = memory_mb('cpu', 'VmRSS')
    start, cpu_start = time.perf_counter(), time.process_time()
    found = MEASURED[part](values, targets, args)
    return {
        'part': part, 'images': len(targets), 'width': args.width, 'classes': args.classes, 'device': args.device,
        'strength': args.strength, 'max_iterations': args.iterations, 'threads': torch.get_num_threads(),
        'cpu_seconds': round(time.process_time() - cpu_start, 2), 'seconds': round(time.perf_counter() - start, 2),
        'features_mb': round(values.nbytes / 1e6), 'before_mb': round(held),
        'peak_mb': round(memory_mb('cpu', 'VmHWM')),
        **found,
    }


def main():
    """Measure every part, each in a fresh process: a peak of memory is of the process."""
    args = parser.parse_args()
    for part in args.parts:
        with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
            print(json.dumps(pool.submit(measure, args, part).result()), flush=True)


if __name__ == '__main__':
    main()
