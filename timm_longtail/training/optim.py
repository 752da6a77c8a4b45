"""Optimizers and learning-rate schedules: timm's."""
import math
from argparse import Namespace
from typing import Any

import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2

from ..methods import Method
from ..utils.errors import UserError, one_line, unknown_name

__all__ = ['check_optimizer', 'check_schedule', 'create_optimizers']

_LOOKAHEAD = 'lookahead_'  # timm's prefix of an optimizer's name


def check_optimizer(args: Namespace):
    """Check options of the optimizer without a model, on one parameter.

    Args:
        args: Options `opt`, `lr`, `momentum` and `weight_decay`.

    Raises:
        UserError: An unknown optimizer, one that the loop cannot run, or one that refuses its options.
    """
    name = args.opt.lower().removeprefix(_LOOKAHEAD)
    if name not in list_optimizers():
        raise unknown_name('optimizer', args.opt, list_optimizers())
    if get_optimizer_info(name).second_order:
        raise UserError(f'--opt {args.opt} takes gradients of gradients, which training does not compute')
    _create_optimizer(args, [torch.zeros(1, requires_grad=True)])


def check_schedule(args: Namespace):
    """Check options of the schedule without a model, by the rates of its first and last epochs.

    Args:
        args: Options `sched`, `lr`, `epochs` and those of the schedule.

    Raises:
        UserError: An unknown schedule, one that refuses its options, or one whose rates are no numbers.
    """
    steps_per_epoch = 1000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler = _create_scheduler(args, optimizer, steps_per_epoch)
    if scheduler is None:
        return

    for epoch in (0, args.epochs // 2, args.epochs - 1):
        try:
            scheduler.step(epoch)
            scheduler.step_update(epoch * steps_per_epoch)
            rate = optimizer.param_groups[0]['lr']
            is_rate = math.isfinite(rate) and rate >= 0
        except (ArithmeticError, TypeError, ValueError) as e:  # a complex number is not finite either
            raise UserError(f'--sched {args.sched} has no rate in epoch {epoch + 1}: {one_line(e)}') from e
        if not is_rate:
            raise UserError(f'--sched {args.sched} has the rate {rate} in epoch {epoch + 1}')


def create_optimizers(args: Namespace, method: Method, steps_per_epoch: int) -> tuple[list, list]:
    """Return timm's optimizers and schedules, one of each a phase of the method.

    Args:
        args: Options of `train.py`.
        method: The method, which groups its parameters.
        steps_per_epoch: Updates in an epoch.

    Raises:
        UserError: Unknown names, or options that the optimizer or the schedule refuses.
    """
    optimizers = []
    for phase in method.phases:
        groups = method.param_groups(phase)
        has_momentum = any('momentum' in group for group in groups)  # before the optimizer adds its own
        optimizers.append(_create_optimizer(args, _decay_layers(args, method, groups)))
        # a rate for a momentum of its own means nothing to an optimizer that scales gradients
        if has_momentum and not isinstance(optimizers[-1], torch.optim.SGD):
            raise UserError(f'--opt {args.opt}: {args.method} moves some parameters by SGD; take momentum or sgd')
    schedulers = [_create_scheduler(args, optimizer, steps_per_epoch) for optimizer in optimizers]
    for optimizer, scheduler in zip(optimizers, schedulers):
        if scheduler is None:  # it would multiply by `lr_scale`
            for group in optimizer.param_groups:
                group['lr'] *= group.get('lr_scale', 1.)
        else:
            _hold_constant_rates(optimizer, scheduler)
    return optimizers, schedulers


def _hold_constant_rates(optimizer: torch.optim.Optimizer, scheduler):
    """Let a schedule leave groups alone that have a `constant_lr`."""
    if not any('constant_lr' in group for group in optimizer.param_groups):
        return
    update_all = scheduler.update_groups

    def update_groups(values):
        update_all(values)
        for group in optimizer.param_groups:  # looked up each time: a resumed optimizer has other dictionaries
            group['lr'] = group.get('constant_lr', group['lr'])

    scheduler.update_groups = update_groups


def _create_optimizer(args: Namespace, parameters: list) -> torch.optim.Optimizer:
    try:
        return create_optimizer_v2(
            parameters, opt=args.opt, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    except Exception as e:  # a package that is missing, a device that is, options that contradict each other
        raise UserError(f'--opt {args.opt}: {one_line(e)}') from e


def _decay_layers(args: Namespace, method: Method, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Split groups by layer of the backbone, the highest first; timm's schedules multiply by `lr_scale`.

    Layers are those of the model's `group_matcher`. Branches, the classifier and what the method adds keep the whole
    rate.
    """
    if args.layer_decay is None:
        return groups
    if not hasattr(method.model, 'group_matcher'):
        raise UserError(f'--layer-decay: {type(method.model).__name__} does not say what its layers are')
    layer_of = group_parameters(method.model, method.model.group_matcher(coarse=False), reverse=True)
    top = max(layer_of.values())
    layers = {id(p): layer_of[name] for name, p in method.model.named_parameters()}
    split = []
    for group in groups:
        members: dict[int, list] = {}
        for parameter in group['params']:
            members.setdefault(layers.get(id(parameter), top), []).append(parameter)
        for layer in sorted(members, reverse=True):
            split.append({**group, 'params': members[layer], 'lr_scale': args.layer_decay ** (top - layer)})
    return split


def _create_scheduler(args: Namespace, optimizer, steps_per_epoch: int):
    if args.sched == 'plateau':
        raise UserError('--sched plateau depends on what was measured before; take cosine, multistep, step or poly')
    milestones = args.decay_milestones
    if args.sched_on_updates:  # timm's milestone takes effect one unit early, and the unit is the update here
        milestones = [m - 1 + 1 / max(1, steps_per_epoch) for m in milestones]
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=args.sched,
            num_epochs=args.epochs,
            decay_epochs=args.decay_epochs,
            decay_milestones=milestones,
            decay_rate=args.decay_rate,
            min_lr=args.min_lr,
            warmup_epochs=args.warmup_epochs,
            warmup_lr=args.warmup_lr,
            step_on_epochs=not args.sched_on_updates,
            updates_per_epoch=max(1, steps_per_epoch),
        )
    except (ArithmeticError, AssertionError, ValueError) as e:
        raise UserError(f'--sched {args.sched}: {one_line(e)}') from e
    return scheduler
