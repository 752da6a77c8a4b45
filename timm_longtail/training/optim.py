"""The optimizers and learning-rate schedules of a method: timm's, one of each a phase."""
from argparse import Namespace
from functools import partial
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import muon
from timm.scheduler.scheduler import Scheduler

from ..config.optim_options import create_optimizer, create_scheduler
from ..methods import Method
from ..utils.errors import UserError
from .accelerator import cpu_has_bf16

__all__ = ['create_optimizers']

_zeropower_in_float32 = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)


def create_optimizers(
        args: Namespace,
        method: Method,
        steps_per_epoch: int,
) -> tuple[list[torch.optim.Optimizer], list[Scheduler | None]]:
    """Return timm's optimizers and schedules, one of each a phase of the method.

    Args:
        args: Options of `train.py`.
        method: Method, which groups its parameters.
        steps_per_epoch: Updates in an epoch.

    Raises:
        UserError: Unknown names, or options that the optimizer or the schedule refuses.
    """
    optimizers = []
    for phase in method.phases:
        groups = method.param_groups(phase)
        has_momentum = any('momentum' in group for group in groups)  # before the optimizer adds its own
        optimizer = create_optimizer(args, _decay_layers(args, method, groups))

        # a rate for a momentum of its own means nothing to an optimizer that scales gradients
        if has_momentum and not isinstance(optimizer, torch.optim.SGD):
            raise UserError(f'--opt {args.opt}: {args.method} moves some parameters by SGD; take momentum or sgd')
        if isinstance(optimizer, muon.Muon) and not torch.accelerator.is_available() and not cpu_has_bf16():
            _orthogonalize_in_float32()
        optimizers.append(optimizer)

    schedulers = [create_scheduler(args, optimizer, steps_per_epoch) for optimizer in optimizers]
    for optimizer, scheduler in zip(optimizers, schedulers):
        if scheduler is None:
            _scale_rates(optimizer)
        else:
            _hold_constant_rates(optimizer, scheduler)
    return optimizers, schedulers


def _orthogonalize_in_float32():
    """Let Muon compute its Newton-Schulz iteration in float32, in all of this process.

    timm takes bfloat16 and has no option for it. A CPU without bf16 instructions computes that
    eleven times slower: a third of a step of ResNet-20.
    """
    muon.zeropower_via_newtonschulz = _zeropower_in_float32


def _scale_rates(optimizer: torch.optim.Optimizer):
    """Multiply the rate of each group by its `lr_scale`, as a schedule would."""
    for group in optimizer.param_groups:
        group['lr'] *= group.get('lr_scale', 1.)


def _hold_constant_rates(optimizer: torch.optim.Optimizer, scheduler: Scheduler):
    """Let a schedule leave groups alone that have a `constant_lr`."""
    if not any('constant_lr' in group for group in optimizer.param_groups):
        return

    update_all = scheduler.update_groups

    def update_groups(values):
        update_all(values)
        # looked up each time: a resumed optimizer has other dictionaries
        for group in optimizer.param_groups:
            group['lr'] = group.get('constant_lr', group['lr'])

    scheduler.update_groups = update_groups


def _decay_layers(args: Namespace, method: Method, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split groups by layer of the backbone, the highest first.

    timm's schedules multiply by `lr_scale`.

    Layers are those of the model's `group_matcher`. Branches, the classifier and what the method
    adds keep the whole rate.
    """
    if args.layer_decay is None:
        return groups

    model = method.model
    if not hasattr(model, 'group_matcher'):
        raise UserError(f'--layer-decay: {type(model).__name__} does not say what its layers are')
    layer_of_name = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    layer_of = {id(parameter): layer_of_name[name] for name, parameter in model.named_parameters()}
    top = max(layer_of_name.values())

    split = []
    for group in groups:
        members: dict[int, list] = {}
        for parameter in group['params']:
            layer = layer_of.get(id(parameter), top)
            members.setdefault(layer, []).append(parameter)

        for layer in sorted(members, reverse=True):
            scale = args.layer_decay ** (top - layer)
            split.append({**group, 'params': members[layer], 'lr_scale': scale})
    return split
