"""What methods that retrain a classifier share: a representation that stays as it is, or changes little.

Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition`, ICLR 2020,
https://arxiv.org/abs/1910.09217.
"""
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from timm.models import group_parameters
from torch import nn
from torch.nn import functional as F

from ..utils.errors import UserError
from ._method import Batch, ClassCounts, Method

__all__ = ['FrozenBackbone']

FrozenMethod = TypeVar('FrozenMethod', bound='FrozenBackbone')

_TRAINED = ('classifier', 'last_block', 'all')


class FrozenBackbone(Method):
    """Cross-entropy on the classifier of a model that was trained before.

    Args:
        model: timm model with C outputs, trained.
        class_counts: Training images of each class, [C].
        train: Trained part of the model: `classifier`, `last_block` (and the classifier), or `all`.
        bn: Mode of BatchNorm in the other parts: `eval` keeps its statistics; `train` uses those of
            the batch and lets the running ones drift, as the published code does.
        view: View of each image.
    """

    retrain_options: dict[str, Any] = {'epochs': 10, 'lr': 0.1, 'weight_decay': 5e-4}
    """Options of `retrain.py` that differ for this method unless they are given."""

    needs_weights = True

    fresh_classifier: bool = False
    """Whether training starts from a new classifier of the same kind, not from the trained one."""

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            train: str = 'classifier',
            bn: str = 'eval',
            view: str = 'crop_flip',
    ):
        super().__init__(model, class_counts)
        if train not in _TRAINED:
            raise UserError(f"option 'train' is one of {', '.join(_TRAINED)}, got {train!r}")
        if bn not in ('eval', 'train'):
            raise UserError(f"option 'bn' is one of eval, train, got {bn!r}")

        head = self.model.get_classifier()
        if self.linear_classifier and not isinstance(head, nn.Linear):
            raise UserError(
                f'{type(self).__name__} changes the length of class weights; the logits of a '
                f'{type(head).__name__} do not depend on their length')
        if self.fresh_classifier:
            self.model.reset_classifier(self.model.num_classes)

        self.bn = bn
        self.trains_all = train == 'all'
        self.views = (view,)

        trained = _trained_parameters(self.model, train)
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)

        # those of the method that trained the representation; nothing here runs them
        if hasattr(self.model, 'branches'):
            del self.model.branches

    def train(self: FrozenMethod, mode: bool = True) -> FrozenMethod:
        """Set the mode of trained modules; the others stay in eval mode, unless `bn` is `train`.

        Dropout that the model applies to its features in a function of its own belongs to the
        classifier, and is on.
        """
        super().train(mode)
        if self.trains_all or self.bn == 'train':
            return self

        for module in self.model.modules():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x,), target, _ = batch
        output = self.logits(self.features(x))  # [B, C]
        return {'loss': F.cross_entropy(output, target), 'output': output}


def _trained_parameters(model: Any, train: str) -> set[int]:
    """Return the ids of the parameters that are trained.

    Args:
        model: timm model.
        train: `classifier`, `last_block` or `all`.
    """
    classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
    if train == 'classifier':
        return classifier
    if train == 'all':
        return {id(parameter) for parameter in model.parameters()}

    if not hasattr(model, 'group_matcher'):
        raise UserError(
            f'{type(model).__name__} does not say what its blocks are: '
            f'train the classifier, or all')
    matcher = model.group_matcher(coarse=True)
    patterns = _patterns(matcher)
    layers = group_parameters(model, matcher, reverse=True)  # number of the block of each parameter

    # parameters that a pattern matches are of blocks; the others, such as those of a final norm,
    # lie between the last block and the classifier
    in_blocks, trained = {}, set(classifier)
    for name, parameter in model.named_parameters():
        if id(parameter) in classifier:
            continue
        if any(re.match(pattern, name) for pattern in patterns):
            in_blocks[name] = id(parameter)
        else:
            trained.add(id(parameter))

    last = max(layers[name] for name in in_blocks)
    for name, key in in_blocks.items():
        if layers[name] == last:
            trained.add(key)
    return trained


def _patterns(matcher: Mapping[str, Any]) -> list[str]:
    """Return the patterns of parameter names in timm's group matcher.

    Its values are a pattern, or a list of pairs of a pattern and an order, or None.
    """
    patterns = []
    for entries in matcher.values():
        if isinstance(entries, str):
            patterns.append(entries)
        elif entries is not None:
            patterns += [entry if isinstance(entry, str) else entry[0] for entry in entries]
    return patterns
