"""What a run is: what its checkpoints say about it, and what they must agree on to be resumed."""
from dataclasses import asdict, dataclass, field
from typing import Any

from accelerate import Accelerator
from torch import nn

from ..data import LongTailDataset, Preprocessing
from ..methods import default_options, method_class
from ..models.heads import parse_head
from ..models.tuning import frozen_digest, parse_tuning
from ..utils.errors import UserError
from .options import Options
from .weights import architecture_of

__all__ = ['TRAINING_OPTIONS', 'Protocol', 'create_protocol', 'differences']

# Options that decide the numbers, the number of epochs included, which shapes the schedule. A run
# is resumed with the same ones, and a row with the same ones as its recipe stands beside a
# published figure.
TRAINING_OPTIONS = (
    'epochs', 'model_kwargs', 'method_kwargs', 'tune', 'head', 'init_classifier', 'tta', 'sampler', 'epoch_length',
    'grad_accum_steps', 'opt', 'lr', 'momentum',
    'weight_decay', 'layer_decay', 'clip_grad', 'sched', 'sched_on_updates', 'decay_milestones', 'decay_epochs',
    'decay_rate', 'min_lr', 'warmup_epochs', 'warmup_lr', 'pretrained', 'initial_checkpoint', 'val_fraction',
    'model_ema', 'model_ema_decay', 'model_ema_warmup', 'patience',
)


# how the texts of an option are read, where several mean the same
_PARSERS = {'tune': parse_tuning, 'head': parse_head}


@dataclass(frozen=True)
class Protocol:
    """What a run is, in plain types.

    Attributes:
        arch: Name by which timm builds the model, under timm's key of a checkpoint.
        about: What evaluating a checkpoint takes beyond its weights: `model_args`, class names and
            counts, `preprocessing`, …
        agreed: What a checkpoint must agree on to be resumed, by name.
    """
    arch: str = ''
    about: dict[str, Any] = field(default_factory=dict)
    agreed: dict[str, Any] = field(default_factory=dict)


def create_protocol(
        options: Options,
        accelerator: Accelerator,
        model: nn.Module,
        train_set: LongTailDataset,
        eval_set: LongTailDataset,
        preprocessing: Preprocessing,
        global_batch_size: int,
) -> Protocol:
    """Return the protocol of a run.

    Args:
        options: Resolved options.
        accelerator: Accelerator of this process.
        model: The timm model of the method.
        train_set: Training images.
        eval_set: Images that each epoch is evaluated on.
        preprocessing: Input of the model.
        global_batch_size: Images of an update, over all processes and micro-batches.
    """
    agreed = {
        'model': options.model,
        'method': options.method,
        'dataset': train_set.hash,
        'order': train_set.order,
        'evaluated on': eval_set.hash,
        'seed': options.seed,
        'global_batch_size': global_batch_size,
        'mixed_precision': accelerator.mixed_precision,
        **asdict(preprocessing),
        **{name: getattr(options, name) for name in TRAINING_OPTIONS},
    }
    # with all defaults: those of a later version may be others
    agreed['method_kwargs'] = {**default_options(method_class(options.method)), **options.method_kwargs}

    # the part of the weights that checkpoints name and do not hold
    digest = frozen_digest(model)
    if digest is not None:
        agreed['backbone'] = digest

    return Protocol(
        arch=architecture_of(options.model, model),
        about=_about(model, train_set, preprocessing),
        agreed=agreed,
    )


def _about(model: nn.Module, train_set: LongTailDataset, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what evaluating a checkpoint takes beyond its weights."""
    return {
        'model_args': {k: v for k, v in model._model_args.items() if k not in ('branches', 'pretrained')},
        'class_names': list(train_set.class_names),
        'class_counts': list(train_set.class_counts),
        'shot_counts': list(train_set.shot_counts),
        'resident': train_set.resident,
        'preprocessing': asdict(preprocessing),
    }


def differences(here: dict[str, Any], there: dict[str, Any], method_defaults: dict[str, Any]) -> list[str]:
    """Return in words what a checkpoint disagrees on with a run.

    Options of the model and the method are compared one by one, a tuning and a head by what their
    texts mean.

    Args:
        here: `Protocol.agreed` of the run.
        there: The same of the checkpoint.
        method_defaults: Default options of the method.
    """
    compared = []
    for name, own in here.items():
        other = there.get(name)

        # older checkpoints hold the options that were typed only
        if name == 'method_kwargs':
            other = {**method_defaults, **(other or {})}

        if isinstance(own, dict) and isinstance(other, dict):
            for option in {**own, **other}:
                compared.append((f'{name} {option}', own.get(option), other.get(option)))
        else:
            compared.append((name, own, other))

    found = []
    for name, own, other in compared:
        if _meaning(name, own) != _meaning(name, other):
            found.append(f'{name} {other} there, {own} here')
    return found


def _meaning(name: str, value: Any) -> Any:
    """Return what is equal for two values of an option that mean the same."""
    # a file need not tell a tuple from a list
    if isinstance(value, tuple):
        return list(value)
    if name not in _PARSERS or not isinstance(value, str):
        return value

    try:
        return _PARSERS[name](value)
    except UserError:  # of another version
        return value
