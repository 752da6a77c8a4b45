"""From options to objects: accelerator, data, method, optimizers, run. Names no method, loss or sampler."""
import copy
import os
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from timm.utils import ModelEmaV3
from torch import nn

from ..config.data_options import dataset_options
from ..config.parser import plain
from ..data import EpochSampler, Preprocessing, create_loader, create_sampler, create_splits
from ..methods import Method, create_method, default_options, method_class
from ..utils.errors import UserError
from ..utils.folder import create_folder, hold_folder, join_folder
from .accelerator import memory_format, usable_cores
from .checkpoint import find_checkpoint, read_checkpoint
from .optim import create_optimizers
from .run import Run, TrainBatches
from .weights import architecture_of, choose_preprocessing, create_task_model

# options that decide the numbers: a run is resumed with the same ones, its length included, which shapes the schedule
# what a checkpoint must agree on to be resumed, and a row with its recipe to stand beside a published figure
TRAINING_OPTIONS = (
    'epochs', 'model_kwargs', 'method_kwargs', 'sampler', 'epoch_length', 'grad_accum_steps', 'opt', 'lr', 'momentum',
    'weight_decay', 'layer_decay', 'clip_grad', 'sched', 'sched_on_updates', 'decay_milestones', 'decay_epochs',
    'decay_rate', 'min_lr', 'warmup_epochs', 'warmup_lr', 'pretrained', 'initial_checkpoint', 'val_fraction',
    'model_ema', 'model_ema_decay', 'model_ema_warmup',
)

__all__ = [
    'TRAINING_OPTIONS', 'build_run', 'check_input', 'create_datasets', 'enter_output_folder', 'loader_options']


def create_datasets(args: Namespace):
    """Return the training set, the set each epoch is evaluated on (the hold-out, or the test set) and the test set.

    Raises:
        UserError: `--num-classes` contradicts the data set.
    """
    train_set, test_set = create_splits(args.dataset, **dataset_options(args))
    if args.num_classes not in (None, train_set.num_classes):
        raise UserError(f'--num-classes {args.num_classes} contradicts {args.dataset}: {train_set.num_classes} classes')
    if args.val_fraction > 0:
        train_set, held_out = train_set.hold_out(args.val_fraction, args.data_seed)
        return train_set, held_out, test_set
    return train_set, test_set, test_set


def build_run(
        args: Namespace,
        accelerator: Accelerator,
        train_set,
        eval_set,
        model: nn.Module | None = None,
        preprocessing: Preprocessing | None = None,
) -> Run:
    """Build the model, the method around it, loaders, optimizers and schedules.

    Args:
        args: Options of `train.py`.
        accelerator: Of this process.
        train_set, eval_set: Data.
        model, preprocessing: A model that is there already, and its input; None builds what the options say.

    Raises:
        UserError: Batch sizes that do not divide, unknown optimizer or schedule, options that the method does not take.
    """
    preprocessing = preprocessing or choose_preprocessing(args, train_set)
    if model is None:
        model = create_task_model(args, train_set.num_classes, preprocessing.img_size)
    check_input(model, preprocessing.img_size)
    method = create_method(args.method, model, train_set.class_counts, **args.method_kwargs)
    batch_size = _batch_size(args, accelerator.num_processes)
    if batch_size == 1 and not args.sync_bn:
        check_single_image(method, preprocessing.img_size)
    method = _prepare_method(args, method, accelerator)
    method.check_run(args.epochs, batch_size)
    shard = dict(rank=accelerator.process_index, world_size=accelerator.num_processes)
    common = loader_options(args, preprocessing, accelerator.device)
    loaders = [
        create_loader(
            train_set, method.views, sampler, batch_size=batch_size, seed=args.seed, stream=stream, **shard, **common)
        for stream, sampler in enumerate(_choose_samplers(args, method, train_set.targets))
    ]
    evaluation = dict(
        views=(preprocessing.eval_view,), batch_size=args.validation_batch_size, training=False, **common)
    steps_per_epoch = min(map(len, loaders)) // args.grad_accum_steps
    if steps_per_epoch == 0:
        raise UserError(f'--grad-accum-steps {args.grad_accum_steps} exceeds the batches of an epoch')
    optimizers, schedulers = create_optimizers(args, method, steps_per_epoch)
    evaluator = method.create_evaluator(train_set.shot_counts)
    task, *optimizers = accelerator.prepare(method, *optimizers)
    global_batch_size = batch_size * accelerator.num_processes * args.grad_accum_steps
    return Run(
        accelerator=accelerator, method=method, task=task, optimizers=optimizers, schedulers=schedulers,
        loaders=loaders,
        eval_loader=create_loader(eval_set, **shard, **evaluation),
        evaluator=evaluator,
        train_batches=TrainBatches(train_set, create_loader(train_set, **evaluation)),
        preprocessing=preprocessing,
        steps_per_epoch=steps_per_epoch,
        images_per_step=global_batch_size,
        ema=_create_ema(args, method.model),
        seed=args.seed,
        headline='balanced' if args.val_fraction > 0 else evaluator.headline,
        grad_accum_steps=args.grad_accum_steps, clip_grad=args.clip_grad,
        log_interval=args.log_interval, save_steps=args.save_steps, val_interval=args.val_interval,
        arch=architecture_of(args.model, method.model), args=plain(args),
        about=_about(method.model, train_set, preprocessing),
        protocol=_protocol(args, accelerator, train_set, eval_set, preprocessing, global_batch_size),
    )


