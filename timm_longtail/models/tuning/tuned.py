"""A model of which a part is trained: what stays frozen, and what that means for training, files and export.

A tuned model has `tuned`; a model without is trained whole. Frozen are the parameters that the
tuning leaves alone, by name; statistics of BatchNorm are small, and kept with what is trained.
"""
import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...utils.errors import UserError
from ..heads import single_classifier
from ..two_branch import deployed_state_dict
from .registry import Tuning, create_tuning, parse_tuning

__all__ = [
    'check_added',
    'deploy_tuned',
    'frozen_digest',
    'frozen_names',
    'hold_frozen',
    'load_trained_state_dict',
    'share_frozen',
    'trained_state_dict',
    'tune_model',
    'tuning_name',
    'tuning_words',
]

_BRANCHES = 'branches.'


@dataclass(frozen=True)
class _Tuned:
    """How a model is tuned.

    Attributes:
        name: Text that the tuning was created from.
        tuning: The tuning.
        frozen: Names of the parameters that stay as they are.
        added: Names of the parameters that the tuning added.
    """
    name: str
    tuning: Tuning
    frozen: frozenset[str]
    added: frozenset[str]


def tune_model(model: nn.Module, name: str) -> nn.Module:
    """Choose what is trained of a model: parameters of a tuning, the classifier and train-only branches.

    Args:
        model: timm model; changed in place.
        name: A tuning, such as `all`, `classifier` or `lora(r=16)`, see `list_tunings`.

    Returns:
        The same model.

    Raises:
        UserError: An unknown tuning, a model that it does not know, one without a single
            classifier, or one that is tuned in another way.
    """
    timm_model: Any = model  # timm has no class that declares what its models share
    earlier = tuning_name(model)
    if earlier is not None:
        if parse_tuning(earlier) == parse_tuning(name):
            return model
        raise UserError(f'{type(model).__name__} is tuned by {earlier} already, and cannot be by {name}')

    tuning = create_tuning(name)
    if not tuning.freezes:
        return model

    of_the_model = {id(parameter) for parameter in model.parameters()}
    classifier = single_classifier(model)
    selected = [*tuning.select(model), *classifier.parameters()]
    trained = {id(parameter) for parameter in selected}

    frozen, added = [], []
    for key, parameter in model.named_parameters():
        is_trained = id(parameter) in trained or key.startswith(_BRANCHES)
        parameter.requires_grad_(is_trained)
        if not is_trained:
            frozen.append(key)
        if id(parameter) not in of_the_model:
            added.append(key)
    timm_model.tuned = _Tuned(name, tuning, frozenset(frozen), frozenset(added))
    return model


def check_added(model: nn.Module, img_size: int):
    """Raise a `UserError` where the outputs of a model do not depend on what its tuning has added.

    Attention that reads the weight of a layer, and does not call it, passes by what was put in the
    place of the layer: that of BEiT, EVA and Swin V2.

    Args:
        model: Model on the CPU; back in its former mode afterwards.
        img_size: Side of its input.
    """
    tuned = getattr(model, 'tuned', None)
    if tuned is None or not tuned.added:
        return

    was_training = model.training
    with torch.enable_grad():
        output = model.eval()(torch.zeros(1, 3, img_size, img_size))
    model.train(was_training)

    parameters = dict(model.named_parameters())
    names = sorted(tuned.added)
    gradients = torch.autograd.grad(output.sum(), [parameters[name] for name in names], allow_unused=True)
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if unused:
        raise UserError(
            f'tuning {tuned.name}: {type(model).__name__} does not use {unused[0]}: its attention reads the weights '
            'of this layer and passes by the layer; name other layers, or take another tuning')


def tuning_name(model: nn.Module) -> str | None:
    """Return the tuning of a model; None for one that is trained whole."""
    tuned = getattr(model, 'tuned', None)
    return None if tuned is None else tuned.name


def tuning_words(model: nn.Module) -> str | None:
    """Return the tuning of a model with what it chose by the model; None for one that is trained whole."""
    tuned = getattr(model, 'tuned', None)
    return None if tuned is None else tuned.tuning.chosen(model) or tuned.name


