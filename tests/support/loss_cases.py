"""Samples for losses, and one case for each loss with the options it is tested with.

A loss is a function of some fields of a sample, which its case names in order. Shapes: B batch, C classes, D width.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_longtail import losses

from .reference import losses as reference
from .reference import mixing, rotation
from .reference import prototype as prototype_reference

Function = Callable[[Any], torch.Tensor]

MIXED = ('first', 'second', 'mixup', 'cutmix')
FLOATS = (
    'logits',
    'soft_target',
    'embeddings',
    'prototypes',
    'means',
    'class_weight',
    'rotated',
    *MIXED,
)
INTEGERS = ('target', 'other_target', 'class_counts', 'mask')

# B, C, D and what the targets are; class ids where they are given
SHAPES: dict[str, tuple[int, int, int, list[int] | None]] = {
    'random': (9, 4, 5, None),
    'wide': (6, 3, 16, None),
    'class absent': (8, 4, 3, [1, 3, 1, 3, 3, 2, 1, 1]),
    'one class': (5, 3, 4, [2] * 5),
    'every class once': (4, 4, 3, [2, 0, 3, 1]),
    'one anchor of its class': (5, 2, 3, [0, 0, 1, 0, 0]),
    'one row': (1, 3, 4, [1]),
    'one class in all': (4, 1, 3, [0] * 4),
}


@dataclass(frozen=True)
class Sample:
    """What a loss may ask for, by the names of its arguments."""

    logits: torch.Tensor  # [B, C]
    target: torch.Tensor  # [B]
    soft_target: torch.Tensor  # [B, C]
    class_counts: torch.Tensor  # [C]
    embeddings: torch.Tensor  # [B, D], unit rows
    prototypes: torch.Tensor  # [C, D], unit rows
    means: torch.Tensor  # [C, D], shorter than 1
    mask: torch.Tensor  # bool [B]
    class_weight: torch.Tensor  # [C]
    rotated: torch.Tensor  # [B, 3, D], unit rows

    # [B, D] and [B] of images to mix and of their mixtures, of any length
    first: torch.Tensor
    second: torch.Tensor
    mixup: torch.Tensor
    cutmix: torch.Tensor
    other_target: torch.Tensor

    def apply(self, function: Callable[[torch.Tensor], torch.Tensor], *names: str) -> 'Sample':
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    def permute_rows(self, order: torch.Tensor) -> 'Sample':
        rows = ('logits', 'target', 'soft_target', 'embeddings', 'mask', 'other_target', 'rotated')
        return self.apply(lambda t: t[order], *rows, *MIXED)

    def permute_classes(self, order: torch.Tensor) -> 'Sample':
        """Class order[c] becomes class c."""
        sample = self.apply(lambda t: order.argsort()[t], 'target', 'other_target')
        sample = sample.apply(lambda t: t[:, order], 'logits', 'soft_target')
        return sample.apply(lambda t: t[order], 'class_counts', 'class_weight', 'prototypes', 'means')

    def rotate(self, matrix: torch.Tensor) -> 'Sample':
        """Turn all vectors of width D by an orthogonal matrix [D, D]."""
        return self.apply(lambda t: t @ matrix, 'embeddings', 'prototypes', 'means', 'rotated', *MIXED)


def make_sample(shape: str = 'random', seed: int = 0, dtype: torch.dtype = torch.float64) -> Sample:
    """Draw a sample of one of SHAPES."""
    batch_size, num_classes, width, classes = SHAPES[shape]
    generator = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    # the order of the draws is part of the samples
    logits = 2 * normal(batch_size, num_classes)
    if classes is None:
        target = torch.randint(num_classes, (batch_size,), generator=generator)
    else:
        target = torch.tensor(classes)

    sample = Sample(
        logits=logits,
        target=target,
        soft_target=normal(batch_size, num_classes).softmax(1),
        class_counts=torch.tensor([int(500 * 0.4 ** c) for c in range(num_classes)]),
        embeddings=F.normalize(normal(batch_size, width)),
        prototypes=F.normalize(normal(num_classes, width)),
        means=F.normalize(normal(num_classes, width)) * torch.linspace(0.2, 0.8, num_classes)[:, None],
        mask=torch.rand(batch_size, generator=generator) < 0.6,
        class_weight=normal(num_classes).exp(),
        other_target=torch.randint(num_classes, (batch_size,), generator=generator),
        **{name: normal(batch_size, width) for name in MIXED},
        rotated=F.normalize(normal(batch_size, 3, width), dim=2),
    )
    return sample.apply(lambda t: t.to(dtype), *FLOATS)


def make_rows(
        num_rows: int = 9,
        dtype: torch.dtype = torch.float64,
        requires_grad: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return cosines, or logits, of four classes [B, 4], class ids [B] and class weights [4]."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.rand(num_rows, 4, generator=generator, dtype=torch.float64) - 1
    target = torch.randint(4, (num_rows,), generator=generator)
    weight = torch.tensor([0.1, 0.5, 1.0, 2.4], dtype=torch.float64)
    return logits.to(dtype).requires_grad_(requires_grad), target, weight


@dataclass(frozen=True)
class Case:
    """A loss, the fields of a sample that it takes in order, and its options: a text names a field."""

    loss: Callable[..., torch.Tensor]
    fields: Sequence[str]
    options: dict[str, Any]
    leaves: Sequence[str]  # the fields with a gradient
    block_size: int | None = None  # similarities held at a time, where not as many as usual

    def __call__(self, sample: Sample, **options: Any) -> torch.Tensor:
        return self.run(self.loss, sample, **options)

    def run(self, loss: Callable[..., torch.Tensor], sample: Sample, **options: Any) -> torch.Tensor:
        """Call another form of the loss on a sample."""
        positional = [getattr(sample, field) for field in self.fields]
        keywords = {
            name: getattr(sample, value) if isinstance(value, str) else value
            for name, value in self.options.items()
        }
        return loss(*positional, **keywords, **options)

    def reference(self, sample: Sample) -> torch.Tensor:
        """Compute the loss by the loops written from its paper."""
        for source in (reference, prototype_reference, mixing, rotation):
            loop = getattr(source, self.loss.__name__, None)
            if loop is not None:
                return self.run(loop, sample)
        raise AttributeError(f'{self.loss.__name__} has no loop version in tests/support/reference')

    def value_and_gradients(
            self,
            sample: Sample,
            function: Function | None = None,
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the loss of a sample, or another function of it, and the gradients of the leaves."""
        sample = sample.apply(lambda t: t.detach().clone().requires_grad_(), *self.leaves)
        value = (function or self)(sample)
        value.backward()
        return value.detach(), [getattr(sample, leaf).grad for leaf in self.leaves]


