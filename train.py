#!/usr/bin/env python3
"""Train a model on long-tailed data: parse, build, loop, export.

    accelerate launch train.py --model bcl_resnet32 --dataset cifar100_lt
    python train.py --model resnet32_cifar --dataset digits_lt --epochs 10
"""
import time

import timm_longtail  # noqa: F401  registers the models
from timm_longtail import results
from timm_longtail.build import build_run, create_accelerator, create_datasets, enter_output_folder
from timm_longtail.cli import parse_train_args, run_main
from timm_longtail.engine import fit
from timm_longtail.outputs import data_tag, finish, start_lines, write_start, write_summary


def main(argv: list[str] | None = None):
    started = time.perf_counter()
    args = parse_train_args(argv)
    recipe = results.relative_to_root(args.recipe)
    if args.results:
        results.require_clean_tree(recipe)
    code = results.code_state(recipe)  # now: files may change while the run trains
    accelerator = create_accelerator(args.mixed_precision)
    train_set, eval_set, test_set = create_datasets(args)
    run = build_run(args, accelerator, train_set, eval_set)
    name = f'{args.model.rpartition("/")[2]}.{args.method}.{data_tag(train_set)}.s{args.seed}'
    checkpoint = enter_output_folder(args, run, name)
    if accelerator.is_main_process:
        write_start(args, run.output_dir, train_set)
        print('\n'.join(start_lines(args, run, train_set, checkpoint)), flush=True)
        run.on_epoch_end = write_summary
    fit(run, args.epochs)
    if accelerator.is_main_process:
        finish(args, run, train_set, test_set, code, started)
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == '__main__':
    run_main(main)
