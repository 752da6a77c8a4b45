"""Cross-entropy on the natural class distribution: the baseline of every table.

Shapes: B batch, C classes.
"""
from torch import nn
from torch.nn import functional as F

from ._method import Batch, Method
from ._registry import register_method


@register_method('ce')
class CrossEntropy(Method):
    """Plain cross-entropy.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C].
        label_smoothing: Share of the target spread over all classes; the long-tailed baselines use 0.
        view: View of each image.
    """

    def __init__(self, model: nn.Module, class_counts, *, label_smoothing: float = 0.0, view: str = 'crop_flip'):
        super().__init__(model, class_counts)
        self.label_smoothing = label_smoothing
        self.views = (view,)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        loss = F.cross_entropy(output, target, label_smoothing=self.label_smoothing)
        return {'loss': loss, 'output': output}
