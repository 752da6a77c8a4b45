"""Branches: modules that a method trains beside a model, and that are not deployed with it.

`model.branches` is an `nn.ModuleDict` that the forward of the model never touches. Methods run it
on `model.forward_head(model.forward_features(x), pre_logits=True)` or on the weight of
`model.get_classifier()`, so the deployed state dict is the full one without `branches.*`.

Zhu et al., `Balanced Contrastive Learning for Long-Tailed Visual Recognition` (BCL), CVPR 2022,
https://arxiv.org/abs/2207.09052. Du et al., `Global and Local Mixture Consistency Cumulative
Learning for Long-tailed Visual Recognitions` (GLMC), CVPR 2023, https://arxiv.org/abs/2305.08661.

Shapes: B batch, C classes, D width of the features.
"""
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from timm.layers import get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from ..utils.errors import UserError, unknown_name
from ._cosine_head import CosineHead
from .layers import CosineLinear, projection_mlp
from .resnet_cifar import ResNetCifar, cifar_cfg, init_weights

__all__ = ['TwoBranch', 'TwoBranchResNetCifar', 'attach_branches', 'deployed_state_dict']

_PREFIX = 'branches.'


def _bcl_branches(
        model: Any,
        hidden_features: int = 512,
        out_features: int = 128,
        **dd,
) -> dict[str, nn.Module]:
    # two MLPs of one shape (section 3.3): features [B, D] -> embeddings, and classifier weights
    # [C, D] -> prototypes
    width = model.head_hidden_size
    return {
        'projector': projection_mlp(width, hidden_features, out_features, **dd),
        'prototype': projection_mlp(width, hidden_features, out_features, **dd),
    }


def _second_classifier(model: Any, **dd) -> nn.Module:
    """Return a fresh classifier of the kind of the model's own."""
    head = model.get_classifier()
    width = model.head_hidden_size
    if isinstance(head, CosineLinear):
        return CosineLinear(width, head.out_features, head.scale, **dd)
    return nn.Linear(width, head.out_features, bias=head.bias is not None, **dd)


def _glmc_branches(model: Any, out_features: int = 128, **dd) -> dict[str, nn.Module]:
    # the model's own classifier is the re-balanced one, which predicts; the second only helps to
    # train the backbone
    width = model.head_hidden_size
    branches = {
        'classifier': _second_classifier(model, **dd),
        'projector': nn.Linear(width, out_features, **dd),
        'predictor': nn.Linear(out_features, out_features, **dd),
    }

    # the two classifiers start alike
    if isinstance(model, ResNetCifar):
        for branch in branches.values():
            init_weights(branch)
    return branches


_KINDS: dict[str, Callable[..., dict[str, nn.Module]]] = {
    'bcl': _bcl_branches,
    'glmc': _glmc_branches,
}


def _check_classifier(model: Any, needs_classes: bool) -> None:
    """Refuse a model whose classifier is not one linear layer, or that lacks needed classes."""
    name = type(model).__name__
    if model.num_classes == 0:
        if needs_classes:
            raise UserError(
                f'{name} has no classes (num_classes=0): its branches need a classifier')
        return

    head = model.get_classifier()
    if isinstance(head, (nn.Linear, CosineLinear)):
        return

    heads = head if isinstance(head, tuple) else (head,)
    found = ', '.join(type(h).__name__ for h in heads)
    raise UserError(
        f'branches need a classifier that is one Linear or CosineLinear, {name} has {found}')


