"""ResNet-18 and ResNet-50 for small images: what the CIFAR code of the field means by these names.

He et al., `Deep Residual Learning for Image Recognition`, CVPR 2016,
https://arxiv.org/abs/1512.03385: the four stages of the ImageNet networks, widths 64 to 512,
behind a 3x3 stem of stride 1 without max-pooling, so that a 32x32 image leaves the last stage as
4x4, as in Miyai et al. (WACV 2023). The three-stage networks of `resnet_cifar` are smaller.
"""
from typing import Any

import torch.nn as nn
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck

from ._cosine_head import CosineResNet
from .resnet_cifar import cifar_cfg

__all__ = ['ResNetSmall']


class ResNetSmall(CosineResNet):
    """timm's `ResNet` with a stem for small images: maps are four times as fine as for ImageNet."""

    def __init__(
            self,
            block: type[BasicBlock] | type[Bottleneck],
            layers: tuple[int, int, int, int],
            num_classes: int = 100,
            in_chans: int = 3,
            output_stride: int = 8,
            device=None,
            dtype=None,
            **kwargs,
    ):
        """Args:
            block: timm's `BasicBlock` or `Bottleneck`.
            layers: Number of blocks in each stage.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Channels of the image.
            output_stride: Stride of the last map, 8, 4 or 2; below 8 the last stages are dilated.
            device: Device of the parameters.
            dtype: Type of the parameters.
            **kwargs: Options of timm's `ResNet`, and `cosine_scale`.
        """
        dd = {'device': device, 'dtype': dtype}
        super().__init__(block, layers, num_classes, in_chans, 4 * output_stride, **kwargs, **dd)

        # drawn as timm draws its other convolutions
        model: Any = self  # timm's `ResNet` declares its stem as that for ImageNet
        stem = nn.Conv2d(in_chans, model.conv1.out_channels, 3, padding=1, bias=False, **dd)
        nn.init.kaiming_normal_(stem.weight, mode='fan_out', nonlinearity='relu')
        model.conv1 = stem
        model.maxpool = nn.Identity()

        for info in model.feature_info:
            info['reduction'] = max(1, info['reduction'] // 4)


# without a tag: exports would carry an `untrained` one along
default_cfgs = generate_default_cfgs({
    'resnet18_cifar': cifar_cfg(pool_size=(4, 4)),
    'resnet50_cifar': cifar_cfg(pool_size=(4, 4)),
})


def _create_resnet_small(variant: str, pretrained: bool = False, **kwargs) -> ResNetSmall:
    return build_model_with_cfg(
        ResNetSmall, variant, pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls='getter'),
        **kwargs,
    )


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs) -> ResNetSmall:
    """ResNet-18 for small images."""
    model_args = dict(block=BasicBlock, layers=(2, 2, 2, 2))
    return _create_resnet_small('resnet18_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs) -> ResNetSmall:
    """ResNet-50 for small images."""
    model_args = dict(block=Bottleneck, layers=(3, 4, 6, 3))
    return _create_resnet_small('resnet50_cifar', pretrained, **dict(model_args, **kwargs))
