"""`timm-longtail compare`: which classifier is best for given data, chosen without the test set, and its export."""
import argparse
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from ..config.data_options import add_data_options
from ..config.parser import BATCH_SIZE, IMG_SIZE, SEED, SHARE, WORKERS, Parser
from ..evaluation.report.page import write_page_of_run
from ..evaluation.report.reading import PREDICTIONS, UNCALIBRATED
from ..retraining.classifier import Classifier
from ..retraining.compare import Compared, Result, calibrate, choose, compare_families, evaluate, finish
from ..retraining.compared import choose_classes
from ..retraining.comparison_report import (
    chosen_how,
    comparison_json,
    cross_validated_table,
    recommendation,
    test_table,
)
from ..retraining.families import FAMILIES, why_not
from ..retraining.feature_cache import add_feature_cache, open_cache
from ..retraining.figures import draw_comparison
from ..retraining.report import export_classifier, write_test_predictions
from ..retraining.representation import Representation
from ..retraining.source import load_source, open_data
from ..retraining.trained_model import named_data
from ..training.accelerator import create_accelerator
from ..training.provenance import validate_command
from ..utils.errors import UserError, one_line, unknown_name
from ..utils.files import BEST, LAST, require_place, write_json
from ..utils.output_lock import hold_folder
from ..utils.ranges import Number
from .compare_training import require_trainable, train_methods

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(
        description='Say which classifier is best on the features of a model, or of several, by cross-validation on '
                    'the training images; then test all once, and export the one that was chosen.')
    parser.add_argument(
        'sources', nargs='+', metavar='MODEL_OR_RUN',
        help='output or export folders, checkpoints, local-dir:FOLDER, hf-hub:USER/NAME or timm models, which come '
             'with their pretrained weights')
    parser.add_argument(
        '--initial-checkpoint', default='', help='weights of the one timm model, in place of pretrained ones')

    # what is compared, and how
    parser.add_argument(
        '--classifiers', nargs='+', default=['all'], metavar='NAME', help=f'all, or of {", ".join(FAMILIES)}')
    parser.add_argument(
        '--folds', type=Number(int, '[2, 100]'), default=5, help='folds of the cross-validation')
    parser.add_argument(
        '--repeats', type=Number(int, '[1, 100]'), default=2, help='how often it is repeated, with other folds')
    parser.add_argument('--seed', type=SEED, default=0, help='seed of the folds')

    # methods that are trained, to compare with
    parser.add_argument(
        '--train', nargs='+', default=[], metavar='METHOD',
        help='train the one model by these methods too, each for as many images; all is then measured on a hold-out')
    parser.add_argument(
        '--train-epochs', type=Number(int, '[1, 1000000]'), default=10,
        help='epochs of a method with one data stream; one with two, which shows twice the images, has half of them')
    parser.add_argument(
        '--train-args', default='--opt adamw --lr 1e-4 --weight-decay 0.05', metavar='OPTIONS',
        help='other options of train, in quotes')
    parser.add_argument(
        '--val-fraction', type=SHARE,
        help='share of each class that is held out and measured on, in place of cross-validation; default 0.2 with '
             '--train')

    # images
    parser.add_argument(
        '--img-size', type=IMG_SIZE, help='side of the models\' input; default: that of the model')
    parser.add_argument(
        '-vb', '--validation-batch-size', type=BATCH_SIZE, default=256, help='images at once')
    parser.add_argument('-j', '--workers', type=WORKERS, help='decoding processes')
    add_feature_cache(parser)

    # what is written
    parser.add_argument(
        '--output', default='output/compare', help='folder for compare.json and for the export of the one chosen')
    parser.add_argument('--license', help='licence of the exported weights')

    add_data_options(parser)
    parser.set_defaults(dataset=None)
    return parser


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = create_parser()
    args = parser.parse_args(argv)

    # what is compared
    for name in args.classifiers:
        if name != 'all' and name not in FAMILIES:
            raise unknown_name('classifier', name, ('all', *FAMILIES))
    if args.initial_checkpoint and len(args.sources) > 1:
        raise UserError('--initial-checkpoint is for one model; name the others as folders of their own')
    if len(set(args.sources)) < len(args.sources):
        raise UserError('a model is named twice')

    # methods that are trained
    if not args.train and args.train_args != parser.get_default('train_args'):
        raise UserError('--train-args: for --train METHOD, which is not there')
    if args.train and len(args.sources) > 1:
        raise UserError('--train is for one model')
    if len(set(args.train)) < len(args.train):
        raise UserError('--train: a method is named twice')
    if args.train:
        require_trainable(args, Path(args.output) / 'train')
        if args.val_fraction is None:
            args.val_fraction = 0.2

    require_place(Path(args.output))
    return args


