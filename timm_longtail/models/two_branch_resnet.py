"""ImageNet-sized ResNets with the classifier and the branches of a method.

Zhu et al., `Balanced Contrastive Learning for Long-Tailed Visual Recognition` (BCL), CVPR 2022,
https://arxiv.org/abs/2207.09052: ResNet-50 and ResNeXt-50 on ImageNet-LT and iNaturalist 2018. Du
et al., `Global and Local Mixture Consistency Cumulative Learning for Long-tailed Visual
Recognitions` (GLMC), CVPR 2023, https://arxiv.org/abs/2305.08661: ResNeXt-50 on both.
"""
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import Bottleneck

from ._cosine_head import CosineResNet
from .two_branch import TwoBranch, checkpoint_filter_fn

__all__ = ['TwoBranchResNet']


class TwoBranchResNet(TwoBranch, CosineResNet):
    """timm's `ResNet` with a method's own classifier and, on request, its branches.

    Everything but `fc` has the names and shapes of timm's own network, whose weights it can start
    from.
    """

    branch_sizes = {
        'bcl': {'hidden_features': 2048, 'out_features': 1024},
        'glmc': {'out_features': 256},
    }


def _cfg(**kwargs) -> dict[str, Any]:
    return {
        'url': '',
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'fixed_input_size': False,
        'crop_pct': 0.875,
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1',
        'classifier': 'fc',
        'license': 'apache-2.0',
        **kwargs,
    }


# without a tag: exports would carry an `untrained` one along
default_cfgs = generate_default_cfgs({
    'bcl_resnet50': _cfg(paper_ids='arXiv:2207.09052'),
    'bcl_resnext50_32x4d': _cfg(paper_ids='arXiv:2207.09052'),
    'glmc_resnet50': _cfg(paper_ids='arXiv:2305.08661'),
    'glmc_resnext50_32x4d': _cfg(paper_ids='arXiv:2305.08661'),
})


def _create_two_branch_resnet(variant: str, pretrained: bool = False, **kwargs) -> TwoBranchResNet:
    return build_model_with_cfg(
        TwoBranchResNet, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3, 4), feature_cls='getter'),
        **kwargs,
    )


@register_model
def bcl_resnet50(pretrained: bool = False, **kwargs) -> TwoBranchResNet:
    """ResNet-50 with BCL's cosine classifier; `branches=True` adds its two MLPs, 2048-2048-1024."""
    model_args = dict(kind='bcl', block=Bottleneck, layers=(3, 4, 6, 3))
    return _create_two_branch_resnet('bcl_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def bcl_resnext50_32x4d(pretrained: bool = False, **kwargs) -> TwoBranchResNet:
    """ResNeXt-50 32x4d with BCL's cosine classifier; `branches=True` adds its two MLPs, 2048-2048-1024."""
    model_args = dict(kind='bcl', block=Bottleneck, layers=(3, 4, 6, 3), cardinality=32, base_width=4)
    return _create_two_branch_resnet('bcl_resnext50_32x4d', pretrained, **dict(model_args, **kwargs))


@register_model
def glmc_resnet50(pretrained: bool = False, **kwargs) -> TwoBranchResNet:
    """ResNet-50 with GLMC's re-balanced classifier; `branches=True` adds its three other layers, 256 wide."""
    model_args = dict(kind='glmc', cosine_scale=None, block=Bottleneck, layers=(3, 4, 6, 3))
    return _create_two_branch_resnet('glmc_resnet50', pretrained, **dict(model_args, **kwargs))


@register_model
def glmc_resnext50_32x4d(pretrained: bool = False, **kwargs) -> TwoBranchResNet:
    """ResNeXt-50 32x4d with GLMC's re-balanced classifier; `branches=True` adds its three other layers, 256 wide."""
    model_args = dict(
        kind='glmc',
        cosine_scale=None,
        block=Bottleneck,
        layers=(3, 4, 6, 3),
        cardinality=32,
        base_width=4,
    )
    return _create_two_branch_resnet('glmc_resnext50_32x4d', pretrained, **dict(model_args, **kwargs))
