#!/usr/bin/env python3
"""Evaluate a model: an exported folder, one of the Hub, a checkpoint of a run, or any timm model.

    python validate.py --model local-dir:output/RUN/export
    python validate.py --model hf-hub:USER/NAME --dataset cifar100_lt
    python validate.py --checkpoint output/RUN/model_best.pth.tar
    python validate.py --model resnet50 --pretrained --dataset folder --data-dir photos
"""
import argparse
import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn

import timm_longtail  # noqa: F401  registers the models
from timm_longtail.checkpoint import check_architecture, find_checkpoint, read_checkpoint, writing
from timm_longtail.cli import check_names, create_timm_model
from timm_longtail.data import LongTailDataset, Preprocessing, create_dataset, create_loader
from timm_longtail.engine import evaluate
from timm_longtail.entry import run_main
from timm_longtail.errors import UserError
from timm_longtail.evaluate import LongTailEvaluator, format_table
from timm_longtail.export import load_exported
from timm_longtail.options import Parser, add_data_options, dataset_options
from timm_longtail.outputs import write_per_class

# where a run found its data: a checkpoint knows, an export, which is published, does not
_STORAGE = 'data_dir', 'train_split', 'test_split', 'input_key', 'target_key'
_EXPORTS = 'local-dir:', 'hf-hub:', 'hf_hub:'


@dataclass
class Candidate:
    """A model to evaluate, and what is known about it.

    Attributes:
        model: The model.
        name: Its architecture.
        preprocessing: What it wants of an image.
        trained: What it was trained on, as far as it says: `dataset`, `class_names`, `class_counts`, `shot_counts`,
            `resident`.
    """
    model: nn.Module
    name: str
    preprocessing: Preprocessing
    trained: dict[str, Any]


class Recorder(LongTailEvaluator):
    """The evaluator, keeping each image's prediction and confidence."""

    def start(self, model, train_batches):
        super().start(model, train_batches)
        self.index, self.predictions = [], []

    def follow(self, loader):
        """Iterate over a loader and note which images its batches are of."""
        for views, target, index in loader:
            self.index += index.tolist()
            yield views, target, index

    def add(self, output, target):
        super().add(output, target)
        confidence, predicted = output.double().softmax(dim=1).max(dim=1)
        self.predictions.append(torch.stack([target.double(), predicted.double(), confidence], dim=1))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser('validate.py', description=__doc__.splitlines()[0])
    add_data_options(parser)
    parser.set_defaults(dataset=None)
    parser.add_argument('--model', help='local-dir:FOLDER, hf-hub:USER/NAME or a timm model; '
                        'without it that of --checkpoint')
    parser.add_argument('--checkpoint', help='checkpoint of a run; its moving average where there is one')
    parser.add_argument('--pretrained', action='store_true', help='timm\'s weights for a timm model')
    parser.add_argument('--img-size', type=int, help='side of the model\'s input; default: that of the model')
    parser.add_argument('--crop-pct', type=float, help='share of the shorter side to look at; default: the model\'s')
    parser.add_argument('-b', '--batch-size', type=int, default=256, help='images at once')
    parser.add_argument('-j', '--workers', type=int, default=2, help='decoding processes for a data set of files')
    parser.add_argument('--predictions', help='CSV to write: one row an image')
    parser.add_argument('--per-class', help='CSV to write: one row a class')
    return parser.parse_args(argv)


def load_candidate(args: argparse.Namespace) -> Candidate:
    """Build the model that was asked for.

    Raises:
        UserError: Nothing to evaluate, contradicting options, an unknown model, weights that do not fit.
    """
    if args.checkpoint:
        return _from_checkpoint(args)
    if args.model is None:
        raise UserError('say what to evaluate: --model or --checkpoint')
    if args.model.startswith(_EXPORTS):
        model, config = load_exported(args.model)
        name, trained = config['architecture'], config.get('timm_longtail', {})
        trained = {**trained, 'class_names': config.get('label_names')}
    else:
        check_names(args.model, args.dataset or 'digits_lt')
        if not args.pretrained:
            raise UserError(f'--model {args.model} has no weights: add --pretrained or --checkpoint')
        model, name, trained = create_timm_model(args.model, pretrained=True), args.model, {}
    config = resolve_model_data_config(model)
    preprocessing = Preprocessing(
        config['input_size'][-1], config['mean'], config['std'], config['crop_pct'], config['interpolation'])
    return Candidate(model, name, preprocessing, trained)


