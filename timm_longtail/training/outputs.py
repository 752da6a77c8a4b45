"""What a run tells and leaves: start lines, and the files of its output folder."""
import csv
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ..config.parser import plain
from ..data import create_loader
from ..data.file_state import first_changed_file
from ..data.longtail import shot_groups
from ..evaluation.evaluators import GROUPS, format_table
from ..export.card import is_ours
from ..export.folder import deploy, export_model
from ..methods import tells_classes
from ..utils.errors import UserError
from ..utils.files import BEST, create_text, write_json, writing
from . import provenance as results
from .accelerator import memory_format
from .build import loader_options
from .checkpoint import read_checkpoint
from .loop import evaluate
from .run import Run
from .weights import architecture_of

__all__ = [
    'finish', 'license_of', 'note_changed_file', 'rehearse', 'report', 'start_lines', 'write_per_class', 'write_start',
    'write_summary',
]


def start_lines(args: Namespace, run: Run, train_set, checkpoint: Path | None) -> list[str]:
    """Return what a run says before it trains: recipe, data, batches, model, machine."""
    accelerator, method = run.accelerator, run.method
    num_trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    num_deployed = sum(p.numel() for n, p in method.model.named_parameters() if not n.startswith('branches.'))
    lines = [
        f'recipe: {results.relative_to_root(args.recipe) or "none"}',
        *_data_lines(args, run, train_set),
        *_batch_lines(args, run),
        f'model: {args.model}, {num_deployed / 1e6:.2f} M parameters; {num_trained / 1e6:.2f} M are trained',
        f'method: {" ".join([args.method, *(f"{k}={v}" for k, v in args.method_kwargs.items())])}, '
        f'views {" ".join(method.views)}',
        f'sampler: {"; then ".join(loader.sampler.name or type(loader.sampler).__name__ for loader in run.loaders)}, '
        f'{run.loaders[0].num_samples} samples an epoch',
        f'evaluation: {_epochs(run.val_interval)} on '
        f'{"the hold-out" if args.val_fraction else "the test set"}{_counted(run)}',
        f'device: {accelerator.device.type} x {accelerator.num_processes}, {torch.get_num_threads()} threads, '
        f'mixed precision {accelerator.mixed_precision}, '
        f'{"channels last" if args.channels_last else "contiguous"}{", compiled" if args.torchcompile else ""}, '
        f'seed {args.seed}',
        f'output: {run.output_dir}',
    ]
    if method.needs_weights and not (args.pretrained or args.initial_checkpoint):
        lines.append(f'warning: {args.method} re-trains the classifier of a trained model, and this one is random: '
                     'see --initial-checkpoint')
    if checkpoint is not None:
        left = f'epoch {run.epoch + 1}, step {run.step}'
        lines.append(f'resumed: {checkpoint}, {left if run.epoch < args.epochs else "complete: nothing left to train"}')
    return lines


def _counted(run: Run) -> str:
    return f' ({run.evaluator.counted})' if run.evaluator.counted else ''


def _data_lines(args: Namespace, run: Run, train_set) -> list[str]:
    counts, groups = train_set.class_counts, shot_groups(train_set.shot_counts)
    order = 'the original order' if train_set.original_order else 'not the original order'
    size = f'{run.preprocessing.img_size}x{run.preprocessing.img_size}'
    if not train_set.resident:
        images = f'files, {run.loaders[0].num_workers} workers a process, cropped to {size}'
    elif train_set.input_size[-1] == run.preprocessing.img_size:
        images = f'in memory, {size}'
    else:
        images = f'in memory, {train_set.input_size[-1]}x{train_set.input_size[-1]}, resized to {size}'
    name = args.dataset if train_set.name == args.dataset else f'{args.dataset} ({train_set.name})'
    lines = [
        f'data: {name}, {len(train_set)} images, {train_set.num_classes} classes of {max(counts)} to '
        f'{min(counts)} (imbalance factor {train_set.real_imbalance_factor:.4g}), '
        + ', '.join(f'{len(groups[name])} {name}' for name in GROUPS),
        f'subset: {train_set.hash}, order {train_set.subset_order} ({order}), data seed {train_set.seed}',
        f'images: {images}; mean {_numbers(run.preprocessing.mean)}, std {_numbers(run.preprocessing.std)}',
    ]
    if train_set.note:
        lines.insert(1, f'note: {train_set.note}')
    if train_set.bad_images:
        lines.append(f'warning: {len(train_set.bad_images)} images cannot be read and are left out: '
                     + ', '.join(train_set.bad_images[:3]) + (', …' if len(train_set.bad_images) > 3 else ''))
    return lines


