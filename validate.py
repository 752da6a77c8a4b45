#!/usr/bin/env python3
"""Evaluate models: an exported folder, one of the Hub, a checkpoint of a run, or any timm model.

    python validate.py --model local-dir:output/RUN/export
    python validate.py --model hf-hub:USER/NAME --dataset cifar100_lt
    python validate.py --checkpoint output/RUN/model_best.pth.tar
    python validate.py --model resnet50 --pretrained --dataset folder --data-dir photos
    python validate.py --checkpoint output/RUN output/OTHER --figures figures
"""
import argparse
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import timm_longtail  # noqa: F401  registers the models
from timm_longtail.cli.entry import run_main
from timm_longtail.config.data_options import add_data_options
from timm_longtail.config.names import check_names
from timm_longtail.config.parser import BATCH_SIZE, IMG_SIZE, WORKERS, Parser
from timm_longtail.data import LongTailDataset, create_dataset, create_loader, create_splits
from timm_longtail.evaluation.evaluators import KNNEvaluator, LongTailEvaluator, format_table
from timm_longtail.evaluation.plots.figures import plot_class_accuracy, plot_confusion
from timm_longtail.evaluation.plots.style import require_matplotlib
from timm_longtail.retraining.trained_model import (
    Candidate,
    is_export,
    load_checkpoint,
    load_export,
    load_timm_model,
    trained_data,
)
from timm_longtail.training.accelerator import memory_format
from timm_longtail.training.loop import evaluate
from timm_longtail.training.outputs import write_per_class
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import create_text, writing
from timm_longtail.utils.ranges import Number


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


