#!/usr/bin/env python3
"""Train a model on long-tailed data, from a clone: the command `timm-longtail train`.

    accelerate launch train.py --model bcl_resnet32 --dataset cifar100_lt
    python train.py --model resnet32_cifar --dataset digits_lt --epochs 10
"""
from timm_longtail.cli.entry import run_main
from timm_longtail.cli.train import main

if __name__ == '__main__':
    run_main(main)