def _epochs(interval: int) -> str:
    return 'each epoch' if interval == 1 else f'every {interval} epochs'


def _numbers(values) -> str:
    return ' '.join(f'{value:.4g}' for value in values)


def _batch_lines(args: Namespace, run: Run) -> list[str]:
    micro_batch = run.images_per_step // run.grad_accum_steps
    lines = [
        f'batch: {run.images_per_step} images global = {run.accelerator.num_processes} processes x '
        f'{run.grad_accum_steps} accumulated x {micro_batch // run.accelerator.num_processes}; '
        f'{run.steps_per_epoch} steps an epoch, {args.epochs} epochs',
    ]
    views = run.method.contrastive_views
    if views:
        lines.append(f'contrast: {views * micro_batch} samples ({views} x {micro_batch} images)')
        if run.grad_accum_steps > 1:
            lines.append('warning: accumulation does not widen the contrast: it compares within a micro-batch')
    return lines


def write_start(args: Namespace, folder: Path, train_set):
    """Write what is known before training: `args.yaml` and `class_counts.json`."""
    with create_text(folder / 'args.yaml') as f:
        yaml.safe_dump(plain(args), f, sort_keys=True)
    write_json(folder / 'class_counts.json', {
        'class_names': list(train_set.class_names),
        'class_counts': list(train_set.class_counts),
        'shot_counts': list(train_set.shot_counts),
        'subset_hash': train_set.hash,
    })


def write_summary(run: Run):
    """Write `summary.csv`, one row an epoch, from the run's history: rows past a resumed checkpoint vanish."""
    names = list(dict.fromkeys(name for row in run.history for name in row))
    with create_text(run.output_dir / 'summary.csv') as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(run.history)


def finish(args: Namespace, run: Run, train_set, test_set, code: dict[str, Any]) -> dict[str, Any]:
    """Measure the weights as they are exported, then write `export/`, `metrics.json` and the row of results.

    The export comes first: what the run was for is kept, whatever fails behind it.

    Args:
        args: Options of `train.py`.
        run: Finished run; what the test set has of unreadable images is added to `bad_images`.
        train_set, test_set: Training images and test images.
        code: From `results.code_state`, taken when the run began.

    Returns:
        The content of `metrics.json`: a row of results.

    Raises:
        NotFinite: The model gives no finite outputs; nothing is exported.
        UserError: The disk refuses a file.
    """
    write_summary(run)  # a run that was killed after its last epoch has nothing left to train

    loader = _test_loader(args, run, test_set)
    last = _measure(run, run.eval_model, loader)
    best = _measure_best(args, run, loader)
    run.bad_images.update(loader.bad_images)

    row = {**_protocol(args, run, train_set), **code, **_cost(run), 'found': {}, 'train': _train_terms(run),
           'last': last, 'best': best}
    unchanged = note_changed_file(row, train_set, test_set)
    _write_export(run.output_dir / 'export', args, run, train_set, row)

    row['found'] = run.method.finish(run.output_dir, run.eval_model, run.train_batches) or {}
    write_json(run.output_dir / 'metrics.json', row)
    if args.results and unchanged:
        write_json(results.results_path(args, train_set), row)
    return row


def note_changed_file(row: dict[str, Any], train_set, test_set) -> bool:
    """Return whether the files of the data are as they were at the start; otherwise say so, in `row` and as a line.

    The hash in a row is that of the files at the start: of a set that changed no row of results may be written.
    """
    changed = first_changed_file(train_set, test_set)
    if changed is None:
        return True
    row['changed_file'] = changed
    print(f'warning: {changed} changed while the run read it: the subset hash need not be that of the images that were '
          'used, and no row of results is written', flush=True)
    return False


def rehearse(args: Namespace, run: Run, train_set, test_set, code: dict[str, Any]):
    """Try before the first epoch what would fail behind the last one: reading the test set, and the export.

    Args:
        args, run, train_set, test_set, code: As `finish`; the run stands at its beginning.

    Raises:
        UserError: What `finish` would raise.
    """
    next(iter(_test_loader(args, run, test_set)), None)

    trial = run.output_dir / 'export.trial'
    try:
        _write_export(trial, args, run, train_set, {**_protocol(args, run, train_set), **code})
    finally:
        for folder in (trial, trial.with_name(trial.name + '.tmp')):
            shutil.rmtree(folder, ignore_errors=True)


