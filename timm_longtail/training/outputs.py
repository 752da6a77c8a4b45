"""The outputs of a run: figures, export, tables and row of results."""
import copy
import csv
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from ..config.data_options import dataset_options
from ..data import LongTailDataset
from ..data.file_state import first_changed_file
from ..evaluation.evaluators import LongTailEvaluator
from ..evaluation.predictions import recorder_like, write_predictions
from ..evaluation.report.page import write_page_of_run
from ..evaluation.report.reading import PREDICTIONS
from ..evaluation.tables import format_table, interval_words, write_per_class
from ..export.folder import deploy, export_model
from ..export.licenses import license_of
from ..methods import tells_classes
from ..models.tuning import load_trained_state_dict
from ..utils.errors import UserError
from ..utils.files import BEST, create_text, write_json, writing
from ..utils.progress import progress
from .accelerator import memory_format
from .checkpoint import read_checkpoint
from .loaders import create_eval_loader
from .loop import evaluate
from .provenance import command_line, environment, peak_memory, start_of, validate_command
from .rows import data_columns, experiment_of, published_columns, results_path
from .run import Run
from .start import counted_words

__all__ = ['finish', 'note_changed_file', 'rehearse', 'report', 'write_summary']

# what an export says about its training, of the columns of a row
_EXPORTED_COLUMNS = (
    'tag', 'method', 'method_kwargs', 'sampler', 'tune', 'head', 'init_classifier', 'tta',
    'dataset', 'dataset_name', 'hub_id', 'imbalance_factor', 'imbalance_profile', 'subset_hash',
    'subset_order', 'class_counts', 'shot_counts', 'resident', 'pretrained', 'initial_checkpoint',
    'seed', 'data_seed', 'val_fraction', 'epochs', 'recipe', 'experiment', 'command', 'tree_hash',
)


# --------------------------------------------------------------------------------- the end of a run

def finish(run: Run, train_set: LongTailDataset, test_set: LongTailDataset, code: dict[str, Any]) -> dict[str, Any]:
    """Measure the weights as they are exported, then write the export and the results.

    The export comes first: what the run was for is kept, whatever fails behind it.

    Args:
        run: Finished run; what the test set has of unreadable images is added to `bad_images`.
        train_set: Training images.
        test_set: Test images.
        code: From `provenance.code_state`, taken when the run began.

    Returns:
        The content of `metrics.json`: a row of results.

    Raises:
        NotFinite: The model gives no finite outputs; nothing is exported.
        UserError: The disk refuses a file.
    """
    # a run that was killed after its last epoch has nothing left to train
    write_summary(run)

    last, best = _measure(run, test_set)
    row = {
        **_protocol_columns(run, train_set),
        **code,
        **_cost_columns(run),
        'found': {},
        'train': _train_terms(run),
        'last': last,
        'best': best,
    }
    is_unchanged = note_changed_file(row, train_set, test_set)
    _write_export(run.output_dir / 'export', run, train_set, row)

    row['found'] = run.method.finish(run.output_dir, run.eval_model, run.train_batches) or {}
    write_json(run.output_dir / 'metrics.json', row)
    if run.options.results and is_unchanged:
        write_json(results_path(run.options, train_set), row)
    return row


def rehearse(run: Run, train_set: LongTailDataset, test_set: LongTailDataset, code: dict[str, Any]):
    """Try before the first epoch what would fail behind the last one.

    That is reading the test set, and writing the export.

    Args:
        run: Run in its output folder, at its beginning.
        train_set: Training images.
        test_set: Test images.
        code: From `provenance.code_state`.

    Raises:
        UserError: What `finish` would raise.
    """
    next(iter(_test_loader(run, test_set)), None)

    trial = run.output_dir / 'export.trial'
    try:
        _write_export(trial, run, train_set, {**_protocol_columns(run, train_set), **code})
    finally:
        for folder in (trial, trial.with_name(trial.name + '.tmp')):
            shutil.rmtree(folder, ignore_errors=True)


def report(run: Run, row: dict[str, Any], train_set: LongTailDataset, test_set: LongTailDataset):
    """Print the final table, then write `per_class.csv`, `bad_images.csv`, `predictions.csv` and the report page.

    Args:
        run: Finished run.
        row: From `finish`.
        train_set: Training images.
        test_set: Test images.

    Raises:
        UserError: The disk refuses a file; the others are written.
    """
    _print_table(run, row)

    faults = []
    for write in (_write_class_table, _write_bad_images, _write_predictions):
        try:
            write(run, row, train_set, test_set)
        except UserError as e:
            faults.append(e)
    write_page_of_run(run.output_dir, train_set, test_set)
    if faults:
        raise faults[0]


# ------------------------------------------------------------------------------------------ figures

