"""Prototype conformity on some classes, complement entropy on others

A. Mustafa et al., "Adversarial Defense by Restricting the Hidden Space of Deep Neural Networks",
ICCV 2019, https://arxiv.org/abs/1904.00887; H.-Y. Chen et al., "Complement Objective Training",
ICLR 2019, https://arxiv.org/abs/1903.01182.

Combined by classes in a study (see the recipe) that finds the first on head with the second on tail
classes best. It states losses, groups, 300 epochs, 10 of cross-entropy first, momentum SGD for
cross-entropy and complement entropy, SGD for prototype conformity. Inferred: that the 10 are among
the 300 and that SGD means the centroids' own; the pooled feature; that all centroids repel; where
they start; the alternation; the weights of the losses.

The released codes differ from the papers, and options follow them. That of prototype conformity
squares the distances, leaves out the distances between centroids, and lets a second set of
centroids repel, which hardly moves: `squared=True centre_term=False repel_lr=1e-4
constant_centroid_lr=True`, with weights 1 and 1e-4. It draws both sets from a normal distribution;
here both start at the class means. That of complement entropy divides by C, not C - 1, and decays
the weights in both steps of a batch: `complement_weight_decay=None`. recipes/queue.txt has runs of them.

Shapes: B batch of this process, C classes, D width of the features.
"""
import logging
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data import head_tail_groups
from ..losses import complement_entropy_loss
from ..losses.prototype_conformity import prototype_conformity_parts
from ..utils.distributed import all_reduce_sum, rank, world_size
from ..utils.errors import UserError, unknown_name
from ._method import Batch, Batches, ClassCounts, Method
from ._registry import register_method

_logger = logging.getLogger(__name__)


