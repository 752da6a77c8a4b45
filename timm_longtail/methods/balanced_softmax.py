"""Balanced Meta-Softmax for Long-Tailed Visual Recognition

J. Ren, C. Yu, S. Sheng, X. Ma, H. Zhao, S. Yi, H. Li, NeurIPS 2020,
https://arxiv.org/abs/2007.10740

Its balanced softmax is the logit-adjusted cross-entropy of A. K. Menon et al., ICLR 2021,
https://arxiv.org/abs/2007.07314, at tau = 1. The meta sampler is not part of it.

Shapes: B batch of this process, C classes.
"""
from torch import nn

from ..losses import logit_adjusted_cross_entropy
from ._method import Batch, ClassCounts, Method
from ._registry import register_method


@register_method('balanced_softmax')
class BalancedSoftmax(Method):
    """Cross-entropy of logits raised by the log of the class prior: balanced softmax, or logit adjustment.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C]; the prior.
        tau: Strength of the adjustment; 1 is balanced softmax, 0 cross-entropy.
        view: View of each image.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            tau: float = 1.0,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        self.tau = tau
        self.views = (view,)

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        return sampled / class_counts ** options['tau']

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        loss = logit_adjusted_cross_entropy(output, target, self.class_counts, self.tau)
        return {'loss': loss, 'output': output}
