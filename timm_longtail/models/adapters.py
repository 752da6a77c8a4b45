"""AdaptFormer: a small network beside the MLP of each block of a vision transformer.

Chen et al., `AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition`, NeurIPS
2022, https://arxiv.org/abs/2205.13535; with the width, the start and the norm of LIFT (Shi et al.,
`Long-Tail Learning with Foundation Model: Heavy Fine-Tuning Hurts`, ICML 2024,
https://arxiv.org/abs/2309.10019).

Shapes: B batch, N tokens, D width of the model, R width of the adapters, K classes, L blocks.
"""
import math
from typing import Any

import torch
from timm.layers import get_device_dtype
from timm.models import register_model
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

from ..utils.errors import UserError
from .feature_classifier import set_classifier
from .on_backbone import build_on_backbone, describe_on_backbone

__all__ = ['AdaptedBlock', 'AdaptedEvaBlock', 'Adapter', 'adapters_of', 'add_adapters', 'default_bottleneck']


class Adapter(nn.Module):
    """A network with a narrow middle, `s (W_up ReLU(W_down LN(h) + b_down) + b_up)`.

    It starts as zero: W_up and the biases are. s is learned and starts at 1.

    Args:
        dim: Width D of the tokens.
        bottleneck: Width R of the middle.
        device: Device of the parameters.
        dtype: Type of the parameters.
    """

    def __init__(self, dim: int, bottleneck: int, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm = nn.LayerNorm(dim, **dd)
        self.down = nn.Linear(dim, bottleneck, **dd)
        self.up = nn.Linear(bottleneck, dim, **dd)
        self.scale = nn.Parameter(torch.ones(1, **dd))

        nn.init.kaiming_normal_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map tokens [B, N, D] to what is added to them, [B, N, D]."""
        middle = F.relu(self.down(self.norm(h)))  # [B, N, R]
        return self.scale * self.up(middle)


class AdaptedBlock(Block):
    """timm's `Block` with an adapter beside its MLP."""

    adapter: Adapter

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map tokens [B, N, D] to tokens.

        Args:
            x: Tokens.
            *args: Further arguments of the attention.
            **kwargs: The same by name.
        """
        attended = self.attn(self.norm1(x), *args, **kwargs)
        h = x + self.drop_path1(self.ls1(attended))
        return h + self.drop_path2(self.ls2(self.mlp(self.norm2(h)))) + self.adapter(h)


class AdaptedEvaBlock(EvaBlock):
    """timm's `EvaBlock`, that of EVA, DINOv3 and vision transformers with rotary positions, with an adapter."""

    adapter: Adapter

    def forward(
            self,
            x: torch.Tensor,
            rope: torch.Tensor | None = None,
            attn_mask: torch.Tensor | None = None,
            is_causal: bool = False,
    ) -> torch.Tensor:
        """Map tokens [B, N, D] to tokens.

        Args:
            x: Tokens.
            rope: Rotary positions of the tokens behind the prefix.
            attn_mask: Mask of the attention.
            is_causal: Whether a token attends to those before it only.
        """
        attended = self.attn(self.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        if self.gamma_1 is not None:
            attended = self.gamma_1 * attended
        h = x + self.drop_path1(attended)

        mapped = self.mlp(self.norm2(h))
        if self.gamma_2 is not None:
            mapped = self.gamma_2 * mapped
        return h + self.drop_path2(mapped) + self.adapter(h)


# a block of timm, and what it becomes
_ADAPTED: dict[type[nn.Module], type[nn.Module]] = {
    Block: AdaptedBlock,
    EvaBlock: AdaptedEvaBlock,
}


def default_bottleneck(num_classes: int, num_blocks: int) -> int:
    """Return `2^max(0, floor(log2(K / (2 L))))`: the adapters together have fewer parameters than the classifier.

    Args:
        num_classes: Number of classes K.
        num_blocks: Number of blocks L.
    """
    ratio = num_classes / (2 * num_blocks)
    if ratio < 1:
        return 1
    return 2 ** math.floor(math.log2(ratio))


def add_adapters(model: nn.Module, bottleneck: int | None = None) -> nn.Module:
    """Give a vision transformer an adapter in each block. Its outputs stay the same to the bit.

    Args:
        model: timm model with a sequence `blocks` of timm's `Block` or `EvaBlock`; changed in
            place.
        bottleneck: Width R of the adapters; None chooses it by the number of classes.

    Returns:
        The same model.

    Raises:
        UserError: A model of other blocks, one that has adapters, or one without classes to choose
            a width by.
    """
    timm_model: Any = model  # timm has no class that declares what its models share
    name = type(model).__name__
    if adapters_of(model):
        raise UserError(f'{name} has adapters already')

    blocks = list(getattr(model, 'blocks', ()))
    others = [type(block) for block in blocks if type(block) not in _ADAPTED]
    if not blocks or others:
        known = ' or '.join(kind.__name__ for kind in _ADAPTED)
        found = f'blocks of the kind {_qualified(others[0])}' if others else 'no blocks'
        raise UserError(
            f'adaptformer needs a vision transformer of timm\'s {known}, and {name} has {found}; '
            'take lora(layers=...), bias or last_block')

    if bottleneck is None:
        if timm_model.num_classes == 0:
            raise UserError(
                f'adaptformer: {name} has no classes to choose the width of the adapters by; '
                'name one: adaptformer(bottleneck=16)')
        bottleneck = default_bottleneck(timm_model.num_classes, len(blocks))
    for block in blocks:
        _adapt(block, bottleneck)
    return model


def _qualified(kind: type) -> str:
    """Return the name of a class with that of its file: several files of timm have a `Block`."""
    return f'{kind.__module__.rpartition(".")[2]}.{kind.__name__}'


def _adapt(block: Any, bottleneck: int):
    """Add an adapter of a width to a block, in place: the names of its parameters stay."""
    dim = block.norm1.weight.shape[0]
    block.__class__ = _ADAPTED[type(block)]
    block.adapter = Adapter(dim, bottleneck, **get_device_dtype(block)).train(block.training)


def adapters_of(model: nn.Module) -> list[Adapter]:
    """Return the adapters of a model, from its first block to the last; [] for a model without."""
    return [module for module in model.modules() if isinstance(module, Adapter)]


@register_model
def adaptformer(
        pretrained: bool = False,
        backbone: str = 'vit_base_patch16_clip_quickgelu_224',
        bottleneck: int | None = None,
        cosine_scale: float | None = None,
        **kwargs,
) -> nn.Module:
    """A vision transformer of timm with adapters, which start as zero; `cosine_scale` gives it a cosine classifier."""
    def extend(model: nn.Module):
        set_classifier(model, cosine_scale)
        add_adapters(model, bottleneck)
        chosen = adapters_of(model)[0].down.out_features
        describe_on_backbone(model, 'adaptformer', backbone=backbone, bottleneck=chosen)

    return build_on_backbone('adaptformer', backbone, extend, pretrained, **kwargs)
