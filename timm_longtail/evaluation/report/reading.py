"""Reads the folders of runs for a report page: of `train`, `retrain` and `compare`."""
import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from ...data.longtail import natural_imbalance
from ...utils.errors import UserError
from ...utils.files import read_json, read_text, read_yaml, reading
from ...utils.private_paths import cut_folders, without_folders
from .run_report import Predictions, RunReport

__all__ = ['PREDICTIONS', 'UNCALIBRATED', 'read_reports']

PREDICTIONS = 'predictions.csv'
UNCALIBRATED = 'predictions_uncalibrated.csv'

# options of a run that do not change what it measures, so that runs may differ in them and still be
# seeds of one setting
_NOT_OF_THE_SETTING = (
    'seed', 'output', 'experiment', 'resume', 'results', 'tracker', 'project', 'log_interval', 'save_steps', 'workers',
    'data_dir', 'dist_timeout', 'no_recipe', 'recipe', 'config', 'license', 'validation_batch_size', 'seeds',
)

# of a row of results, where there are no options
_ROW_SETTING = (
    'model', 'model_kwargs', 'method', 'method_kwargs', 'sampler', 'tag', 'subset_hash', 'epochs', 'img_size',
    'pretrained', 'val_fraction', 'global_batch_size', 'experiment', 'tune', 'head', 'init_classifier', 'tta',
    'features', 'bn',
)

# how a data set is read again, by what rows and options call it
_DATA = (
    'dataset', 'data_dir', 'imbalance_factor', 'imbalance_profile', 'subset_order', 'data_seed', 'train_split',
    'test_split', 'input_key', 'target_key', 'loader', 'skip_bad_images',
)

# classifiers whose weights have lengths that can be compared over classes
_NORMS_OF_RETRAINED = ('crt', 'lws', 'max_norm', 'linear', 'tau_norm')


def read_reports(folder: str | Path) -> list[RunReport]:
    """Read the models of a folder: one of a training, several of `retrain` and `compare`.

    A folder without files of its own, such as that of several seeds, stands for the runs in it.

    Args:
        folder: Output folder of a command.

    Raises:
        UserError: There is no finished run, or a file of it is damaged.
    """
    folder = Path(folder)
    if (folder / 'compare.json').is_file():
        return _read_compared(folder)

    if (folder / 'metrics.json').is_file():
        row = read_json(folder / 'metrics.json', 'metrics.json of a run')
        if 'classifiers' in row:
            return _read_retrained(folder, row)
        return [_read_trained(folder, row)]

    if not folder.is_dir():
        raise UserError(f'{folder}: no such folder')
    if (folder / 'args.yaml').is_file():
        raise UserError(f'{folder} is a run that has not finished: it has no metrics.json')

    inside = [path.parent for name in ('metrics.json', 'compare.json') for path in folder.glob(f'*/{name}')]
    if not inside:
        raise UserError(f'{folder} is no output folder of train, retrain or compare: it has no metrics.json')
    return [report for path in sorted(inside) for report in read_reports(path)]


# ------------------------------------------------------------------------------------------- train

def _read_trained(folder: Path, row: dict[str, Any]) -> RunReport:
    with reading(folder / 'metrics.json', 'metrics.json of a training'):
        last, best = row['last'], row['best']
        facts = _facts(row)
        facts.update(_training_facts(row, best))

    options = {}
    if (folder / 'args.yaml').is_file():
        options = read_yaml(folder / 'args.yaml', 'file of options')
    setting = {name: value for name, value in options.items() if name not in _NOT_OF_THE_SETTING}
    if not setting:
        setting = {name: row.get(name) for name in _ROW_SETTING}
    setting['subset_hash'] = row.get('subset_hash')

    names = None
    if (folder / 'class_counts.json').is_file():
        names = read_json(folder / 'class_counts.json').get('class_names')

    return _report(
        folder,
        folder.resolve().name,
        row,
        last,
        names,
        facts=facts,
        setting=setting,
        data={**_part(row, _DATA), **_part(options, _DATA)},
        history=_read_history(folder / 'summary.csv'),
        weight_norms=_read_norms(folder / 'export', needs_bias=True),
        saves_predictions=_validate_command(folder.resolve().name, row.get('tta')),
    )