def attach_branches(
        model: nn.Module,
        kind_or_modules: str | Mapping[str, nn.Module],
        **kwargs,
) -> nn.Module:
    """Give any timm model an `nn.ModuleDict` of train-only modules as `model.branches`.

    The modules take the device, dtype and training mode of the model. Its forward and its
    classifier stay as they are.

    Args:
        model: A timm model with one `nn.Linear` or `CosineLinear` as its classifier.
        kind_or_modules: 'bcl' for the MLPs `projector` and `prototype`, both from D =
            `model.head_hidden_size`; 'glmc' for a second `classifier` like the model's own, a
            linear `projector` from D and a linear `predictor`; or modules by name, also for a
            model without classes.
        **kwargs: Sizes of the kind. 'bcl': `hidden_features` and `out_features`; 'glmc':
            `out_features`. A size that is left out or None is the one that `model.branch_sizes`
            gives for the kind (the published ones for ImageNet-LT and iNaturalist), else that for
            CIFAR: 512 and 128, for 'glmc' 128.

    Returns:
        The same model.

    Raises:
        UserError: An unknown kind, another sort of classifier, a kind on a model without classes,
            or a model that has branches already: an optimizer may hold those, so it is for the
            caller to `del model.branches`.

    Examples:
        ```python
        >>> model = attach_branches(timm.create_model('convnext_atto', num_classes=100), 'bcl')
        >>> prototypes = model.branches['prototype'](model.get_classifier().weight)  # [100, 128]
        ```
    """
    if isinstance(kind_or_modules, str) and kind_or_modules not in _KINDS:
        raise unknown_name('kind of branches', kind_or_modules, _KINDS)

    timm_model: Any = model  # timm has no class that declares what its models share
    if hasattr(model, 'branches'):
        found = ', '.join(timm_model.branches)
        raise UserError(f'{type(model).__name__} has branches already ({found})')
    _check_classifier(model, needs_classes=isinstance(kind_or_modules, str))

    # in the place and of the type of the model
    dd = get_device_dtype(model)
    if isinstance(kind_or_modules, str):
        modules = _build_branches(timm_model, kind_or_modules, kwargs, dd)
    elif kwargs:
        raise TypeError(f'sizes ({", ".join(kwargs)}) are for a kind of branches, not for modules')
    else:
        modules = kind_or_modules

    timm_model.branches = nn.ModuleDict(modules).to(**dd).train(model.training)
    return model


def _build_branches(
        model: Any,
        kind: str,
        sizes: Mapping[str, int | None],
        dd: dict[str, Any],
) -> Mapping[str, nn.Module]:
    """Build the branches of a kind: by the given sizes, those of the model, or those for CIFAR."""
    chosen = dict(getattr(model, 'branch_sizes', {}).get(kind, {}))
    for name, size in sizes.items():
        if size is not None:
            chosen[name] = size
    return _KINDS[kind](model, **chosen, **dd)


def deployed_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of the model without its branches.

    It is what is exported, and what the plain model loads.

    Args:
        model: Any model, with branches or without.
    """
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}


class TwoBranch(CosineHead):
    """Mixin: a method's own classifier and, on request, its branches.

    The default build has no parameter that a plain forward leaves without a gradient.
    """

    branch_sizes: dict[str, dict[str, int]] = {}
    """Sizes of a kind of branches where they are not those for CIFAR, for `attach_branches`."""

    if TYPE_CHECKING:
        branches: nn.ModuleDict

    def __init__(
            self,
            *args,
            kind: str = 'bcl',
            branches: bool = False,
            cosine_scale: float | None = 30.,
            **kwargs,
    ):
        """Args:
            *args: Arguments of the model.
            kind: Kind of branches, which also names the method that `train.py` takes by default.
            branches: Add the branches; a model without classes never has any.
            cosine_scale: Scale of the `CosineLinear` classifier, BCL's 30; None is an `nn.Linear`,
                GLMC's.
            **kwargs: Options of the model.
        """
        super().__init__(*args, cosine_scale=cosine_scale, **kwargs)

        self.default_method = kind
        if branches and self.num_classes > 0:
            attach_branches(self, kind)

    @torch.jit.ignore
    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier as the model does, and a second one among the branches with it.

        Branches that lost their classes or their width are removed.

        Args:
            num_classes: Number of classes, 0 for no classifier.
            global_pool: Pooling; None keeps the present one, '' is none.
        """
        width = self.head_hidden_size
        super().reset_classifier(num_classes, global_pool)
        if not hasattr(self, 'branches'):
            return

        if num_classes == 0 or self.head_hidden_size != width:
            del self.branches
        elif 'classifier' in self.branches:
            classifier = _second_classifier(self, **get_device_dtype(self))
            self.branches['classifier'] = classifier.train(self.training)


