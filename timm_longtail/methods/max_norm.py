"""Long-Tailed Recognition via Weight Balancing

S. Alshammari, Y.-X. Wang, D. Ramanan, S. Kong, CVPR 2022, https://arxiv.org/abs/2203.14197

Second stage: weight decay and MaxNorm on the classifier.

Shapes: B batch, C classes, D width of the features.
"""
import torch
from timm.loss.class_weights import compute_class_weights
from torch import nn
from torch.nn import functional as F

from ..losses import softmax_binary_cross_entropy
from ..utils.errors import UserError
from ._frozen import FrozenBackbone
from ._method import Batch, ClassCounts
from ._registry import register_method


@register_method('max_norm')
class MaxNorm(FrozenBackbone):
    """Class-balanced loss on the trained classifier, whose class weights are kept in a ball (projected gradient).

    The released loss is the default, since its learning rate and weight decay are: it is the binary
    cross-entropy of the softmax, and its gradients are about a hundredth of those of the
    cross-entropy that the paper has. With weight decay .1 they decide how short the class weights
    become. Under either loss the ball hardly binds then: on CIFAR-100-LT class weights end at norms
    of .002 and .14, in a ball of 1.4.

    Class weights are projected after each step, as in the paper; the released code does it once an
    epoch.

    Args:
        model: timm model with C outputs and an `nn.Linear` as its classifier, trained; training
            goes on from it.
        class_counts: Training images of each class, [C].
        loss: `bce`, the released one, or `ce`, that of the paper.
        radius: Largest norm of a class weight; None is min + 0.1 (max - min) of the norms that
            training starts with.
        beta: Number in (0, 1) of the class-balanced loss (Cui et al., CVPR 2019), whose weights are
            (1 - beta) / (1 - beta^n_c), scaled to a mean of 1.
        bn: See `FrozenBackbone`.
        view: View of each image.
    """

    linear_classifier = True
    retrain_options = {'epochs': 10, 'lr': 0.01, 'weight_decay': 0.1}

    radius: torch.Tensor
    class_weights: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            loss: str = 'bce',
            radius: float | None = None,
            beta: float = 0.9999,
            bn: str = 'eval',
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts, bn=bn, view=view)
        if loss not in ('bce', 'ce'):
            raise UserError(f'max_norm: loss is one of bce, ce, got {loss!r}')
        self.loss = loss

        # saved, since a resumed run has other class weights
        norms = self.model.get_classifier().weight.detach().norm(dim=1)
        if radius is None:
            ball = norms.min() + 0.1 * (norms.max() - norms.min())
        else:
            ball = torch.tensor(float(radius))
        self.register_buffer('radius', ball.to(norms))

        num_images = int(self.class_counts.sum())
        _, weights = compute_class_weights(
            self.class_counts, num_images, 'effective_num', beta=beta)
        self.register_buffer('class_weights', weights, persistent=False)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]

        if self.loss == 'bce':
            loss = softmax_binary_cross_entropy(output, target, self.class_weights)
        else:
            losses = F.cross_entropy(output, target, reduction='none')
            loss = (self.class_weights[target] * losses).mean()
        return {'loss': loss, 'output': output}

    @torch.no_grad()
    def after_step(self, phase: str):
        weight = self.model.get_classifier().weight  # [C, D]
        shrinkage = self.radius / weight.norm(dim=1, keepdim=True)
        weight.mul_(shrinkage.clamp(max=1))
