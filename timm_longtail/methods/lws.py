"""Decoupling Representation and Classifier for Long-Tailed Recognition

B. Kang, S. Xie, M. Rohrbach, Z. Yan, A. Gordo, J. Feng, Y. Kalantidis, ICLR 2020,
https://arxiv.org/abs/1910.09217

Learnable weight scaling (LWS), section 4.4.

Shapes: B batch, C classes, D width of the features.
"""
import torch
from torch import nn
from torch.nn import functional as F

from ._frozen import FrozenBackbone
from ._method import Batch, ClassCounts
from ._registry import register_method


@register_method('lws')
class LearnableWeightScaling(FrozenBackbone):
    """One scale a class on a trained classifier, with class-balanced sampling; all else is frozen.

    logit_c = s_c (w_c x + b_c): the bias is scaled too, as in the released code. The model's
    classifier is the scaled one after every step, so that what is evaluated and exported is a plain
    linear layer.

    Args:
        model: timm model with C outputs and an `nn.Linear` as its classifier, trained.
        class_counts: Training images of each class, [C].
        tau: Power of the first scales, 1 / |w_c|^tau: 0 is the released code's start, 1 gives
            weights of one length.
        bn: See `FrozenBackbone`.
        view: View of each image.
    """

    sampler = 'class_balanced'
    linear_classifier = True

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            tau: float = 0.0,
            bn: str = 'eval',
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts, bn=bn, view=view)
        head = self.model.get_classifier()
        for parameter in head.parameters():
            parameter.requires_grad_(False)

        # the classifier as it was trained
        bias = head.bias
        if bias is None:
            bias = head.weight.new_zeros(len(head.weight))
        self.register_buffer('weight', head.weight.detach().clone())  # [C, D]
        self.register_buffer('bias', bias.detach().clone())  # [C]

        norms = self.weight.norm(dim=1).clamp_min(1e-12)
        self.scale = nn.Parameter(norms ** -tau)  # [C]
        self.after_step('main')

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        return sampled

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        features = self.features(x)
        if features.dtype != torch.float64:
            features = features.float()

        output = self.scale * F.linear(features, self.weight, self.bias)  # [B, C]
        return {'loss': F.cross_entropy(output, target), 'output': output}

    @torch.no_grad()
    def after_step(self, phase: str):
        head = self.model.get_classifier()
        head.weight.copy_(self.scale[:, None] * self.weight)
        if head.bias is not None:
            head.bias.copy_(self.scale * self.bias)