def make_case(
        loss: Callable[..., torch.Tensor],
        *fields: str,
        leaves: Sequence[str] = (),
        block_size: int | None = None,
        **options: Any,
) -> Case:
    """Build a case whose leaves are all floating-point fields that are no targets, unless they are given."""
    if not leaves:
        leaves = tuple(field for field in fields if field in FLOATS and 'target' not in field)
    return Case(loss, fields, options, leaves, block_size)


CASES = {
    'logit_adjusted_cross_entropy': make_case(losses.logit_adjusted_cross_entropy, 'logits', 'target', 'class_counts'),
    'logit_adjusted_cross_entropy, soft': make_case(
        losses.logit_adjusted_cross_entropy, 'logits', 'soft_target', 'class_counts', tau=1.5),
    'focal_loss': make_case(losses.focal_loss, 'logits', 'target'),
    'focal_loss, inner weight': make_case(
        losses.focal_loss, 'logits', 'target', gamma=1.0, weight='class_weight', inner_weight=True),
    'ldam_loss': make_case(losses.ldam_loss, 'logits', 'target', 'class_counts', scale=5.0),
    'sup_con_loss': make_case(losses.sup_con_loss, 'embeddings', 'target', temperature=0.1),
    'sup_con_loss, warm': make_case(losses.sup_con_loss, 'embeddings', 'target', temperature=0.7),
    'balanced_sup_con_loss': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.1),
    'balanced_sup_con_loss, warm': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.7),
    'complement_entropy_loss': make_case(losses.complement_entropy_loss, 'logits', 'target'),
    'complement_entropy_loss, masked': make_case(losses.complement_entropy_loss, 'logits', 'target', 'mask'),
    'prototype_conformity_loss': make_case(losses.prototype_conformity_loss, 'embeddings', 'target', 'prototypes'),
    'prototype_conformity_loss, masked': make_case(
        losses.prototype_conformity_loss, 'embeddings', 'target', 'prototypes', 'mask'),
    'prototype_conformity_loss, squared': make_case(
        losses.prototype_conformity_loss, 'embeddings', 'target', 'prototypes', squared=True),
    'proco_loss': make_case(losses.proco_loss, 'embeddings', 'target', 'means', 'class_counts', temperature=0.1),
    'proco_loss, capped': make_case(
        losses.proco_loss, 'embeddings', 'target', 'means', 'class_counts', temperature=0.5, max_concentration=4.0),
    # blocks of two or three anchors, the last one smaller, and blocks of one
    'sup_con_loss, in blocks': make_case(losses.sup_con_loss, 'embeddings', 'target', temperature=0.1, block_size=18),
    'balanced_sup_con_loss, in blocks': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.1, block_size=26),
    'balanced_sup_con_loss, one by one': make_case(
        losses.balanced_sup_con_loss, 'embeddings', 'target', 'prototypes', temperature=0.1, block_size=1),
    'softmax_binary_cross_entropy': make_case(losses.softmax_binary_cross_entropy, 'logits', 'target'),
    'softmax_binary_cross_entropy, weighted': make_case(
        losses.softmax_binary_cross_entropy, 'logits', 'target', weight='class_weight'),
    'soft_cross_entropy': make_case(losses.soft_cross_entropy, 'logits', 'soft_target'),
    'soft_cross_entropy, weighted': make_case(
        losses.soft_cross_entropy, 'logits', 'soft_target', 'class_weight', leaves=('logits',)),
    'mixture_consistency_loss': make_case(losses.mixture_consistency_loss, *MIXED, leaves=('first', 'second')),
    'nt_xent_loss': make_case(losses.nt_xent_loss, 'first', 'mixup', temperature=0.1),
    'nt_xent_loss, in blocks': make_case(losses.nt_xent_loss, 'first', 'mixup', temperature=0.5, block_size=120),
    'mixing_ratio_contrastive_loss': make_case(
        losses.mixing_ratio_contrastive_loss, *MIXED, lam=0.3, temperature=0.5),
    'mixing_ratio_contrastive_loss, other class': make_case(
        losses.mixing_ratio_contrastive_loss, *MIXED, lam=0.3, temperature=0.5,
        target1='target', target2='other_target'),
    'mixing_ratio_contrastive_loss, other class, cross only': make_case(
        losses.mixing_ratio_contrastive_loss, *MIXED, lam=0.3, temperature=0.5, cross_only=True,
        target1='target', target2='other_target'),
    # the queue has one key a class here
    'pnda_loss': make_case(
        losses.pnda_loss, 'embeddings', 'first', 'rotated', 'mask', 'prototypes', temperature=0.2),
    'rotation_separation_loss': make_case(losses.rotation_separation_loss, 'logits', 'target', weight=0.3),
    'rotation_separation_loss, no margin': make_case(
        losses.rotation_separation_loss, 'logits', 'target', weight=1.5, margin=0.0),
}


class LargestTensor(TorchDispatchMode):
    """Records how many elements the largest tensor has that an operation returns."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.size = max(self.size, leaf.numel())
        return out
