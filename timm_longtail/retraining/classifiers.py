"""Classifiers anew on a representation that stays: in closed form, or trained on features or on images.

Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition`, ICLR 2020,
https://arxiv.org/abs/1910.09217.

N images, C classes, D width of the features.
"""
import copy
import time
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..config.train_options import parse_train_args
from ..data import create_sampler
from ..data.loaders.features import FeatureLoader
from ..evaluation.evaluators import LongTailEvaluator
from ..export.deploy import deploy
from ..methods import create_method, method_class
from ..models import FeatureClassifier, replace_classifier
from ..models.layers import CosineLinear
from ..training.accelerator import memory_format
from ..training.build import build_run
from ..training.loaders import RunData
from ..training.loop import evaluate, fit
from ..training.optim import create_optimizers
from ..training.options import resolve_options
from ..training.run import Optimisation, Run
from ..utils import rng
from ..utils.errors import UserError, unknown_name
from ..utils.signals import Interrupted, Stopped
from .closed_form import TAUS, logit_adjust, nearest_class_mean, tau_normalize
from .representation import Representation

__all__ = ['CLASSIFIERS', 'TRAINED', 'Classifier', 'choose_classifiers', 'make_classifiers']

TRAINED = 'crt', 'lws', 'max_norm', 'linear'
CLASSIFIERS = (*TRAINED, 'tau_norm', 'ncm', 'logit_adjust')
# what they do to the classifier of stage 1, and so why that must be linear and of the data's classes
_FROM_STAGE_1 = {
    'lws': 'scales the class weights', 'max_norm': 'bounds the class weights',
    'tau_norm': 'rescales the class weights', 'logit_adjust': 'folds the prior into the bias'}


