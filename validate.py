#!/usr/bin/env python3
"""Evaluate an exported model on the test set it was reported on, or on another.

    python validate.py --model local-dir:output/RUN/export
"""
import argparse

import torch

import timm_longtail  # noqa: F401  registers the models
from timm_longtail.cli import check_names
from timm_longtail.data import create_dataset, create_loader, list_datasets
from timm_longtail.engine import evaluate
from timm_longtail.entry import run_main
from timm_longtail.errors import UserError
from timm_longtail.evaluate import LongTailEvaluator, format_table
from timm_longtail.export import load_exported

_PREFIX = 'local-dir:'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('validate.py', description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--model', required=True, help='local-dir:FOLDER of an exported model')
    parser.add_argument('--dataset', help=f'default: what the model was trained on; {", ".join(list_datasets())}')
    parser.add_argument('--data-dir', help='folder of the data set; without it $TIMM_LONGTAIL_DATA, then the Hub')
    parser.add_argument('-b', '--batch-size', type=int, default=256)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    if not args.model.startswith(_PREFIX):
        raise UserError(f'--model {args.model}: expected local-dir:FOLDER')
    model, config = load_exported(args.model.removeprefix(_PREFIX))
    trained = config.get('timm_longtail', {})
    dataset = args.dataset or trained.get('dataset')
    if dataset is None or 'shot_counts' not in trained:
        raise UserError(f'{args.model} does not say what it was trained on: its shot groups are unknown')
    check_names(config['architecture'], dataset)

    # not the training subset: a test split is whole, whatever the factor and the seed
    test_set = create_dataset(dataset, 'test', data_dir=args.data_dir)
    if test_set.num_classes != config['num_classes']:
        raise UserError(f'{dataset} has {test_set.num_classes} classes, the model {config["num_classes"]}')
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device('cpu')
    pretrained_cfg = config['pretrained_cfg']
    loader = create_loader(
        test_set, ('eval',), batch_size=args.batch_size, training=False, device=device,
        mean=pretrained_cfg['mean'], std=pretrained_cfg['std'])
    evaluator = LongTailEvaluator(trained['shot_counts'])
    metrics = evaluate(model.to(device), loader, evaluator)
    print(format_table({config['architecture']: metrics}, ('all', 'many', 'medium', 'few', 'balanced', 'ece')))
    print(f'{sum(metrics["class_correct"])} of {metrics["num_images"]} images correct')


if __name__ == '__main__':
    run_main(main)
