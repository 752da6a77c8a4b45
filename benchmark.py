#!/usr/bin/env python3
"""Measure how fast training is on this machine, from a clone: the command `timm-longtail benchmark`.

    python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --compare
    python benchmark.py --model bcl_resnet32 --dataset cifar100_lt --mixed-precision bf16 --epochs 200 --val-interval 10

One JSON line on stdout, all else on stderr; benchmarks/README.md says what each key means.
"""
from timm_longtail.cli.benchmark import main
from timm_longtail.cli.entry import run_main

if __name__ == '__main__':
    run_main(main)