def _open(source: str, args: argparse.Namespace, accelerator: Accelerator) -> Representation:
    """Load a model and its data."""
    options = argparse.Namespace(**vars(args))
    options.source = source
    options.features = 'cached'
    representation = open_data(options, load_source(options), accelerator)
    representation.cache = open_cache(args)
    return representation


def _labels(sources: list[str]) -> list[str]:
    """Return what models are called in the table: of a path the name of its run, with as much before it as tells
    them apart.
    """
    paths = [Path(source.removeprefix('local-dir:')).absolute() for source in sources]
    runs = [path.parent if path.name == 'export' or path.suffix == '.tar' else path for path in paths]

    # by their runs, or else by their own names: a run has several checkpoints
    for named in (runs, paths):
        for length in range(1, 1 + max(len(path.parts) for path in named)):
            labels = ['/'.join(path.parts[-length:]) for path in named]
            if len(set(labels)) == len(labels):
                return labels
    return [f'{path.name} ({number})' for number, path in enumerate(runs, 1)]


def _require_same_images(representations: dict[str, Representation]):
    """Raise a `UserError` where models would be tested on different images, or on different classes."""
    first, *others = representations
    one = representations[first]
    for label in others:
        other = representations[label]
        differ = ''
        if other.test_set.hash != one.test_set.hash:
            differ = 'test images'
        elif other.train_set.num_classes != one.train_set.num_classes:
            differ = 'classes'
        if differ:
            raise UserError(f'{first} and {label} have other {differ}: name the data for both by --dataset')


def _compute_features(representations: dict[str, Representation]):
    """Compute the features of all images, and say of how many.

    Those of test images, too: one that cannot be read ends the command here, and not after hours.
    What their classes are is asked after the choice only.
    """
    for label, representation in representations.items():
        started = time.perf_counter()
        train, held, test = representation.train, representation.held, representation.test
        num_images = len(train.targets) + (0 if held is None else len(held.targets))
        counts = representation.class_counts
        print(
            f'{label}: features of {num_images} images, {len(counts)} classes of {max(counts)} to {min(counts)}, and '
            f'of {len(test.targets)} test images; {time.perf_counter() - started:.1f} s',
            flush=True)


def _compare(
        label: str,
        representation: Representation,
        args: argparse.Namespace,
        prefix: str,
        classes: torch.Tensor,
) -> list[Result]:
    """Cross-validate all classifiers of one model, saying what is left out.

    Args:
        label: What the model is called.
        representation: Model and data.
        args: Options.
        prefix: Stands before the names of its classifiers.
        classes: Classes that settings are chosen on.
    """
    names = FAMILIES if 'all' in args.classifiers else args.classifiers
    refused = {name: why_not(FAMILIES[name], representation) for name in names}
    for reason in dict.fromkeys(reason for reason in refused.values() if reason is not None):
        alike = [name for name in names if refused[name] == reason]
        print(f'left out: {", ".join(alike)}: {reason}')

    started = time.perf_counter()
    compared = Compared(label, representation, args.folds, args.repeats, args.seed, classes)
    if Path(representation.args.source).name == BEST and representation.seen and compared.uses_hold_out:
        print(
            f'{label}: this epoch was chosen on the hold-out, so that its figures there are too high; those of {LAST} '
            'are not',
            flush=True)
    if compared.chooses_on_part:
        print(
            f'{label}: settings are chosen on {len(classes)} of the {compared.data.num_classes} classes, which are '
            'easier to tell apart than all of them')

    families = {name: FAMILIES[name] for name in FAMILIES if name in refused and refused[name] is None}
    results = list(compare_families(compared, families, prefix))
    print(f'{label}: {_how(compared)}; {time.perf_counter() - started:.1f} s', flush=True)
    return results


def _how(compared: Compared) -> str:
    """Return what classifiers are measured on."""
    if compared.uses_hold_out:
        return f'measured on {len(compared.trial.splits[0].measure)} images that are held out'

    all_counts = compared.representation.class_counts
    counts = [all_counts[label] for label in compared.trial.classes]
    num_rare = sum(1 < count < compared.num_folds for count in counts)
    num_single = counts.count(1)
    words = f'{compared.num_folds} folds'
    if compared.trial.num_repeats > 1:
        words += f', dealt {compared.trial.num_repeats} times'
    if num_rare:
        words += f'; classes with fewer images than folds, each image held out once: {num_rare}'
    if num_single:
        words += f'; classes with one image, always trained on and not measured: {num_single}'
    return words