class NeighborRecorder(Recorder, KNNEvaluator):
    """The same for a model without classes."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser('validate.py', description=__doc__.splitlines()[0])
    add_data_options(parser)
    parser.set_defaults(dataset=None)
    parser.add_argument('--model', nargs='+', help='local-dir:FOLDER, hf-hub:USER/NAME or a timm model; '
                        'several are compared; without it that of --checkpoint')
    parser.add_argument('--checkpoint', nargs='+', help='checkpoint of a run, or its folder; the moving average where '
                        'there is one; several are compared')
    parser.add_argument('--pretrained', action='store_true', help='timm\'s weights for a timm model')
    parser.add_argument('--img-size', type=IMG_SIZE, help='side of the model\'s input; default: that of the model')
    parser.add_argument('--crop-pct', type=Number(float, '(0, 1]'),
                        help='share of the shorter side to look at; default: the model\'s')
    parser.add_argument('-b', '--batch-size', type=BATCH_SIZE, default=256, help='images at once')
    parser.add_argument('-j', '--workers', type=WORKERS, default=2, help='decoding processes for a data set of files')
    parser.add_argument('--predictions', help='CSV to write: one row an image')
    parser.add_argument('--per-class', help='CSV to write: one row a class')
    parser.add_argument('--figures', help='folder for PNG files: accuracy by class, confusion')
    return parser.parse_args(argv)


def load_candidates(args: argparse.Namespace) -> dict[str, Candidate]:
    """Build the models that were asked for, by what they are called in a table.

    Raises:
        UserError: Nothing to evaluate, contradicting options, an unknown model, weights that do not fit.
    """
    checkpoints, models = args.checkpoint or [], args.model or []
    if checkpoints:
        candidates = [load_checkpoint(path) for path in checkpoints]
        for path, candidate in zip(checkpoints, candidates):
            if models not in ([], [candidate.name]):
                raise UserError(f'{path} is of {candidate.name}, not of {" ".join(models)}')
    elif models:
        candidates = [_load_model(model, args) for model in models]
    else:
        raise UserError('say what to evaluate: --model or --checkpoint')
    if len(candidates) == 1:
        return {candidates[0].name: candidates[0]}
    sources = checkpoints or models
    labels = [_label(source) for source in sources]
    named = dict(zip(labels if len(set(labels)) == len(labels) else sources, candidates))
    if len(named) < len(candidates):
        raise UserError('a model is named twice')
    return named


def _load_model(name: str, args: argparse.Namespace) -> Candidate:
    if is_export(name):
        return load_export(name)
    check_names(name, args.dataset or 'digits_lt')
    if not args.pretrained:
        raise UserError(f'--model {name} has no weights: add --pretrained or --checkpoint')
    return load_timm_model(name)


def _label(source: str) -> str:
    """Return the name of the run that a path is of."""
    path = Path(source.rpartition(':')[2])
    return path.parent.name if path.name == 'export' or path.suffix == '.tar' else path.name


def measure(
        args: argparse.Namespace,
        candidate: Candidate,
        test_set: LongTailDataset,
        shot_counts: list[int],
        train_set: LongTailDataset | None,
):
    """Evaluate in fp32; returns the figures, and the recorder with every prediction.

    The images of `train_set` vote where the model has no classes.
    """
    given = {name: getattr(args, name) for name in ('img_size', 'crop_pct') if getattr(args, name) is not None}
    preprocessing = replace(candidate.preprocessing, **given)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device('cpu')
    options = dict(
        views=(preprocessing.eval_view,), batch_size=args.batch_size, training=False, device=device,
        img_size=preprocessing.img_size, mean=preprocessing.mean, std=preprocessing.std,
        num_workers=args.workers, skip_bad_images=args.skip_bad_images)
    loader = create_loader(test_set, **options)
    train_loader = None if train_set is None else create_loader(train_set, **options)
    recorder = (Recorder if train_set is None else NeighborRecorder)(shot_counts, confusion=bool(args.figures))
    model = candidate.model.float().to(device, memory_format=memory_format(device))
    metrics = evaluate(model, recorder.follow(loader), recorder, lambda: iter(train_loader))
    for name in [*test_set.bad_images, *loader.bad_images]:
        print(f'skipped, cannot be read: {name}')
    return metrics, recorder


def load_test_set(
        args: argparse.Namespace,
        candidate: Candidate,
) -> tuple[LongTailDataset, list[int], LongTailDataset | None]:
    """Return the test split, and the counts that define the groups: of the training set, or of that of the data set.

    For a model without classes the training set too; of the one it was trained on, without what the run held out.

    Raises:
        UserError: No data set is named, or one of other classes.
    """
    trained = candidate.trained
    name, options = trained_data(args, candidate)
    counts = trained.get('shot_counts')
    if not candidate.has_classes:
        train_set, test_set = create_splits(name, **options)
        fraction = trained.get('val_fraction') or 0.0
        rest = train_set.hold_out(fraction, trained.get('data_seed') or 0)[0] if fraction else train_set
        # of data that it was not trained on, all training images vote
        return test_set, train_set.shot_counts, rest if rest.hash == trained.get('subset_hash') else train_set
    if name == 'folder':
        options.update(_folder_options(candidate, options))
    if counts:  # not the training subset: a test split is whole, whatever the factor and the seed
        test_set = create_dataset(name, 'test', **options)
    else:
        train_set, test_set = create_splits(name, **options)
        counts = train_set.shot_counts
    if not candidate.model.num_classes == test_set.num_classes == len(counts):
        raise UserError(f'{name} has {test_set.num_classes} classes, the model {candidate.model.num_classes}')
    for theirs, ours in zip(trained.get('class_names') or (), test_set.class_names):
        if theirs != ours:
            raise UserError(f'{name} has other classes than the model: {ours!r} where it has {theirs!r}')
    return test_set, counts, None


def _folder_options(candidate: Candidate, options: dict[str, Any]) -> dict[str, Any]:
    """Return how a folder is read for a model: its classes by name, all images where it was trained on others."""
    names = candidate.trained.get('class_names')
    return {
        'class_names': tuple(names) if names else None,
        'whole': not _may_be_trained_on(candidate.trained, options),
    }


def _may_be_trained_on(trained: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether a model may have been trained on images of a folder: it has the name, or the class counts, of its data.

    Then only what a training run holds out of a folder without splits can be evaluated.

    Args:
        trained: What the model was trained on, see `Candidate`.
        options: Arguments of `create_dataset`.
    """
    if options['data_dir'] is None:
        return True

    place = trained.get('dataset_name') or trained.get('data_dir') or ''
    if place and Path(place).resolve().name == Path(options['data_dir']).resolve().name:
        return True

    splits = {key: options[key] for key in ('train_split', 'test_split')}
    try:
        # encoded: no image is looked at
        train_set = create_dataset(
            'folder', 'train', options['data_dir'], loader='worker',
            imbalance_factor=trained.get('imbalance_factor'), profile=trained.get('imbalance_profile') or 'exp',
            **splits)
    except UserError:  # it has no training split, or too few classes for one
        return False
    return train_set.shot_counts == trained.get('shot_counts')


