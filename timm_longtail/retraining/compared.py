"""What classifiers are compared on: the features of a model, and how they are divided.

Settings of a large set are chosen on a part of its classes. A fit costs in proportion to images
times classes, so that a fifth of the classes costs a twenty-fifth. Each class of the part keeps all
of its images: the part has the long tail of the whole, which a part of the images has not. Of
several models the part is the same: fewer classes are easier to tell apart.

Shapes: N images that are fitted and measured on, C classes, D width of the features.
"""
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from .cross_validation import Split, cross_validation, hold_out, variance_factor
from .families import Family, LinearRule, TrainingFeatures
from .representation import Representation

__all__ = ['LARGEST', 'Compared', 'Trial', 'choose_classes']

LARGEST = 3e9
"""N D C up to which settings are chosen on all classes: CIFAR-100-LT at a width of 2048 is below."""


def choose_classes(representations: Sequence[Representation], largest: float = LARGEST) -> torch.Tensor:
    """Return the classes that settings are chosen on, the same ones for all models.

    Where N D C of the widest model is more than `largest`, that is every k-th class from the most to
    the least frequent. One of a single image is never measured, and so not among them.

    Args:
        representations: Models, of the same classes.
        largest: N D C up to which all classes are taken.

    Returns:
        Classes, increasing, int64 [C' <= C].
    """
    num_classes = representations[0].train_set.num_classes
    all_targets = [_targets(representation) for representation in representations]
    sizes = [
        len(targets) * representation.train.values.shape[1] * num_classes
        for targets, representation in zip(all_targets, representations)
    ]

    # an image may be missing for one model, which has seen it, and not for another
    counts = torch.stack([torch.bincount(targets, minlength=num_classes) for targets in all_targets])
    counts = counts.amin(dim=0)
    order = counts.argsort(descending=True, stable=True)
    order = order[counts[order] > 1]
    if max(sizes) <= largest or len(order) < 2:
        return torch.arange(num_classes)

    # images times classes shrink by the square of the step
    step = min(math.ceil(math.sqrt(max(sizes) / largest)), len(order) // 2)
    return order[step // 2::step].sort().values


def _targets(representation: Representation) -> torch.Tensor:
    """Return the class of each image that is fitted or measured on, int64 [N]: those held out come last."""
    train, held = representation.train, representation.held
    return train.targets if held is None else torch.cat([train.targets, held.targets])


@dataclass
class Trial:
    """Features that settings are chosen on.

    Attributes:
        data: The features; its classes are counted from 0.
        splits: How they are divided.
        num_repeats: How often all images are measured.
        classes: Which classes of the data set these are, increasing, int64 [C' <= C].
        rows: Which rows of all features these are, increasing, int64.
    """
    data: TrainingFeatures
    splits: list[Split]
    num_repeats: int
    classes: torch.Tensor
    rows: torch.Tensor

    @property
    def repeats(self) -> list[list[Split]]:
        """The splits of each repeat, in which every image is measured once."""
        num_folds = len(self.splits) // self.num_repeats
        return [self.splits[first:first + num_folds] for first in range(0, len(self.splits), num_folds)]


@dataclass
class Compared:
    """A model, the features that classifiers are fitted and measured on, and how these are divided.

    Attributes:
        label: What the model is called.
        representation: Model and data.
        num_folds: Folds of the cross-validation.
        num_repeats: How often it is repeated.
        seed: Seed of the folds.
        classes: Classes that settings are chosen on, from `choose_classes`; None for those of this
            model alone.
        data: Features that are fitted or measured on.
        splits: How they are divided.
        final_rows: Rows that the classifier which is kept is fitted on.
        trial: What settings are chosen on: these features, or a part of them.
    """
    label: str
    representation: Representation
    num_folds: int = 5
    num_repeats: int = 1
    seed: int = 0
    classes: torch.Tensor | None = None
    data: TrainingFeatures = field(init=False)
    splits: list[Split] = field(init=False)
    final_rows: torch.Tensor = field(init=False)
    trial: Trial = field(init=False)

    def __post_init__(self):
        train, held = self.representation.train, self.representation.held
        values, targets = train.values, _targets(self.representation)
        if self.uses_hold_out:
            values = torch.cat([values, held.values])
            self.splits = hold_out(len(train.targets), len(held.targets))
            self.final_rows = torch.arange(len(train.targets))
        else:
            self.splits = cross_validation(targets.numpy(), self.num_folds, self.num_repeats, self.seed)
            self.final_rows = torch.arange(len(targets))

        self.data = TrainingFeatures.create(values, targets, self.representation)
        classes = choose_classes([self.representation]) if self.classes is None else self.classes
        self.trial = self._create_trial(classes)

    def _create_trial(self, classes: torch.Tensor) -> Trial:
        num_repeats = 1 if self.uses_hold_out else self.num_repeats
        if len(classes) == self.data.num_classes:
            return Trial(self.data, self.splits, num_repeats, classes, torch.arange(len(self.data.targets)))

        is_kept = torch.isin(self.data.targets.cpu(), classes)
        rows = is_kept.nonzero()[:, 0]
        data = self.data.take(rows).of_classes(classes)

        # of so many images a second measurement would say nothing new
        once = self.splits[:len(self.splits) // num_repeats]
        splits = [_within(split, is_kept) for split in once]
        return Trial(data, [split for split in splits if len(split.measure)], 1, classes, rows)

    @property
    def uses_hold_out(self) -> bool:
        """Whether a hold-out takes the place of cross-validation: where the model was trained on the other images."""
        return self.representation.held is not None

    @property
    def chooses_on_part(self) -> bool:
        """Whether settings are chosen on a part of the classes."""
        return len(self.trial.classes) < self.data.num_classes

    @property
    def is_optimistic(self) -> bool:
        """Whether the model was trained on the images that its classifiers are measured on."""
        return self.representation.seen and not self.uses_hold_out

    @property
    def variance_factor(self) -> float:
        """Factor of squared errors of differences, since the classifiers of all folds share images."""
        return variance_factor(self.trial.splits, self.trial.num_repeats)

    def images_of(self, rows: torch.Tensor) -> str:
        """Return a digest of some images in their order, which is the same for every model.

        Args:
            rows: Rows of `data` that are measured, int64.
        """
        representation = self.representation
        dataset, index = representation.train_set, representation.train.index
        if self.uses_hold_out:
            dataset, index = representation.held_out, representation.held.index
            rows = rows - len(representation.train.index)  # those held out come last

        digest = hashlib.sha256(f'{dataset.hash} {dataset.order}'.encode())
        digest.update(index[rows].numpy().tobytes())
        return digest.hexdigest()

    def log_prior(self, family: Family, fit_on: TrainingFeatures) -> torch.Tensor:
        """Return the log prior that a classifier was trained under [C]: of its own stage 1, or of the features."""
        sampler = self.representation.stage_1_sampler() if family.own else None
        if sampler is None:
            return fit_on.log_prior
        log_prior = torch.as_tensor(sampler.class_probabilities, dtype=torch.float64).log()
        return log_prior if fit_on.classes is None else log_prior[fit_on.classes]

    def candidates(self, family: Family, fit_on: TrainingFeatures, first: int = 0) -> Iterator[list[LinearRule]]:
        """Fit a family: for each step on its path, a classifier for each strength of the adjustment.

        Args:
            family: Kind of classifier.
            fit_on: Rows of `data`, or of that of `trial`.
            first: Place on the path to begin at.
        """
        log_prior = self.log_prior(family, fit_on)
        for rule in family.rules(fit_on, first):
            yield [rule.adjusted(tau, log_prior) for tau in family.taus] or [rule]


def _within(split: Split, is_kept: torch.Tensor) -> Split:
    """Return a division of the rows that are kept, which are counted anew."""
    position = is_kept.cumsum(0) - 1
    fit, measure = (position[rows[is_kept[rows]]] for rows in (split.fit, split.measure))
    return Split(fit, measure)
