"""Figures of a retraining: how classifiers differ in weights, sampling and errors."""
from pathlib import Path
from typing import Any

import torch

from ..data import create_sampler
from ..evaluation.plots.figures import (
    plot_class_accuracy,
    plot_confusion,
    plot_sampler_probabilities,
    plot_tau_curve,
    plot_weight_norms,
    require_matplotlib,
)
from ..utils.errors import UserError
from .classifier import JOINT, Classifier
from .compare import Result
from .families import FAMILIES
from .representation import Representation

__all__ = ['draw_comparison', 'draw_figures']

# classifiers whose weight norms can be compared; those of others mean something else, or are the
# same
_WITH_NORMS = ('crt', 'lws', 'max_norm', 'linear', 'tau_norm')

# left out of a plot with many curves, since they lie next to another
_NEXT_TO_ANOTHER = ('max_norm', 'linear', 'ncm_cosine', 'ncm_centred')
_MANY = 7


def draw_figures(
        folder: Path,
        made: list[Classifier],
        figures: dict[str, dict[str, Any]],
        confusions: dict[str, torch.Tensor],
        representation: Representation,
):
    """Draw weight norms, sampling, accuracy by class, the tau curve, and confusions.

    Args:
        folder: Folder for the PNG files.
        made: Classifiers that were made.
        figures: Figures by name, those of stage 1 among them where it had the same classes.
        confusions: Confusion by name, int64 [C, C].
        representation: Model and data.
    """
    try:
        require_matplotlib()
    except UserError as e:
        print(e)
        return
    shot_counts, class_names = representation.train_set.shot_counts, representation.train_set.class_names

    weights = _weights(made, representation, with_joint=JOINT in figures)
    if weights:
        plot_weight_norms(folder / 'weight_norms.png', weights, shot_counts)

    accuracies = {}
    for name, metrics in figures.items():
        if name not in _NEXT_TO_ANOTHER or len(figures) < _MANY:
            accuracies[name] = metrics['class_accuracy']
    plot_class_accuracy(folder / 'class_accuracy.png', accuracies, shot_counts, class_names=class_names)

    # before and after
    compared = [made[0].name]
    if JOINT in figures:
        compared.insert(0, JOINT)
    shown = {name: confusions[name] for name in compared}
    plot_confusion(folder / 'confusion.png', shown, shot_counts, class_names=class_names)

    probabilities = _class_probabilities(made, representation)
    if probabilities:
        plot_sampler_probabilities(folder / 'sampling.png', probabilities, shot_counts)

    for classifier in made:
        if classifier.curve:
            plot_tau_curve(
                folder / 'tau_curve.png',
                list(classifier.curve),
                list(classifier.curve.values()),
                classifier.options['tau'],
                title=f'Accuracy on the {classifier.curve_on}',
            )


def draw_comparison(folder: Path, results: list[Result], chosen: Result):
    """Draw accuracy by class and confusion on the test set, of the model's own classifier and the one chosen.

    Args:
        folder: Folder for the PNG files.
        results: All results, each after `evaluate`.
        chosen: The one that was chosen.

    Raises:
        UserError: There is no matplotlib.
    """
    require_matplotlib()
    shown = [result for result in results if result.compared is chosen.compared and result.family is FAMILIES[JOINT]]
    if chosen.family is not FAMILIES[JOINT]:
        shown.append(chosen)

    train_set = chosen.compared.representation.train_set
    shot_counts, class_names = train_set.shot_counts, train_set.class_names
    accuracies = {result.name: result.test['class_accuracy'] for result in shown}
    plot_class_accuracy(folder / 'class_accuracy.png', accuracies, shot_counts, class_names=class_names)

    features = chosen.compared.representation.test
    confusions = {result.name: features.confusion(result.module) for result in shown}
    plot_confusion(folder / 'confusion.png', confusions, shot_counts, class_names=class_names)


def _weights(
        made: list[Classifier],
        representation: Representation,
        with_joint: bool,
) -> dict[str, torch.Tensor]:
    """Return the class weights [C, D] of the classifiers whose norms can be compared, by name."""
    weights = {}
    if with_joint:
        weights[JOINT] = representation.head.weight
    for classifier in made:
        if classifier.name in _WITH_NORMS:
            weights[classifier.name] = classifier.module.weight
    return weights


def _class_probabilities(made: list[Classifier], representation: Representation) -> dict[str, Any]:
    """Return the class probabilities [C] of the samplers of both stages; of `progressive`, by epoch."""
    stages = []
    if representation.seen:
        provenance = representation.trained_model.provenance
        sampler_name = provenance.get('sampler') or 'instance'
        stages.append(('stage 1', sampler_name, provenance.get('epochs') or 1))
    for classifier in made:
        options = classifier.options
        if 'sampler' in options:
            stages.append((classifier.name, options['sampler'], options['epochs']))

    shown: dict[str, Any] = {}
    for stage, name, epochs in stages:
        sampler = create_sampler(name, representation.train_set.targets, epochs)

        # at the start, in the middle and at the end
        by_epoch = {}
        for epoch in sorted({0, epochs // 2, epochs - 1}):
            sampler.set_epoch(epoch)
            by_epoch[epoch + 1] = sampler.class_probabilities
        shown[f'{stage}: {name}'] = by_epoch if name == 'progressive' else by_epoch[1]
    return shown
