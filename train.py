#!/usr/bin/env python3
"""Train a model on long-tailed data: parse, build, loop, export.

    accelerate launch train.py --model bcl_resnet32 --dataset cifar100_lt
    python train.py --model resnet32_cifar --dataset digits_lt --epochs 10
"""
import timm_longtail  # noqa: F401  registers the models
from timm_longtail.cli.entry import run_main
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.training.accelerator import check_agreement, create_accelerator, wait_for_main
from timm_longtail.training.build import build_run, create_datasets
from timm_longtail.training.loop import fit
from timm_longtail.training.options import resolve_options
from timm_longtail.training.output_folder import enter_output_folder, run_name
from timm_longtail.training.outputs import finish, rehearse, report, write_summary
from timm_longtail.training.provenance import code_state, relative_to_root, require_clean_tree
from timm_longtail.training.rows import results_path
from timm_longtail.training.run import Run
from timm_longtail.training.start import start_lines, write_start
from timm_longtail.training.trackers import check_trackers, log_epoch, log_final, tracking
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import require_place


def end_epoch(run: Run):
    write_summary(run)
    log_epoch(run)


def main(argv: list[str] | None = None):
    args = parse_train_args(argv)
    check_trackers(args.tracker)

    # the code, now: files may change while the run trains
    recipe = relative_to_root(args.recipe)
    if args.results:
        require_clean_tree(recipe)
    code = code_state(recipe)

    accelerator = create_accelerator(args.mixed_precision, args.dist_timeout)
    options = resolve_options(args, accelerator)
    train_set, eval_set, test_set = create_datasets(options)
    check_agreement(accelerator, options, train_set, test_set, code)

    # refused before hours of training
    if options.results and accelerator.is_main_process:
        require_place(results_path(options, train_set).parent)
    run = build_run(options, accelerator, train_set, eval_set, code=code)

    # whatever can be refused has been: the folder is made now, and goes again while it is empty
    checkpoint = enter_output_folder(run, run_name(options, train_set))
    if options.results and len(run.tree_hashes) > 1:
        raise UserError('--results: the run was begun by other code; a row is of one state of the code')
    if accelerator.is_main_process:
        rehearse(run, train_set, test_set, code)

    with tracking(run, train_set):
        if accelerator.is_main_process:
            write_start(run, train_set)
            print('\n'.join(start_lines(run, train_set, checkpoint)), flush=True)

        fit(run, options.epochs, end_epoch)

        if accelerator.is_main_process:
            row = finish(run, train_set, test_set, code)
            log_final(run, row['last'])
            report(run, row, train_set, test_set)
    wait_for_main(accelerator)
    accelerator.end_training()


if __name__ == '__main__':
    run_main(main)
