"""What a run tells and leaves: start lines, and the files of its output folder."""
import csv
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from . import results
from .build import plain
from .checkpoint import BEST, read_checkpoint, writing
from .data import create_loader
from .data.longtail import shot_groups
from .engine import evaluate
from .errors import UserError
from .evaluate import GROUPS, format_table
from .export import deploy, export_model
from .run import Run

__all__ = ['data_tag', 'finish', 'results_path', 'start_lines', 'write_start', 'write_summary']


def data_tag(train_set) -> str:
    """Return the name of a data set in file names: `cifar100_lt_if100`, or without a factor where nothing was cut."""
    name = Path(train_set.name.removeprefix('packed:')).stem if ':' in train_set.name else train_set.name
    return name if train_set.imbalance_factor == 1 else f'{name}_if{train_set.imbalance_factor:g}'


def results_path(args: Namespace, train_set) -> Path:
    """Return the file of a run's row of results.

    Raises:
        UserError: It is there already: a row is measured once.
    """
    model = args.model.rpartition('/')[2]
    path = Path(args.results) / f'{data_tag(train_set)}.{model}.{args.method}.e{args.epochs}.s{args.seed}.json'
    if path.exists():
        raise UserError(f'--results: {path} is there already; choose another folder, or move it away')
    return path


def start_lines(args: Namespace, run: Run, train_set, checkpoint: Path | None) -> list[str]:
    """Return what a run says before it trains: recipe, data, batches, model, machine."""
    accelerator, method = run.accelerator, run.method
    counts = train_set.class_counts
    groups = shot_groups(train_set.shot_counts)
    num_trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    num_deployed = sum(p.numel() for n, p in method.model.named_parameters() if not n.startswith('branches.'))
    micro_batch = run.images_per_step // run.grad_accum_steps
    order = 'the original order' if train_set.original_order else 'not the original order'
    lines = [
        f'recipe: {results.relative_to_root(args.recipe) or "none"}',
        f'data: {args.dataset}, {len(train_set)} images, {train_set.num_classes} classes of {max(counts)} to '
        f'{min(counts)}, ' + ', '.join(f'{len(groups[name])} {name}' for name in GROUPS),
        f'subset: {train_set.hash}, order {args.subset_order} ({order}), data seed {args.data_seed}',
        f'batch: {run.images_per_step} images global = {accelerator.num_processes} processes x '
        f'{run.grad_accum_steps} accumulated x {micro_batch // accelerator.num_processes}; '
        f'{run.steps_per_epoch} steps an epoch, {args.epochs} epochs',
        f'model: {args.model}, {num_deployed / 1e6:.2f} M parameters; {num_trained / 1e6:.2f} M are trained',
        f'method: {args.method}, views {" ".join(method.views)}',
        f'evaluation: each epoch on {"the hold-out" if args.val_fraction else "the test set"}',
        f'device: {accelerator.device.type} x {accelerator.num_processes}, {torch.get_num_threads()} threads, '
        f'mixed precision {accelerator.mixed_precision}, seed {args.seed}',
        f'output: {run.output_dir}',
    ]
    if method.contrastive_views:
        samples = method.contrastive_views * micro_batch
        lines.insert(4, f'contrast: {samples} samples ({method.contrastive_views} views x {micro_batch} images)')
        if run.grad_accum_steps > 1:
            lines.insert(5, 'warning: accumulation does not widen the contrast: it compares within a micro-batch')
    if checkpoint is not None:
        left = f'epoch {run.epoch + 1}, step {run.step}'
        lines.append(f'resumed: {checkpoint}, {left if run.epoch < args.epochs else "complete: nothing left to train"}')
    return lines


def write_start(args: Namespace, folder: Path, train_set):
    """Write what is known before training: `args.yaml` and `class_counts.json`."""
    with writing(folder / 'args.yaml'):
        (folder / 'args.yaml').write_text(yaml.safe_dump(plain(args), sort_keys=True))
    results.write_json(folder / 'class_counts.json', {
        'class_names': list(train_set.class_names),
        'class_counts': list(train_set.class_counts),
        'shot_counts': list(train_set.shot_counts),
        'subset_hash': train_set.hash,
    })


def write_summary(run: Run):
    """Write `summary.csv`, one row an epoch, from the run's history: rows past a resumed checkpoint vanish."""
    names = list(dict.fromkeys(name for row in run.history for name in row))
    path = run.output_dir / 'summary.csv'
    with writing(path), open(path, 'w', newline='') as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(run.history)


