"""`timm-longtail train`: parse, build, loop, export."""
import argparse

from ..config.train_options import parse_train_args, train_parser
from ..training import provenance
from ..training.accelerator import check_agreement, create_accelerator, wait_for_main
from ..training.build import build_run, create_datasets, enter_output_folder
from ..training.loop import fit
from ..training.outputs import finish, rehearse, report, start_lines, write_start, write_summary
from ..training.run import Run
from ..training.trackers import check_trackers, log_epoch, log_final, tracking
from ..utils.errors import UserError
from ..utils.folder import require_place

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    return train_parser()


def end_epoch(run: Run):
    """Write and follow the figures of an epoch."""
    write_summary(run)
    log_epoch(run)


def main(argv: list[str] | None = None):
    """Train a model, evaluate it and export it.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: Options, data or files that cannot be used.
    """
    args = parse_train_args(argv)
    check_trackers(args.tracker)

    # the state of the code now: files may change while the run trains
    recipe = provenance.relative_to_root(args.recipe)
    if args.results:
        provenance.require_clean_tree(recipe)
    code = provenance.code_state(recipe)

    accelerator = create_accelerator(args.mixed_precision, args.dist_timeout)
    train_set, eval_set, test_set = create_datasets(args)
    check_agreement(accelerator, args, train_set, test_set, code)
    if args.results and accelerator.is_main_process:
        # refused before hours of training
        require_place(provenance.results_path(args, train_set).parent)

    run = build_run(args, accelerator, train_set, eval_set)
    run.tree_hashes = [code['tree_hash']]

    # whatever can be refused has been: the folder is made now, and goes again while it is empty
    model = args.model.rpartition('/')[2]
    name = f'{model}.{args.method}.{provenance.data_tag(train_set)}.s{args.seed}'
    checkpoint = enter_output_folder(args, run, name)
    if args.results and len(run.tree_hashes) > 1:
        raise UserError('--results: the run was begun by other code; a row is of one state of the code')

    if accelerator.is_main_process:
        rehearse(args, run, train_set, test_set, code)
    with tracking(args, run, train_set):
        if accelerator.is_main_process:
            write_start(args, run.output_dir, train_set)
            print('\n'.join(start_lines(args, run, train_set, checkpoint)), flush=True)
            run.on_epoch_end = end_epoch

        fit(run, args.epochs)

        if accelerator.is_main_process:
            row = finish(args, run, train_set, test_set, code)
            log_final(run, row['last'])
            report(run, row, train_set, test_set)

    wait_for_main(accelerator)
    accelerator.end_training()
