"""The choice of `nn.Linear` or `CosineLinear` that the ResNets of this package share."""
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import create_classifier, get_device_dtype
from timm.models.resnet import ResNet
from torch import nn

from .layers import CosineLinear

__all__ = ['CosineHead', 'CosineResNet']


class CosineHead(nn.Module):
    """Mixin for models whose head is `global_pool` and `fc`.

    `fc` is a `CosineLinear` if `cosine_scale` is not None, else timm's `nn.Linear`.
    """

    if TYPE_CHECKING:  # not at run time: TorchScript reads annotations, and knows few types
        cosine_scale: float | None
        fc: nn.Module
        global_pool: Any
        head_hidden_size: int
        num_classes: int
        num_features: int

    @torch.jit.ignore
    def _set_head(self, num_classes: int, global_pool: str, **dd) -> None:
        scale = self.cosine_scale
        wants_linear = scale is None

        # without classes timm makes an identity
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes if wants_linear else 0, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

        if scale is not None and num_classes > 0:
            self.fc = CosineLinear(self.head_hidden_size, num_classes, scale, **dd)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of the same kind.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: Pooling; None keeps the present one, '' is none.
        """
        self.num_classes = num_classes
        if global_pool is None:
            global_pool = self.global_pool.pool_type

        self._set_head(num_classes, global_pool, **get_device_dtype(self))
        self.global_pool.train(self.training)
        self.fc.train(self.training)


class CosineResNet(CosineHead, ResNet):
    """timm's `ResNet`, [B, in_chans, H, W] -> [B, num_classes], with a choice of classifier."""

    def __init__(self, *args, cosine_scale: float | None = None, **kwargs):
        """Args:
            *args: Arguments of timm's `ResNet`.
            cosine_scale: Scale of a `CosineLinear` classifier; None is timm's `nn.Linear`.
            **kwargs: Options of timm's `ResNet`.
        """
        super().__init__(*args, **kwargs)

        self.cosine_scale = cosine_scale
        if cosine_scale is not None:
            self._set_head(self.num_classes, self.global_pool.pool_type, **get_device_dtype(self))
