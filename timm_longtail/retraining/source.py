"""The model whose classifier is retrained, and the data that it was trained on or is retrained for."""
from argparse import Namespace
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..data import create_splits
from ..models.layers import CosineLinear
from ..training.build import check_input
from ..utils.errors import UserError
from ..utils.finite import check_finite, trained_tensors
from .representation import Representation
from .trained_model import (
    TrainedModel,
    is_timm_model,
    load_model,
    trained_data,
)

__all__ = ['load_source', 'open_data']

# options that choose a part of a data set, with their defaults
_SUBSET_DEFAULTS = {
    'imbalance_factor': None,
    'imbalance_profile': 'exp',
    'subset_order': 'file',
    'data_seed': 0,
}


def load_source(args: Namespace) -> TrainedModel:
    """Load the model whose classifier is retrained.

    Args:
        args: Options `source`, `dataset`, `initial_checkpoint` and `img_size`.

    Raises:
        UserError: There is none, or its classifier is not one linear or cosine layer.
    """
    trained_model = _load(args)
    if args.img_size:
        trained_model.preprocessing = replace(trained_model.preprocessing, img_size=args.img_size)

    check_finite(trained_tensors(trained_model.model), args.source)

    if not trained_model.has_classes:
        trained_model.model.reset_classifier(1)  # a place to put the new ones
    if not isinstance(trained_model.model.get_classifier(), (nn.Linear, CosineLinear)):
        raise UserError(f'{args.source}: the classifier of a {trained_model.name} is not one linear layer')

    check_input(trained_model.model, trained_model.preprocessing.img_size)
    _check_classifier(trained_model)
    return trained_model


def _load(args: Namespace) -> TrainedModel:
    """Load an export, the output folder of a run, a checkpoint, or a model of timm's for data that is named."""
    if is_timm_model(args.source) and args.dataset is None:
        raise UserError(f'{args.source} does not say what it is for: add --dataset')
    try:
        return load_model(args.source, args.initial_checkpoint)
    except UserError as e:
        if is_timm_model(args.source) and not args.initial_checkpoint:
            raise UserError(f'{e}; --initial-checkpoint takes weights from a file') from e
        raise


@torch.no_grad()
def _check_classifier(trained_model: TrainedModel):
    """Raise a `UserError` unless the model is a backbone and then its classifier, and nothing else."""
    model = trained_model.model.eval()
    size = trained_model.preprocessing.img_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))

    features = model.forward_head(model.forward_features(images), pre_logits=True)  # [2, D]
    logits = model(images)
    is_vector = features.ndim == 2
    if not is_vector or not torch.allclose(model.get_classifier()(features), logits, rtol=1e-3, atol=1e-4):
        raise UserError(f'a {trained_model.name} is not a backbone and one linear classifier')


def open_data(args: Namespace, trained_model: TrainedModel, accelerator: Accelerator | None) -> Representation:
    """Read the data: what stage 1 was trained on and held out, or the data set that is named.

    Args:
        args: Options of the command.
        trained_model: The model.
        accelerator: Where features will be computed.

    Raises:
        UserError: The data is not what the model says it was trained on.
    """
    trained = trained_model.provenance
    if args.dataset is None:
        _check_subset(args, trained)
    name, options = trained_data(args, trained_model)
    train_set, test_set = create_splits(name, **options)

    # what stage 1 was trained on, if these are its images
    held_out = None
    rest = train_set
    fraction = trained.get('val_fraction') or 0.0
    if fraction > 0:
        rest, held_out = train_set.hold_out(fraction, trained.get('data_seed') or 0)

    seen = trained.get('subset_hash') == rest.hash
    if seen:
        train_set = rest
        if args.val_fraction not in (None, fraction):
            raise UserError(
                f'--val-fraction {args.val_fraction}: stage 1 held out {fraction:g}; what it was trained on can no '
                'longer be held out')
    elif trained.get('subset_hash') and args.dataset is None:
        raise UserError(
            f'{name} has other training images ({rest.hash}) than the model was trained on '
            f'({trained["subset_hash"]}): name the data by --dataset to go on with these')
    else:
        # images that the model has not seen
        held_out = None
        fraction = args.val_fraction or 0.0
        if fraction > 0:
            train_set, held_out = train_set.hold_out(fraction, args.data_seed)
    return Representation(args, accelerator, trained_model, train_set, test_set, held_out, fraction, seen)


def _check_subset(args: Namespace, trained: dict[str, Any]):
    """Raise a `UserError` where a part of the data set was asked for that stage 1 was not trained on."""
    for option, default in _SUBSET_DEFAULTS.items():
        asked, had = getattr(args, option), trained.get(option)
        if asked not in (default, had):
            raise UserError(
                f'--{option.replace("_", "-")} {asked}: the model was trained with {had}; name the data by --dataset '
                'to go on with other images')
