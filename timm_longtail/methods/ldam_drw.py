"""Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss

K. Cao, C. Wei, A. Gaidon, N. Arechiga, T. Ma, NeurIPS 2019, https://arxiv.org/abs/1906.07413

Loss, weights and schedule are those of the released code, https://github.com/kaidic/LDAM-DRW. Its
data differ: it normalises CIFAR by deviations of .2023 / .1994 / .2010 (`--std`), and trains on the
last batch of an epoch, which is not whole, where loaders here leave it out.

Shapes: B batch of this process, C classes.
"""
import numpy as np
from torch import nn

from ..losses import ldam_loss
from ..models.layers import CosineLinear
from ..utils.errors import UserError
from ._method import Batch, Batches, ClassCounts, Method
from ._registry import register_method
from ._reweight import DeferredWeights


@register_method('ldam_drw')
class LDAMDRW(Method):
    """Wider margins for rarer classes on a cosine classifier; class-balanced weights late in the run.

    The scale of the loss is the classifier's (`--model-kwargs cosine_scale=30`), so that the
    deployed model gives the probabilities that were trained. A margin means little on logits
    without a bound: `nn.Linear` is refused.

    Args:
        model: timm model with a `CosineLinear` classifier of C outputs.
        class_counts: Training images of each class, [C].
        max_margin: Margin of the rarest class, on the cosine.
        beta: Number in (0, 1) of the class-balanced weights: near 1 they are the inverse of the
            images of a class.
        reweight_start: Share of the run, or epoch, from which the weights hold; 1 is LDAM without
            re-weighting.
        view: View of each image.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            max_margin: float = 0.5,
            beta: float = 0.9999,
            reweight_start: float = 0.8,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        head = self.model.get_classifier()
        if not isinstance(head, CosineLinear):
            raise UserError(
                f'ldam_drw needs a cosine classifier, '
                f'{type(model).__name__} has {type(head).__name__}; '
                f'--model-kwargs cosine_scale=30 is for models *_cifar and bcl_*')

        self.scale = head.scale
        self.max_margin = max_margin
        self.reweight = DeferredWeights(self.class_counts, beta, reweight_start)
        self.views = (view,)

    def check_run(self, num_epochs: int, batch_size: int):
        self.reweight.check_run(num_epochs)

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        self.reweight.start_epoch(epoch, num_epochs)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C], scaled cosines
        losses = ldam_loss(
            output / self.scale,
            target,
            self.class_counts,
            self.max_margin,
            self.scale,
            reduction='none',
        )  # [B]
        return {'loss': self.reweight(losses, target), 'output': output}