def frozen_names(model: nn.Module) -> frozenset[str]:
    """Return the names of the parameters that a model's tuning leaves as they are."""
    tuned = getattr(model, 'tuned', None)
    return frozenset() if tuned is None else tuned.frozen


def hold_frozen(model: nn.Module):
    """Put what is frozen in eval mode: BatchNorm keeps its statistics, and frozen parts have no dropout.

    Modules without parameters, such as a dropout between frozen layers, are frozen too. Those in a
    part that is trained whole are not, nor are the train-only branches, nor what stands between the
    features and the classifier, such as the dropout of `drop_rate`. A BatchNorm is frozen if one of
    its two parameters is.

    Args:
        model: Model in training mode; one that is trained whole stays so.
    """
    if tuning_name(model) is None:
        return

    in_training = [_BRANCHES]
    for name, module in model.named_modules():
        if f'{name}.'.startswith(tuple(in_training)):
            continue

        trained = [parameter.requires_grad for parameter in module.parameters()]
        if trained and all(trained):
            in_training.append(f'{name}.')
            continue

        is_partly_frozen_norm = isinstance(module, _BatchNorm) and not all(trained)
        if not any(trained) or is_partly_frozen_norm:
            module.eval()

    for module in _before_classifier(model):
        module.train()


def _before_classifier(model: nn.Module) -> list[nn.Module]:
    """Return what stands between the last layer of the features and the classifier: dropout, pooling.

    These are modules without weights, beside the classifier or beside a module that it is in. They
    are known by their order: they come after the last module with weights. A few networks of timm
    register such a dropout behind the classifier, which they call last.
    """
    classifier = single_classifier(model)
    path = next(name for name, module in model.named_modules() if module is classifier)

    found: list[nn.Module] = []
    parent = model
    for part in path.split('.'):
        for name, child in parent.named_children():
            if name == part or f'{name}.' == _BRANCHES:
                continue
            if child.state_dict():
                found = []
            else:
                found.append(child)
        parent = parent.get_submodule(part)
    return found


def trained_state_dict(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of the deployed model without what is frozen: all that training can change.

    Args:
        model: Any model, tuned or not, with branches or without.
    """
    frozen = frozen_names(model)
    return {name: tensor for name, tensor in deployed_state_dict(model).items() if name not in frozen}


def load_trained_state_dict(model: nn.Module, state: dict[str, torch.Tensor]):
    """Load what `trained_state_dict` returned into a model of the same architecture and tuning.

    Args:
        model: Model; what is frozen in it, and its branches, stay as they are.
        state: Tensors by name.

    Raises:
        UserError: Tensors of other names.
    """
    differing = sorted(state.keys() ^ trained_state_dict(model).keys())
    if differing:
        raise UserError(f'these weights are not those that are trained of a {type(model).__name__}: {differing[0]}')
    model.load_state_dict(state, strict=False)


def frozen_digest(model: nn.Module) -> str | None:
    """Return a sha256 of the frozen parameters by name; None for a model that is trained whole."""
    frozen = frozen_names(model)
    if not frozen:
        return None

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if name not in frozen:
            continue
        value = parameter.detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {list(value.shape)}\0'.encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def share_frozen(model: nn.Module, source: nn.Module):
    """Let a copy of a model use the frozen parameters of the original, in place of copies of them.

    The two have the same `nn.Parameter`, and so go to another device together.

    Args:
        model: Copy, such as a moving average or an encoder of keys; changed in place.
        source: The original.
    """
    originals = dict(source.named_parameters())
    for name in frozen_names(source):
        place, _, own_name = name.rpartition('.')
        setattr(model.get_submodule(place), own_name, originals[name])


def deploy_tuned(model: nn.Module):
    """Bring a tuned model into the form that is published, in place; any other stays as it is.

    Args:
        model: Model whose training is over.
    """
    timm_model: Any = model
    if tuning_name(model) is None:
        return

    timm_model.tuned.tuning.deploy(model)
    del timm_model.tuned
    model.requires_grad_(True)
