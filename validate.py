#!/usr/bin/env python3
"""Evaluate models by groups of classes, from a clone: the command `timm-longtail validate`.

    python validate.py --model local-dir:output/RUN/export
    python validate.py --model hf-hub:USER/NAME --dataset cifar100_lt
    python validate.py --checkpoint output/RUN/model_best.pth.tar
    python validate.py --model resnet50 --pretrained --dataset folder --data-dir photos
    python validate.py --checkpoint output/RUN output/OTHER --figures figures
"""
from timm_longtail.cli.entry import run_main
from timm_longtail.cli.validate import main

if __name__ == '__main__':
    run_main(main)