@register_method('pc_comp')
class PCComp(Method):
    """Cross-entropy, with prototype conformity on one group of classes and complement entropy on another.

    Prototype conformity is unbounded below: `repel_weight` 1 is the equation, and drives centroids
    apart for ever. The default leaves it little but a weak attraction; docs/results/pc-comp.md has what
    other settings do.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C].
        pc: Classes whose images have prototype conformity: `all`, `head`, `tail` or `none`.
        complement: Classes whose images have complement entropy, likewise.
        pc_weight: Weight of prototype conformity.
        repel_weight: Weight of its repulsion over that of its attraction.
        squared: Whether distances are squared.
        centre_term: Whether the distances between centroids, gamma of the equation, are part of the
            loss.
        centroid_lr: Learning rate of the centroids on the loss before its weight.
        repel_lr: Learning rate of a second set of centroids, which repels while the first attracts,
            on the loss before its weights; None lets one set do both.
        constant_centroid_lr: Whether the rates of centroids stay as they are; otherwise they follow
            the schedule.
        complement_weight: Weight of complement entropy.
        alternate: Whether it has a forward and a step of its own, as in Chen et al.; False adds it
            to the other losses.
        complement_weight_decay: Weight decay of that step; None is the optimizer's, so that it
            decays twice a batch.
        warmup: Share of the run with cross-entropy alone, 10 of 300 epochs; 0 for a trained model.
        head: Least number of training images of a head class, without those held out.
        view: View of each image.
    """

    pc_classes: torch.Tensor
    complement_classes: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            pc: str = 'head',
            complement: str = 'tail',
            pc_weight: float = 0.01,
            repel_weight: float = 0.001,
            squared: bool = False,
            centre_term: bool = True,
            centroid_lr: float = 0.5,
            repel_lr: float | None = None,
            constant_centroid_lr: bool = False,
            complement_weight: float = 1.0,
            alternate: bool = True,
            complement_weight_decay: float | None = 0.0,
            warmup: float = 1 / 30,
            head: int = 100,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        if not 0 <= warmup < 1:
            raise UserError(f'warmup must be a share in [0, 1), got {warmup}')
        if not pc_weight > 0:
            raise UserError(f'pc_weight must be positive, got {pc_weight}')
        if min(centroid_lr, repel_lr or 0, complement_weight_decay or 0) < 0:
            raise UserError('pc_comp: no rate or decay is negative')
        if repel_lr is not None and repel_weight == 0:
            raise UserError('repel_lr is of centroids that repel: repel_weight must be positive')

        self.views = (view,)
        self.pc_weight = pc_weight
        self.repel_weight = repel_weight
        self.squared = squared
        self.centre_term = centre_term
        self.centroid_lr = centroid_lr
        self.repel_lr = repel_lr
        self.constant_centroid_lr = constant_centroid_lr
        self.complement_weight = complement_weight
        self.complement_weight_decay = complement_weight_decay
        self.warmup = warmup
        self.warming_up = False

        # not persistent: they belong to the data, as the counts do
        pc_classes, complement_classes = self._members(pc, head), self._members(complement, head)
        self.register_buffer('pc_classes', pc_classes, persistent=False)
        self.register_buffer('complement_classes', complement_classes, persistent=False)

        # complement entropy has a phase of its own, or is a part of the loss
        has_complement = bool(self.complement_classes.any())
        self.joint = has_complement and not alternate
        if has_complement and alternate:
            self.phases = ('main', 'complement')
        elif complement_weight_decay:
            raise UserError(
                'complement_weight_decay is of the steps of complement entropy, and there are none')

        self.centroids: nn.Parameter | None = None
        self.repel_centroids: nn.Parameter | None = None
        if self.pc_classes.any():
            shape = len(self.class_counts), self.model.head_hidden_size
            self.centroids = nn.Parameter(self.class_counts.new_zeros(shape))
            if repel_lr is not None:
                self.repel_centroids = nn.Parameter(self.class_counts.new_zeros(shape))

    def _members(self, group: str, head: int) -> torch.Tensor:
        """Return which classes a group holds, bool [C].

        Args:
            group: `all`, `head`, `tail` or `none`.
            head: Least number of training images of a head class.
        """
        counts = self.class_counts.tolist()
        groups = {'all': list(range(len(counts))), 'none': [], **head_tail_groups(counts, head)}
        if group not in groups:
            raise unknown_name('group of classes', group, groups)
        if group != 'none' and not groups[group]:
            _logger.warning(
                f'pc_comp: no class is in the {group}, with head={head}: its loss is left out')

        members = torch.zeros(len(counts), dtype=torch.bool)
        for label in groups[group]:
            members[label] = True
        return members

    def param_groups(self, phase: str) -> list[dict[str, Any]]:
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        network: dict[str, Any] = {'params': parameters}
        if phase == 'complement':
            if self.complement_weight_decay is not None:
                network['weight_decay'] = self.complement_weight_decay
            return [network]

        # gradients of centroids have the weights of the losses, which their rates undo
        groups = [network]
        if self.centroids is not None:
            lr = self.centroid_lr / self.pc_weight
            groups.append(self._centroid_group(self.centroids, lr))
        if self.repel_centroids is not None and self.repel_lr is not None:
            lr = self.repel_lr / (self.pc_weight * self.repel_weight)
            groups.append(self._centroid_group(self.repel_centroids, lr))
        return groups

    def _centroid_group(self, centroids: nn.Parameter, lr: float) -> dict[str, Any]:
        group = {'params': [centroids], 'lr': lr, 'momentum': 0.0, 'weight_decay': 0.0}
        if self.constant_centroid_lr:
            group['constant_lr'] = lr
        return group

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        # one epoch at least, but not all of the run
        warmup_epochs = round(self.warmup * num_epochs)
        if self.warmup > 0:
            warmup_epochs = max(warmup_epochs, 1)
        warmup_epochs = min(warmup_epochs, num_epochs - 1)

        self.warming_up = epoch < warmup_epochs
        self.idle_phases = ('complement',) if self.warming_up else ()

        # centroids start where the features of their classes are then
        if epoch == warmup_epochs and self.centroids is not None:
            means = self._class_means(batches)
            self.centroids.data.copy_(means)
            if self.repel_centroids is not None:
                self.repel_centroids.data.copy_(means)

    @torch.no_grad()
    def _class_means(self, batches: Batches) -> torch.Tensor:
        """Return the mean feature of each class of the training set, [C, D], in evaluation mode."""
        was_training = self.training
        self.eval()

        sums = self.class_counts.new_zeros(len(self.class_counts), self.model.head_hidden_size)
        counts = torch.zeros_like(self.class_counts)
        own_share = islice(batches(), rank(), None, world_size())
        for (x, *_), target, _ in own_share:
            features = self.features(x.to(sums.dtype))
            sums.index_add_(0, target, features)
            counts.index_add_(0, target, torch.ones_like(features[:, 0]))

        self.train(was_training)
        sums, counts = all_reduce_sum(sums), all_reduce_sum(counts)
        return sums / counts[:, None].clamp(min=1)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        features = self.features(x)  # [B, D]
        output = self.logits(features)  # [B, C]

        if phase == 'complement':
            loss = self._complement_loss(output, target)
            return {'loss': loss + self._zero(), 'output': None}

        loss = F.cross_entropy(output, target)
        parts = {'output': output, 'ce_loss': loss}

        # times 0, not left out: every parameter has a gradient in every epoch
        on = 0.0 if self.warming_up else 1.0

        if self.centroids is not None:
            pull, push = prototype_conformity_parts(
                features,
                target,
                self.centroids,
                self.pc_classes[target],
                self.squared,
                self.centre_term,
                self.repel_centroids,
            )
            loss = loss + on * self.pc_weight * (pull - self.repel_weight * push)
            if not self.warming_up:
                parts.update(attraction=pull, repulsion=push)

        if self.joint:
            complement_loss = self._complement_loss(output, target)
            loss = loss + on * complement_loss
            parts['complement_loss'] = complement_loss

        return {'loss': loss, **parts}

    def _complement_loss(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        loss = complement_entropy_loss(output, target, self.complement_classes[target])
        return self.complement_weight * loss

    def _zero(self) -> torch.Tensor:
        """Return a 0 that depends on all centroids: DDP needs their gradient in every phase."""
        zero = self.class_counts.new_zeros(())
        for centroids in (self.centroids, self.repel_centroids):
            if centroids is not None:
                zero = zero + 0 * centroids.sum()
        return zero
