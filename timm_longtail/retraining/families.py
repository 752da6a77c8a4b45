"""Families of linear classifiers on features: each gives a classifier for every setting of its
options.

Features are divided by one constant, their mean norm, so that a penalty means the same for
backbones whose features have a length of 1 or of 60. A linear layer on divided features is a linear
layer on the features.

Shapes: N images, C classes, D width of the features.
"""
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..models.layers import CosineLinear, linear_classifier
from ..utils.errors import UserError
from .closed_form import TAUS, tau_normalize
from .closed_form.discriminant import linear_discriminants
from .logistic import logistic_path, principal_axes
from .representation import Representation

__all__ = ['FAMILIES', 'REFERENCE', 'Family', 'LinearRule', 'TrainingFeatures', 'why_not']

STRENGTHS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 1e4, 3e4)
"""Strengths C of logistic regression, on features of mean norm 1."""

PRIOR_TAUS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
"""Strengths of the adjustment for the prior."""

SHRINKAGES = (0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97)
"""Shares of the identity in the covariance of a discriminant analysis."""


@dataclass
class LinearRule:
    """A linear classifier on divided features.

    Attributes:
        weight: [C, D], float32 or float64.
        bias: [C].
        options: Settings that it was made with.
    """
    weight: torch.Tensor
    bias: torch.Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Map divided features [..., D] to logits [..., C]."""
        return F.linear(features, self.weight.to(features), self.bias.to(features))

    def adjusted(self, tau: float, log_prior: torch.Tensor) -> 'LinearRule':
        """Return the classifier with tau times the log prior [C] taken off its logits (see `logit_adjust`)."""
        bias = self.bias - tau * log_prior.to(self.bias)
        return LinearRule(self.weight, bias, {**self.options, 'tau': tau})

    def folded(self, scale: float, temperature: float = 1.0) -> nn.Linear:
        """Return the same classifier on features as they are, its logits divided by a temperature.

        Args:
            scale: What the features were divided by.
            temperature: Divisor of the logits.
        """
        weight = self.weight.double() / (scale * temperature)
        bias = self.bias.double() / temperature
        return linear_classifier(weight, bias).float().cpu()


@dataclass
class _Pool:
    """Features that classifiers are fitted on by parts, and what is made of all of them once, where it is asked for.

    Attributes:
        values: Divided features, float32 [N, D], on the GPU where there is one.
        whole: The pool that these are a part of, whose axes serve for it; None for none.
    """
    values: torch.Tensor
    whole: '_Pool | None' = None

    @cached_property
    def axes(self) -> torch.Tensor:
        """Principal axes [D, D]."""
        if self.whole is not None:
            return self.whole.axes
        return principal_axes(self.values)

    @cached_property
    def centre(self) -> torch.Tensor:
        """Mean of the features [D]."""
        return self.values.mean(dim=0)

    @cached_property
    def turned(self) -> torch.Tensor:
        """Features from their centre along the axes [N, D]."""
        return (self.values - self.centre) @ self.axes


@dataclass
class TrainingFeatures:
    """What a classifier is fitted on: all features, or some rows of them.

    Rows are copied where they are used. What is held between the steps of K folds that go forward
    together is all features, the same along their axes, and what a fit keeps of its rows: nothing
    in closed forms, and one copy in logistic regression, which makes K + 1 sets of features.

    Attributes:
        pool: All features.
        targets: Class of each image, int64 [N].
        num_classes: C.
        scale: What the features were divided by.
        representation: Model and data, for classifiers that start from the model's own.
        rows: Which features of the pool these are, int64 [N]; None for all.
        classes: Which classes of the data set they are of, int64 [C]; None for all.
    """
    pool: _Pool
    targets: torch.Tensor
    num_classes: int
    scale: float
    representation: Representation
    rows: torch.Tensor | None = None
    classes: torch.Tensor | None = None

    @classmethod
    def create(cls, values: torch.Tensor, targets: torch.Tensor, representation: Representation) -> 'TrainingFeatures':
        """Divide features [N, D] by their mean norm."""
        scale = float(values.norm(dim=1).double().mean())
        if scale == 0:
            raise UserError(f'{representation.trained_model.name}: all features are zero')
        if not math.isfinite(scale):
            raise UserError(f'{representation.trained_model.name}: features are not finite')

        device = representation.accelerator.device
        if device.type != 'cuda':  # others lack the double precision of closed forms
            device = torch.device('cpu')
        pool = _Pool((values / scale).to(device))
        return cls(pool, targets.to(device), representation.train_set.num_classes, scale, representation)

    @property
    def values(self) -> torch.Tensor:
        """Divided features, float32 [N, D]; a copy, where they are some rows."""
        return self._of_rows(self.pool.values)

    @property
    def turned(self) -> torch.Tensor:
        """The features from the centre of the pool along its axes [N, D]; a copy, where they are some rows."""
        return self._of_rows(self.pool.turned)

    def _of_rows(self, values: torch.Tensor) -> torch.Tensor:
        return values if self.rows is None else values[self.rows]

    def take(self, rows: torch.Tensor) -> 'TrainingFeatures':
        """Return the features of some rows, int64."""
        own = rows if self.rows is None else self.rows[rows]
        return replace(self, rows=own, targets=self.targets[rows])

    def of_classes(self, classes: torch.Tensor) -> 'TrainingFeatures':
        """Return the same features as a pool of their own, with their classes counted within some
        classes.

        Args:
            classes: All classes that there are features of, increasing, int64 on the CPU.
        """
        targets = torch.searchsorted(classes.to(self.targets.device), self.targets)
        pool = _Pool(self.values, whole=self.pool)
        return replace(self, pool=pool, rows=None, targets=targets, num_classes=len(classes), classes=classes)

    @property
    def log_prior(self) -> torch.Tensor:
        """Log share of each class in these features [C], float64."""
        counts = torch.bincount(self.targets, minlength=self.num_classes).double().cpu()
        return (counts / counts.sum()).log()


@dataclass(frozen=True)
class Family:
    """A kind of classifier.

    Attributes:
        title: What it is, for a reader of the table.
        fit: Makes the classifier; where there is a path, takes a part of it, too, and yields a
            classifier for each setting.
        path: Settings to choose from, the most regularised first; () for none.
        taus: Strengths of the adjustment for the prior to choose from; () for none. Regression that weighs
            classes equally gains too: its penalty is felt most by the classes with few images. The logits
            of a discriminant analysis are of another order of size, which no prior moves.
        usual_tau: Strength of the adjustment that theory names, see `choose_setting`; None for none.
            Logits of the training distribution need all of the prior taken off (Menon et al., ICLR
            2021), those of a loss that weighs classes equally nothing.
        own: Whether it is made of the model's own classifier, and so needs one of the data's
            classes.
    """
    title: str
    fit: Callable[..., Any]
    path: tuple[float, ...] = ()
    taus: tuple[float, ...] = ()
    usual_tau: float | None = None
    own: bool = False

    def rules(self, data: TrainingFeatures, first: int = 0) -> Iterator[LinearRule]:
        """Fit a classifier for each setting on the path, or the one that there is.

        Args:
            data: What to fit on.
            first: Place on the path to begin at.
        """
        if self.path:
            yield from self.fit(data, self.path[first:])
        else:
            yield self.fit(data)


def _own(data: TrainingFeatures) -> LinearRule:
    """Return the model's own classifier."""
    head = data.representation.head
    rows = slice(None) if data.classes is None else data.classes
    weight = head.weight.detach().double()[rows]
    if isinstance(head, CosineLinear):
        # the length of a feature scales its logits, and moves no maximum
        weight = F.normalize(weight, dim=1) * head.scale
        return LinearRule(weight, torch.zeros(len(weight), dtype=torch.float64))

    bias = torch.zeros(len(head.weight)) if head.bias is None else head.bias.detach()
    return LinearRule(weight * data.scale, bias.double()[rows])


