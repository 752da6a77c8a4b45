"""AdaptFormer: small networks beside the MLPs of a frozen vision transformer."""
from typing import Any

from torch import nn

from ...utils.errors import UserError
from ..adapters import adapters_of, add_adapters
from ..on_backbone import describe_on_backbone
from .registry import Tuning, register_tuning

__all__ = ['AdaptFormerTuning']


@register_tuning('adaptformer')
class AdaptFormerTuning(Tuning):
    """Adapters beside the MLP of each block, see `timm_longtail.models.adapters`.

    A model that has adapters, such as the export of a run, keeps them and trains them further. They
    cannot be folded into the weights of the backbone: the model is published as the architecture
    `adaptformer` of this package.

    Args:
        bottleneck: Width of the adapters; None is that of the adapters that a model has, and chooses
            one by the number of classes for a model without.
    """

    def __init__(self, bottleneck: int | None = None):
        self.bottleneck = bottleneck

    def select(self, model: Any) -> list[nn.Parameter]:
        if adapters_of(model):
            self._check_width(model)
        else:
            add_adapters(model, self.bottleneck)
        return [parameter for adapter in adapters_of(model) for parameter in adapter.parameters()]

    def _check_width(self, model: nn.Module):
        """Refuse adapters of another width than the one that was asked for."""
        own = _width_of(model)
        if self.bottleneck not in (None, own):
            raise UserError(
                f'{type(model).__name__} has adapters of bottleneck={own} already, '
                f'and cannot be tuned by adaptformer(bottleneck={self.bottleneck})')

    def chosen(self, model: Any) -> str:
        return f'adaptformer(bottleneck={_width_of(model)})'

    def deploy(self, model: Any):
        bottleneck = _width_of(model)
        describe_on_backbone(model, 'adaptformer', bottleneck=bottleneck)


def _width_of(model: nn.Module) -> int:
    """Return the bottleneck of the adapters that a model has."""
    return adapters_of(model)[0].down.out_features