def report(run: Run, row: dict[str, Any], train_set, test_set):
    """Print the final table, then write `per_class.csv` and `bad_images.csv`.

    Args:
        run: Finished run.
        row: From `finish`.
        train_set, test_set: Training images and test images.

    Raises:
        UserError: The disk refuses a file; the others are written.
    """
    _print_table(run, row)

    faults = []
    for write in (_write_class_table, _write_bad_images):
        try:
            write(run, row, train_set, test_set)
        except UserError as e:
            faults.append(e)
    if faults:
        raise faults[0]


def _test_loader(args: Namespace, run: Run, test_set):
    """Return the loader that shows each test image once, on the device of the run."""
    return create_loader(
        test_set, (run.preprocessing.eval_view,), batch_size=args.validation_batch_size, training=False,
        **loader_options(args, run.preprocessing, run.accelerator.device))


def _measure(run: Run, model: nn.Module, loader) -> dict[str, Any]:
    """Evaluate a model as it would be exported, on this process alone."""
    device = run.accelerator.device
    deployed = deploy(model).to(device, memory_format=memory_format(device))
    return evaluate(deployed, loader, run.evaluator, run.train_batches, reduce=False)


def _measure_best(args: Namespace, run: Run, loader) -> dict[str, Any]:
    """Return the figures of the best epoch: measured here where a hold-out chose it, else those of its evaluation."""
    epoch = run.best['epoch']
    if args.val_fraction == 0:
        figures = {name.removeprefix('eval_'): v for name, v in run.best.items() if name.startswith('eval_')}
        return {'epoch': epoch, 'selected_by': 'test', **figures}

    state = read_checkpoint(run.output_dir / BEST)
    assert state['epoch'] - 1 == epoch, 'model_best.pth.tar is of another epoch'
    model = deploy(run.eval_model)
    model.load_state_dict(state.get('state_dict_ema', state['state_dict']))
    figures = {name: v for name, v in _measure(run, model, loader).items() if not isinstance(v, list)}
    return {'epoch': epoch, 'selected_by': 'hold-out', **figures}


def _write_export(folder: Path, args: Namespace, run: Run, train_set, row: dict[str, Any]):
    """Write the model with the provenance that a row of results has, and with its figures where it has them."""
    model, preprocessing = run.eval_model, run.preprocessing
    provenance = _provenance(row)
    if 'last' in row:
        provenance['metrics'] = row['last']

    # outputs that are no classes (none, rotations) have no names
    has_names = tells_classes(args.method, model.num_classes)
    with writing(folder):
        export_model(
            model, folder, provenance=provenance,
            mean=preprocessing.mean, std=preprocessing.std, crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation,
            license=license_of(
                architecture_of(args.model, run.eval_model), args.pretrained, args.initial_checkpoint, args.license),
            input_size=(3, preprocessing.img_size, preprocessing.img_size),
            class_names=list(train_set.class_names) if has_names else None,
        )


def _print_table(run: Run, row: dict[str, Any]):
    """Print the figures of the last and the best epoch, and how to measure the export again."""
    last, best = row['last'], row['best']
    rows = {'last epoch': last, f'best epoch ({best["epoch"] + 1}, by {best["selected_by"]})': best}
    print(f'\ntest set, weights as exported{_counted(run)}:\n{format_table(rows)}', flush=True)
    if 'class_correct' in last:
        print(f'{results.start_of("validate")} --model local-dir:{run.output_dir / "export"}', flush=True)


def _write_class_table(run: Run, row: dict[str, Any], train_set, test_set):
    """Write `per_class.csv`, of a model that tells classes."""
    if 'class_correct' in row['last']:
        columns = train_set.class_names, train_set.class_counts, train_set.shot_counts
        write_per_class(run.output_dir / 'per_class.csv', *columns, row['last'])


def _write_bad_images(run: Run, row: dict[str, Any], train_set, test_set):
    """List what could not be read in `bad_images.csv`, and count it."""
    left_out = [*train_set.bad_images, *test_set.bad_images]
    bad = {**dict.fromkeys(left_out, 'left out'), **run.bad_images}
    if not bad:
        return

    path = run.output_dir / 'bad_images.csv'
    with create_text(path) as f:
        csv.writer(f).writerows([['image', 'reason'], *sorted(bad.items())])
    print(f'\n{len(bad)} images could not be read and were skipped; they are listed in {path}', flush=True)


