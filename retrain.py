#!/usr/bin/env python3
"""Retrain the classifier of a trained model, from a clone: the command `timm-longtail retrain`.

    python retrain.py output/RUN --classifier all
    python retrain.py hf-hub:USER/NAME --classifier crt --features augmented
    python retrain.py resnet18 --dataset folder --data-dir my_photos --classifier all
"""
from timm_longtail.cli.entry import run_main
from timm_longtail.cli.retrain import main

if __name__ == '__main__':
    run_main(main)