def _protocol(args: Namespace, accelerator: Accelerator, train_set, eval_set, preprocessing, global_batch_size: int):
    """Return what a checkpoint must agree on to be resumed, by name."""
    return {
        'model': args.model, 'method': args.method, 'dataset': train_set.hash, 'order': train_set.order,
        'evaluated on': eval_set.hash, 'seed': args.seed, 'global_batch_size': global_batch_size,
        'mixed_precision': accelerator.mixed_precision, **asdict(preprocessing),
        **{name: getattr(args, name) for name in TRAINING_OPTIONS},
        # spelled out: other defaults of a later version are other options
        'method_kwargs': {**default_options(method_class(args.method)), **args.method_kwargs},
    }


def _choose_samplers(args: Namespace, method: Method, targets: np.ndarray) -> list[EpochSampler]:
    """Return the sampler of each data stream: the method's own, and `--sampler` where it has none."""
    own = method.samplers(targets)
    asked = args.sampler != method.sampler or args.epoch_length != 'natural'
    if asked and None not in own:
        raise UserError(f'--sampler and --epoch-length: method {args.method} samples all its streams itself')
    if args.epoch_length != 'natural' and len(own) > 1:
        raise UserError(f'--epoch-length: method {args.method} has {len(own)} streams: an epoch ends with the shorter')
    return [
        create_sampler(args.sampler, targets, args.epochs, args.epoch_length) if sampler is None else sampler
        for sampler in own
    ]


def _prepare_method(args: Namespace, method: Method, accelerator: Accelerator) -> Method:
    if args.channels_last is None:
        args.channels_last = memory_format(accelerator.device) is torch.channels_last
    if args.channels_last:
        method.to(memory_format=torch.channels_last)
    if args.torchcompile:
        method.compile_features()
    if args.sync_bn:
        if accelerator.device.type != 'cuda':
            raise UserError('--sync-bn needs CUDA devices')
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)
    return method


