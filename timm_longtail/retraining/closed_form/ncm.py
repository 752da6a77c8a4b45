"""Nearest class mean classifier.

Kang et al., ICLR 2020, https://arxiv.org/abs/1910.09217, section 4.2.

Shapes: N images, C classes, D width of the features.
"""
import torch
from torch import nn
from torch.nn import functional as F

from ...models.layers import linear_classifier
from ...utils.errors import UserError
from ..classifier import Classifier
from ..representation import Representation

__all__ = ['fit_nearest_means', 'nearest_class_mean']

METRICS = ('l2', 'cosine', 'centred')


@torch.no_grad()
def nearest_class_mean(
        features: torch.Tensor,
        target: torch.Tensor,
        num_classes: int,
        metric: str = 'l2',
) -> nn.Linear:
    """Classify by the nearest mean of the training features; each class weighs the same.

    Args:
        features: Training features [N, D].
        target: Class of each feature, int64 [N].
        num_classes: Number of classes C.
        metric: `l2`, by the distance: the logits are -|x - mu_c|^2 / 2 but for a term that all
            classes share. `cosine`: the rows are unit vectors, and the length of x, which scales
            all logits, moves no maximum. `centred`, by the cosine of x - m with the mean of the
            centred, normalised features of a class, m the mean of all features: W (x - m), with
            unit rows of W. (The released code measures the distance to means that are not
            normalised again, which is no linear classifier.)

    Raises:
        UserError: An unknown metric, or a class without features.
    """
    if metric not in METRICS:
        known = ', '.join(METRICS)
        raise UserError(f'nearest class mean: the metric is one of {known}, got {metric!r}')
    counts = torch.bincount(target, minlength=num_classes)  # [C]
    if not (counts > 0).all():
        empty = int((counts > 0).int().argmin())
        raise UserError(f'nearest class mean: class {empty} has no images')

    # sums over many images, in double precision
    wide = features.double()
    centre = wide.mean(dim=0)  # [D]
    if metric == 'centred':
        wide = F.normalize(wide - centre, dim=1)
    sums = wide.new_zeros(num_classes, wide.shape[1]).index_add_(0, target, wide)
    means = sums / counts[:, None]  # [C, D]

    if metric == 'l2':
        return linear_classifier(means, -means.square().sum(dim=1) / 2).to(features)

    weight = F.normalize(means, dim=1)
    bias = None
    if metric == 'centred':
        bias = -(weight @ centre)
    return linear_classifier(weight, bias).to(features)


def fit_nearest_means(representation: Representation) -> list[Classifier]:
    """Make the nearest class mean of the cached features, in each metric.

    Args:
        representation: Model and data.
    """
    train, num_classes = representation.train, representation.train_set.num_classes
    made = []
    for metric in METRICS:
        head = nearest_class_mean(train.values, train.targets, num_classes, metric)
        made.append(Classifier(f'ncm_{metric}', head, options={'metric': metric}))
    return made