def _from_checkpoint(args: argparse.Namespace) -> Candidate:
    path = Path(args.checkpoint)
    found = find_checkpoint(path) if path.is_dir() else (path, read_checkpoint(path))
    if found is None:
        raise UserError(f'--checkpoint {path}: no checkpoint in this folder')
    _, state = found
    about = state.get('about')
    if about is None:
        raise UserError(f'{args.checkpoint} is not a checkpoint of train.py: it does not say how to evaluate it')
    if args.model not in (None, state['arch']):
        raise UserError(f'{args.checkpoint} is of {state["arch"]}, not of {args.model}')
    model = create_timm_model(state['arch'], **about['model_args'])
    weights = state.get('state_dict_ema', state['state_dict'])
    check_architecture(model.state_dict(), weights, args.checkpoint, state['arch'])
    model.load_state_dict(weights)
    trained = {**about, **{name: state['args'].get(name) for name in ('dataset', *_STORAGE)}}
    return Candidate(model, state['arch'], Preprocessing(**about['preprocessing']), trained)


def measure(args: argparse.Namespace, candidate: Candidate, test_set: LongTailDataset, shot_counts: list[int]):
    """Evaluate in fp32; returns the figures, and the recorder with every prediction."""
    given = {name: getattr(args, name) for name in ('img_size', 'crop_pct') if getattr(args, name) is not None}
    preprocessing = replace(candidate.preprocessing, **given)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device('cpu')
    loader = create_loader(
        test_set, (preprocessing.eval_view,), batch_size=args.batch_size, training=False, device=device,
        img_size=preprocessing.img_size, mean=preprocessing.mean, std=preprocessing.std,
        num_workers=args.workers, skip_bad_images=args.skip_bad_images)
    recorder = Recorder(shot_counts)
    metrics = evaluate(candidate.model.to(device).float(), recorder.follow(loader), recorder)
    for name in [*test_set.bad_images, *loader.bad_images]:
        print(f'skipped, cannot be read: {name}')
    return metrics, recorder


def load_test_set(args: argparse.Namespace, candidate: Candidate) -> tuple[LongTailDataset, list[int]]:
    """Return the test split, and the counts that define the groups: of the training set, or of that of the data set.

    Raises:
        UserError: No data set is named, or one of other classes.
    """
    trained, name = candidate.trained, args.dataset or candidate.trained.get('dataset')
    if name is None:
        raise UserError(f'{candidate.name} does not say what it was trained on: add --dataset')
    try:
        check_names(candidate.name, name)
    except UserError as e:
        if args.dataset is None:
            raise UserError(f'{candidate.name} was trained on {name}: name it by --dataset, a folder by '
                            '--dataset folder --data-dir …, a packed file by --dataset packed:FILE') from e
        raise
    options = dataset_options(args)
    if args.dataset is None:
        options.update({key: options[key] or trained.get(key) for key in _STORAGE})
    if options['loader'] == 'auto' and trained.get('resident') is False:
        options['loader'] = 'worker'
    # not the training subset: a test split is whole, whatever the factor and the seed
    test_set = create_dataset(name, 'test', **options)
    counts = trained.get('shot_counts') or create_dataset(name, 'train', **options).shot_counts
    if not candidate.model.num_classes == test_set.num_classes == len(counts):
        raise UserError(f'{name} has {test_set.num_classes} classes, the model {candidate.model.num_classes}')
    for theirs, ours in zip(trained.get('class_names') or (), test_set.class_names):
        if theirs != ours:
            raise UserError(f'{name} has other classes than the model: {ours!r} where it has {theirs!r}')
    return test_set, counts


def _write_predictions(path: Path, test_set: LongTailDataset, recorder: Recorder):
    rows = torch.cat(recorder.predictions).tolist()
    with writing(path), open(path, 'w', newline='', errors='backslashreplace') as f:
        writer = csv.writer(f)
        writer.writerow(['image', 'target', 'predicted', 'confidence', 'target_name', 'predicted_name'])
        for index, (target, predicted, confidence) in zip(recorder.index, rows, strict=True):
            names = (test_set.class_names[int(c)] for c in (target, predicted))
            writer.writerow([test_set.source_names[index], int(target), int(predicted), f'{confidence:.6f}', *names])


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    for path in filter(None, (args.per_class, args.predictions)):
        if not Path(path).parent.is_dir():
            raise UserError(f'cannot write {path}: no folder {Path(path).parent}')
    candidate = load_candidate(args)
    test_set, counts = load_test_set(args, candidate)
    metrics, recorder = measure(args, candidate, test_set, counts)
    print(format_table({candidate.name: metrics}, ('all', 'many', 'medium', 'few', 'balanced', 'ece')))
    print(f'{sum(metrics["class_correct"])} of {metrics["num_images"]} images correct')
    if args.per_class:
        images = candidate.trained.get('class_counts') or [''] * len(counts)
        write_per_class(Path(args.per_class), test_set.class_names, images, counts, metrics)
    if args.predictions:
        _write_predictions(Path(args.predictions), test_set, recorder)


if __name__ == '__main__':
    run_main(main)
