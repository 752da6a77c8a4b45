"""From a model as it was trained to the plain network that is published."""
import copy

import torch
from torch import nn

from ..models.tuning import deploy_tuned

__all__ = ['deploy', 'unwrap']


def deploy(model: nn.Module) -> nn.Module:
    """Return a copy of a model as it is deployed: without branches, fp32 on the CPU, in eval mode.

    Low-rank updates are merged into the weights; nothing is frozen any more.

    Args:
        model: timm model; `torch.compile`, DistributedDataParallel, Accelerate and moving averages
            may have wrapped it.
    """
    model = unwrap(model)
    deployed = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).eval()

    # modules inside the model may be compiled, too
    for module in list(deployed.modules()):
        for name, child in list(module.named_children()):
            if '_orig_mod' in child._modules:
                setattr(module, name, child._orig_mod)

    # Accelerate puts a forward of its own, in mixed precision, before that of the class
    for name in ('forward', '_original_forward'):
        deployed.__dict__.pop(name, None)

    if hasattr(deployed, 'branches'):
        del deployed.branches

    # timm records what the factory was called with; the exported model is built without branches
    model_args = dict(getattr(model, '_model_args', {}))
    model_args.pop('branches', None)
    deployed._model_args = model_args
    deploy_tuned(deployed)
    return deployed


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model that timm built, out of everything that was put around it."""
    while True:
        if '_orig_mod' in model._modules:  # torch.compile
            model = model._orig_mod
        elif 'module' in model._modules and not hasattr(model, 'pretrained_cfg'):
            model = model.module
        else:
            return model
