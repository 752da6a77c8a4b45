"""Focal Loss for Dense Object Detection

T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollár, ICCV 2017, https://arxiv.org/abs/1708.02002

Shapes: B batch of this process, C classes.
"""
from torch import nn

from ..losses import focal_loss
from ._method import Batch, ClassCounts, Method
from ._registry import register_method


@register_method('focal')
class Focal(Method):
    """Cross-entropy that counts less for images that are already right.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C]; not used.
        gamma: Strength of the focusing, the paper's 2; 0 is cross-entropy.
        view: View of each image.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            gamma: float = 2.0,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        self.gamma = gamma
        self.views = (view,)

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        # the focal loss is not proper: its minimum is no probability
        return sampled if options['gamma'] == 0 else None

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        loss = focal_loss(output, target, self.gamma)
        return {'loss': loss, 'output': output}
