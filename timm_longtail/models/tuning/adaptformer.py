"""AdaptFormer: small networks beside the MLPs of a frozen vision transformer."""
from typing import Any

from torch import nn

from ..adaptformer import adapters_of, add_adapters
from ..on_backbone import describe_on_backbone
from .registry import Tuning, register_tuning

__all__ = ['AdaptFormerTuning']


@register_tuning('adaptformer')
class AdaptFormerTuning(Tuning):
    """Adapters beside the MLP of each block, see `timm_longtail.models.adaptformer`.

    They cannot be folded into the weights of the backbone: the model is published as the
    architecture `adaptformer` of this package.

    Args:
        bottleneck: Width of the adapters; None chooses it by the number of classes.
    """

    def __init__(self, bottleneck: int | None = None):
        self.bottleneck = bottleneck

    def select(self, model: Any) -> list[nn.Parameter]:
        add_adapters(model, self.bottleneck)
        return [parameter for adapter in adapters_of(model) for parameter in adapter.parameters()]

    def deploy(self, model: Any):
        bottleneck = adapters_of(model)[0].down.out_features
        describe_on_backbone(model, 'adaptformer', bottleneck=bottleneck)
