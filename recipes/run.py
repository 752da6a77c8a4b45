#!/usr/bin/env python3
"""Run recipes one after the other, as many as the time allows, and keep a row of results of each.

    python recipes/run.py --minutes 60                        the queue, recipes/queue.txt, from the top
    python recipes/run.py bcl_resnet32.cifar100_lt_if100 --seeds 0 1 2
    python recipes/run.py --packed cifar100_lt.safetensors -- --torchcompile

What has its row is passed over. A run that the time cut short has saved its state, and the next start goes on with it.
A line of the queue: a recipe, `--seeds`, and options of `train.py`; `--after RECIPE` starts from the weights that a
recipe of the queue ended with, of the same seed, and `--after RECIPE:EXPERIMENT` from those of a variant of it. Options
behind `--` go to every run.
"""
import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from timm_longtail.cli.entry import run_main  # noqa: E402
from timm_longtail.config.parser import SEED, Parser  # noqa: E402
from timm_longtail.config.recipe import RECIPES, find_recipe, recipe_name  # noqa: E402
from timm_longtail.config.train_options import parse_train_args  # noqa: E402
from timm_longtail.data import default_imbalance_factor, packed_data  # noqa: E402
from timm_longtail.training.rows import read_row, variant_of  # noqa: E402
from timm_longtail.utils.errors import UserError  # noqa: E402
from timm_longtail.utils.files import read_text  # noqa: E402
from timm_longtail.utils.ranges import Number  # noqa: E402
from timm_longtail.utils.signals import Stopped, on_stop_signal, stop_signals  # noqa: E402

TRAIN = ROOT / 'train.py'
STOPPED = tuple(128 + signum for signum in stop_signals())


@dataclass
class Item:
    """One run of the queue.

    Attributes:
        recipe: File of the recipe.
        seed: Training seed.
        options: Further options of `train.py`.
        after: Run whose weights it starts from; None starts as the options say.
    """
    recipe: Path
    seed: int
    options: list[str]
    after: 'Item | None' = None

    @cached_property
    def args(self) -> argparse.Namespace:
        return parse_train_args(self.typed)

    @property
    def typed(self) -> list[str]:
        """Options as they are typed; a variant of a recipe, such as that of `resnet32_cifar.ce-sqrt…`, has its name."""
        is_packaged = self.recipe.parent == RECIPES
        recipe = recipe_name(self.recipe) if is_packaged else os.path.relpath(self.recipe)
        typed = ['-c', recipe, '--seed', str(self.seed)]

        variant = variant_of(self.recipe)
        if variant is not None and '--experiment' not in self.options:
            typed += ['--experiment', variant]
        return [*typed, *self.options]

    @property
    def data(self) -> tuple[str, float]:
        """The data set and its imbalance factor."""
        factor = self.args.imbalance_factor
        if factor is None:
            factor = default_imbalance_factor(self.args.dataset)
        return self.args.dataset, factor

    @property
    def name(self) -> str:
        """What `train.py` calls the run, and what tells a variant from it."""
        dataset, factor = self.data
        tag = dataset if factor == 1 else f'{dataset}_if{factor:g}'
        parts = self.args.model, self.args.method, tag, self.args.experiment, f's{self.seed}'
        return '.'.join(filter(None, parts))

    def folders(self, output: Path) -> tuple[Path, Path]:
        """Return `--output` and the folder of the run in it; seeds of a variant would have one name in one folder."""
        folder = output / self.name
        if self.args.experiment:
            return folder, folder / self.args.experiment
        return output, folder


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of what stands before `--`."""
    parser = Parser('recipes/run.py', description=__doc__.splitlines()[0])
    parser.add_argument('recipes', nargs='*', help='recipes, by name or path; without one those of --queue')
    parser.add_argument('--queue', default=ROOT / 'recipes' / 'queue.txt', help='text file, a recipe a line')
    parser.add_argument(
        '--seeds', type=SEED, nargs='+', help='training seeds; default: those of the queue, or 0')
    parser.add_argument(
        '--minutes', type=Number(float, '(0, inf)'), help='time to stop after; default: when all is done')
    parser.add_argument(
        '--packed', nargs='+',
        help='packed files, for the recipes whose data set and factor they hold; other recipes are left out')
    parser.add_argument('--output', default='output', help='folder of the runs')
    parser.add_argument('--results', default='results', help='folder of the rows')
    parser.add_argument('--list', action='store_true', help='print what is left and run nothing')
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options; `common` holds those behind `--`, `packed` the packed file of each set and factor."""
    own = sys.argv[1:] if argv is None else argv
    common: list[str] = []
    if '--' in own:
        end = own.index('--')
        own, common = own[:end], own[end + 1:]

    args = create_parser().parse_args(own)
    args.common = common
    if args.packed is not None:
        args.packed = {packed_data(path): f'packed:{path}' for path in args.packed}
    return args