@dataclass
class Classifier:
    """A classifier that was made anew.

    Attributes:
        name: Row of the table.
        module: It, on features.
        model: The whole model, where more than its classifier changed.
        options: What it was made with.
        note: What a reader of the table should know, or ''.
        curve: Balanced accuracy, Many, Medium and Few by tau; `curve_on` says on which images.
        seconds: Time that it took, without that of the features.
    """
    name: str
    module: nn.Module
    model: nn.Module | None = None
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ''
    curve: dict[float, dict[str, Any]] = field(default_factory=dict)
    curve_on: str = ''
    seconds: float = 0.0

    def measure(self, representation: Representation, held_out: bool = False) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the figures on the test set, or on the hold-out, and the confusion [C,C]."""
        if self.model is None:
            features = representation.held if held_out else representation.test
            return features.evaluate(self.module), features.confusion(self.module)
        evaluator = LongTailEvaluator(representation.train_set.shot_counts, confusion=True)
        device = representation.accelerator.device
        model = copy.deepcopy(self.model).to(device, memory_format=memory_format(device))
        dataset = representation.held_out if held_out else representation.test_set
        metrics = evaluate(model, representation.loader(dataset), evaluator, reduce=False)
        return metrics, evaluator.confusion_matrix(reduce=False)

    def deployed(self, representation: Representation) -> nn.Module:
        """Return the model with this classifier, as it is exported.

        Raises:
            ValueError: The architecture cannot hold it.
        """
        if self.model is not None:
            return deploy(self.model)
        return replace_classifier(deploy(representation.candidate.model), copy.deepcopy(self.module))


def choose_classifiers(asked: list[str], representation: Representation) -> tuple[list[str], dict[str, str]]:
    """Return the classifiers to make, and why others cannot be made.

    Args:
        asked: Names, with - or _ in them, or `all`.
        representation: What they are made of.

    Raises:
        UserError: An unknown name, or one that was asked for by name and cannot be made.
    """
    names = [name.replace('-', '_') for name in asked]
    for name in names:
        if name not in (*CLASSIFIERS, 'all'):
            raise unknown_name('classifier', name, (*CLASSIFIERS, 'all'))
    refused = {name: reason for name in CLASSIFIERS if (reason := _why_not(name, representation))}
    if 'all' in names:
        return [name for name in CLASSIFIERS if name not in refused], refused
    for name in names:
        if name in refused:
            raise UserError(f'--classifier {name}: {refused[name]}')
    return list(dict.fromkeys(names)), {}


def _why_not(name: str, representation: Representation) -> str | None:
    model, args = representation.candidate.model, representation.args
    if name in _FROM_STAGE_1 and not representation.candidate.has_classes:
        return f'it {_FROM_STAGE_1[name]} of the trained classifier, and this model has none'
    if name in _FROM_STAGE_1 and not representation.same_classes:
        return (f'it {_FROM_STAGE_1[name]} of the trained classifier, which has {model.num_classes} classes and the '
                f'data {representation.train_set.num_classes}')
    if name in _FROM_STAGE_1 and isinstance(model.get_classifier(), CosineLinear):
        return f'it {_FROM_STAGE_1[name]}, and a cosine classifier has no bias and ignores the length of its weights'
    if name == 'lws' and args.train != 'classifier':
        return 'it trains one scale a class and nothing else'
    return None


def make_classifiers(name: str, representation: Representation) -> list[Classifier]:
    """Make one kind of classifier anew; the nearest class mean comes in three forms.

    Args:
        name: One of `CLASSIFIERS`.
        representation: What it is made of.
    """
    if name in TRAINED or name == 'ncm':
        representation.train  # noqa: B018  computed once, here: its time is not that of the classifier
    started = time.perf_counter()
    if name == 'tau_norm':
        made = [_tau_norm(representation)]
    elif name == 'logit_adjust':
        made = [_logit_adjust(representation)]
    elif name == 'ncm':
        made = _nearest_means(representation)
    else:
        made = [_train(name, representation)]
    for classifier in made:
        classifier.seconds = (time.perf_counter() - started) / len(made)
    return made


def _logit_adjust(representation: Representation) -> Classifier:
    """Take off the prior that stage 1 was trained under: that of its sampler, in its last epoch."""
    trained, sampler = representation.candidate.trained, representation.stage_1_sampler()
    if sampler is None:
        prior, name = representation.train_set.class_counts, 'data'
        note = 'stage 1 may have had another prior than that of this data'
    else:
        prior, name = sampler.class_probabilities, trained.get('sampler') or 'instance'
        note = '' if name == 'instance' else f'the prior is that of the sampler of stage 1, {name}'
        if trained.get('method') != 'ce':
            note = f'where the loss of stage 1 ({trained.get("method")}) adjusts for the prior, this does so twice'
    return Classifier('logit_adjust', logit_adjust(representation.head, prior),
                      options={'tau': 1.0, 'prior': name}, note=note)


def _nearest_means(representation: Representation) -> list[Classifier]:
    train = representation.train
    heads = {
        metric: nearest_class_mean(train.values, train.targets, representation.train_set.num_classes, metric)
        for metric in ('l2', 'cosine', 'centred')}
    return [Classifier(f'ncm_{metric}', head, options={'metric': metric}) for metric, head in heads.items()]


def _tau_norm(representation: Representation) -> Classifier:
    """Choose tau by balanced accuracy on the hold-out; never on the test set."""
    head = representation.head
    chosen_by = representation.held or representation.test
    figures = {tau: chosen_by.evaluate(tau_normalize(head, tau)) for tau in TAUS}
    curve = {tau: {key: row[key] for key in ('balanced', 'many', 'medium', 'few')} for tau, row in figures.items()}
    if representation.held is None:
        tau, note = 1.0, 'tau = 1: there is no hold-out to choose it by (--val-fraction at stage 1)'
    else:
        tau = max(curve, key=lambda tau: curve[tau]['balanced'])
        note = f'tau = {tau:g}, chosen by balanced accuracy on the hold-out, {len(representation.held.targets)} images'
    return Classifier('tau_norm', tau_normalize(head, tau), options={'tau': tau}, note=note, curve=curve,
                      curve_on='test set' if representation.held is None else 'hold-out')


def _fit(run: Run, num_epochs: int):
    """Train; an interrupt keeps no state, since the work is short. The accelerator forgets the run afterwards."""
    try:
        fit(run, num_epochs)
    except Interrupted as e:
        raise Stopped(e.signum) from e
    run.accelerator.free_memory()


def _train(name: str, representation: Representation) -> Classifier:
    """Train a classifier, or one with each of several learning rates, the best of which is taken."""
    args = representation.args
    train = _train_on_features if args.features == 'cached' else _train_on_images
    rates = args.lr or [None]
    if len(rates) == 1:
        return train(name, representation, rates[0])
    made, best = None, -1.0
    for rate in rates:
        classifier = train(name, representation, rate)
        figure = classifier.measure(representation, held_out=not args.choose_lr_on_test)[0]['balanced']
        print(f'{name}, lr {rate:g}: balanced accuracy {figure:.2f}', flush=True)
        if figure > best:
            made, best = classifier, figure
    made.note = (f'lr = {made.options["lr"]:g} of {", ".join(f"{rate:g}" for rate in rates)}, chosen by balanced '
                 f'accuracy on the {"test set" if args.choose_lr_on_test else "hold-out"}')
    return made


def _train_args(name: str, representation: Representation, lr: float | None) -> Namespace:
    """Return the options of `train.py` for one classifier: its own defaults, then what was typed."""
    args = representation.args
    batch_size = min(args.batch_size, len(representation.train_set))
    given = {'epochs': args.epochs, 'lr': lr, 'weight_decay': args.weight_decay}
    given = {key: value for key, value in given.items() if value is not None}
    options = {**method_class(name).retrain_options, **given}
    words = [f'--{key.replace("_", "-")}={value}' for key, value in options.items()]
    train_args = parse_train_args([
        '--model', representation.candidate.name, '--method', name, '--no-recipe', '-b', str(batch_size),
        '--seed', str(args.seed),
        '--val-interval', str(options['epochs']), *words])
    train_args.method_kwargs = dict(args.classifier_kwargs)
    for key in ('workers', 'skip_bad_images', 'validation_batch_size'):
        setattr(train_args, key, getattr(args, key))
    return train_args


def _starting_head(representation: Representation) -> nn.Module:
    """Return the classifier of stage 1, or a fresh one of its kind where the data has other classes."""
    model = FeatureClassifier(representation.head)
    if not representation.same_classes:
        model.reset_classifier(representation.train_set.num_classes)
    return model.get_classifier()


def _options_of(args: Namespace) -> dict[str, Any]:
    return {'epochs': args.epochs, 'lr': args.lr, 'weight_decay': args.weight_decay, 'batch_size': args.batch_size,
            'sampler': args.sampler, **args.method_kwargs}


def _train_on_features(name: str, representation: Representation, lr: float | None) -> Classifier:
    train, accelerator = representation.train, representation.accelerator
    args = _train_args(name, representation, lr)
    rng.seed_torch(args.seed, purpose='init')
    model = FeatureClassifier(_starting_head(representation))
    method = create_method(name, model, representation.class_counts, **args.method_kwargs)
    sampler = create_sampler(args.sampler, train.targets.numpy(), args.epochs)  # of what could be read
    sampler.seed = args.seed
    loader = FeatureLoader(train.values, train.targets, sampler, args.batch_size, accelerator.device)
    optimizers, schedulers = create_optimizers(args, method, len(loader))
    task, *optimizers = accelerator.prepare(method, *optimizers)
    shown = representation.held or representation.test  # after the last epoch; nothing is chosen by it
    shown = FeatureLoader(shown.values, shown.targets, None, 4096, accelerator.device)
    run = Run(
        options=resolve_options(args, accelerator),
        accelerator=accelerator,
        method=method,
        task=task,
        data=RunData([loader], shown, None, representation.candidate.preprocessing),
        optimisation=Optimisation(optimizers, schedulers, len(loader), images_per_step=args.batch_size),
        evaluator=LongTailEvaluator(train.shot_counts),
    )
    _fit(run, args.epochs)
    return Classifier(name, method.model.cpu().get_classifier(), options=_options_of(args))


def _train_on_images(name: str, representation: Representation, lr: float | None) -> Classifier:
    options, candidate = representation.args, representation.candidate
    args = _train_args(name, representation, lr)
    rng.seed_torch(args.seed, purpose='init')
    args.method_kwargs.update({'bn': options.bn, 'view': options.view})
    if name != 'lws':
        args.method_kwargs['train'] = options.train
    model = replace_classifier(deploy(candidate.model), _starting_head(representation))
    run = build_run(
        resolve_options(args, representation.accelerator),
        representation.accelerator,
        representation.train_set,
        representation.held_out or representation.test_set,
        model,
        candidate.preprocessing,
    )
    _fit(run, args.epochs)
    representation.bad_images.update(run.bad_images)
    changed = options.bn == 'train' or options.train != 'classifier'
    model = deploy(run.method.model)
    return Classifier(
        name, copy.deepcopy(model.get_classifier()), model=model if changed else None,
        options={**_options_of(args), 'images': 'augmented'})
