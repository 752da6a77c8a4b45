#!/usr/bin/env python3
"""Re-train the classifier of a trained model: cRT, LWS, tau-normalisation, nearest mean and more, before and after.

    python retrain.py output/RUN --classifier all
    python retrain.py hf-hub:USER/NAME --classifier crt --features augmented
    python retrain.py resnet18 --dataset folder --data-dir my_photos --classifier all
"""
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import timm_longtail  # noqa: F401  registers the models
from timm_longtail.cli.entry import run_main
from timm_longtail.config.data_options import add_data_options
from timm_longtail.config.parser import BATCH_SIZE, IMG_SIZE, SEED, SHARE, WORKERS, Pairs, Parser
from timm_longtail.data import create_splits
from timm_longtail.evaluation.evaluators import NotFinite, first_not_finite
from timm_longtail.methods import check_options
from timm_longtail.models.layers import CosineLinear
from timm_longtail.retraining.classifiers import CLASSIFIERS, TRAINED, Classifier, choose_classifiers, make_classifiers
from timm_longtail.retraining.report import (
    JOINT,
    draw_figures,
    export_classifier,
    final_lines,
    results_path,
    results_row,
    start_lines,
)
from timm_longtail.retraining.representation import Representation
from timm_longtail.retraining.trained_model import (
    Candidate,
    is_export,
    load_checkpoint,
    load_export,
    load_run_export,
    load_timm_model,
    trained_data,
)
from timm_longtail.training import provenance
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import check_input
from timm_longtail.training.outputs import note_changed_file
from timm_longtail.utils.errors import UserError, one_line
from timm_longtail.utils.files import write_json
from timm_longtail.utils.folder import create_folder, hold_folder
from timm_longtail.utils.ranges import Number


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = Parser('retrain.py', description=__doc__.splitlines()[0])
    parser.add_argument('source', help='output or export folder, checkpoint, local-dir:FOLDER, hf-hub:USER/NAME or '
                        'a timm model, which comes with its pretrained weights')
    parser.add_argument('--classifier', nargs='+', default=['all'], metavar='NAME',
                        help=f'all, or of {", ".join(name.replace("_", "-") for name in CLASSIFIERS)}')
    parser.add_argument('--features', choices=('cached', 'augmented'), default='cached',
                        help='train on features computed once, in seconds, or on augmented images, as published')
    parser.add_argument('--train', type=lambda word: word.replace('-', '_'), default='classifier',
                        choices=('classifier', 'last_block', 'all'),
                        help='how much is trained (crt, linear, max-norm; augmented)')
    parser.add_argument('--bn', choices=('eval', 'train'), default='eval',
                        help='BatchNorm of the frozen part (augmented): train is what the published code does')
    parser.add_argument('--view', default='crop_flip', help='view of each image (augmented)')
    parser.add_argument('--classifier-kwargs', nargs='*', default={}, action=Pairs, metavar='K=V',
                        help='options of the one classifier that is named, such as tau=1 for lws')
    parser.add_argument('--initial-checkpoint', default='', help='weights of a timm model, in place of pretrained ones')
    parser.add_argument('--epochs', type=Number(int, '[1, 1000000]'), help='of each classifier; default 10, linear 30')
    parser.add_argument('--lr', type=Number(float, '[0, inf)'), nargs='+',
                        help='default of the classifier: 0.1, max-norm 0.01, linear 0.5;'
                        ' of several the one with the best balanced accuracy on the hold-out is taken')
    parser.add_argument('--choose-lr-on-test', action='store_true',
                        help='choose among several --lr on the test set, as published linear evaluations do')
    parser.add_argument('--weight-decay', type=Number(float, '[0, inf)'),
                        help='default of the classifier: 5e-4, max-norm 0.1, linear 0')
    parser.add_argument('-b', '--batch-size', type=BATCH_SIZE, default=128, help='images of an update')
    parser.add_argument('--seed', type=SEED, default=0, help='initialisation, order, views')
    parser.add_argument('--mixed-precision', choices=('no', 'bf16', 'fp16'), help='training on images')
    parser.add_argument('--img-size', type=IMG_SIZE, help='side of the model\'s input; default: that of the model')
    parser.add_argument('--val-fraction', type=SHARE, help='share of each class held out to choose by, of data that '
                        'the model has not seen; a model that was trained here knows its own')
    parser.add_argument('-vb', '--validation-batch-size', type=BATCH_SIZE, default=256, help='images at once')
    parser.add_argument('-j', '--workers', type=WORKERS, help='decoding processes')
    parser.add_argument('--output', default='output', help='folder of all runs')
    parser.add_argument('--experiment', help='folder in --output; default <model>.retrain.<dataset>_if<IF>.s<seed>')
    parser.add_argument('--license', help='licence of the exported weights')
    parser.add_argument('--results', help='folder for the row of results; refused where the code is not committed')
    add_data_options(parser)
    parser.set_defaults(dataset=None)
    args = parser.parse_args(argv)
    _check(args)
    return args