def _measure(run: Run, test_set: LongTailDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the figures of the last and the best epoch on the test set.

    Images that could not be read are noted, and what was predicted for the others.
    """
    loader = _test_loader(run, test_set)
    recorder = run.recorder = recorder_like(run.evaluator)
    if recorder is None:
        last = _evaluate_as_exported(run, run.eval_model, _shown(loader), run.evaluator)
    else:
        last = _evaluate_as_exported(run, run.eval_model, recorder.follow(_shown(loader)), recorder)
    best = _measure_best(run, loader)
    run.bad_images.update(loader.bad_images)
    return last, best


def _test_loader(run: Run, test_set: LongTailDataset):
    """Return the loader that shows each test image once, on the device of the run."""
    return create_eval_loader(
        test_set, run.options, run.data.preprocessing, run.accelerator.device, tta=run.options.tta)


def _shown(loader) -> Iterable:
    """Return a bar over the batches of the test set."""
    return progress(loader, 'test set', unit='batch')


def _evaluate_as_exported(run: Run, model: nn.Module, batches: Iterable, evaluator) -> dict[str, Any]:
    """Evaluate a model as it would be exported, on this process alone."""
    device = run.accelerator.device
    deployed = deploy(model).to(device, memory_format=memory_format(device))

    # all figures, from one pass; an epoch does without those that take every score
    evaluator.keeps_scores = True
    try:
        metrics = evaluate(deployed, batches, evaluator, run.train_batches, reduce=False)
        if not isinstance(evaluator, LongTailEvaluator):
            return metrics
        metrics = evaluator.full_figures()
        evaluator.drop_scores()
        return metrics
    finally:
        evaluator.keeps_scores = False


def _measure_best(run: Run, loader) -> dict[str, Any]:
    """Return the figures of the best epoch.

    They are measured here where a hold-out chose it, else those of its evaluation.
    """
    epoch = run.best['epoch']
    if run.options.val_fraction == 0:
        figures = {name.removeprefix('eval_'): v for name, v in run.best.items() if name.startswith('eval_')}
        return {'epoch': epoch, 'selected_by': 'test', **figures}

    state = read_checkpoint(run.output_dir / BEST)
    assert state['epoch'] - 1 == epoch, 'model_best.pth.tar is of another epoch'
    model = copy.deepcopy(run.eval_model)
    load_trained_state_dict(model, state.get('state_dict_ema', state['state_dict']))

    metrics = _evaluate_as_exported(run, model, _shown(loader), run.evaluator)
    figures = {name: value for name, value in metrics.items() if not isinstance(value, list)}
    return {'epoch': epoch, 'selected_by': 'hold-out', **figures}


# ------------------------------------------------------------------------------- the row of results

def _protocol_columns(run: Run, train_set: LongTailDataset) -> dict[str, Any]:
    """Return what was run: data, options, command and machine."""
    options, accelerator = run.options, run.accelerator
    columns = {
        **data_columns(train_set),
        'original_order': train_set.original_order,
        'model': options.model,
        'model_kwargs': options.model_kwargs,
        'method': options.method,
        'method_kwargs': options.method_kwargs,
        'tune': options.tune,
        'head': options.head,
        'init_classifier': options.init_classifier,
        'tta': options.tta,
        'sampler': options.sampler,
        'epoch_length': options.epoch_length,
        'experiment': experiment_of(options),
        'img_size': run.data.preprocessing.img_size,
        'pretrained': options.pretrained,
        'initial_checkpoint': options.initial_checkpoint,
        'seed': options.seed,
        'val_fraction': options.val_fraction,
        'epochs': options.epochs,
        'global_batch_size': run.images_per_step,
        'mixed_precision': accelerator.mixed_precision,
        'num_processes': accelerator.num_processes,
        'command': command_line(accelerator.num_processes),
        'environment': environment(accelerator.device),
    }

    # of a packed file the name of the set that it holds, which `data_columns` gives
    is_packed = options.dataset.startswith('packed:')
    if not is_packed:
        columns['dataset'] = options.dataset
    return columns


def _cost_columns(run: Run) -> dict[str, Any]:
    """Return what the run cost: images, forward passes, seconds and memory."""
    method, num_epochs = run.method, len(run.history)
    images_per_epoch = run.images_per_step * run.steps_per_epoch * len(run.loaders)

    # an epoch may leave a later phase out
    num_phases = 0
    for row in run.history:
        num_phases += 1 + sum(f'train_{phase}_loss' in row for phase in method.phases[1:])

    forwards_per_image = method.forwards_per_image
    if forwards_per_image is None:
        forwards_per_image = len(method.views)

    return {
        'epochs_trained': num_epochs,  # fewer than `epochs` where --patience has stopped the run
        'images_seen': images_per_epoch * num_epochs,
        'forward_passes': int(images_per_epoch * forwards_per_image * num_phases),
        'seconds': run.stopwatch.seconds,
        'train_seconds_per_epoch': sum(row['train_seconds'] for row in run.history) / num_epochs,
        **peak_memory(run.accelerator.device),
    }


def _train_terms(run: Run) -> dict[str, float]:
    """Return the losses of the last epoch by name."""
    last = run.history[-1]
    return {name.removeprefix('train_'): value for name, value in last.items() if name.startswith('train_')}


def note_changed_file(row: dict[str, Any], train_set: LongTailDataset, test_set: LongTailDataset) -> bool:
    """Return whether the files of the data are as they were at the start; else say so.

    The hash in a row is that of the files at the start: of a set that changed no row of results may
    be written.

    Args:
        row: Row of results; gets `changed_file`.
        train_set: Training images.
        test_set: Test images.
    """
    changed = first_changed_file(train_set, test_set)
    if changed is None:
        return True

    row['changed_file'] = changed
    print(f'warning: {changed} changed while the run read it: the subset hash need not be that of the images that were '
          'used, and no row of results is written', flush=True)
    return False


# --------------------------------------------------------------------------------- files and tables

def _write_export(folder: Path, run: Run, train_set: LongTailDataset, row: dict[str, Any]):
    """Write the model with the provenance of a row of results, and with its figures.

    Before training there are no figures.
    """
    options, preprocessing, model = run.options, run.data.preprocessing, run.eval_model
    provenance = published_columns(row, _EXPORTED_COLUMNS)
    if 'last' in row:
        provenance['metrics'] = row['last']

    # outputs that are no classes (none, rotations) have no names
    class_names = None
    if tells_classes(options.method, model.num_classes):
        class_names = list(train_set.class_names)

    with writing(folder):
        export_model(
            model,
            folder,
            provenance=provenance,
            mean=preprocessing.mean,
            std=preprocessing.std,
            crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation,
            license=license_of(
                run.protocol.arch, options.pretrained, options.initial_checkpoint, options.license),
            input_size=(3, preprocessing.img_size, preprocessing.img_size),
            class_names=class_names,
        )


def write_summary(run: Run):
    """Write `summary.csv`, one row an epoch, from the run's history.

    Rows past a resumed checkpoint vanish.

    Args:
        run: Run in its output folder.

    Raises:
        UserError: The disk refuses.
    """
    # an epoch without an evaluation has fewer figures
    names = list(dict.fromkeys(name for row in run.history for name in row))
    with create_text(run.output_dir / 'summary.csv') as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        writer.writerows(run.history)


def _print_table(run: Run, row: dict[str, Any]):
    """Print the figures of the last and the best epoch, where all results are, and what to do next."""
    last, best = row['last'], row['best']
    best_label = f'best epoch ({best["epoch"] + 1}, by {best["selected_by"]})'
    table = format_table({'last epoch': last, best_label: best})
    print(f'\ntest set, weights as exported{counted_words(run)}:\n{table}', flush=True)
    if 'intervals' in last:
        print(f'last epoch, {interval_words(last["intervals"])}', flush=True)

    print(f'\nall results are in {run.output_dir}, and the model for timm in its folder export', flush=True)
    if 'class_correct' in last:
        command = validate_command(
            run.output_dir / 'export', run.options.dataset, dataset_options(run.options), run.options.tta)
        print('to evaluate that model again:')
        print(f'    {command}')
        print('to classify other images, a folder or single files:')
        print(f'    {start_of("predict")} {run.output_dir} PATH', flush=True)
    elif run.eval_model.num_classes == 0:
        print('to train a linear classifier on its features:')
        print(f'    {start_of("retrain")} {run.output_dir} --classifier linear', flush=True)


def _write_class_table(run: Run, row: dict[str, Any], train_set: LongTailDataset, test_set: LongTailDataset):
    """Write `per_class.csv`, of a model that tells classes."""
    if 'class_correct' in row['last']:
        columns = train_set.class_names, train_set.class_counts, train_set.shot_counts
        write_per_class(run.output_dir / 'per_class.csv', *columns, row['last'])


def _write_predictions(run: Run, row: dict[str, Any], train_set: LongTailDataset, test_set: LongTailDataset):
    """Write `predictions.csv`: what the report page shows of single images."""
    if run.recorder is not None:
        write_predictions(run.output_dir / PREDICTIONS, test_set, run.recorder)


def _write_bad_images(run: Run, row: dict[str, Any], train_set: LongTailDataset, test_set: LongTailDataset):
    """List what could not be read in `bad_images.csv`, and count it."""
    left_out = [*train_set.bad_images, *test_set.bad_images]
    bad = {**dict.fromkeys(left_out, 'left out'), **run.bad_images}
    if not bad:
        return

    path = run.output_dir / 'bad_images.csv'
    with create_text(path) as f:
        writer = csv.writer(f)
        writer.writerow(['image', 'reason'])
        writer.writerows(sorted(bad.items()))
    print(f'\n{len(bad)} images could not be read and were skipped; they are listed in {path}', flush=True)
