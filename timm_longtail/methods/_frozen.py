"""What methods that re-train a classifier share: a representation that stays as it is, or of which little moves.

Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition`, ICLR 2020,
https://arxiv.org/abs/1910.09217.
"""
import re
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

from ..utils.errors import UserError
from ._method import Batch, Method

__all__ = ['FrozenBackbone']

_TRAINED = 'classifier', 'last_block', 'all'


class FrozenBackbone(Method):
    """Cross-entropy on the classifier of a model that was trained before.

    Args:
        model: timm model with C outputs, trained.
        class_counts: Training images of each class, [C].
        train: What is trained: `classifier`, `last_block` (and the classifier), or `all`.
        bn: BatchNorm where nothing is trained: `eval` keeps its statistics; `train` uses those of the batch and lets
            the running ones drift, as the published code does.
        view: View of each image.
    """

    retrain_options: dict[str, Any] = {'epochs': 10, 'lr': 0.1, 'weight_decay': 5e-4}
    """What `retrain.py` trains with, unless it is told otherwise."""

    needs_weights = True

    fresh_classifier: bool = False
    """Whether the classifier is drawn anew, of the same kind; else training goes on from the one that is there."""

    def __init__(
            self,
            model: nn.Module,
            class_counts,
            *,
            train: str = 'classifier',
            bn: str = 'eval',
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        for option, value, known in (('train', train, _TRAINED), ('bn', bn, ('eval', 'train'))):
            if value not in known:
                raise UserError(f'option {option!r} is one of {", ".join(known)}, got {value!r}')
        head = model.get_classifier()
        if self.linear_classifier and not isinstance(head, nn.Linear):
            raise UserError(f'{type(self).__name__} changes the length of class weights; the logits of a '
                            f'{type(head).__name__} do not depend on their length')
        if self.fresh_classifier:
            model.reset_classifier(model.num_classes)
        self.bn = bn
        self.trains_all = train == 'all'
        self.views = (view,)
        trained = _trained_parameters(model, train)
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        if hasattr(model, 'branches'):
            del model.branches  # of the method that trained the representation; nothing here runs them

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode; where nothing is trained, modules stay in eval mode, unless BatchNorm is to drift.

        Dropout that the model applies to its features in a function of its own belongs to the classifier, and is on.
        """
        super().train(mode)
        for module in self.model.modules() if self.bn == 'eval' and not self.trains_all else ():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        return {'loss': F.cross_entropy(output, target), 'output': output}


def _trained_parameters(model: nn.Module, train: str) -> set[int]:
    """Return the ids of the parameters that are trained."""
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    if train == 'classifier':
        return classifier
    if train == 'all':
        return {id(parameter) for parameter in model.parameters()}
    if not hasattr(model, 'group_matcher'):
        raise UserError(f'{type(model).__name__} does not say what its blocks are: train the classifier, or all')
    matcher = model.group_matcher(coarse=True)
    patterns = [entry if isinstance(entry, str) else entry[0] for entries in matcher.values() if entries is not None
                for entry in ([entries] if isinstance(entries, str) else entries)]
    layers = group_parameters(model, matcher, reverse=True)
    names = {name: id(p) for name, p in model.named_parameters() if id(p) not in classifier}
    # what no pattern matches lies between the last block and the classifier, such as a final norm
    blocks = {name for name in names if any(re.match(pattern, name) for pattern in patterns)}
    last = max(layers[name] for name in blocks)
    return classifier | {key for name, key in names.items() if name not in blocks or layers[name] == last}