def _tau_norm(data: TrainingFeatures, taus: Sequence[float]) -> Iterator[LinearRule]:
    head = linear_classifier(_own(data).weight)
    for tau in taus:
        scaled = tau_normalize(head, tau)
        yield LinearRule(scaled.weight.detach(), scaled.bias.detach(), {'tau': tau})


def _class_means(values: torch.Tensor, data: TrainingFeatures) -> torch.Tensor:
    counts = torch.bincount(data.targets, minlength=data.num_classes)
    sums = values.new_zeros(data.num_classes, values.shape[1]).index_add_(0, data.targets, values)
    return sums / counts[:, None]


def _ncm_l2(data: TrainingFeatures) -> LinearRule:
    means = _class_means(data.values, data)
    return LinearRule(means, -means.square().sum(dim=1) / 2)


def _ncm_cosine(data: TrainingFeatures) -> LinearRule:
    """Unit rows and no bias: the length of a feature scales all of its logits, so the largest one is the same."""
    means = F.normalize(_class_means(data.values, data), dim=1)
    return LinearRule(means, means.new_zeros(len(means)))


def _ncm_centred(data: TrainingFeatures) -> LinearRule:
    """The largest cosine of x - mu with the mean direction of a class: Linear(W, -W mu), with unit rows of W."""
    values = data.values
    centre = values.mean(dim=0)
    directions = F.normalize(values - centre, dim=1)
    weight = F.normalize(_class_means(directions, data), dim=1)
    return LinearRule(weight, -(weight @ centre))


