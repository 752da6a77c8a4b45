"""`timm-longtail benchmark`: how fast training is on this machine, as one JSON line."""
import argparse
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

from ..config.parser import Parser
from ..config.train_options import parse_train_args, train_parser
from ..training.accelerator import create_accelerator
from ..training.build import build_run, create_datasets
from ..training.options import resolve_options
from ..training.provenance import ROOT
from ..training.speed import measure_blocks, measure_epochs
from ..training.timing import describe, flops_share
from ..utils.errors import UserError, unknown_name
from ..utils.files import create_text
from ..utils.ranges import Number
from .entry import log_to_stderr

__all__ = ['create_parser', 'main', 'parse_args']

_COUNT = Number(int, '[1, 1000000]')


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command's own options."""
    parser = Parser(description='Measure how fast training is; all options of the training command are taken too.')
    parser.add_argument(
        '--steps', type=_COUNT, help='steps of a block; default an epoch on a device, 20 on a CPU')
    parser.add_argument(
        '--warmup', type=Number(int, '[0, inf)'), default=5, help='steps before that are not measured')
    parser.add_argument('--blocks', type=_COUNT, default=3, help='blocks of steps; the rate is their median')
    parser.add_argument(
        '--epochs', type=_COUNT, help='time whole epochs with their evaluations instead of blocks')
    parser.add_argument(
        '--compare', action='store_true',
        help='train in the way of published code too, block after block in alternation; in a clone of the project')
    parser.add_argument('--output', help='file that the JSON line is added to')
    return parser


def parse_args(argv: list[str] | None = None) -> tuple[argparse.Namespace, argparse.Namespace]:
    """Return what to measure, and the options of the training command.

    Raises:
        UserError: Unknown options, or options that contradict each other.
    """
    parser = create_parser()
    options, rest = parser.parse_known_args(argv)

    # the training command would not know the nearest of these options
    parsers = parser, train_parser()
    known = [name for one in parsers for action in one._actions for name in action.option_strings]
    for word in rest:
        name = word.partition('=')[0]
        if name.startswith('--') and name not in known:
            raise unknown_name('option', name, known)

    if options.epochs and (options.steps or options.compare):
        raise UserError('--epochs times whole epochs; --steps and --compare are for blocks of steps')
    if options.output and not Path(options.output).resolve().parent.is_dir():
        raise UserError(f'--output {options.output}: no such folder')
    if options.compare:
        _peers_class()

    if options.epochs:
        rest += ['--epochs', str(options.epochs)]
    return options, parse_train_args(rest)


def _peers_class() -> Callable:
    """Return the reference pipeline, which is no part of the package.

    Raises:
        UserError: The package is installed without it.
    """
    path = ROOT / 'benchmarks' / 'peers.py'
    if not path.is_file():
        raise UserError('--compare needs benchmarks/peers.py, which a clone of the project has and an installed '
                        'package has not')

    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from benchmarks.peers import Peers
    return Peers


def main(argv: list[str] | None = None):
    """Measure, and print one JSON line; all else goes to stderr.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: Options or data that cannot be used.
    """
    log_to_stderr()
    options, args = parse_args(argv)

    stdout = sys.stdout
    with redirect_stdout(sys.stderr):
        accelerator = create_accelerator(args.mixed_precision, args.dist_timeout)
        args = resolve_options(args, accelerator)
        train_set, eval_set, _ = create_datasets(args)
        run = build_run(args, accelerator, train_set, eval_set)

        row = describe(run, train_set)
        if options.epochs:
            row |= measure_epochs(run)
        else:
            create_peers = partial(_peers_class(), args, run, train_set) if options.compare else None
            row |= measure_blocks(run, train_set, options.blocks, options.warmup, options.steps, create_peers)
        row.setdefault('peak_device_gb', None)
        row['flops_share'] = flops_share(run, row['step_ms_mean'])

    if accelerator.is_main_process:
        line = json.dumps(row)
        print(line, file=stdout, flush=True)
        if options.output:
            with create_text(Path(options.output), 'a') as f:
                f.write(line + '\n')
    accelerator.end_training()