def finish(args: Namespace, run: Run, train_set, test_set, code: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the weights as they are exported, write `metrics.json`, `per_class.csv` and `export/`.

    Args:
        args: Options.
        run: Finished run.
        train_set, test_set: Data.
        code: From `results.code_state`, taken when the run began.

    Returns:
        The content of `metrics.json`: a row of results.
    """
    batches, device = run.train_batches, run.accelerator.device
    write_summary(run)  # a run that was killed after its last epoch has nothing left to train
    run.method.finish(run.output_dir, batches)
    loader = create_loader(
        test_set, ('eval',), batch_size=args.validation_batch_size, training=False,
        device=device, mean=args.mean, std=args.std)

    def measure(model: nn.Module) -> dict[str, Any]:
        return evaluate(deploy(model).to(device), loader, run.evaluator, batches, reduce=False)

    last = measure(run.eval_model)
    best = {'epoch': run.best['epoch'], 'selected_by': 'test' if args.val_fraction == 0 else 'hold-out'}
    if args.val_fraction > 0:
        state = read_checkpoint(run.output_dir / BEST)
        assert state['epoch'] - 1 == run.best['epoch'], 'model_best.pth.tar is of another epoch'
        model = deploy(run.eval_model)
        model.load_state_dict(state.get('state_dict_ema', state['state_dict']))
        best.update({k: v for k, v in measure(model).items() if not isinstance(v, list)})
    else:
        best.update({k.removeprefix('eval_'): v for k, v in run.best.items() if k.startswith('eval_')})

    row = {**_protocol(args, run, train_set), **code, **_cost(run), 'last': last, 'best': best}
    results.write_json(run.output_dir / 'metrics.json', row)
    if 'class_correct' in last:
        _write_per_class(run.output_dir / 'per_class.csv', train_set, last)
    with writing(run.output_dir / 'export'):
        export_model(
            run.eval_model, run.output_dir / 'export',
            provenance={**_provenance(row), 'metrics': last},
            mean=args.mean or train_set.mean, std=args.std or train_set.std, input_size=train_set.input_size,
            class_names=list(train_set.class_names),
        )
    if args.results:
        results.write_json(results_path(args, train_set), row)
    rows = {'last epoch': last, f'best epoch ({best["epoch"] + 1}, by {best["selected_by"]})': best}
    print('\n' + format_table(rows), flush=True)
    return row


def _protocol(args: Namespace, run: Run, train_set) -> dict[str, Any]:
    return {
        'tag': data_tag(train_set),
        'model': args.model, 'method': args.method, 'method_kwargs': args.method_kwargs,
        'dataset': args.dataset, 'imbalance_factor': train_set.imbalance_factor,
        'subset_hash': train_set.hash, 'subset_order': args.subset_order, 'original_order': train_set.original_order,
        'class_counts': list(train_set.class_counts), 'shot_counts': list(train_set.shot_counts),
        'seed': args.seed, 'data_seed': args.data_seed, 'val_fraction': args.val_fraction,
        'epochs': args.epochs, 'global_batch_size': run.images_per_step,
        'mixed_precision': run.accelerator.mixed_precision, 'num_processes': run.accelerator.num_processes,
        'command': results.command_line(run.accelerator.num_processes),
        'environment': results.environment(run.accelerator.device),
    }


def _cost(run: Run) -> dict[str, Any]:
    images = run.images_per_step * run.steps_per_epoch * len(run.history) * len(run.loaders)
    return {
        'images_seen': images,
        'forward_passes': images * len(run.method.views) * len(run.method.phases),
        'seconds': run.seconds,
        'train_seconds_per_epoch': sum(row['train_seconds'] for row in run.history) / len(run.history),
        **results.peak_memory(run.accelerator.device),
    }


def _provenance(row: dict[str, Any]) -> dict[str, Any]:
    names = (
        'tag', 'method', 'method_kwargs', 'dataset', 'imbalance_factor', 'subset_hash', 'subset_order', 'class_counts',
        'shot_counts', 'seed', 'data_seed', 'val_fraction', 'epochs', 'recipe', 'command', 'tree_hash',
    )
    return {**{name: row[name] for name in names}, 'device_type': row['environment']['device_type']}


def _write_per_class(path: Path, train_set, metrics: dict[str, Any]):
    groups = shot_groups(train_set.shot_counts)
    group_of = {int(c): name for name, classes in groups.items() for c in classes}
    with writing(path), open(path, 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['class', 'name', 'train_images', 'group', 'correct', 'total', 'accuracy'])
        columns = train_set.class_names, train_set.class_counts, metrics['class_correct'], metrics['class_total']
        for c, (name, count, correct, total) in enumerate(zip(*columns)):
            writer.writerow([c, name, count, group_of[c], correct, total, metrics['class_accuracy'][c]])