def _export(result: Result, folder: Path) -> str:
    """Write the model with the classifier that was chosen; returns why it cannot be, or ''."""
    figures = {name: value for name, value in result.test.items() if name != 'intervals'}
    mean, error = result.expected
    figures['intervals'] = {name: list(ends) for name, ends in result.test['intervals'].items() if ends}
    figures['expected'] = {
        'chosen': chosen_how(result.compared),
        'balanced': mean,
        'standard_error': error,
        'balanced_ece_before': result.ece[0],
        'balanced_ece': result.ece[1],
    }
    options = {**result.options, 'temperature': result.temperature}
    name = result.name.rpartition('/')[2]
    classifier = Classifier(name, result.module, options=options, note=f'chosen {chosen_how(result.compared)}')
    return export_classifier(folder, classifier, result.compared.representation, figures)


def _report(chosen: Result, folder: Path):
    """Write what the classifier that was chosen predicts, before and after calibration, and the report page."""
    representation = chosen.compared.representation
    write_test_predictions(folder / PREDICTIONS, chosen.module, representation)
    before = folder / UNCALIBRATED
    if chosen.temperature != 1:
        uncalibrated = chosen.rule.folded(chosen.compared.data.scale)
        write_test_predictions(before, uncalibrated, representation)
    else:
        before.unlink(missing_ok=True)  # of an earlier call
    write_page_of_run(folder, representation.train_set, representation.test_set)


def _calibration(result: Result) -> str:
    """Return what the temperature has brought, each class weighing the same."""
    before, after = result.ece
    test_before, test_after = result.test['balanced_ece_before'], result.test['balanced_ece']
    return (
        f'temperature {result.temperature:.3g}: balanced calibration error {before:.1f} before and {after:.1f} after '
        f'on the images measured, {test_before:.1f} and {test_after:.1f} on the test set')


def main(argv: list[str] | None = None):
    """Compare classifiers, choose one, test and export it.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: Options, a model or data that cannot be used.
    """
    args = _parse(sys.argv[1:] if argv is None else argv)
    accelerator = create_accelerator()
    if accelerator.num_processes > 1:
        raise UserError('compare is one process')

    labels = _labels(args.sources)
    representations = {label: _open(source, args, accelerator) for label, source in zip(labels, args.sources)}
    _require_same_images(representations)
    folder = Path(args.output)
    hold_folder(folder)
    _compute_features(representations)

    # methods to compare with become models of their own, named by the method
    if args.train:
        start = representations[labels[0]]
        runs = train_methods(args, start, folder / 'train')
        trained = {f'train/{run.name}': _open(str(run), args, accelerator) for run in runs}
        _compute_features(trained)
        representations.update(trained)
        hold_folder(folder)  # each run held its own

    # the choice, which the test images have no part in
    classes = choose_classes(list(representations.values()))
    results = []
    for label, representation in representations.items():
        prefix = f'{label}/' if len(representations) > 1 else ''
        results += _compare(label, representation, args, prefix, classes)
    chosen = choose(results)
    print(f'\n{cross_validated_table(results)}', flush=True)
    calibrate(chosen)
    print(f'\n{recommendation(results, chosen)}', flush=True)

    # only now the test set is looked at
    for result in results:
        finish(result)
        evaluate(result, result.compared.representation.test)
    print(f'\n{test_table(results, chosen)}')
    print('95 % intervals over test images; * was chosen without them')
    print('All: each image counts the same; Balanced: each class')

    content = comparison_json(results, chosen)
    reason = _export(chosen, folder)
    write_json(folder / 'compare.json', content)
    print(_calibration(chosen))
    _report(chosen, folder)
    if reason:
        raise UserError(reason)
    _draw(folder, results, chosen)

    data = named_data(args, chosen.compared.representation.trained_model)
    print(f'\nall results are in {folder}, and the model for timm in its folder export; to evaluate that model again:')
    print(f'    {validate_command(folder / "export", *data)}')
    print('to use it in Python:')
    print('    import timm, timm_longtail')
    print(f"    model = timm.create_model('local-dir:{folder}/export', pretrained=True)", flush=True)


def _draw(folder: Path, results: list[Result], chosen: Result):
    """Draw figures, without which all else is there."""
    try:
        draw_comparison(folder, results, chosen)
    except Exception as e:
        print(f'not all figures could be drawn: {one_line(e) or type(e).__name__}')