def _training_facts(row: dict[str, Any], best: dict[str, Any]) -> dict[str, str]:
    """Return what is told of a training alone."""
    facts = {'Method': _with_options(row.get('method'), row.get('method_kwargs'))}
    if row.get('sampler'):
        facts['Sampler'] = row['sampler']

    trained = [
        row.get('tune'),
        row.get('head') and f'head {row["head"]}',
        row.get('init_classifier') and f'classifier started at {row["init_classifier"]}',
    ]
    if any(trained):
        facts['What is trained'] = ', '.join(filter(None, trained))

    length = f'{row["epochs"]} epochs'
    if row.get('epochs_trained', row['epochs']) < row['epochs']:
        length = f'{row["epochs_trained"]} of {length}, stopped by the hold-out'
    facts['Length'] = f'{length}, batches of {row["global_batch_size"]} images'
    facts['Start'] = _start(row)
    if row.get('seconds'):
        facts['Time'] = _duration(row['seconds'])

    chosen = f'epoch {best["epoch"] + 1}, chosen on the {best["selected_by"]}'
    if best.get('selected_by') == 'test':
        chosen += ' set, so its figure is optimistic'
    if best.get('all') is not None:
        chosen += f': All {best["all"]:.2f} %'
    facts['Best epoch'] = chosen
    return facts


def _start(row: dict[str, Any]) -> str:
    """Return which weights a training began with."""
    if row.get('initial_checkpoint'):
        return str(row['initial_checkpoint'])
    if not row.get('pretrained'):
        return 'from scratch'

    # an export is named by its place: `local-dir:FOLDER`, `hf-hub:USER/NAME`
    model = str(row.get('model'))
    return f'weights of {model}' if ':' in model else 'pretrained weights of timm'


def _read_history(path: Path) -> list[dict[str, float]]:
    """Return the figures of each epoch of `summary.csv`; [] without the file."""
    if not path.is_file():
        return []

    history = []
    with reading(path, 'summary.csv of a run'):
        for line in _read_table(path):
            history.append({name: float(value) for name, value in line.items() if value not in ('', None)})
    return history


# -------------------------------------------------------------------------------- retrain, compare

def _read_retrained(folder: Path, row: dict[str, Any]) -> list[RunReport]:
    """Return a report for each classifier, that of stage 1 first."""
    stage_1 = row.get('stage_1') or {}
    reports = []
    for name, figures in row['classifiers'].items():
        facts = _facts(row)
        facts['Representation'] = _stage_1(stage_1)
        facts['Classifier'] = _with_options(name, figures.get('options'))
        if figures.get('note'):
            facts['Note'] = figures['note']

        place = folder / name
        norms = _read_norms(place / 'export') if name in _NORMS_OF_RETRAINED else None
        setting = {column: row.get(column) for column in _ROW_SETTING if column != 'experiment'}
        setting.update(classifier=name, options=figures.get('options'), stage_1=stage_1.get('method'))
        reports.append(_report(
            place,
            name,
            row,
            figures,
            _names_by_class_table(folder),
            facts=facts,
            setting=setting,
            data=_part(row, _DATA),
            weight_norms=norms,
            saves_predictions=_validate_command(f'{folder.name}/{name}'),
        ))
    return reports


_WITHOUT_TEST = 'The test images had no part in the choice, so another classifier may be ahead on them by chance.'


