"""What methods that retrain a classifier share: a representation that stays as it is, or changes little.

Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition`, ICLR 2020,
https://arxiv.org/abs/1910.09217.
"""
from typing import Any, TypeVar

from torch import nn
from torch.nn import functional as F

from ..models.layers import CosineLinear
from ..utils.errors import UserError
from ._method import Batch, ClassCounts, Method

__all__ = ['FrozenBackbone']

FrozenMethod = TypeVar('FrozenMethod', bound='FrozenBackbone')


class FrozenBackbone(Method):
    """Cross-entropy on the classifier of a model that was trained before.

    Args:
        model: timm model with C outputs, trained.
        class_counts: Training images of each class, [C].
        bn: Mode of BatchNorm in the frozen parts: `eval` keeps its statistics; `train` uses those of
            the batch and lets the running ones drift, as the published code does.
        view: View of each image.
    """

    retrain_options: dict[str, Any] = {'epochs': 10, 'lr': 0.1, 'weight_decay': 5e-4}
    """Options of `retrain.py` that differ for this method unless they are given."""

    needs_weights = True
    tune = 'classifier'

    fresh_classifier: bool = False
    """Whether training starts from a new classifier of the same kind, not from the trained one."""

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            bn: str = 'eval',
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        if bn not in ('eval', 'train'):
            raise UserError(f"option 'bn' is one of eval, train, got {bn!r}")

        head = self.model.get_classifier()
        if self.linear_classifier and not isinstance(head, nn.Linear):
            raise UserError(
                f'{type(self).__name__} changes the length of class weights; the logits of a '
                f'{type(head).__name__} do not depend on their length')
        if self.fresh_classifier and isinstance(head, CosineLinear):
            head.reset_parameters()
        elif self.fresh_classifier:
            self.model.reset_classifier(self.model.num_classes)

        self.bn = bn
        self.views = (view,)

        # those of the method that trained the representation; nothing here runs them
        if hasattr(self.model, 'branches'):
            del self.model.branches

    def train(self: FrozenMethod, mode: bool = True) -> FrozenMethod:
        """Set the mode of trained modules, see `Method.train`; with `bn` of `train` that of all."""
        if self.bn == 'train':
            return nn.Module.train(self, mode)
        return super().train(mode)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        return {'loss': F.cross_entropy(output, target), 'output': output}
