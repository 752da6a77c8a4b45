"""`timm-longtail validate`: figures of exported folders, models of the Hub, checkpoints of runs, or timm models."""
import argparse
from pathlib import Path
from typing import Any

import torch

from ..config.data_options import add_data_options
from ..config.names import check_dataset, check_model
from ..config.parser import BATCH_SIZE, IMG_SIZE, TTA_HELP, WORKERS, Parser
from ..data import LongTailDataset
from ..evaluation.evaluators import KNNEvaluator
from ..evaluation.plots.figures import plot_class_accuracy, plot_confusion
from ..evaluation.plots.style import require_matplotlib
from ..evaluation.predictions import Recorder, write_predictions
from ..evaluation.shifted_priors import known_prior_accuracies
from ..evaluation.tables import format_table, interval_words, write_per_class
from ..retraining.model_prior import learned_prior, read_prior
from ..retraining.testing import EvaluationData, load_evaluation_data, measure
from ..retraining.trained_model import (
    TrainedModel,
    is_export,
    load_checkpoint,
    load_export,
    load_timm_model,
)
from ..utils.errors import UserError
from ..utils.files import write_json, writing
from ..utils.ranges import Number

__all__ = ['create_parser', 'load_models', 'main']

_COLUMNS = ('all', 'many', 'medium', 'few', 'balanced', 'few_to_many', 'ece')

# a second table: ranking of classes, and accuracy on test sets with another class distribution
_MORE_COLUMNS = ('top5', 'macro_auroc', 'macro_ap', 'forward_50', 'uniform', 'backward_50')


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(
        description='Evaluate models: an exported folder, one of the Hub, a checkpoint of a run, or any timm model.')
    add_data_options(parser)
    parser.set_defaults(dataset=None)

    # what is evaluated
    parser.add_argument(
        '--model', nargs='+',
        help='local-dir:FOLDER, hf-hub:USER/NAME or a timm model; several are compared; without it that of '
             '--checkpoint')
    parser.add_argument(
        '--checkpoint', nargs='+',
        help='checkpoint of a run, or its folder; the moving average where there is one; several are compared')
    parser.add_argument('--pretrained', action='store_true', help='timm\'s weights for a timm model')
    parser.add_argument(
        '--split', dest='test_split', default=argparse.SUPPRESS, help='the name that timm has for --test-split')

    # how
    parser.add_argument(
        '--img-size', type=IMG_SIZE, help='side of the model\'s input; default: that of the model')
    parser.add_argument(
        '--crop-pct', type=Number(float, '(0, 1]'),
        help='share of the shorter side to look at; default: the model\'s')
    parser.add_argument('--tta', choices=('five_crop',), help=TTA_HELP)
    parser.add_argument('-b', '--batch-size', type=BATCH_SIZE, default=256, help='images at once')
    parser.add_argument(
        '-j', '--workers', type=WORKERS, default=2, help='decoding processes for a data set of files')

    parser.add_argument(
        '--known-prior', action='store_true',
        help='accuracies on other class distributions with the logits shifted to each of them, as if it were known')
    parser.add_argument(
        '--model-prior', metavar='PRIOR',
        help='for --known-prior: the distribution that the model\'s outputs follow, where it does not say: train, '
             'balanced, or a file with a class and a weight a line')

    # what is written
    parser.add_argument('--metrics', help='JSON to write: all figures of each model, by its name')
    parser.add_argument('--predictions', help='CSV to write: one row an image')
    parser.add_argument('--per-class', help='CSV to write: one row a class')
    parser.add_argument('--figures', help='folder for PNG files: accuracy by class, confusion')
    return parser


def load_models(args: argparse.Namespace) -> dict[str, TrainedModel]:
    """Build the models that were asked for, by what they are called in a table.

    Args:
        args: Options `model`, `checkpoint`, `pretrained` and `dataset`.

    Raises:
        UserError: Nothing to evaluate, contradicting options, an unknown model, weights that do not fit.
    """
    checkpoints, models = args.checkpoint or [], args.model or []
    if checkpoints:
        trained_models = [load_checkpoint(path) for path in checkpoints]
        for path, trained_model in zip(checkpoints, trained_models):
            if models not in ([], [trained_model.name]):
                raise UserError(f'{path} is of {trained_model.name}, not of {" ".join(models)}')
    elif models:
        trained_models = [_load_model(model, args) for model in models]
    else:
        raise UserError('say what to evaluate: --model or --checkpoint')

    if len(trained_models) == 1:
        return {trained_models[0].name: trained_models[0]}

    # several have the names of their runs, or whole paths where two runs have one name
    sources = checkpoints or models
    labels = [_label(source) for source in sources]
    if len(set(labels)) < len(labels):
        labels = sources
    named = dict(zip(labels, trained_models))
    if len(named) < len(trained_models):
        raise UserError('a model is named twice')
    return named


def _load_model(name: str, args: argparse.Namespace) -> TrainedModel:
    if is_export(name):
        return load_export(name)
    check_model(name)
    if not args.pretrained:
        raise UserError(f'--model {name} has no weights: add --pretrained or --checkpoint')
    return load_timm_model(name)