def _check(args: Namespace):
    if args.classifier_kwargs and (len(args.classifier) > 1 or args.classifier[0].replace('-', '_') not in TRAINED):
        raise UserError('--classifier-kwargs are for one classifier that is trained: name it by --classifier')
    own = {'train', 'bn', 'view'} & args.classifier_kwargs.keys()
    if own:
        raise UserError(f'--classifier-kwargs: {sorted(own)[0]} is an option of its own, --{sorted(own)[0]}')
    if args.classifier_kwargs:
        check_options(args.classifier[0].replace('-', '_'), args.classifier_kwargs)
    if args.features == 'cached' and (args.train != 'classifier' or args.bn != 'eval' or args.view != 'crop_flip'):
        raise UserError('--train, --bn and --view act on images: add --features augmented')
    if len(args.lr or ()) < 2 and args.choose_lr_on_test:
        raise UserError('--choose-lr-on-test: there is nothing to choose from; give several --lr')


def load_source(args: Namespace) -> Candidate:
    """Load the model whose classifier is re-trained.

    Raises:
        UserError: There is none, or its classifier is not one linear or cosine layer.
    """
    path = Path(args.source)
    if is_export(args.source):
        candidate = load_export(args.source)
    elif (path / 'export' / 'config.json').is_file():
        candidate = load_run_export(path)
    elif (path / 'config.json').is_file():
        candidate = load_export(f'local-dir:{path}')
    elif path.exists():
        candidate = load_checkpoint(path)
    elif '/' in args.source:
        raise UserError(f'{args.source}: no such file or folder')
    else:
        if args.dataset is None:
            raise UserError(f'{args.source} does not say what it is for: add --dataset')
        candidate = load_timm_model(args.source, args.initial_checkpoint)
    if args.img_size:
        candidate.preprocessing = replace(candidate.preprocessing, img_size=args.img_size)
    not_finite = first_not_finite(candidate.model)
    if not_finite is not None:
        raise NotFinite(f'{args.source}: {not_finite} holds NaN or infinity')
    if not candidate.has_classes:
        candidate.model.reset_classifier(1)  # a place to put the new ones
    if not isinstance(candidate.model.get_classifier(), (nn.Linear, CosineLinear)):
        raise UserError(f'{args.source}: the classifier of a {candidate.name} is not one linear layer')
    check_input(candidate.model, candidate.preprocessing.img_size)
    _check_classifier(candidate)
    return candidate


@torch.no_grad()
def _check_classifier(candidate: Candidate):
    """Raise a `UserError` unless the model is a backbone and then its classifier, and nothing else."""
    model = candidate.model.eval()
    size = candidate.preprocessing.img_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    whole = model(images)
    if features.ndim != 2 or not torch.allclose(model.get_classifier()(features), whole, rtol=1e-3, atol=1e-4):
        raise UserError(f'a {candidate.name} is not a backbone and one linear classifier')


