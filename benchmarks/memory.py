"""Where the memory of a training process goes: a Markdown table of its stages (Linux).

    python -m benchmarks.memory --model resnet20_cifar --method ce --dataset cifar100_lt --batch-size 128 --no-recipe

Takes the options of `train.py`. Megabytes (1e6 bytes) of this process: what it holds after a stage, and the most until
then.
"""
import re
import sys
from importlib import import_module
from pathlib import Path

STEPS = 5


def row(stage: str) -> str:
    """Return a row of the table."""
    status = Path('/proc/self/status').read_text()
    held, most = (int(re.search(rf'{field}:\s*(\d+)', status)[1]) * 1024 / 1e6 for field in ('VmRSS', 'VmHWM'))
    return f'| {stage} | {held:.0f} | {most:.0f} |'


def main(argv: list[str]):
    """Print the table: imports one after the other, then what `train.py` does."""
    print('| After | MB | most so far |\n| --- | --- | --- |')
    for module in ('torch', 'torchvision', 'timm', 'timm_longtail', 'timm_longtail.training.loop', 'datasets'):
        import_module(module)
        print(row(f'import {module}'))

    # not at the top: what each import costs is measured
    from timm_longtail.config.train_options import parse_train_args
    from timm_longtail.training.accelerator import create_accelerator
    from timm_longtail.training.build import build_run, create_datasets
    from timm_longtail.training.options import resolve_options
    from timm_longtail.training.timing import time_steps

    args = parse_train_args(argv)
    accelerator = create_accelerator(args.mixed_precision)
    args = resolve_options(args, accelerator)
    train_set, eval_set, _ = create_datasets(args)
    print(row('reading the data'))

    run = build_run(args, accelerator, train_set, eval_set)
    print(row('building the run'))

    time_steps(run, STEPS)
    print(row(f'{STEPS} steps'))


if __name__ == '__main__':
    main(sys.argv[1:])
