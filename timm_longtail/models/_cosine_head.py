"""The choice of classifier, `nn.Linear` or `CosineLinear`, that the ResNets of this package share."""
import torch
from timm.layers import create_classifier, get_device_dtype
from timm.models.resnet import ResNet

from .layers import CosineLinear

__all__ = ['CosineHead', 'CosineResNet']


class CosineHead:
    """Mixin for models whose head is `global_pool` and `fc`: `fc` is a `CosineLinear` if `cosine_scale` is not None."""

    @torch.jit.ignore
    def _set_head(self, num_classes: int, global_pool: str, **dd) -> None:
        cosine = self.cosine_scale is not None and num_classes > 0
        self.global_pool, self.fc = create_classifier(
            self.num_features, 0 if cosine else num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        if cosine:
            self.fc = CosineLinear(self.head_hidden_size, num_classes, self.cosine_scale, **dd)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of the same kind.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: Pooling; None keeps the present one, '' is none.
        """
        self.num_classes = num_classes
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        self._set_head(num_classes, pool_type, **get_device_dtype(self))
        self.global_pool.train(self.training)
        self.fc.train(self.training)


class CosineResNet(CosineHead, ResNet):
    """timm's `ResNet`, [B, in_chans, H, W] -> [B, num_classes], with a choice of classifier."""

    def __init__(self, *args, cosine_scale: float | None = None, **kwargs):
        """Args:
            *args: As timm's `ResNet`.
            cosine_scale: Scale of a `CosineLinear` classifier; None is timm's `nn.Linear`.
            **kwargs: As timm's `ResNet`.
        """
        super().__init__(*args, **kwargs)
        self.cosine_scale = cosine_scale
        if cosine_scale is not None:
            self._set_head(self.num_classes, self.global_pool.pool_type, **get_device_dtype(self))