def _read_compared(folder: Path) -> list[RunReport]:
    """Return a report for each classifier that was compared, the one chosen first."""
    content = read_json(folder / 'compare.json', 'compare.json')
    about: dict[str, Any] = {}
    names = None
    if (folder / 'export' / 'config.json').is_file():
        config = read_json(folder / 'export' / 'config.json')
        about, names = config.get('timm_longtail') or {}, config.get('label_names')

    reports = []
    with reading(folder / 'compare.json', 'compare.json'):
        for row in sorted(content['rows'], key=lambda row: row['name'] != content['chosen']):
            is_chosen = row['name'] == content['chosen']
            facts = _facts({**about, 'model': row['model']})
            facts['Classifier'] = row['title'] + _with_options('', row['options'])
            facts['Chosen by'] = f'balanced accuracy {row["cv"]:.1f} ± {row["cv_se"]:.1f} on {_how(row)}'
            if is_chosen and row.get('temperature', 1) != 1:
                facts['Temperature'] = f'{row["temperature"]:.3g}, which the logits are divided by'

            reports.append(_report(
                folder if is_chosen else folder / row['name'],
                f'{row["name"]} (chosen)' if is_chosen else row['name'],
                about,
                row['test_figures'],
                names,
                facts=facts,
                setting={'folder': str(folder), 'name': row['name']},
                data=_part(about, _DATA),
                weight_norms=None,
                no_norms='compare makes classifiers of several kinds, whose lengths do not mean the same',
                note=f'{content["recommendation"]} {_WITHOUT_TEST}' if is_chosen else '',
                saves_predictions=_validate_command(folder.resolve().name) if is_chosen else '',
            ))
    return reports


def _how(row: dict[str, Any]) -> str:
    how = f'{row["num_folds"]} folds'
    if row['num_repeats'] > 1:
        how += f', {row["num_repeats"]} times'
    if row.get('measured_on') == 'hold-out':
        how = 'the hold-out'

    num_classes = len(row['test_figures']['class_total'])
    chosen_on = row.get('cv_classes', num_classes)
    return how if chosen_on == num_classes else f'{how}, {chosen_on} of the {num_classes} classes'


def _stage_1(stage_1: dict[str, Any]) -> str:
    words = str(stage_1.get('source', 'not known'))
    if stage_1.get('method'):
        words += f', trained by {stage_1["method"]}'
    return words


def _names_by_class_table(folder: Path) -> list[str] | None:
    """Return the class names in a `per_class.csv` of a classifier."""
    path = next(iter(sorted(folder.glob('*/per_class.csv'))), None)
    if path is None:
        return None
    with reading(path, 'table of classes'):
        return [row['name'] for row in _read_table(path)]


# ------------------------------------------------------------------------------------------ shared

def _report(
        folder: Path,
        name: str,
        row: dict[str, Any],
        figures: dict[str, Any],
        names: list[str] | None,
        *,
        setting: dict[str, Any],
        facts: dict[str, str],
        note: str = '',
        **fields: Any,
) -> RunReport:
    """Build a report of the columns that all kinds of runs share. Nothing in it names a folder of this machine.

    Args:
        folder: Where the files of the model lie.
        name: What the model is called.
        row: Columns on the data, command and machine.
        figures: From an evaluator.
        names: Name of each class [C]; None where they are not known.
        setting: What seeds of one setting have in common.
        facts: What was trained on what, as title and text.
        note: A sentence that stands above the table.
        **fields: Further fields of `RunReport`.
    """
    total = list(figures.get('class_total') or [])
    num_classes = len(total)
    if names is None or len(names) != num_classes:
        names = [f'class {label}' for label in range(num_classes)]

    # groups are those of the training images; without them, all classes are alike
    counts = list(row.get('class_counts') or [0] * num_classes)
    shots = list(row.get('shot_counts') or counts)
    if num_classes and not len(counts) == len(shots) == num_classes:
        raise UserError(f'{folder}: figures of {num_classes} classes and counts of {len(counts)} do not fit')

    return RunReport(
        name=cut_folders(name),
        facts={title: cut_folders(text) for title, text in facts.items()},
        note=cut_folders(note),
        setting=json.dumps(setting, sort_keys=True, default=str),
        seed=row.get('seed'),
        command=without_folders(row.get('command') or ''),
        figures={key: value for key, value in figures.items() if isinstance(value, (int, float)) or value is None},
        class_names=[str(name) for name in names],
        class_counts=counts if num_classes else [],
        shot_counts=shots if num_classes else [],
        class_correct=list(figures.get('class_correct') or []),
        class_total=total,
        predictions=_read_predictions(folder, num_classes) if num_classes else None,
        **fields,
    )