def _train_terms(run: Run) -> dict[str, float]:
    return {k.removeprefix('train_'): v for k, v in run.history[-1].items() if k.startswith('train_')}


def license_of(model: str, pretrained: bool, initial_checkpoint: str, asked: str | None) -> str | None:
    """Return the licence of weights: of ours or of pretrained ones their own (None), of others not known ('')."""
    known = pretrained or is_ours(model)
    return asked or (None if known and not initial_checkpoint else '')


def _protocol(args: Namespace, run: Run, train_set) -> dict[str, Any]:
    return {
        'tag': results.data_tag(train_set),
        'model': args.model, 'model_kwargs': args.model_kwargs,
        'method': args.method, 'method_kwargs': args.method_kwargs,
        'sampler': args.sampler, 'epoch_length': args.epoch_length, 'experiment': results.experiment_of(args),
        # a packed file is a way to carry a set: the name is that of the set, not of a file on this machine
        'dataset': train_set.name if args.dataset.startswith('packed:') else args.dataset,
        'dataset_name': train_set.name, 'hub_id': train_set.hub_id, 'imbalance_factor': train_set.imbalance_factor,
        'imbalance_profile': train_set.profile, 'img_size': run.preprocessing.img_size,
        'pretrained': args.pretrained, 'initial_checkpoint': args.initial_checkpoint,
        'subset_hash': train_set.hash, 'subset_order': train_set.subset_order,
        'original_order': train_set.original_order, 'resident': train_set.resident,
        'class_counts': list(train_set.class_counts), 'shot_counts': list(train_set.shot_counts),
        'seed': args.seed, 'data_seed': train_set.seed, 'val_fraction': args.val_fraction,
        'epochs': args.epochs, 'global_batch_size': run.images_per_step,
        'mixed_precision': run.accelerator.mixed_precision, 'num_processes': run.accelerator.num_processes,
        'command': results.command_line(run.accelerator.num_processes),
        'environment': results.environment(run.accelerator.device),
    }


def _cost(run: Run) -> dict[str, Any]:
    images = run.images_per_step * run.steps_per_epoch * len(run.loaders)  # of an epoch
    method = run.method
    per_image = len(method.views) if method.forwards_per_image is None else method.forwards_per_image
    phases = sum(1 + sum(f'train_{phase}_loss' in row for phase in method.phases[1:]) for row in run.history)
    return {
        'images_seen': images * len(run.history),
        'forward_passes': int(images * per_image * phases),  # an epoch may leave a later phase out
        'seconds': run.seconds,
        'train_seconds_per_epoch': sum(row['train_seconds'] for row in run.history) / len(run.history),
        **results.peak_memory(run.accelerator.device),
    }


def _provenance(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        'tag', 'method', 'method_kwargs', 'dataset', 'dataset_name', 'hub_id', 'imbalance_factor', 'imbalance_profile',
        'subset_hash', 'subset_order', 'class_counts', 'shot_counts', 'resident', 'pretrained', 'initial_checkpoint',
        'seed', 'data_seed', 'val_fraction', 'epochs', 'recipe', 'command', 'tree_hash',
    )
    provenance = {**{name: row[name] for name in names}, 'device_type': row['environment']['device_type']}
    # an export is published: what stands before the last name of a path on this machine is nobody's business
    provenance['command'] = results.without_folders(row['command'])
    start = Path(row['initial_checkpoint'])
    provenance['initial_checkpoint'] = start.parent.name if start.name == 'export' else start.name
    return provenance


def write_per_class(path: Path, class_names, class_counts, shot_counts, metrics: dict[str, Any]):
    """Write one row a class: name, training images, group, correct, total, accuracy.

    Args:
        path: CSV file.
        class_names: C names.
        class_counts: Images of each class that were trained on [C].
        shot_counts: Those that define the groups [C].
        metrics: From `LongTailEvaluator.compute`.
    """
    groups = shot_groups(shot_counts)
    group_of = {int(c): name for name, classes in groups.items() for c in classes}
    with create_text(path) as f:
        writer = csv.writer(f)
        writer.writerow(['class', 'name', 'train_images', 'group', 'correct', 'total', 'accuracy'])
        columns = class_names, class_counts, metrics['class_correct'], metrics['class_total']
        for c, (name, count, correct, total) in enumerate(zip(*columns, strict=True)):
            writer.writerow([c, name, count, group_of[c], correct, total, metrics['class_accuracy'][c]])