def _print_notes(test_set: LongTailDataset):
    """Print what a user should know of the test set before the figures."""
    if test_set.note:
        print(f'note: {test_set.note}')
    empty = test_set.class_counts.count(0)
    if empty:
        print(f'note: {empty} of {test_set.num_classes} classes have no test image')


def _write_predictions(path: Path, test_set: LongTailDataset, recorder: Recorder):
    rows = torch.cat(recorder.predictions).tolist() if recorder.predictions else []
    with create_text(path) as f:
        writer = csv.writer(f)
        writer.writerow(['image', 'target', 'predicted', 'confidence', 'target_name', 'predicted_name'])
        for index, (target, predicted, confidence) in zip(recorder.index, rows, strict=True):
            names = (test_set.class_names[int(c)] for c in (target, predicted))
            writer.writerow([test_set.source_names[index], int(target), int(predicted), f'{confidence:.6f}', *names])


def _draw(folder: Path, measured: dict[str, dict], confusions: dict[str, torch.Tensor], counts: list[int], names):
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    accuracies = {label: metrics['class_accuracy'] for label, metrics in measured.items()}
    plot_class_accuracy(folder / 'class_accuracy.png', accuracies, counts, class_names=names)
    plot_confusion(folder / 'confusion.png', confusions, counts, class_names=names)


def _check_options(args: argparse.Namespace):
    for path in filter(None, (args.per_class, args.predictions)):
        if not Path(path).parent.is_dir():
            raise UserError(f'cannot write {path}: no folder {Path(path).parent}')
        if max(len(args.model or ()), len(args.checkpoint or ())) > 1:
            raise UserError(f'{path} is for one model, and several are named')
    if args.figures:
        require_matplotlib()


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    _check_options(args)
    measured, confusions, first = {}, {}, None
    for label, candidate in load_candidates(args).items():
        test_set, counts, train_set = load_test_set(args, candidate)
        if first is None:
            first = test_set.hash, counts
            _print_notes(test_set)
        if first != (test_set.hash, counts):
            raise UserError(f'{label} was trained for other images or classes: models are compared on one test set')
        label += '' if train_set is None else f', {KNNEvaluator.counted}'
        measured[label], recorder = measure(args, candidate, test_set, counts, train_set)
        confusions[label] = recorder.confusion_matrix() if args.figures else None
    print(format_table(measured, ('all', 'many', 'medium', 'few', 'balanced', 'few_to_many', 'ece')))
    for label, metrics in measured.items():
        name = f'{label}: ' if len(measured) > 1 else ''
        print(f'{name}{sum(metrics["class_correct"])} of {metrics["num_images"]} images correct')
    if args.per_class:
        images = candidate.trained.get('class_counts') or [''] * len(counts)
        write_per_class(Path(args.per_class), test_set.class_names, images, counts, metrics)
    if args.predictions:
        _write_predictions(Path(args.predictions), test_set, recorder)
    if args.figures:  # last: what a figure fails on costs no table
        _draw(Path(args.figures), measured, confusions, counts, test_set.class_names)
        print(f'figures: {Path(args.figures) / "class_accuracy.png"}, {Path(args.figures) / "confusion.png"}')


if __name__ == '__main__':
    run_main(main)
