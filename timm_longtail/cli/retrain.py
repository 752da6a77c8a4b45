"""`timm-longtail retrain`: retrain the classifier of a trained model, and compare it before and after."""
import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.data_options import add_data_options
from ..config.parser import BATCH_SIZE, IMG_SIZE, SEED, SHARE, WORKERS, Pairs, Parser
from ..evaluation.report.page import write_page_of_run
from ..evaluation.report.reading import PREDICTIONS
from ..methods import check_options
from ..models.tuning import create_tuning, list_tunings
from ..retraining.classifier import JOINT, Classifier
from ..retraining.classifiers import CLASSIFIERS, TRAINED, choose_classifiers, make_classifiers
from ..retraining.feature_cache import add_feature_cache, open_cache
from ..retraining.figures import draw_figures
from ..retraining.report import (
    export_classifier,
    final_lines,
    results_path,
    results_row,
    start_lines,
    write_test_predictions,
)
from ..retraining.representation import Representation
from ..retraining.source import load_source, open_data
from ..retraining.trained_model import named_data
from ..training import provenance
from ..training.accelerator import create_accelerator
from ..training.outputs import note_changed_file
from ..training.rows import data_tag
from ..utils.errors import UserError, one_line
from ..utils.files import write_json
from ..utils.output_lock import create_folder, hold_folder
from ..utils.ranges import Number

__all__ = ['create_parser', 'main', 'parse_args']


