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
        layers: Names of the layers that are updated, divided by commas, as they end in the model.
            A vision transformer has one `qkv`, and `proj`, `fc1` and `fc2`, in each block.
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
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, target_modules=self.layers)  # type: ignore[arg-type]
        try:
            inject_adapter_in_model(config, model)
        except ValueError as e:
            names = ', '.join(self.layers)
            raise UserError(f'tuning lora: layers {names} of {type(model).__name__}: {one_line(e)}') from e
        return [parameter for name, parameter in model.named_parameters() if '.lora_' in name]

    def deploy(self, model: Any):
        from peft.tuners.lora import LoraLayer

        # peft's own `merge_and_unload` wants the wrapper that was never put around the model
        updated = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
        for name, module in updated:
            module.merge()
            model.set_submodule(name, module.get_base_layer())
        if hasattr(model, 'peft_config'):
            del model.peft_config
