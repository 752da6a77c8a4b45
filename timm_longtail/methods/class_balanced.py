"""Class-Balanced Loss Based on Effective Number of Samples

Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, CVPR 2019, https://arxiv.org/abs/1901.05555

Shapes: B batch of this process, C classes.
"""
import numpy as np
from torch import nn

from ..losses import focal_loss
from ._method import Batch, Batches, ClassCounts, Method
from ._registry import register_method
from ._reweight import DeferredWeights


@register_method('class_balanced')
class ClassBalanced(Method):
    """Cross-entropy, or the focal loss, weighted by the effective number of images of a class.

    The sum of the weighted losses is divided by the sum of the weights, over all processes: that is
    PyTorch's weighted cross-entropy, and what LDAM's code trains with where gamma is 0. Its focal
    loss weighs otherwise, which `inner_weights` follows: weights act inside the focusing, and the
    mean is over the images. Rare classes weigh more than they are frequent, so this makes the loss,
    and with it the rate, smaller: 4.7 times at imbalance factor 100. The paper divides by the
    number of images too, and takes the focal loss of sigmoids instead of the softmax.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C].
        beta: Number in (0, 1): near 0 all classes have the same weight, near 1 the inverse of their
            images.
        gamma: Strength of the focusing of the focal loss; 0 is cross-entropy.
        inner_weights: Whether weights act as in the focal loss of LDAM's code.
        reweight_start: Share of the run, or epoch, from which the weights hold; 0 is the paper's,
            0.8 is deferred re-weighting as in LDAM.
        view: View of each image.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            beta: float = 0.9999,
            gamma: float = 0.0,
            inner_weights: bool = False,
            reweight_start: float = 0.0,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        self.reweight = DeferredWeights(self.class_counts, beta, reweight_start)
        self.gamma = gamma
        self.inner_weights = inner_weights
        self.views = (view,)

    def check_run(self, num_epochs: int, batch_size: int):
        self.reweight.check_run(num_epochs)

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        self.reweight.start_epoch(epoch, num_epochs)

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        if options['gamma'] != 0:  # the focal loss is not proper: its minimum is no probability
            return None
        if options['reweight_start'] == 1:  # never
            return sampled
        return sampled * DeferredWeights.weights(class_counts, options['beta'])

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]

        if self.inner_weights:
            weight = self.reweight.weight if self.reweight.active else None
            loss = focal_loss(output, target, self.gamma, weight, inner_weight=True)
        else:
            losses = focal_loss(output, target, self.gamma, reduction='none')  # [B]
            loss = self.reweight(losses, target)
        return {'loss': loss, 'output': output}
