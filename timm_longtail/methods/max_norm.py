"""Long-Tailed Recognition via Weight Balancing

S. Alshammari, Y.-X. Wang, D. Ramanan, S. Kong, CVPR 2022, https://arxiv.org/abs/2203.14197

Second stage: weight decay and MaxNorm on the classifier.

Shapes: B batch, C classes, D width of the features.
"""
import torch
from timm.loss.class_weights import compute_class_weights
from torch import nn
from torch.nn import functional as F

from ._frozen import FrozenBackbone
from ._method import Batch
from ._registry import register_method


@register_method('max_norm')
class MaxNorm(FrozenBackbone):
    """Class-balanced loss on the trained classifier, whose class weights are kept in a ball (projected gradient).

    Args:
        model: timm model with C outputs and an `nn.Linear` as its classifier, trained; training goes on from it.
        class_counts: Training images of each class, [C].
        radius: Largest norm of a class weight; None is min + 0.1 (max - min) of the norms that training starts with.
        beta: Of the class-balanced loss (Cui et al., CVPR 2019), weights (1 - beta) / (1 - beta^n_c) of mean 1.
        train: See `FrozenBackbone`.
        bn: See `FrozenBackbone`.
        view: View of each image.
    """

    linear_classifier = True
    retrain_options = {'epochs': 10, 'lr': 0.01, 'weight_decay': 0.1}

    def __init__(
            self,
            model: nn.Module,
            class_counts,
            *,
            radius: float | None = None,
            beta: float = 0.9999,
            train: str = 'classifier',
            bn: str = 'eval',
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts, train=train, bn=bn, view=view)
        head = model.get_classifier()
        norms = head.weight.detach().norm(dim=1)
        radius = norms.min() + 0.1 * (norms.max() - norms.min()) if radius is None else torch.tensor(float(radius))
        self.register_buffer('radius', radius.to(norms))  # of the start: a resumed run must not take it anew
        _, weights = compute_class_weights(class_counts, int(self.class_counts.sum()), 'effective_num', beta=beta)
        self.register_buffer('class_weights', weights, persistent=False)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        losses = F.cross_entropy(output, target, reduction='none')
        return {'loss': (self.class_weights[target] * losses).mean(), 'output': output}

    @torch.no_grad()
    def after_step(self, phase: str):
        weight = self.model.get_classifier().weight  # [C, D]
        weight.mul_((self.radius / weight.norm(dim=1, keepdim=True)).clamp(max=1))
