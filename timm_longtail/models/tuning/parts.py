"""Tunings that train parameters which a model has: all of them, its last block, its biases, its classifier."""
import re
from collections.abc import Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn

from ...utils.errors import UserError
from .registry import Tuning, register_tuning

__all__ = ['All', 'Bias', 'Classifier', 'LastBlock']


@register_tuning('all')
class All(Tuning):
    """Every parameter that the model itself would train."""

    freezes = False


@register_tuning('classifier')
class Classifier(Tuning):
    """The classifier alone, on a representation that stays as it is."""

    def select(self, model: Any) -> list[nn.Parameter]:
        return []


@register_tuning('bias')
class Bias(Tuning):
    """The biases of all layers (Ben Zaken et al., ACL 2022, https://arxiv.org/abs/2106.10199).

    Attention of BEiT, EVA and Swin V2 has those of its queries and values apart, as `q_bias` and
    `v_bias`.
    """

    def select(self, model: Any) -> list[nn.Parameter]:
        return [parameter for name, parameter in model.named_parameters() if f'.{name}'.endswith(('.bias', '_bias'))]


@register_tuning('last_block')
class LastBlock(Tuning):
    """The last block, and what lies between it and the classifier, such as a norm.

    Blocks are those of timm's `group_matcher`: `blocks.11` of a vision transformer, `layer4.2` of a
    ResNet-50, `stages.3.blocks.2` of a ConvNeXt. Of a network of which timm names the stages only,
    such as DaViT, the last stage is trained.
    """

    def select(self, model: Any) -> list[nn.Parameter]:
        matcher = model.group_matcher(coarse=False) if hasattr(model, 'group_matcher') else None
        if not isinstance(matcher, Mapping):  # of a few models it is a function of the names
            raise UserError(
                f'{type(model).__name__} does not say what its blocks are: '
                'tune the classifier, or all')
        patterns = _patterns(matcher)
        layers = group_parameters(model, matcher, reverse=True)  # number of the block of each parameter

        # parameters that a pattern matches are of blocks; the others, such as those of a final
        # norm, lie between the last block and the classifier
        classifier = {id(parameter) for parameter in model.get_classifier().parameters()}
        in_blocks, selected = {}, []
        for name, parameter in model.named_parameters():
            if id(parameter) in classifier:
                continue
            if any(re.match(pattern, name) for pattern in patterns):
                in_blocks[name] = parameter
            else:
                selected.append(parameter)

        last = max(layers[name] for name in in_blocks)
        for name, parameter in in_blocks.items():
            if layers[name] == last:
                selected.append(parameter)
        return selected


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
