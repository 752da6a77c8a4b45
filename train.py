#!/usr/bin/env python3
"""Train a model on long-tailed data: parse, build, loop, export.

    accelerate launch train.py --model bcl_resnet32 --dataset cifar100_lt
    python train.py --model resnet32_cifar --dataset digits_lt --epochs 10
"""
import timm_longtail  # noqa: F401  registers the models
from timm_longtail.cli.entry import run_main
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.training import provenance
from timm_longtail.training.accelerator import check_agreement, create_accelerator, wait_for_main
from timm_longtail.training.build import build_run, create_datasets, enter_output_folder
from timm_longtail.training.loop import fit
from timm_longtail.training.outputs import finish, rehearse, report, start_lines, write_start, write_summary
from timm_longtail.training.run import Run
from timm_longtail.training.trackers import check_trackers, log_epoch, log_final, tracking
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import require_place


def end_epoch(run: Run):
    write_summary(run)
    log_epoch(run)


def main(argv: list[str] | None = None):
    args = parse_train_args(argv)
    check_trackers(args.tracker)
    recipe = provenance.relative_to_root(args.recipe)
    if args.results:
        provenance.require_clean_tree(recipe)
    code = provenance.code_state(recipe)  # now: files may change while the run trains
    accelerator = create_accelerator(args.mixed_precision, args.dist_timeout)
    train_set, eval_set, test_set = create_datasets(args)
    check_agreement(accelerator, args, train_set, test_set, code)
    if args.results and accelerator.is_main_process:
        require_place(provenance.results_path(args, train_set).parent)  # refused before hours of training
    run = build_run(args, accelerator, train_set, eval_set)
    run.tree_hashes = [code['tree_hash']]
    name = f'{args.model.rpartition("/")[2]}.{args.method}.{provenance.data_tag(train_set)}.s{args.seed}'

    # whatever can be refused has been: the folder is made now, and goes again while it is empty
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


if __name__ == '__main__':
    run_main(main)