def _about(model: nn.Module, train_set, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what evaluating a checkpoint takes beyond its weights, in plain types."""
    return {
        'model_args': {k: v for k, v in model._model_args.items() if k not in ('branches', 'pretrained')},
        'class_names': list(train_set.class_names),
        'class_counts': list(train_set.class_counts),
        'shot_counts': list(train_set.shot_counts),
        'resident': train_set.resident,
        'preprocessing': asdict(preprocessing),
    }


def loader_options(args: Namespace, preprocessing: Preprocessing, device: torch.device) -> dict[str, Any]:
    """Return what all loaders of a run have in common."""
    share = usable_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    return dict(
        device=device, img_size=preprocessing.img_size, mean=preprocessing.mean, std=preprocessing.std,
        num_workers=min(share, 8) if args.workers is None else args.workers, skip_bad_images=args.skip_bad_images)


def check_input(model: nn.Module, img_size: int):
    """Raise a `UserError` unless the model takes images of this size and has one classifier; before any file."""
    if not isinstance(getattr(model, 'get_classifier', lambda: None)(), nn.Module):
        raise UserError(f'{type(model).__name__} has no single classifier')
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, 3, img_size, img_size))
    except (AssertionError, RuntimeError, ValueError) as e:
        size, reason = f'{img_size}x{img_size}', ' '.join(str(e).split())
        raise UserError(f'{type(model).__name__} does not take images of {size}: {reason}; see --img-size') from e
    model.train(was_training)


def check_single_image(method: Method, img_size: int):
    """Raise a `UserError` unless a method's backbone can be trained on a batch of one image.

    BatchNorm behind the pooling, or on a map of one pixel, would see one value per channel, which has no variance.

    Args:
        method: Method on the CPU; it is not changed.
        img_size: Side of the model's input.
    """
    if method.contrastive_views:
        return  # one forward of several views

    trial = copy.deepcopy(method).train()
    try:
        with torch.no_grad():
            trial.features(torch.zeros(1, 3, img_size, img_size))
    except ValueError as e:
        raise UserError(
            f'a batch of 1 image: BatchNorm of {type(method.model).__name__} sees one value per channel after the '
            'pooling, or on a map of 1x1; the batch size must be at least 2 for models with BatchNorm there') from e


def _batch_size(args: Namespace, num_processes: int) -> int:
    """Return the size of a micro-batch of one process."""
    if args.global_batch_size is None:
        return args.batch_size
    parts = num_processes * args.grad_accum_steps
    if args.global_batch_size % parts:
        raise UserError(
            f'--global-batch-size {args.global_batch_size} cannot be cut into {num_processes} processes x '
            f'{args.grad_accum_steps} accumulated micro-batches'
        )
    return args.global_batch_size // parts


def _create_ema(args: Namespace, model: nn.Module) -> ModelEmaV3 | None:
    if not args.model_ema:
        return None
    return ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)


def enter_output_folder(args: Namespace, run: Run, name: str) -> Path | None:
    """Choose the output folder, the same on all processes, and take up its checkpoint where `--resume` asks for it.

    Args:
        args: Options `output`, `experiment`, `resume`.
        run: The run; its position and weights become the checkpoint's.
        name: Folder name without `--experiment`; a number is added where it is taken.

    Returns:
        The checkpoint that was taken up, or None for a fresh run.
    """
    found = None, None, None
    if run.accelerator.is_main_process:  # other hosts need not see the folder
        found = _hold_output_folder(args, name)
    run.output_dir, checkpoint, state = broadcast_object_list(list(found))
    if not run.accelerator.is_main_process:
        join_folder(run.output_dir)
    if checkpoint is not None:
        run.load_state_dict(state, str(checkpoint))
        args.method_kwargs = state['args']['method_kwargs']  # as the run was begun, however it is spelled now
    return checkpoint


def _hold_output_folder(args: Namespace, name: str) -> tuple[Path, Path | None, dict | None]:
    """Return the folder, which is there and held from now on, and the checkpoint to resume with its content."""
    folder, checkpoint = _output_folder(args, name)
    hold_folder(folder)
    if checkpoint is None:
        return folder, None, None
    found = find_checkpoint(checkpoint) if checkpoint.is_dir() else (checkpoint, read_checkpoint(checkpoint))
    if found is None:
        raise UserError(f'--resume {checkpoint}: no checkpoint in this folder')
    return folder, *found


def _output_folder(args: Namespace, name: str) -> tuple[Path, Path | None]:
    """Return the folder to write and the checkpoint, or the folder of one, to resume."""
    base = Path(args.output) / (args.experiment or name)
    if args.resume == 'auto':
        taken = [base] if base.exists() else []
        while (following := base.with_name(f'{base.name}-{len(taken) + 1}')).exists() and taken:
            taken.append(following)
        newest = taken[-1] if taken else base
        return newest, (newest if any(newest.glob('checkpoint-*.pth.tar')) else None)
    if args.resume:
        path = Path(args.resume)
        if not path.exists():
            raise UserError(f'--resume {path}: no such file or folder')
        return (path if path.is_dir() else path.parent), path
    return create_folder(base), None
