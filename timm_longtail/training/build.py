"""From options to objects: data sets, model, method, loaders, optimizers, run.

It names no method, loss or sampler.
"""
import copy
from argparse import Namespace
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn

from ..config.data_options import dataset_options
from ..data import LongTailDataset, Preprocessing, create_splits
from ..methods import Method, create_method, tells_classes
from ..models.heads import single_classifier
from ..models.tuning import check_added, share_frozen
from ..utils.errors import UserError
from .loaders import create_run_data
from .optim import create_optimizers
from .options import Options, micro_batch_size
from .protocol import create_protocol
from .run import Optimisation, Run
from .weights import choose_preprocessing, create_task_model

__all__ = ['build_run', 'check_input', 'check_single_image', 'create_datasets']


def create_datasets(args: Namespace) -> tuple[LongTailDataset, LongTailDataset, LongTailDataset]:
    """Return the training set, the set that each epoch is evaluated on, and the test set.

    Epochs are evaluated on the hold-out where there is one, else on the test set.

    Args:
        args: Options of `train.py`.

    Raises:
        UserError: `--num-classes` contradicts the data set.
    """
    train_set, test_set = create_splits(args.dataset, **dataset_options(args))
    if args.num_classes not in (None, train_set.num_classes):
        raise UserError(f'--num-classes {args.num_classes} contradicts {args.dataset}: {train_set.num_classes} classes')

    if args.val_fraction == 0:
        return train_set, test_set, test_set
    train_set, held_out = train_set.hold_out(args.val_fraction, args.data_seed)
    return train_set, held_out, test_set


def build_run(
        options: Options,
        accelerator: Accelerator,
        train_set: LongTailDataset,
        eval_set: LongTailDataset,
        model: nn.Module | None = None,
        preprocessing: Preprocessing | None = None,
        code: dict[str, Any] | None = None,
) -> Run:
    """Build the model, the method around it, loaders, optimizers and schedules.

    Args:
        options: Options of `train.py`, from `resolve_options`.
        accelerator: Accelerator of this process.
        train_set: Training images.
        eval_set: Images that each epoch is evaluated on.
        model: Model to train; None builds what the options say.
        preprocessing: Input of the model; None chooses what the options say.
        code: From `provenance.code_state`, where the run is recorded.

    Raises:
        UserError: Batch sizes that do not divide, unknown optimizer or schedule, options that the
            method does not take.
    """
    # model and method
    preprocessing = preprocessing or choose_preprocessing(options, train_set)
    if model is None:
        model = create_task_model(
            options, train_set.num_classes, preprocessing.img_size, class_names=train_set.class_names)
    check_input(model, preprocessing.img_size)
    if options.grad_checkpointing:
        _checkpoint_gradients(model)
    method = create_method(
        options.method, model, train_set.class_counts, tune=options.tune, **options.method_kwargs)
    check_added(method.model, preprocessing.img_size)

    if options.tta is not None and not tells_classes(options.method, model.num_classes):
        raise UserError(f'--tta averages the logits of classes, and {options.method} has others')

    # is this batch one to train on?
    batch_size = micro_batch_size(options, accelerator.num_processes)
    if batch_size == 1 and not options.sync_bn:
        check_single_image(method, preprocessing.img_size)
    method = _prepare_method(options, method, accelerator)
    method.check_run(options.epochs, batch_size)

    data = create_run_data(options, accelerator, method, train_set, eval_set, preprocessing, batch_size)
    steps_per_epoch = min(map(len, data.loaders)) // options.grad_accum_steps
    if steps_per_epoch == 0:
        raise UserError(f'--grad-accum-steps {options.grad_accum_steps} exceeds the batches of an epoch')

    optimizers, schedulers = create_optimizers(options, method, steps_per_epoch)
    evaluator = method.create_evaluator(train_set.shot_counts)
    task, *optimizers = accelerator.prepare(method, *optimizers)

    global_batch_size = batch_size * accelerator.num_processes * options.grad_accum_steps
    return Run(
        options=options,
        accelerator=accelerator,
        method=method,
        task=task,
        data=data,
        optimisation=Optimisation(optimizers, schedulers, steps_per_epoch, images_per_step=global_batch_size),
        evaluator=evaluator,
        protocol=create_protocol(
            options, accelerator, method.model, train_set, eval_set, preprocessing, global_batch_size),
        ema=_create_ema(options, method.model),
        tree_hashes=[] if code is None else [code['tree_hash']],
    )


def _prepare_method(options: Options, method: Method, accelerator: Accelerator) -> Method:
    """Return the method in its memory format, compiled or synchronised where asked for."""
    if options.channels_last:
        method.to(memory_format=torch.channels_last)
    if options.torchcompile:
        method.compile_features()
    if options.sync_bn:
        if accelerator.device.type != 'cuda':
            raise UserError('--sync-bn needs CUDA devices')
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    return method


def _create_ema(options: Options, model: nn.Module) -> ModelEmaV3 | None:
    if not options.model_ema:
        return None
    ema = ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup)

    # the average of what does not change is what it is
    share_frozen(ema.module, model)
    return ema


def _checkpoint_gradients(model: nn.Module):
    """Let a model of timm compute its blocks again in the backward pass, in place of keeping what is in them."""
    timm_model: Any = model  # timm has no class that declares what its models share
    try:
        timm_model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as e:
        raise UserError(f'--grad-checkpointing: {type(model).__name__} does not offer it') from e


def check_input(model: nn.Module, img_size: int):
    """Raise a `UserError` unless a model has one classifier and takes images of this size.

    Args:
        model: timm model on the CPU; back in its former mode afterwards.
        img_size: Side of its input.
    """
    name = type(model).__name__
    single_classifier(model)

    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, img_size, img_size))
    except (AssertionError, RuntimeError, ValueError) as e:
        reason = ' '.join(str(e).split())
        raise UserError(f'{name} does not take images of {img_size}x{img_size}: {reason}; see --img-size') from e
    model.train(was_training)


def check_single_image(method: Method, img_size: int):
    """Raise a `UserError` unless a method's backbone can be trained on a batch of one image.

    BatchNorm behind the pooling, or on a map of one pixel, would see one value per channel, which
    has no variance.

    Args:
        method: Method on the CPU; it is not changed.
        img_size: Side of the model's input.
    """
    # one forward of several views
    if method.contrastive_views:
        return

    trial = copy.deepcopy(method).train()
    try:
        with torch.no_grad():
            trial.features(torch.zeros(1, 3, img_size, img_size))
    except ValueError as e:
        raise UserError(
            f'a batch of 1 image: BatchNorm of {type(method.model).__name__} sees one value per channel after the '
            'pooling, or on a map of 1x1; the batch size must be at least 2 for models with BatchNorm there') from e
