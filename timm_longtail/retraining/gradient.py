"""Classifiers trained by the methods and the loop of `train.py`: on cached features, or on images.

N images, C classes, D width of the features.
"""
import copy
from argparse import Namespace
from typing import Any

from torch import nn

from ..config.train_options import train_parser
from ..data import create_sampler
from ..data.loaders.features import FeatureLoader
from ..evaluation.evaluators import LongTailEvaluator
from ..export.deploy import deploy
from ..methods import create_method, method_class
from ..models import FeatureClassifier, replace_classifier
from ..training.build import build_run
from ..training.loaders import RunData
from ..training.loop import fit
from ..training.optim import create_optimizers
from ..training.options import Options, resolve_options
from ..training.run import Optimisation, Run
from ..utils import rng
from ..utils.signals import Interrupted, Stopped
from .classifier import Classifier
from .representation import CHUNK, Representation

__all__ = ['train_classifier', 'train_options']


def train_classifier(name: str, representation: Representation) -> list[Classifier]:
    """Train a classifier; of several learning rates the best one is taken.

    Args:
        name: Method that trains it.
        representation: Model and data, with the options of `retrain.py`.

    Returns:
        The classifier, as the only entry.
    """
    rates = representation.args.lr or [None]
    if len(rates) == 1:
        return [_train(name, representation, rates[0])]
    return [_train_best(name, representation, rates)]


def _train_best(name: str, representation: Representation, rates: list[float]) -> Classifier:
    """Train with each learning rate, and keep the classifier with the best balanced accuracy."""
    on_test = representation.args.choose_lr_on_test

    chosen, best = None, -1.0
    for rate in rates:
        classifier = _train(name, representation, rate)
        metrics, _ = classifier.measure(representation, held_out=not on_test)
        balanced = metrics['balanced']
        print(f'{name}, lr {rate:g}: balanced accuracy {balanced:.2f}', flush=True)
        if balanced > best:
            chosen, best = classifier, balanced

    tried = ', '.join(f'{rate:g}' for rate in rates)
    images = 'test set' if on_test else 'hold-out'
    lr = chosen.options['lr']
    chosen.note = f'lr = {lr:g} of {tried}, chosen by balanced accuracy on the {images}'
    return chosen


def _train(name: str, representation: Representation, lr: float | None) -> Classifier:
    if representation.args.features == 'cached':
        return _train_on_features(name, representation, lr)
    return _train_on_images(name, representation, lr)


def train_options(
        name: str,
        representation: Representation,
        lr: float | None,
        method_kwargs: dict[str, Any],
) -> Options:
    """Return the options of `train.py` that train one classifier.

    They are its defaults, then those that the method asks for in `retrain_options`, then those
    that were given.

    Args:
        name: Method that trains it.
        representation: Model and data, with the options of `retrain.py`.
        lr: Learning rate; None takes that of the method.
        method_kwargs: Options of the method.
    """
    args, method = representation.args, method_class(name)

    optimization = dict(method.retrain_options)
    given = {'epochs': args.epochs, 'lr': lr, 'weight_decay': args.weight_decay}
    for option, value in given.items():
        if value is not None:
            optimization[option] = value

    options = vars(train_parser().parse_args([]))
    options.update(
        model=representation.trained_model.name,
        method=name,
        method_kwargs=method_kwargs,
        sampler=method.sampler,
        recipe=None,
        batch_size=min(args.batch_size, len(representation.train_set)),
        seed=args.seed,
        # once, after the last epoch; nothing is chosen by it
        val_interval=optimization['epochs'],
        workers=args.workers,
        skip_bad_images=args.skip_bad_images,
        validation_batch_size=args.validation_batch_size,
        **optimization,
    )
    return resolve_options(Namespace(**options), representation.accelerator)


def _starting_head(representation: Representation) -> nn.Module:
    """Return the classifier of stage 1, or a fresh one of its kind for other classes."""
    model = FeatureClassifier(representation.head)
    if not representation.same_classes and representation.linear is None:
        model.reset_classifier(representation.train_set.num_classes)
    return model.get_classifier()


def _train_on_features(name: str, representation: Representation, lr: float | None) -> Classifier:
    args = train_options(name, representation, lr, dict(representation.args.classifier_kwargs))
    rng.seed_torch(args.seed, purpose='init')
    model = FeatureClassifier(_starting_head(representation))
    run = _feature_run(args, representation, model)
    _fit(run, args.epochs)
    return Classifier(name, run.method.model.cpu().get_classifier(), options=_shown_options(args))


def _feature_run(args: Options, representation: Representation, model: FeatureClassifier) -> Run:
    """Build a run whose images are cached features, and whose model is a classifier."""
    accelerator, train = representation.accelerator, representation.train
    method = create_method(args.method, model, representation.class_counts, **args.method_kwargs)

    # images that could not be read have no features, and are not sampled
    sampler = create_sampler(args.sampler, train.targets.numpy(), args.epochs)
    sampler.seed = args.seed
    device = accelerator.device
    loader = FeatureLoader(train.values, train.targets, sampler, args.batch_size, device)
    shown = representation.held or representation.test
    eval_loader = FeatureLoader(shown.values, shown.targets, None, CHUNK, device)

    optimizers, schedulers = create_optimizers(args, method, len(loader))
    task, *optimizers = accelerator.prepare(method, *optimizers)
    return Run(
        options=args,
        accelerator=accelerator,
        method=method,
        task=task,
        data=RunData([loader], eval_loader, None, representation.trained_model.preprocessing),
        optimisation=Optimisation(optimizers, schedulers, len(loader), args.batch_size),
        evaluator=LongTailEvaluator(train.shot_counts),
    )


def _train_on_images(name: str, representation: Representation, lr: float | None) -> Classifier:
    given, trained_model = representation.args, representation.trained_model
    method_kwargs = {**given.classifier_kwargs, 'bn': given.bn, 'view': given.view}
    args = train_options(name, representation, lr, method_kwargs).replace(tune=given.tune)

    rng.seed_torch(args.seed, purpose='init')
    model = replace_classifier(deploy(trained_model.model), _starting_head(representation))
    run = build_run(
        args,
        representation.accelerator,
        representation.train_set,
        representation.held_out or representation.test_set,
        model,
        trained_model.preprocessing,
    )
    _fit(run, args.epochs)
    representation.bad_images.update(run.bad_images)

    trained = deploy(run.method.model)
    more_has_changed = given.bn == 'train' or given.tune != 'classifier'
    return Classifier(
        name,
        copy.deepcopy(trained.get_classifier()),
        model=trained if more_has_changed else None,
        options={**_shown_options(args), 'tune': given.tune, 'images': 'augmented'},
    )


def _fit(run: Run, num_epochs: int):
    """Train, and let the accelerator forget the run; an interrupt keeps no state of so short a work."""
    try:
        fit(run, num_epochs)
    except Interrupted as e:
        raise Stopped(e.signum) from e
    run.accelerator.free_memory()


def _shown_options(args: Options) -> dict[str, Any]:
    """Return the options that a row of results names."""
    return {
        'epochs': args.epochs,
        'lr': args.lr,
        'weight_decay': args.weight_decay,
        'batch_size': args.batch_size,
        'sampler': args.sampler,
        **args.method_kwargs,
    }
