"""LoRA: low-rank updates of linear layers, by Hugging Face's PEFT.

Hu et al., `LoRA: Low-Rank Adaptation of Large Language Models`, ICLR 2022,
https://arxiv.org/abs/2106.09685.
"""
import importlib.util
from typing import Any

from torch import nn

from ...utils.errors import UserError, one_line
from .registry import Tuning, register_tuning

__all__ = ['LoRA']


@register_tuning('lora')
class LoRA(Tuning):
    """Adds `alpha / r * B A` to the weights of layers, A of r rows and B of r columns; B starts at zero.

    The sum is written into the weights for publication, which gives a model of timm's own.

    Args:
        r: Rank of the updates.
        alpha: Strength of the updates; None is r.
        layers: Names of the linear layers that are updated, divided by commas, as they end in the
            model. A vision transformer has `attn.qkv`, `attn.proj`, `mlp.fc1` and `mlp.fc2` in each
            block. Layers outside the blocks, such as `patch_embed.proj`, are not updated.
    """

    def __init__(self, r: int = 8, alpha: float | None = None, layers: str = 'qkv'):
        if importlib.util.find_spec('peft') is None:
            raise UserError('tuning lora needs the package peft: pip install "timm-longtail[lora]"')

        self.r = r
        self.alpha = r if alpha is None else alpha
        self.layers = [name.strip() for name in layers.split(',')]

    def select(self, model: Any) -> list[nn.Parameter]:
        from peft import LoraConfig, inject_adapter_in_model

        # peft declares a whole number and takes any
        names = self._find_layers(model)
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=names)  # type: ignore[arg-type]
        try:
            inject_adapter_in_model(config, model)
        except ValueError as e:
            layers = ', '.join(self.layers)
            raise UserError(f'tuning lora: layers {layers} of {type(model).__name__}: {one_line(e)}') from e
        return [parameter for name, parameter in model.named_parameters() if '.lora_' in name]

    def _find_layers(self, model: Any) -> list[str]:
        """Return the full names of the layers that are updated.

        Raises:
            UserError: A layer that the blocks of the model do not have.
        """
        in_blocks = []
        for name, module in model.named_modules():
            is_in_block = any(part.isdecimal() for part in name.split('.'))  # blocks are numbered
            if isinstance(module, nn.Linear) and is_in_block and module is not model.get_classifier():
                in_blocks.append(name)

        found = []
        for layer in self.layers:
            named_so = [name for name in in_blocks if f'.{name}'.endswith(f'.{layer}')]
            if not named_so:
                ends = sorted({name.rpartition('.')[2] for name in in_blocks})
                raise UserError(
                    f'tuning lora: the blocks of {type(model).__name__} have no linear layer {layer}; '
                    f'they have {", ".join(ends) or "none"}')
            found += named_so
        return found

    def deploy(self, model: Any):
        from peft.tuners.lora import LoraLayer

        # peft's own `merge_and_unload` wants the wrapper that was never put around the model
        updated = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
        for name, module in updated:
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        if hasattr(model, 'peft_config'):
            del model.peft_config