def _label(source: str) -> str:
    """Return the name of the run that a path is of."""
    path = Path(source.rpartition(':')[2])
    is_inside = path.name == 'export' or path.suffix == '.tar'
    return path.parent.name if is_inside else path.name


def _check_options(args: argparse.Namespace):
    """Refuse an unknown data set, and what could not be written, before anything is loaded."""
    if args.dataset:
        check_dataset(args.dataset)

    num_models = max(len(args.model or ()), len(args.checkpoint or ()))
    for path in (args.metrics, args.per_class, args.predictions):
        if not path:
            continue
        if not Path(path).parent.is_dir():
            raise UserError(f'cannot write {path}: no folder {Path(path).parent}')
        if num_models > 1 and path != args.metrics:
            raise UserError(f'{path} is for one model, and several are named')

    if args.model_prior and not args.known_prior:
        raise UserError('--model-prior is for --known-prior')
    if args.figures:
        require_matplotlib()


def _known_prior(
        args: argparse.Namespace,
        label: str,
        trained_model: TrainedModel,
        data: EvaluationData,
        recorder: Recorder,
) -> dict[str, float | None]:
    """Return the accuracies on other class distributions with the logits shifted to each of them."""
    if args.model_prior:
        learned = read_prior(args.model_prior, '--model-prior', trained_model, data.test_set.class_names)
    else:
        learned = learned_prior(trained_model) if data.train_set is None else None
    if learned is None:
        raise UserError(
            f'--known-prior: which class distribution the outputs of {label} follow is not known; name it by '
            '--model-prior: train, balanced or a file')
    return known_prior_accuracies(*recorder.scores(), data.shot_counts, learned)


def _print_notes(test_set: LongTailDataset):
    """Print what a user should know of the test set before the figures."""
    if test_set.note:
        print(f'note: {test_set.note}')
    empty = test_set.class_counts.count(0)
    if empty:
        print(f'note: {empty} of {test_set.num_classes} classes have no test image')


def _print_figures(measured: dict[str, dict[str, Any]]):
    print(format_table(measured, _COLUMNS))

    more = {}
    for label, metrics in measured.items():
        more[label] = {**metrics, **metrics['shifted']}
        if 'shifted_known_prior' in metrics:
            more[f'{label}, prior known'] = metrics['shifted_known_prior']
    print(f'\n{format_table(more, _MORE_COLUMNS)}\n')

    for label, metrics in measured.items():
        name = f'{label}: ' if len(measured) > 1 else ''
        print(f'{name}{interval_words(metrics["intervals"])}')
    for label, metrics in measured.items():
        name = f'{label}: ' if len(measured) > 1 else ''
        print(f'{name}{sum(metrics["class_correct"])} of {metrics["num_images"]} images correct')


def _draw(
        folder: Path,
        measured: dict[str, dict[str, Any]],
        confusions: dict[str, torch.Tensor],
        shot_counts: list[int],
        class_names: list[str],
):
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)

    by_class, confusion = folder / 'class_accuracy.png', folder / 'confusion.png'
    accuracies = {label: metrics['class_accuracy'] for label, metrics in measured.items()}
    plot_class_accuracy(by_class, accuracies, shot_counts, class_names=class_names)
    plot_confusion(confusion, confusions, shot_counts, class_names=class_names)
    print(f'figures: {by_class}, {confusion}')


def main(argv: list[str] | None = None):
    """Evaluate models and print a table, one row a model.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: No model, no data, or models of different data.
    """
    args = create_parser().parse_args(argv)
    _check_options(args)

    measured, confusions = {}, {}
    first = None
    for label, trained_model in load_models(args).items():
        data = load_evaluation_data(args, trained_model)
        if first is None:
            first = data
            _print_notes(data.test_set)
        if (data.test_set.hash, data.shot_counts) != (first.test_set.hash, first.shot_counts):
            raise UserError(f'{label} was trained for other images or classes: models are compared on one test set')

        if data.train_set is not None:
            label = f'{label}, {KNNEvaluator.counted}'
        if args.tta is not None:
            label = f'{label}, {args.tta}'
        measured[label], recorder = measure(args, trained_model, data, confusion=bool(args.figures))
        if args.known_prior:
            measured[label]['shifted_known_prior'] = _known_prior(args, label, trained_model, data, recorder)
        if args.figures:
            confusions[label] = recorder.confusion_matrix()
    _print_figures(measured)
    if args.metrics:
        write_json(Path(args.metrics), measured)

    # files of one model: `_check_options` has seen to it
    test_set, shot_counts = data.test_set, data.shot_counts
    if args.per_class:
        images = trained_model.provenance.get('class_counts') or [''] * len(shot_counts)
        write_per_class(Path(args.per_class), test_set.class_names, images, shot_counts, measured[label])
    if args.predictions:
        write_predictions(Path(args.predictions), test_set, recorder)

    if args.figures:  # last: what a figure fails on costs no table
        _draw(Path(args.figures), measured, confusions, shot_counts, test_set.class_names)
