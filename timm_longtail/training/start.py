"""What a run says and writes before it trains: start lines, `args.yaml`, `class_counts.json`."""
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import yaml

from ..data import LongTailDataset
from ..data.longtail import shot_groups
from ..evaluation.evaluators import GROUPS
from ..models.layers import CosineLinear
from ..models.tuning import tuning_name, tuning_words
from ..utils.files import create_text, write_json
from .options import plain
from .provenance import relative_to_root
from .run import Run

__all__ = ['counted_words', 'data_summary', 'list_some', 'start_lines', 'write_start']

# of the moving average of the weights, at the end of a run; more is hardly trained
_LARGEST_SHARE_OF_THE_START = 0.1


def start_lines(run: Run, train_set: LongTailDataset, checkpoint: Path | None) -> list[str]:
    """Return what a run says before it trains: recipe, data, batches, model, machine.

    Args:
        run: Run in its output folder, at its position.
        train_set: Training images.
        checkpoint: Checkpoint that the run was resumed from, or None.
    """
    options, method = run.options, run.method
    lines = [
        f'recipe: {relative_to_root(options.recipe) or "none"}',
        *_data_lines(run, train_set),
        *_batch_lines(run),
        *_average_lines(run),
        *_model_lines(run),
        _optimizer_line(run),
        _evaluation_line(run),
        _device_line(run),
        f'output: {run.output_dir}',
    ]

    starts_from_weights = options.pretrained or options.initial_checkpoint
    tuning = tuning_name(method.model)
    if tuning and not method.needs_weights and not starts_from_weights:
        lines.append(
            f'warning: --tune {tuning} keeps most of the weights as they are, and these are random: '
            'see --pretrained and --initial-checkpoint')
    if method.needs_weights and not starts_from_weights:
        lines.append(
            f'warning: {options.method} re-trains the classifier of a trained model, and this one is random: '
            'see --initial-checkpoint')
    if checkpoint is not None:
        place = f'epoch {run.epoch + 1}, step {run.step}'
        if run.epoch >= options.epochs or run.is_out_of_patience:
            place = 'complete: nothing left to train'
        lines.append(f'resumed: {checkpoint}, {place}')
    return lines


def data_summary(train_set: LongTailDataset, name: str | None = None) -> str:
    """Return a training set in words: `NAME, 10847 images, 100 classes of 500 to 5`.

    Args:
        train_set: Training images.
        name: Name to show; None for that of the data set.
    """
    counts = train_set.class_counts
    return (
        f'{name or train_set.name}, {len(train_set)} images, '
        f'{train_set.num_classes} classes of {max(counts)} to {min(counts)}'
    )


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """Return the first of some names, and an ellipsis where there are more.

    Args:
        names: Names.
        limit: Number of names to show.
    """
    more = ', …' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _data_lines(run: Run, train_set: LongTailDataset) -> list[str]:
    """Return which images are trained on, and how they are prepared."""
    name = run.options.dataset
    if train_set.name != name:
        name = f'{name} ({train_set.name})'
    groups = shot_groups(train_set.shot_counts)
    group_sizes = ', '.join(f'{len(groups[group])} {group}' for group in GROUPS)
    factor = f'imbalance factor {train_set.real_imbalance_factor:.4g}'
    lines = [f'data: {data_summary(train_set, name)} ({factor}), {group_sizes}']
    if train_set.note:
        lines.append(f'note: {train_set.note}')

    is_original = train_set.original_order or train_set.subset_order == 'original'
    order = 'the original order' if is_original else 'not the original order'
    lines.append(
        f'subset: {train_set.hash}, order {train_set.subset_order} ({order}), data seed {train_set.seed}')

    preprocessing = run.data.preprocessing
    lines.append(
        f'images: {_images_words(run, train_set)}; '
        f'mean {_numbers(preprocessing.mean)}, std {_numbers(preprocessing.std)}')

    bad = train_set.bad_images
    if bad:
        lines.append(f'warning: {len(bad)} images cannot be read and are left out: {list_some(bad)}')
    return lines


def _images_words(run: Run, train_set: LongTailDataset) -> str:
    """Return where the images are, and their size."""
    img_size = run.data.preprocessing.img_size
    size = f'{img_size}x{img_size}'
    if not train_set.resident:
        return f'files, {run.loaders[0].num_workers} workers a process, cropped to {size}'

    stored_size = train_set.input_size[-1]
    if stored_size == img_size:
        return f'in memory, {size}'
    return f'in memory, {stored_size}x{stored_size}, resized to {size}'


