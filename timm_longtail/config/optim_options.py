"""timm's optimizer and schedule as the options say, and the checks of these options."""
import math
from argparse import Namespace

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from ..utils.errors import UserError, one_line, unknown_name

__all__ = ['check_optimizer', 'check_schedule', 'create_optimizer', 'create_scheduler']

# timm's prefix of an optimizer's name
_LOOKAHEAD = 'lookahead_'


def check_optimizer(args: Namespace):
    """Check options of the optimizer without a model, on one parameter.

    Args:
        args: Options `opt`, `lr`, `momentum` and `weight_decay`.

    Raises:
        UserError: An unknown optimizer, one that the loop cannot run, or one that refuses its
            options.
    """
    name = args.opt.lower().removeprefix(_LOOKAHEAD)
    if name not in list_optimizers():
        raise unknown_name('optimizer', args.opt, list_optimizers())
    if get_optimizer_info(name).second_order:
        raise UserError(f'--opt {args.opt} takes gradients of gradients, which training does not compute')
    create_optimizer(args, [torch.zeros(1, requires_grad=True)])


def check_schedule(args: Namespace):
    """Check options of the schedule without a model, by the rates of its first and last epochs.

    Args:
        args: Options `sched`, `lr`, `epochs` and those of the schedule.

    Raises:
        UserError: An unknown schedule, one that refuses its options, or one whose rates are no
            numbers.
    """
    steps_per_epoch = 1000
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler = create_scheduler(args, optimizer, steps_per_epoch)
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


def create_optimizer(args: Namespace, parameters: list) -> torch.optim.Optimizer:
    """Return timm's optimizer for some parameters.

    Args:
        args: Options `opt`, `lr`, `momentum` and `weight_decay`.
        parameters: Parameters, or groups of them.

    Raises:
        UserError: timm or the optimizer refuses the options.
    """
    try:
        return create_optimizer_v2(
            parameters, opt=args.opt, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
    except Exception as e:  # a package that is missing, a device that is, options that contradict each other
        raise UserError(f'--opt {args.opt}: {one_line(e)}') from e


def create_scheduler(args: Namespace, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler | None:
    """Return timm's schedule of an optimizer; None for a rate that stays.

    Args:
        args: Options `sched`, `epochs` and those of the schedule.
        optimizer: Optimizer whose rates it sets.
        steps_per_epoch: Updates in an epoch.

    Raises:
        UserError: A schedule that depends on figures, or one that refuses its options.
    """
    if args.sched == 'plateau':
        raise UserError('--sched plateau depends on what was measured before; take cosine, multistep, step or poly')

    # timm's milestone takes effect one unit early, and the unit is the update here
    updates_per_epoch = max(1, steps_per_epoch)
    milestones = args.decay_milestones
    if args.sched_on_updates:
        milestones = [m - 1 + 1 / updates_per_epoch for m in milestones]

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
            updates_per_epoch=updates_per_epoch,
        )
    except (ArithmeticError, AssertionError, ValueError) as e:
        raise UserError(f'--sched {args.sched}: {one_line(e)}') from e
    return scheduler