def open_data(args: Namespace, candidate: Candidate, accelerator) -> Representation:
    """Read the data: what stage 1 was trained on and held out, or the data set that is named.

    Raises:
        UserError: The data is not what the model says it was trained on.
    """
    trained = candidate.trained
    if args.dataset is None:
        _check_subset(args, trained)
    name, options = trained_data(args, candidate)
    train_set, test_set = create_splits(name, **options)
    held_out, fraction = None, trained.get('val_fraction') or 0.0
    rest = train_set
    if fraction > 0:
        rest, held_out = train_set.hold_out(fraction, trained.get('data_seed') or 0)
    seen = trained.get('subset_hash') == rest.hash
    if seen:
        train_set = rest
        if args.val_fraction not in (None, fraction):
            raise UserError(f'--val-fraction {args.val_fraction}: stage 1 held out {fraction:g}; '
                            'what it was trained on can no longer be held out')
    elif trained.get('subset_hash') and args.dataset is None:
        raise UserError(f'{name} has other training images ({rest.hash}) than the model was trained on '
                        f'({trained["subset_hash"]}): name the data by --dataset to go on with these')
    else:
        held_out, fraction = None, args.val_fraction or 0.0
        if fraction > 0:
            train_set, held_out = train_set.hold_out(fraction, args.data_seed)
    return Representation(args, accelerator, candidate, train_set, test_set, held_out, fraction, seen)


def _check_subset(args: Namespace, trained: dict):
    """Raise a `UserError` where a part of the data set was asked for that stage 1 was not trained on."""
    for option, default in (('imbalance_factor', None), ('imbalance_profile', 'exp'), ('subset_order', 'file'),
                            ('data_seed', 0)):
        asked, had = getattr(args, option), trained.get(option)
        if asked not in (default, had):
            raise UserError(f'--{option.replace("_", "-")} {asked}: the model was trained with {had}; '
                            'name the data by --dataset to go on with other images')


def made_one_by_one(names: list[str], representation: Representation) -> Iterator[Classifier]:
    """Make classifiers, saying which."""
    for name in names:
        if name in TRAINED:
            print(f'\n{name}', flush=True)
        yield from make_classifiers(name, representation)


def main(argv: list[str] | None = None):
    args = parse_args(argv)
    if args.results:
        provenance.require_clean_tree()
    code = provenance.code_state()
    accelerator = create_accelerator(args.mixed_precision)
    if accelerator.num_processes > 1:
        raise UserError('retrain.py is one process; for several, train.py --method crt --initial-checkpoint …')
    representation = open_data(args, load_source(args), accelerator)
    if len(args.lr or ()) > 1 and representation.held_out is None and not args.choose_lr_on_test:
        raise UserError('several --lr are chosen from on a hold-out, and there is none: --val-fraction at stage 1 or, '
                        'for other images, here; or --choose-lr-on-test')
    names, refused = choose_classifiers(args.classifier, representation)
    row_path = results_path(representation)
    tag = provenance.data_tag(representation.train_set)
    folder = create_folder(
        Path(args.output) / (args.experiment or f'{representation.candidate.name}.retrain.{tag}.s{args.seed}'))
    hold_folder(folder)
    print('\n'.join([*start_lines(representation, refused), f'output: {folder}']), flush=True)

    made, figures, confusions, rows = [], {}, {}, {}
    if representation.same_classes:
        figures[JOINT] = rows[JOINT] = representation.test.evaluate(representation.head)
        confusions[JOINT] = representation.test.confusion(representation.head)
    for classifier in made_one_by_one(names, representation):
        made.append(classifier)
        metrics, confusions[classifier.name] = classifier.measure(representation)
        figures[classifier.name] = metrics
        reason = export_classifier(folder / classifier.name, classifier, representation, metrics)
        classifier.note = '; '.join(filter(None, (classifier.note, reason)))
        rows[classifier.name] = {
            **metrics, 'options': classifier.options, 'note': classifier.note, 'seconds': classifier.seconds,
            **({'curve': classifier.curve} if classifier.curve else {})}
    row = results_row(representation, code, rows)
    unchanged = note_changed_file(row, representation.train_set, representation.test_set)
    write_json(folder / 'metrics.json', row)
    if row_path is not None and unchanged:
        write_json(row_path, row)
    print('\n'.join(final_lines(made, figures, representation)), flush=True)
    try:
        draw_figures(folder, made, figures, confusions, representation)
    except Exception as e:  # all else is written
        print(f'not all figures could be drawn: {one_line(e) or type(e).__name__}')
    print(f'\npython validate.py --model local-dir:{folder}/{made[0].name}/export', flush=True)


if __name__ == '__main__':
    run_main(main)