def _facts(row: Mapping[str, Any]) -> dict[str, str]:
    """Return what is told of any run: model, data, versions."""
    facts = {'Model': str(row.get('model') or 'not known')}

    counts = row.get('class_counts') or []
    if counts:
        sizes = f'{max(counts):,} to {min(counts):,} each'
        facts['Training images'] = f'{sum(counts):,} in {len(counts):,} classes, {sizes}'
    if row.get('dataset'):
        facts['Data set'] = str(row.get('dataset_name') or row['dataset'])
    factor = row.get('imbalance_factor', 1)
    natural = natural_imbalance(factor, counts)
    if natural or factor != 1:
        facts['Imbalance factor'] = natural or f'{factor:g}'
    if row.get('subset_hash'):
        facts['Fingerprint of the images'] = row['subset_hash']
    if row.get('val_fraction'):
        facts['Held out'] = f'{100 * row["val_fraction"]:g} % of each class'
    if row.get('tta'):
        facts['Views of a test image'] = f'{row["tta"]}: figures are those of the mean of their logits'

    environment = row.get('environment') or {}
    versions = [f'{name} {environment[name]}' for name in ('timm_longtail', 'timm', 'torch', 'python') if
                name in environment]
    if versions:
        facts['Versions'] = ', '.join(versions)
    if environment.get('device'):
        facts['Device'] = str(environment['device'])
    if row.get('tree_hash'):
        changed = ', with changes that were not committed' if row.get('dirty') else ''
        facts['Code'] = row['tree_hash'][:12] + changed
    return facts


def _validate_command(folder: str, tta: str | None = None) -> str:
    ensemble = f' --tta {tta}' if tta else ''
    return f'timm-longtail validate --model local-dir:{folder}/export{ensemble} --predictions {folder}/{PREDICTIONS}'


def _with_options(name: str | None, options: Mapping[str, Any] | None) -> str:
    words = ', '.join(f'{option} {value}' for option, value in (options or {}).items())
    if not words:
        return str(name or '')
    return f'{name or ""} ({words})'


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} seconds'
    if seconds < 7200:
        return f'{seconds / 60:.0f} minutes'
    return f'{seconds / 3600:.1f} hours'


def _part(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: values[name] for name in names if values.get(name) is not None}


def _read_predictions(folder: Path, num_classes: int) -> Predictions | None:
    """Return the predictions of a folder, with those before calibration; None without."""
    path = folder / PREDICTIONS
    if not path.is_file():
        return None
    predictions = _read_prediction_table(path, num_classes)

    before = folder / UNCALIBRATED
    if before.is_file():
        uncalibrated = _read_prediction_table(before, num_classes)
        if uncalibrated.images == predictions.images:
            predictions.uncalibrated = uncalibrated.confidence
    return predictions


def _read_prediction_table(path: Path, num_classes: int) -> Predictions:
    with reading(path, 'table of predictions'):
        rows = _read_table(path)
        predictions = Predictions(
            images=[row['image'] for row in rows],
            target=np.array([row['target'] for row in rows], np.int64),
            predicted=np.array([row['predicted'] for row in rows], np.int64),
            confidence=np.array([row['confidence'] for row in rows], np.float64),
        )

    for labels in (predictions.target, predictions.predicted):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise UserError(f'{path} has classes outside 0..{num_classes - 1}: it is of another model')
    return predictions


def _read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; a cell may hold line breaks."""
    return list(csv.DictReader(io.StringIO(read_text(path), newline='')))


def _read_norms(export: Path, needs_bias: bool = False) -> list[float] | None:
    """Return the length of the classifier's weight of each class, from the weights of an export.

    None where the weights are not one matrix.

    Args:
        export: Folder of the export.
        needs_bias: None of a classifier without a bias, too: a cosine one, which ignores lengths.
    """
    if not (export / 'config.json').is_file() or not (export / 'model.safetensors').is_file():
        return None

    config = read_json(export / 'config.json')
    classifier = (config.get('pretrained_cfg') or {}).get('classifier')
    if not isinstance(classifier, str):
        return None

    path = export / 'model.safetensors'
    with reading(path, 'safetensors file'), safe_open(path, 'pt') as weights:
        names = set(weights.keys())
        if f'{classifier}.weight' not in names or (needs_bias and f'{classifier}.bias' not in names):
            return None
        weight = weights.get_tensor(f'{classifier}.weight').flatten(1)
    return weight.float().norm(dim=1).tolist()
