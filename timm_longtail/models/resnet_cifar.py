"""ResNets for 32x32 images.

He et al., `Deep Residual Learning for Image Recognition`, CVPR 2016,
https://arxiv.org/abs/1512.03385, section 4.2: a 3x3 stem without max-pooling, three stages of
basic blocks at strides 1, 2, 4, and shortcuts without parameters (option A). These are the
backbones of most CIFAR long-tail tables.

Shapes: B batch, D width of the last stage, C classes, H x W image.
"""
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices  # as timm's own model files import it
from timm.models.resnet import BasicBlock

from ._cosine_head import CosineHead

__all__ = ['ResNetCifar', 'cifar_cfg']

CIFAR100_MEAN = (0.5071, 0.4865, 0.4409)
CIFAR100_STD = (0.2673, 0.2564, 0.2762)


class PadShortcut(nn.Module):
    """Option A: keep every second row and column, with zeros in the new channels.

    Half of the new channels come before the old ones, half behind them.

    Args:
        in_chs: Channels of the input.
        out_chs: Channels of the output.
        stride: Stride of the rows and columns that are kept.
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.pad_before = (out_chs - in_chs) // 2
        self.pad_after = out_chs - in_chs - self.pad_before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x[:, :, ::self.stride, ::self.stride]
        return F.pad(x, [0, 0, 0, 0, self.pad_before, self.pad_after])


def _make_stage(in_chs: int, out_chs: int, depth: int, stride: int, **dd) -> nn.Sequential:
    shortcut = None
    if stride > 1 or in_chs != out_chs:
        shortcut = PadShortcut(in_chs, out_chs, stride)

    blocks = [BasicBlock(in_chs, out_chs, stride, shortcut, **dd)]
    blocks += [BasicBlock(out_chs, out_chs, **dd) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def init_weights(module: nn.Module) -> None:
    """Draw the weight of a convolution or linear layer, heads included, as the CIFAR code does.

    A `CosineLinear` draws its own.

    Args:
        module: Any module; others stay as they are.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.kaiming_normal_(module.weight)