def read_queue(path: str | Path, seeds: list[int] | None = None, common: Sequence[str] = ()) -> Iterator[Item]:
    """Yield the runs of a queue in its order.

    Args:
        path: Text file.
        seeds: Seeds of all lines; None takes those of each line.
        common: Options of `train.py` for all lines.

    Raises:
        UserError: A recipe that is not there, a line that is none.
    """
    parser = Parser(str(path), add_help=False)
    parser.add_argument('recipe')
    parser.add_argument('--seeds', type=SEED, nargs='+', default=[0])
    parser.add_argument('--after')

    for number, line in enumerate(read_text(Path(path), 'queue').splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True)
            if not words:
                continue
            args, options = parser.parse_known_args(words)
            recipe = _recipe(args.recipe)
            before, _, variant = (args.after or '').partition(':')
            before = _recipe(before) if before else None
        except ValueError as e:  # an open quotation, or a `UserError`
            raise UserError(f'{path}, line {number}: {e}') from e

        for seed in seeds or args.seeds:
            after = None
            if before is not None:
                after = Item(before, seed, ['--experiment', variant] if variant else [])
            yield Item(recipe, seed, [*options, *common], after)


def _recipe(name: str) -> Path:
    path = find_recipe(name)
    if not path.is_file():
        raise UserError(f'no recipe at {path}')
    return path


def has_row(item: Item, results: Path) -> bool:
    """Return whether a run has its row of results: the same recipe, data, variant, length and seeds.

    Raises:
        UserError: A file in the folder is damaged, or no row.
    """
    args = item.args
    wanted = {
        'experiment': args.experiment,
        'epochs': args.epochs,
        'method_kwargs': args.method_kwargs,
        'seed': args.seed,
        'data_seed': args.data_seed,
        'val_fraction': args.val_fraction,
    }

    for path in sorted(results.glob('*.json')):
        row = read_row(path)
        data = row.get('dataset_name', row['dataset']), row['imbalance_factor']
        if data != item.data or recipe_name(row['recipe']) != recipe_name(item.recipe):
            continue
        if all(row.get(name) == value for name, value in wanted.items()):
            return True
    return False


def train_options(item: Item, args: argparse.Namespace) -> list[str]:
    """Return the options of `train.py` for a run.

    Raises:
        UserError: Its data are not there, or the weights that it starts from.
    """
    output = Path(args.output)
    options = list(item.typed)

    if item.after is not None:
        export = item.after.folders(output)[1] / 'export'
        if not export.is_dir():
            raise UserError(f'it starts from {export}, which is not there yet')
        options += ['--initial-checkpoint', str(export)]

    if args.packed is not None:
        if item.data not in args.packed:
            raise UserError(f'no packed file holds {item.data[0]} with factor {item.data[1]:g}')
        options += ['--dataset', args.packed[item.data]]

    folder, _ = item.folders(output)
    return [*options, '--output', str(folder), '--results', args.results, '--resume', 'auto']


def train(options: list[str], seconds: float | None) -> int:
    """Run `train.py` to its end; a signal to this process goes on to the run, which saves its state and stops.

    Args:
        options: Options of `train.py`.
        seconds: Time after which the run is asked to save and stop; None for as long as it takes.

    Returns:
        The exit status of the run; 128 plus the number of the signal where one ended it.

    Raises:
        Stopped: This process received a signal; the run has ended.
    """
    received = []
    process = None

    def forward(signum: int, frame: object):
        received.append(signum)
        if process is not None:
            process.send_signal(signum)

    with on_stop_signal(forward):
        # in a session of its own: what a terminal sends to all of them would reach the run twice
        process = subprocess.Popen([sys.executable, str(TRAIN), *options], start_new_session=True)
        for signum in received:  # while it was started
            process.send_signal(signum)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            status = process.wait()

    if received:
        raise Stopped(received[0])
    return status if status >= 0 else 128 - status  # a signal before the run could answer


def main(argv: list[str] | None = None):
    """Run what has no row yet, in order, until it is done or the time is over.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: Runs that did not end well, by name.
        Stopped: This process received a signal.
    """
    args = parse_args(argv)
    end = None
    if args.minutes is not None:
        end = time.monotonic() + 60 * args.minutes

    if args.recipes:
        items = [Item(_recipe(name), seed, args.common) for name in args.recipes for seed in args.seeds or [0]]
    else:
        items = read_queue(args.queue, args.seeds, args.common)

    failed = []
    for item in items:
        if has_row(item, Path(args.results)):
            print(f'{item.name}: has its row', flush=True)
            continue
        try:
            options = train_options(item, args)
        except UserError as e:
            print(f'{item.name}: left out, {e}', flush=True)
            continue

        print(f'{item.name}: python train.py {shlex.join(options)}', flush=True)
        if args.list:
            continue

        # a signal to this process, and one that the run got by itself or from the time limit, end the queue
        stopped = f'{item.name}: stopped, the next start goes on with it'
        seconds = None if end is None else max(0.0, end - time.monotonic())
        try:
            status = train(options, seconds)
        except Stopped:
            print(stopped, flush=True)
            raise
        if status in STOPPED:
            print(stopped, flush=True)
            break

        if status:
            failed.append(item.name)
        if end is not None and time.monotonic() >= end:
            break

    if failed:
        raise UserError(f'did not end well: {", ".join(failed)}')


if __name__ == '__main__':
    run_main(main)
