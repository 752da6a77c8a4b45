"""Cross-entropy on the natural class distribution: the baseline of every table, with mixup and Remix on request.

Shapes: B batch of this process, C classes.
"""
from torch import nn
from torch.nn import functional as F

from ..utils.errors import UserError
from ._method import Batch, Method
from ._mixup import remix_share, swap_neighbours
from ._registry import register_method


@register_method('ce')
class CrossEntropy(Method):
    """Plain cross-entropy; with `mixup_alpha`, of images mixed in pairs.

    Args:
        model: timm model with C outputs.
        class_counts: Training images of each class, [C].
        label_smoothing: Share of the target spread over all classes; the long-tailed baselines use 0.
        mixup_alpha: Each step mixes with one lambda from Beta(alpha, alpha), and the logged training accuracy compares
            mixed images with one of their labels; 0 leaves images as they are.
        remix_kappa, remix_tau: The rarer class takes the whole label of a pair whose counts differ by kappa, where the
            other image's share is below tau (Remix, https://arxiv.org/abs/2007.03943: 3 and 0.5). Tau 0 is mixup.
        view: View of each image.
    """

    def __init__(
            self,
            model: nn.Module,
            class_counts,
            *,
            label_smoothing: float = 0.0,
            mixup_alpha: float = 0.0,
            remix_kappa: float = 3.0,
            remix_tau: float = 0.0,
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        if mixup_alpha < 0 or mixup_alpha == 0 < remix_tau or remix_kappa < 1 or (remix_kappa != 3 and remix_tau == 0):
            raise UserError('mixup needs a positive mixup_alpha, and Remix that, remix_tau and remix_kappa from 1 on; '
                            f'got mixup_alpha {mixup_alpha}, remix_kappa {remix_kappa}, remix_tau {remix_tau}')
        self.label_smoothing = label_smoothing
        self.mixup_alpha = mixup_alpha
        self.remix = remix_kappa, remix_tau
        self.views = (view,)

    def start_epoch(self, epoch, num_epochs, rng, batches):
        self.rng = rng

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        if self.mixup_alpha > 0:
            lam = self.rng.beta(self.mixup_alpha, self.mixup_alpha)
            x = lam * x + (1 - lam) * swap_neighbours(x)
        output = self.logits(self.features(x))  # [B, C]
        loss = F.cross_entropy(output, target, reduction='none', label_smoothing=self.label_smoothing)
        if self.mixup_alpha > 0:
            other = swap_neighbours(target)
            other_loss = F.cross_entropy(output, other, reduction='none', label_smoothing=self.label_smoothing)
            share = remix_share(lam, self.class_counts[target], self.class_counts[other], *self.remix)  # [B]
            loss = share * loss + (1 - share) * other_loss
        return {'loss': loss.mean(), 'output': output}
