"""Deferred re-weighting (DRW): the plain mean at first, class-balanced weights from some epoch on.

The schedule is LDAM's (K. Cao et al., NeurIPS 2019, https://arxiv.org/abs/1906.07413). The weights
follow the effective number of samples (Y. Cui et al., CVPR 2019, https://arxiv.org/abs/1901.05555),
which timm computes.

Shapes: B batch of this process, C classes.
"""
import torch
from timm.loss import compute_class_weights
from torch import nn

from ..utils.distributed import weighted_mean
from ..utils.errors import UserError

__all__ = ['DeferredWeights']


class DeferredWeights(nn.Module):
    """The mean of a loss over the rows of all processes, weighted by class from some epoch on.

    A class of n images weighs (1 - beta) / (1 - beta^n), scaled to a mean of 1 over classes. Before
    that epoch every row weighs the same. `start_epoch` chooses from the epoch alone, so a resumed
    run has the same weights.

    Args:
        class_counts: Training images of each class, [C].
        beta: Number in (0, 1): near 0 all classes have the same weight, near 1 the inverse of their
            images.
        start: Up to 1, a share of the run: 0.8 of 200 epochs re-weights the last 40, 0 all, 1 none.
            Above 1, the first epoch that is re-weighted, counted from 1: 161.
    """

    weight: torch.Tensor

    def __init__(self, class_counts: torch.Tensor, beta: float = 0.9999, start: float = 0.8):
        super().__init__()
        if not 0 < beta < 1:
            raise UserError(f'beta must be between 0 and 1, got {beta}')
        is_epoch = start > 1 and start % 1 == 0
        if not 0 <= start <= 1 and not is_epoch:
            raise UserError(
                f're-weighting starts at a share of the run in [0, 1] or at a whole epoch, '
                f'got {start}')

        weight = self.weights(class_counts, beta)

        # not persistent: it belongs to the data, as the counts do
        self.register_buffer('weight', weight, persistent=False)
        self.start = start
        self.active = start == 0

    @staticmethod
    def weights(class_counts: torch.Tensor, beta: float) -> torch.Tensor:
        """Return the weight of each class [C], of a mean of 1.

        Args:
            class_counts: Training images of each class, [C].
            beta: See `DeferredWeights`.
        """
        counts = class_counts.double()
        num_images = int(counts.sum())
        _, weight = compute_class_weights(counts, num_images, 'effective_num', beta=beta)
        return weight

    def check_run(self, num_epochs: int):
        """Raise a `UserError` where re-weighting starts at an epoch that the run does not have."""
        if self.start > max(1, num_epochs):
            raise UserError(
                f're-weighting starts at epoch {self.start:g}, and the run has {num_epochs}; '
                f'a share of the run, such as 0.8, follows its length')

    def start_epoch(self, epoch: int, num_epochs: int):
        """Choose the mean of one epoch, counted from 0, of a run.

        Raises:
            UserError: Re-weighting starts at an epoch that the run does not have.
        """
        self.check_run(num_epochs)

        if self.start <= 1:
            # rounded as the milestones of a recipe are when the run is stretched
            first_epoch = round(self.start * num_epochs)
        else:
            first_epoch = int(self.start) - 1
        self.active = epoch >= first_epoch

    def forward(self, loss: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Reduce the loss of each row, not weighted, to a scalar; processes have equally many rows.

        Args:
            loss: Loss of each row, [B].
            target: Class ids, int64 [B].
        """
        if not self.active:
            return loss.mean()
        return weighted_mean(loss, self.weight[target])