def _discriminant(data: TrainingFeatures, shrinkages: Sequence[float]) -> Iterator[LinearRule]:
    fits = linear_discriminants(data.values, data.targets, data.num_classes, shrinkages)
    for shrinkage, (weight, bias) in zip(shrinkages, fits):
        yield LinearRule(weight, bias, {'shrinkage': shrinkage})


def _logistic(data: TrainingFeatures, strengths: Sequence[float]) -> Iterator[LinearRule]:
    yield from _logistic_path(data, strengths)


def _weighted_logistic(data: TrainingFeatures, strengths: Sequence[float]) -> Iterator[LinearRule]:
    """Weigh each class the same in the loss, N / C in all, as the sampler of cRT does on average."""
    counts = torch.bincount(data.targets, minlength=data.num_classes).double()
    yield from _logistic_path(data, strengths, class_weights=len(data.targets) / (data.num_classes * counts))


def _logistic_path(data: TrainingFeatures, strengths: Sequence[float], **options) -> Iterator[LinearRule]:
    fits = logistic_path(data.turned, data.targets, data.num_classes, strengths, turned=True, **options)
    for strength, (weight, bias) in zip(strengths, fits):
        # the same logits on the features as they are
        weight = weight @ data.pool.axes.T
        yield LinearRule(weight, bias - weight @ data.pool.centre, {'C': strength})


FAMILIES = {
    'joint': Family('its own classifier', _own, own=True),
    'logit_adjust': Family(
        'its own classifier, adjusted for the prior', _own, taus=PRIOR_TAUS[1:], usual_tau=1.0, own=True),
    'tau_norm': Family('its own classifier, tau-normalised', _tau_norm, TAUS[1:], own=True),
    'ncm_l2': Family('nearest class mean', _ncm_l2),
    'ncm_cosine': Family('nearest class mean by the cosine', _ncm_cosine),
    'ncm_centred': Family('nearest class mean by the cosine, centred', _ncm_centred),
    'lda': Family('linear discriminant analysis, shrunk', _discriminant, SHRINKAGES[::-1]),
    'logistic': Family(
        'logistic regression, adjusted for the prior', _logistic, STRENGTHS, taus=PRIOR_TAUS, usual_tau=1.0),
    'crt': Family(
        'logistic regression, classes weighted equally', _weighted_logistic, STRENGTHS, taus=PRIOR_TAUS,
        usual_tau=0.0),
}
"""What `compare` tries, by name, in the order of the table."""

REFERENCE = 'logistic'
"""What another family must be better than to be recommended."""


def why_not(family: Family, representation: Representation) -> str | None:
    """Return why a family cannot be made on a representation, or None.

    Args:
        family: One of `FAMILIES`.
        representation: Model and data.
    """
    if not family.own:
        return None
    if not representation.trained_model.has_classes:
        return 'the model has no classifier of its own'
    if not representation.same_classes:
        own, data = representation.trained_model.model.num_classes, representation.train_set.num_classes
        if own == data:
            return f'the model\'s own classifier has {own} other classes'
        return f'the model\'s own classifier has {own} classes, the data {data}'

    if representation.seen and representation.held_out is None:
        return 'it was trained on the images that it would be measured on; train with --val-fraction'

    is_cosine = isinstance(representation.head, CosineLinear)
    if is_cosine and family is not FAMILIES['joint']:
        return 'the model\'s own classifier is a cosine one'
    return None