def _batch_lines(run: Run) -> list[str]:
    """Return how large an update is, and how many there are."""
    num_processes = run.accelerator.num_processes
    grad_accum_steps = run.options.grad_accum_steps
    micro_batch = run.images_per_step // grad_accum_steps
    lines = [
        f'batch: {run.images_per_step} images global = {num_processes} processes x '
        f'{grad_accum_steps} accumulated x {micro_batch // num_processes}; '
        f'{run.steps_per_epoch} steps an epoch, {run.options.epochs} epochs',
    ]

    views = run.method.contrastive_views
    if views:
        lines.append(f'contrast: {views * micro_batch} samples ({views} x {micro_batch} images)')
        if grad_accum_steps > 1:
            lines.append('warning: accumulation does not widen the contrast: it compares within a micro-batch')
    return lines


def _average_lines(run: Run) -> list[str]:
    """Return a warning where the run is too short for the moving average of its weights to leave the start."""
    options = run.options
    if not options.model_ema or options.model_ema_warmup:
        return []

    num_updates = run.steps_per_epoch * options.epochs
    share = options.model_ema_decay ** num_updates
    if share <= _LARGEST_SHARE_OF_THE_START:
        return []
    return [
        f'warning: --model-ema-decay {options.model_ema_decay:g} over {num_updates} updates leaves {100 * share:.0f} % '
        'of the average, which is exported, at the weights of the start: '
        'add --model-ema-warmup, or take a smaller --model-ema-decay',
    ]


def _model_lines(run: Run) -> list[str]:
    """Return the model and its size, the method, and the samplers of its streams."""
    options, method = run.options, run.method
    num_trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    num_deployed = 0
    for name, parameter in method.model.named_parameters():
        if not name.startswith('branches.'):
            num_deployed += parameter.numel()

    tuning = tuning_words(method.model)
    tuned = f' ({tuning})' if tuning else ''
    trained = f'{num_trained / 1e6:.3g}' if tuning else f'{num_trained / 1e6:.2f}'
    method_words = ' '.join([options.method, *(f'{name}={value}' for name, value in options.method_kwargs.items())])
    classifier = method.model.get_classifier()
    head = f', head cosine(scale={classifier.scale:g})' if isinstance(classifier, CosineLinear) else ''
    samplers = '; then '.join(loader.sampler.name or type(loader.sampler).__name__ for loader in run.loaders)
    return [
        f'model: {options.model}, {num_deployed / 1e6:.2f} M parameters{head}; {trained} M are trained{tuned}',
        f'method: {method_words}, views {" ".join(method.views)}',
        f'sampler: {samplers}, {run.loaders[0].num_samples} samples an epoch',
    ]


def _optimizer_line(run: Run) -> str:
    """Return how the weights are moved, and how the rate is scheduled."""
    options = run.options
    schedule = f'{options.sched} schedule'
    if options.warmup_epochs:
        schedule += f', {options.warmup_epochs} epochs of warm-up'
    return (
        f'optimizer: {options.opt}, learning rate {options.lr:g}, momentum {options.momentum:g}, '
        f'weight decay {options.weight_decay:g}; {schedule}')


def _evaluation_line(run: Run) -> str:
    """Return how often the run is evaluated, and on which images."""
    interval = run.options.val_interval
    epochs = 'each epoch' if interval == 1 else f'every {interval} epochs'
    images = 'the hold-out' if run.options.val_fraction else 'the test set'
    return f'evaluation: {epochs} on {images}{counted_words(run)}'


def _device_line(run: Run) -> str:
    """Return what the run computes on, and how."""
    accelerator, options = run.accelerator, run.options
    parts = [
        f'{accelerator.device.type} x {accelerator.num_processes}',
        f'{torch.get_num_threads()} threads',
        f'mixed precision {accelerator.mixed_precision}',
        'channels last' if options.channels_last else 'contiguous',
    ]
    if options.torchcompile:
        parts.append('compiled')
    parts.append(f'seed {options.seed}')
    return f'device: {", ".join(parts)}'


def counted_words(run: Run) -> str:
    """Return in brackets what the evaluator counts; '' for the answers of a classifier to one view.

    Args:
        run: The run.
    """
    counted = run.evaluator.counted
    ensemble = f'--tta {run.options.tta}' if run.options.tta else ''
    words = ', '.join(filter(None, (counted, ensemble)))
    return f' ({words})' if words else ''


def _numbers(values: Iterable[float]) -> str:
    return ' '.join(f'{value:.4g}' for value in values)


def write_start(run: Run, train_set: LongTailDataset):
    """Write what is known before training: `args.yaml` and `class_counts.json`.

    Args:
        run: Run in its output folder.
        train_set: Training images.

    Raises:
        UserError: The disk refuses a file.
    """
    with create_text(run.output_dir / 'args.yaml') as f:
        yaml.safe_dump(plain(run.options), f, sort_keys=True)

    write_json(run.output_dir / 'class_counts.json', {
        'class_names': list(train_set.class_names),
        'class_counts': list(train_set.class_counts),
        'shot_counts': list(train_set.shot_counts),
        'subset_hash': train_set.hash,
    })
