"""`timm-longtail train`: parse, build, loop, export."""
import argparse
from argparse import Namespace
from typing import Any

from accelerate import Accelerator

from ..config.train_options import parse_train_args, train_parser
from ..data import LongTailDataset
from ..training.accelerator import check_agreement, create_accelerator, wait_for_main
from ..training.build import build_run, create_datasets
from ..training.initial_classifier import check_initial_classifier, initialise_classifier
from ..training.loop import fit
from ..training.options import Options, resolve_options
from ..training.output_folder import enter_output_folder, run_name
from ..training.outputs import finish, rehearse, report, write_summary
from ..training.provenance import code_state, relative_to_root, require_clean_tree
from ..training.rows import results_file, results_path
from ..training.run import Run
from ..training.seeds import command_of_seed, seeds_table
from ..training.start import start_lines, write_start
from ..training.trackers import check_trackers, log_epoch, log_final, tracking
from ..utils.errors import UserError

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return train_parser()


def end_epoch(run: Run):
    """Write and follow the figures of an epoch."""
    write_summary(run)
    log_epoch(run)


def main(argv: list[str] | None = None):
    """Train a model, evaluate it and export it; with `--seeds` one after the other.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: Options, data or files that cannot be used.
    """
    args = parse_train_args(argv)
    check_trackers(args.tracker)
    if args.init_classifier is not None:
        check_initial_classifier(args.init_classifier)

    # the code, now: files may change while the run trains
    recipe = relative_to_root(args.recipe)
    if args.results:
        require_clean_tree(recipe)
    code = code_state(recipe)

    accelerator = create_accelerator(args.mixed_precision, args.dist_timeout)
    rows = {}
    for seed in args.seeds or [args.seed]:
        with command_of_seed(seed if args.seeds else None):
            rows[f'seed {seed}'] = _train(Namespace(**{**vars(args), 'seed': seed}), accelerator, code)
        accelerator.free_memory()

    if args.seeds and accelerator.is_main_process:
        print(f'\n{seeds_table(rows)}', flush=True)
    wait_for_main(accelerator)
    accelerator.end_training()


def _train(args: Namespace, accelerator: Accelerator, code: dict[str, Any]) -> dict[str, Any]:
    """Train one model; returns the figures of its last epoch, {} on other processes than the main one."""
    options = resolve_options(args, accelerator)
    train_set, eval_set, test_set = create_datasets(options)
    check_agreement(accelerator, options, train_set, test_set, code)

    # refused before hours of training
    if options.results:
        options = _results_options(options, train_set)
    run = build_run(options, accelerator, train_set, eval_set, code=code)

    # whatever can be refused has been: the folder is made now, and goes again while it is empty
    checkpoint = enter_output_folder(run, run_name(options, train_set))
    if options.results and len(run.tree_hashes) > 1:
        raise UserError('--results: the run was begun by other code; a row is of one state of the code')
    if checkpoint is None:
        initialise_classifier(run, train_set)
    if accelerator.is_main_process:
        rehearse(run, train_set, test_set, code)

    last = {}
    with tracking(run, train_set):
        if accelerator.is_main_process:
            write_start(run, train_set)
            print('\n'.join(start_lines(run, train_set, checkpoint)), flush=True)

        fit(run, options.epochs, end_epoch)

        if accelerator.is_main_process:
            row = finish(run, train_set, test_set, code)
            last = row['last']
            log_final(run, last)
            report(run, row, train_set, test_set)
    wait_for_main(accelerator)
    return last


def _results_options(options: Options, train_set: LongTailDataset) -> Options:
    """Check that a row of results can be written; of seeds that go on, one that has its row needs no other."""
    if options.seeds and options.resume and results_file(options, train_set).is_file():
        return options.replace(results=None)
    results_path(options, train_set)
    return options
