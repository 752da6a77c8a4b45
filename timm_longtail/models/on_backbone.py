"""Architectures that are a model of timm with something added: how they are built, loaded and recorded.

timm builds an exported model by the name of its architecture and its arguments. One that is more
than a model of timm has an architecture of this package, and the name of timm's as its argument
`backbone`.
"""
from collections.abc import Callable
from typing import Any

import timm
from timm.models import PretrainedCfg, load_pretrained
from torch import nn

__all__ = ['build_on_backbone', 'describe_on_backbone']


def build_on_backbone(
        architecture: str,
        backbone: str,
        extend: Callable[[nn.Module], Any],
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        cache_dir: str | None = None,
        **kwargs,
) -> nn.Module:
    """Build a model of timm and extend it.

    Args:
        architecture: Name of the extended architecture.
        backbone: Name of timm's model.
        extend: Extends it in place, and records what it was given by `describe_on_backbone`.
        pretrained: Load weights: those of the extended model, where its configuration says where
            they are, else those of the backbone.
        pretrained_cfg: Configuration of the extended model, such as that of an export.
        cache_dir: Where timm keeps what it downloads.
        **kwargs: Arguments of the backbone.
    """
    for name in ('pretrained_cfg_overlay', 'pretrained_model_args'):
        kwargs.pop(name, None)

    starts_from_backbone = pretrained and pretrained_cfg is None
    model: Any = timm.create_model(backbone, pretrained=starts_from_backbone, cache_dir=cache_dir, **kwargs)
    extend(model)
    if pretrained_cfg is None:
        return model

    if isinstance(pretrained_cfg, PretrainedCfg):
        pretrained_cfg = pretrained_cfg.to_dict()
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **pretrained_cfg, 'architecture': architecture}
    if pretrained:
        load_pretrained(model, model.pretrained_cfg, num_classes=model.num_classes, cache_dir=cache_dir)
    return model


def describe_on_backbone(model: nn.Module, architecture: str, **arguments: Any):
    """Record that a model is an architecture of this package on a backbone of timm.

    Args:
        model: Model as timm built it, or described so before; changed in place.
        architecture: Name of the architecture.
        **arguments: Its arguments beside those that it has.
    """
    timm_model: Any = model  # timm has no class that declares what its models share
    cfg = timm_model.pretrained_cfg
    recorded = {'backbone': cfg['architecture'], **getattr(model, '_model_args', {})}

    timm_model._model_args = {**recorded, **arguments}
    timm_model.pretrained_cfg = timm_model.default_cfg = {**cfg, 'architecture': architecture}