class TwoBranchResNetCifar(TwoBranch, ResNetCifar):
    """`ResNetCifar` with a method's own classifier and, on request, its branches."""


def checkpoint_filter_fn(
        state_dict: dict[str, torch.Tensor],
        model: nn.Module,
) -> dict[str, torch.Tensor]:
    """Let one checkpoint serve builds with and without branches.

    Branches that the model lacks are dropped; branches that the checkpoint lacks, or has for
    another number of classes, keep their initial values.

    Args:
        state_dict: State dict of the checkpoint.
        model: Model that is to load it.
    """
    merged = {name: t for name, t in model.state_dict().items() if name.startswith(_PREFIX)}
    for name, tensor in state_dict.items():
        is_branch = name.startswith(_PREFIX)
        if not is_branch or (name in merged and merged[name].shape == tensor.shape):
            merged[name] = tensor
    return merged


default_cfgs = generate_default_cfgs({
    'bcl_resnet20': cifar_cfg(paper_ids='arXiv:2207.09052'),
    'bcl_resnet32': cifar_cfg(paper_ids='arXiv:2207.09052'),
    'glmc_resnet20': cifar_cfg(paper_ids='arXiv:2305.08661'),
    'glmc_resnet32': cifar_cfg(paper_ids='arXiv:2305.08661'),
    'glmc_resnet32_w64': cifar_cfg(paper_ids='arXiv:2305.08661'),
})


def _create_two_branch(variant: str, pretrained: bool = False, **kwargs) -> TwoBranchResNetCifar:
    return build_model_with_cfg(
        TwoBranchResNetCifar, variant, pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter'),
        **kwargs,
    )


@register_model
def bcl_resnet20(pretrained: bool = False, **kwargs) -> TwoBranchResNetCifar:
    """ResNet-20 for 32x32 images with BCL's cosine classifier; `branches=True` adds its two MLPs."""
    model_args = dict(kind='bcl', layers=(3, 3, 3))
    return _create_two_branch('bcl_resnet20', pretrained, **dict(model_args, **kwargs))


@register_model
def bcl_resnet32(pretrained: bool = False, **kwargs) -> TwoBranchResNetCifar:
    """ResNet-32 for 32x32 images with BCL's cosine classifier; `branches=True` adds its two MLPs."""
    model_args = dict(kind='bcl', layers=(5, 5, 5))
    return _create_two_branch('bcl_resnet32', pretrained, **dict(model_args, **kwargs))


@register_model
def glmc_resnet20(pretrained: bool = False, **kwargs) -> TwoBranchResNetCifar:
    """ResNet-20 for 32x32 images with GLMC's re-balanced classifier; `branches=True` adds its three other layers."""
    model_args = dict(kind='glmc', cosine_scale=None, layers=(3, 3, 3))
    return _create_two_branch('glmc_resnet20', pretrained, **dict(model_args, **kwargs))


@register_model
def glmc_resnet32(pretrained: bool = False, **kwargs) -> TwoBranchResNetCifar:
    """ResNet-32 of the usual widths 16-32-64 with GLMC's re-balanced classifier, 0.46 M parameters."""
    model_args = dict(kind='glmc', cosine_scale=None, layers=(5, 5, 5))
    return _create_two_branch('glmc_resnet32', pretrained, **dict(model_args, **kwargs))


@register_model
def glmc_resnet32_w64(pretrained: bool = False, **kwargs) -> TwoBranchResNetCifar:
    """ResNet-32 of widths 64-128-256, 7.4 M parameters, with GLMC's re-balanced classifier: its published network."""
    model_args = dict(kind='glmc', cosine_scale=None, layers=(5, 5, 5), channels=(64, 128, 256))
    return _create_two_branch('glmc_resnet32_w64', pretrained, **dict(model_args, **kwargs))