class ResNetCifar(CosineHead):
    """ResNet for small images, [B, in_chans, H, W] -> [B, num_classes], with timm's model API."""

    if TYPE_CHECKING:
        feature_info: list[dict[str, Any]]

    def __init__(
            self,
            layers: tuple[int, int, int],
            channels: tuple[int, int, int] = (16, 32, 64),
            num_classes: int = 100,
            in_chans: int = 3,
            global_pool: str = 'avg',
            cosine_scale: float | None = None,
            drop_rate: float = 0.,
            device=None,
            dtype=None,
    ):
        """Args:
            layers: Number of blocks in each stage; depth is `2 * sum(layers) + 2`.
            channels: Width of each stage.
            num_classes: Number of classes, 0 for no classifier.
            in_chans: Channels of the image.
            global_pool: Pooling before the classifier, as in timm; '' for none.
            cosine_scale: Scale of a `CosineLinear` classifier; None is an `nn.Linear`.
            drop_rate: Share of the features that dropout zeroes before the classifier.
            device: Device of the parameters.
            dtype: Type of the parameters.
        """
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.cosine_scale = cosine_scale
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, padding=1, bias=False, **dd)
        self.bn1 = nn.BatchNorm2d(channels[0], **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.layer1 = _make_stage(channels[0], channels[0], layers[0], stride=1, **dd)
        self.layer2 = _make_stage(channels[0], channels[1], layers[1], stride=2, **dd)
        self.layer3 = _make_stage(channels[1], channels[2], layers[2], stride=2, **dd)

        self.feature_info = [
            dict(num_chs=channels[0], reduction=1, module='act1'),
            dict(num_chs=channels[0], reduction=1, module='layer1'),
            dict(num_chs=channels[1], reduction=2, module='layer2'),
            dict(num_chs=channels[2], reduction=4, module='layer3'),
        ]
        self.num_features = channels[2]

        self.apply(init_weights)
        self._set_head(num_classes, global_pool, **dd)

    @torch.jit.ignore
    def _set_head(self, num_classes: int, global_pool: str, **dd) -> None:
        super()._set_head(num_classes, global_pool, **dd)
        self.fc.apply(init_weights)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return the patterns of the stem and the blocks, for layer-wise learning-rate decay.

        Args:
            coarse: Group by stages and not by blocks.
        """
        blocks = r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)'
        return dict(stem=r'^conv1|^bn1', blocks=blocks)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Return the names that must not decay, beside the biases and norms that timm knows."""
        return set()

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the classifier, whose weight is [C, D]; `nn.Identity` without classes."""
        return self.fc

    def forward_intermediates(
            self,
            x: torch.Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the final feature map and those of the stem (0) and the stages (1, 2, 3).

        Args:
            x: Images [B, in_chans, H, W].
            indices: Maps to take: the last n if an int, all if None.
            norm: Ignored, there is no norm layer after the stages.
            stop_early: Do not run the stages after the last map taken.
            output_fmt: Only 'NCHW'.
            intermediates_only: Return the list of maps alone.

        Returns:
            The final map and the list of those taken, or that list alone.
        """
        assert output_fmt == 'NCHW', 'Output format must be NCHW.'
        take_indices, max_index = feature_take_indices(4, indices)

        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take_indices else []

        for i, stage in enumerate((self.layer1, self.layer2, self.layer3), start=1):
            if stop_early and i > max_index:
                break
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if i in take_indices:
                intermediates.append(x)

        if intermediates_only:
            return intermediates
        return x, intermediates

    @torch.jit.ignore
    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Remove what `forward_intermediates` does not need for these maps.

        Args:
            indices: Maps to keep: the last n if an int.
            prune_norm: Ignored, there is no norm layer after the stages.
            prune_head: Remove pooling and classifier; they go in any case when a stage does.

        Returns:
            The maps kept, counted from the stem.
        """
        take_indices, max_index = feature_take_indices(4, indices)
        for i in range(max_index + 1, 4):
            setattr(self, f'layer{i}', nn.Sequential())
        self.num_features = self.feature_info[max_index]['num_chs']

        if prune_head or max_index < 3:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map [B, D, H/4, W/4]."""
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        return self.layer3(self.layer2(self.layer1(x)))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool a feature map and classify it.

        Args:
            x: Feature map [B, D, H, W].
            pre_logits: Return the pooled features, and do not classify them.

        Returns:
            Class logits [B, C], or pooled features [B, D].
        """
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)

        if pre_logits:
            return x
        return self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def cifar_cfg(url: str = '', **kwargs) -> dict[str, Any]:
    """Build the pretrained configuration of a 32x32 model.

    Args:
        url: Address of the weights; '' for none.
        **kwargs: Entries that replace the usual ones.
    """
    return {
        'url': url,
        'num_classes': 100,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'fixed_input_size': False,
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'mean': CIFAR100_MEAN,
        'std': CIFAR100_STD,
        'first_conv': 'conv1',
        'classifier': 'fc',
        'license': 'apache-2.0',
        **kwargs,
    }


# without a tag: exports would carry an `untrained` one along
default_cfgs = generate_default_cfgs({
    'resnet20_cifar': cifar_cfg(),
    'resnet32_cifar': cifar_cfg(),
    'resnet44_cifar': cifar_cfg(),
    'resnet56_cifar': cifar_cfg(),
    'resnet110_cifar': cifar_cfg(),
    'resnet32_w64_cifar': cifar_cfg(),
})


def _create_resnet_cifar(variant: str, pretrained: bool = False, **kwargs) -> ResNetCifar:
    return build_model_with_cfg(
        ResNetCifar, variant, pretrained,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
        **kwargs,
    )


@register_model
def resnet20_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-20 for 32x32 images, 0.27 M parameters."""
    model_args = dict(layers=(3, 3, 3))
    return _create_resnet_cifar('resnet20_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet32_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-32 for 32x32 images, 0.46 M parameters: the backbone of most CIFAR long-tail tables."""
    model_args = dict(layers=(5, 5, 5))
    return _create_resnet_cifar('resnet32_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet44_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-44 for 32x32 images, 0.66 M parameters."""
    model_args = dict(layers=(7, 7, 7))
    return _create_resnet_cifar('resnet44_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet56_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-56 for 32x32 images, 0.85 M parameters."""
    model_args = dict(layers=(9, 9, 9))
    return _create_resnet_cifar('resnet56_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-110 for 32x32 images, 1.7 M parameters."""
    model_args = dict(layers=(18, 18, 18))
    return _create_resnet_cifar('resnet110_cifar', pretrained, **dict(model_args, **kwargs))


@register_model
def resnet32_w64_cifar(pretrained: bool = False, **kwargs) -> ResNetCifar:
    """ResNet-32 of widths 64-128-256, 7.4 M parameters: what GLMC and SAMN call ResNet-32, 16 times its cost."""
    model_args = dict(layers=(5, 5, 5), channels=(64, 128, 256))
    return _create_resnet_cifar('resnet32_w64_cifar', pretrained, **dict(model_args, **kwargs))
