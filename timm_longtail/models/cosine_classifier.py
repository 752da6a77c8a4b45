"""A cosine classifier on any backbone of timm, as an architecture that an export can name."""
from typing import Any

from timm.models import register_model
from torch import nn

from .feature_classifier import set_classifier
from .on_backbone import build_on_backbone, describe_on_backbone

__all__: list[str] = []


@register_model
def cosine_classifier(
        pretrained: bool = False,
        backbone: str = 'vit_base_patch16_clip_quickgelu_224',
        cosine_scale: float | None = 25.,
        **kwargs,
) -> nn.Module:
    """A model of timm whose logits are scaled cosines; without a scale, with its own linear classifier."""
    def extend(model: Any):
        set_classifier(model, cosine_scale)
        model.cosine_scale = cosine_scale  # it may hold either kind
        describe_on_backbone(model, 'cosine_classifier', backbone=backbone)

    return build_on_backbone('cosine_classifier', backbone, extend, pretrained, **kwargs)