def _underscored(word: str) -> str:
    return word.replace('-', '_')


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(
        description='Retrain the classifier of a trained model: cRT, LWS, tau-normalisation, nearest mean and more, '
                    'before and after.')
    parser.add_argument(
        'source',
        help='output or export folder, checkpoint, local-dir:FOLDER, hf-hub:USER/NAME or a timm model, which comes '
             'with its pretrained weights')
    parser.add_argument(
        '--initial-checkpoint', default='', help='weights of a timm model, in place of pretrained ones')

    # which classifiers, and on what
    names = ', '.join(name.replace('_', '-') for name in CLASSIFIERS)
    parser.add_argument(
        '--classifier', nargs='+', default=['all'], metavar='NAME', help=f'all, or of {names}')
    parser.add_argument(
        '--classifier-kwargs', nargs='*', default={}, action=Pairs, metavar='K=V',
        help='options of the one classifier that is named, such as tau=1 for lws')
    parser.add_argument(
        '--features', choices=('cached', 'augmented'), default='cached',
        help='train on features computed once, in seconds, or on augmented images, as published')
    parser.add_argument(
        '--tune', type=_underscored, default='classifier',
        help=f'what is trained of the model (crt, linear, max-norm; augmented): one of {", ".join(list_tunings())}, '
             'as in train')
    parser.add_argument(
        '--bn', choices=('eval', 'train'), default='eval',
        help='BatchNorm of the frozen part (augmented): train is what the published code does')
    parser.add_argument('--view', default='crop_flip', help='view of each image (augmented)')

    # optimizer and schedule
    parser.add_argument(
        '--epochs', type=Number(int, '[1, 1000000]'), help='of each classifier; default 10, linear 30')
    parser.add_argument(
        '--lr', type=Number(float, '[0, inf)'), nargs='+',
        help='default of the classifier: 0.1, max-norm 0.01, linear 0.5; of several the one with the best balanced '
             'accuracy on the hold-out is taken')
    parser.add_argument(
        '--choose-lr-on-test', action='store_true',
        help='choose among several --lr on the test set, as published linear evaluations do')
    parser.add_argument(
        '--weight-decay', type=Number(float, '[0, inf)'),
        help='default of the classifier: 5e-4, max-norm 0.1, linear 0')
    parser.add_argument('-b', '--batch-size', type=BATCH_SIZE, default=128, help='images of an update')
    parser.add_argument('--seed', type=SEED, default=0, help='initialisation, order, views')
    parser.add_argument(
        '--mixed-precision', choices=('no', 'bf16', 'fp16'), help='training on images')

    # images
    parser.add_argument(
        '--img-size', type=IMG_SIZE, help='side of the model\'s input; default: that of the model')
    parser.add_argument(
        '--val-fraction', type=SHARE,
        help='share of each class held out to choose by, of data that the model has not seen; a model that was '
             'trained here knows its own')
    parser.add_argument(
        '-vb', '--validation-batch-size', type=BATCH_SIZE, default=256, help='images at once')
    parser.add_argument('-j', '--workers', type=WORKERS, help='decoding processes')
    add_feature_cache(parser)

    # what is written
    parser.add_argument('--output', default='output', help='folder of all runs')
    parser.add_argument(
        '--experiment', help='folder in --output; default <model>.retrain.<dataset>_if<IF>.s<seed>')
    parser.add_argument('--license', help='licence of the exported weights')
    parser.add_argument(
        '--results', help='folder for the row of results; refused where the code is not committed')

    add_data_options(parser)
    parser.set_defaults(dataset=None)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Return the options, checked as far as they alone decide.

    Raises:
        UserError: Options that contradict each other.
    """
    args = create_parser().parse_args(argv)
    create_tuning(args.tune)
    _check_classifier_kwargs(args)

    is_default = args.tune == 'classifier' and args.bn == 'eval' and args.view == 'crop_flip'
    if args.features == 'cached' and not is_default:
        raise UserError('--tune, --bn and --view act on images: add --features augmented')
    if args.choose_lr_on_test and len(args.lr or ()) < 2:
        raise UserError('--choose-lr-on-test: there is nothing to choose from; give several --lr')
    return args


def _check_classifier_kwargs(args: argparse.Namespace):
    if not args.classifier_kwargs:
        return

    name = _underscored(args.classifier[0])
    if len(args.classifier) > 1 or name not in TRAINED:
        raise UserError('--classifier-kwargs are for one classifier that is trained: name it by --classifier')
    for option in ('bn', 'view'):
        if option in args.classifier_kwargs:
            raise UserError(f'--classifier-kwargs: {option} is an option of its own, --{option}')
    check_options(name, args.classifier_kwargs)


def _check_rates(args: argparse.Namespace, representation: Representation):
    """Refuse several rates where there is nothing to choose by."""
    if len(args.lr or ()) > 1 and representation.held_out is None and not args.choose_lr_on_test:
        raise UserError(
            'several --lr are chosen from on a hold-out, and there is none: --val-fraction at stage 1 or, for other '
            'images, here; or --choose-lr-on-test')


def _made_one_by_one(names: list[str], representation: Representation) -> Iterator[Classifier]:
    """Make classifiers, saying which."""
    for name in names:
        if name in TRAINED:
            print(f'\n{name}', flush=True)
        yield from make_classifiers(name, representation)


def _row(classifier: Classifier, metrics: dict[str, Any]) -> dict[str, Any]:
    """Return what `metrics.json` holds of a classifier."""
    row = {
        **metrics,
        'options': classifier.options,
        'note': classifier.note,
        'seconds': classifier.seconds,
    }
    if classifier.curve:
        row['curve'] = classifier.curve
    return row


def main(argv: list[str] | None = None):
    """Make classifiers, measure, export and compare them.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: Options, a model or data that cannot be used.
    """
    args = parse_args(argv)
    if args.results:
        provenance.require_clean_tree()
    code = provenance.code_state()

    accelerator = create_accelerator(args.mixed_precision)
    if accelerator.num_processes > 1:
        raise UserError(f'retraining is one process; for several: {provenance.start_of("train")} --method crt '
                        '--initial-checkpoint …')

    # what is retrained, on which data, and how
    representation = open_data(args, load_source(args), accelerator)
    representation.cache = open_cache(args)
    _check_rates(args, representation)
    names, refused = choose_classifiers(args.classifier, representation)
    row_path = results_path(representation)

    tag = data_tag(representation.train_set)
    name = args.experiment or f'{representation.trained_model.name}.retrain.{tag}.s{args.seed}'
    folder = create_folder(Path(args.output) / name)
    hold_folder(folder)
    print('\n'.join([*start_lines(representation, refused), f'output: {folder}']), flush=True)

    # the classifier of stage 1, to compare with
    figures, confusions, rows = {}, {}, {}
    if representation.same_classes:
        figures[JOINT] = rows[JOINT] = representation.test.evaluate(representation.head)
        confusions[JOINT] = representation.test.confusion(representation.head)
        write_test_predictions(folder / JOINT / PREDICTIONS, representation.head, representation)

    made = []
    for classifier in _made_one_by_one(names, representation):
        made.append(classifier)
        metrics, confusions[classifier.name] = classifier.measure(representation)
        figures[classifier.name] = metrics

        reason = export_classifier(folder / classifier.name, classifier, representation, metrics)
        classifier.note = '; '.join(filter(None, (classifier.note, reason)))
        rows[classifier.name] = _row(classifier, metrics)
        if classifier.model is None:
            write_test_predictions(folder / classifier.name / PREDICTIONS, classifier.module, representation)

    # figures come last: all else is written when one fails
    results = results_row(representation, code, rows)
    unchanged = note_changed_file(results, representation.train_set, representation.test_set)
    write_json(folder / 'metrics.json', results)
    if row_path is not None and unchanged:
        write_json(row_path, results)
    print('\n'.join(final_lines(made, figures, representation)), flush=True)
    try:
        draw_figures(folder, made, figures, confusions, representation)
    except Exception as e:
        print(f'not all figures could be drawn: {one_line(e) or type(e).__name__}')
    write_page_of_run(folder, representation.train_set, representation.test_set)

    print(f'\nall results are in {folder}', flush=True)
    exported = [classifier.name for classifier in made if (folder / classifier.name / 'export').is_dir()]
    if exported:
        data = named_data(args, representation.trained_model)
        print('to evaluate one of the classifiers again:')
        print(f'    {provenance.validate_command(folder / exported[0] / "export", *data)}', flush=True)
