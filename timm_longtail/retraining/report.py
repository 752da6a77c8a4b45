"""What a retraining leaves: what is printed, the exports, and the row of results."""
from pathlib import Path
from typing import Any

from torch import nn

from ..evaluation.predictions import Recorder, write_predictions
from ..evaluation.tables import GROUPS, format_table, interval_words, write_per_class
from ..export.folder import export_model
from ..export.licenses import license_of
from ..training import provenance
from ..training.rows import data_columns, data_tag, row_path
from ..training.start import data_summary, list_some
from ..utils.files import writing
from .classifier import Classifier
from .representation import Representation

__all__ = [
    'export_classifier',
    'final_lines',
    'results_path',
    'results_row',
    'start_lines',
    'write_test_predictions',
]

# what an export and a row state of stage 1, where it is known
_STAGE_1 = ('method', 'method_kwargs', 'sampler', 'epochs', 'seed', 'tree_hash', 'command')


def start_lines(representation: Representation, refused: dict[str, str]) -> list[str]:
    """Return what is printed before anything is made.

    Args:
        representation: Model and data.
        refused: Classifiers that cannot be made, and why.
    """
    args, train_set = representation.args, representation.train_set
    trained_model, held_out = representation.trained_model, representation.held_out

    origin = 'weights of its own'
    if trained_model.provenance.get('method'):
        origin = f'trained by {trained_model.provenance["method"]}'
    images = 'on these images' if representation.seen else 'on other images'
    lines = [f'model: {trained_model.name} from {args.source}, {origin} {images}']

    lines.append(f'data: {data_summary(train_set)}; subset {train_set.hash}')
    if train_set.note:
        lines.append(f'note: {train_set.note}')

    hold_out = 'none' if held_out is None else f'{len(held_out)} images, which no stage trains on'
    lines.append(f'hold-out: {hold_out}')

    trained_on = f'images, view {args.view}'
    if args.features == 'cached':
        trained_on = 'features, computed once'
    lines.append(f'training on: {trained_on}')

    lines += [f'left out: {name}: {reason}' for name, reason in refused.items()]
    return lines


def final_lines(
        made: list[Classifier],
        figures: dict[str, dict[str, Any]],
        representation: Representation,
) -> list[str]:
    """Return the table, before and after, and what a reader should know about its rows.

    Args:
        made: Classifiers that were made.
        figures: Figures by name, those of stage 1 among them where it had the same classes.
        representation: Model and data.
    """
    lines = ['', 'test set:', format_table(figures, ('all', *GROUPS, 'balanced'))]
    lines += [f'{name}: {interval_words(row["intervals"])}' for name, row in figures.items()]

    # where nothing was chosen along a curve, the reader sees all of it
    for classifier in made:
        if classifier.curve and classifier.curve_on == 'test set':
            rows = {f'tau {tau:g}': row for tau, row in classifier.curve.items()}
            table = format_table(rows, ('balanced', *GROUPS))
            lines += ['', 'tau-normalisation, on the test set:', table]

    for classifier in made:
        if classifier.note:
            lines.append(f'{classifier.name}: {classifier.note}')

    bad_images = representation.bad_images
    if bad_images:
        shown = list_some(sorted(bad_images))
        lines.append(f'{len(bad_images)} images could not be read and were skipped: {shown}')
    return lines


def export_classifier(
        folder: Path,
        classifier: Classifier,
        representation: Representation,
        metrics: dict[str, Any],
) -> str:
    """Write the model with a retrained classifier, `FOLDER/export`, and its accuracy by class.

    Args:
        folder: Folder of this classifier.
        classifier: Retrained classifier.
        representation: Model and data.
        metrics: Figures of the classifier on the test set.

    Returns:
        Why the model cannot be exported, or ''.
    """
    with writing(folder):
        folder.mkdir(exist_ok=True)

    reason = ''
    try:
        model = classifier.deployed(representation)
    except ValueError as e:
        reason = f'not exported: {e}'
    else:
        preprocessing = representation.trained_model.preprocessing
        export_model(
            model,
            folder / 'export',
            provenance={**_export_provenance(classifier, representation), 'metrics': metrics},
            mean=preprocessing.mean,
            std=preprocessing.std,
            input_size=(3, preprocessing.img_size, preprocessing.img_size),
            class_names=list(representation.train_set.class_names),
            crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation,
            license=_license(representation),
        )

    train_set = representation.train_set
    columns = train_set.class_names, train_set.class_counts, train_set.shot_counts
    write_per_class(folder / 'per_class.csv', *columns, metrics)
    return reason


def write_test_predictions(path: Path, classifier: nn.Module, representation: Representation):
    """Write what a classifier predicts for each test image that can be read, for the report page.

    Args:
        path: CSV file; its folder is made where it is missing.
        classifier: Module from features [B, D] to class logits [B, C].
        representation: Model and data.

    Raises:
        UserError: The disk refuses the file.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)

    features = representation.test
    recorder = Recorder(features.shot_counts)
    recorder.start(classifier, lambda: iter(()))
    features.show(classifier, recorder)
    recorder.index = features.index.tolist()
    write_predictions(path, representation.test_set, recorder)


def _license(representation: Representation) -> str | None:
    args, trained_model = representation.args, representation.trained_model

    # an export states its own
    if trained_model.provenance:
        stated = (trained_model.model.pretrained_cfg or {}).get('license')
        return args.license or stated or ''

    is_pretrained = not args.initial_checkpoint
    return license_of(trained_model.name, is_pretrained, args.initial_checkpoint, args.license)


def _export_provenance(classifier: Classifier, representation: Representation) -> dict[str, Any]:
    return {
        **_data_columns(representation),
        'method': classifier.name,
        'method_kwargs': classifier.options,
        'note': classifier.note,
        'stage_1': _stage_1_columns(representation),
        'command': provenance.command_line(1),
        'device_type': representation.accelerator.device.type,
    }


def results_path(representation: Representation) -> Path | None:
    """Return the file of the row of results, or None where none was asked for.

    Args:
        representation: Model and data, with the options `results`, `experiment` and `seed`.

    Raises:
        UserError: It is there already, or could not be written.
    """
    args, trained_model = representation.args, representation.trained_model
    if not args.results:
        return None

    names = (
        data_tag(representation.train_set),
        trained_model.name,
        trained_model.provenance.get('method'),
        args.experiment,
    )
    return row_path(Path(args.results) / 'retrained', names, f's{args.seed}')


def results_row(
        representation: Representation,
        code: dict[str, Any],
        classifiers: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of `metrics.json`: data, stage 1, code, machine, and all figures.

    Args:
        representation: Model and data.
        code: From `provenance.code_state`, taken when the work began.
        classifiers: Figures and options by name.
    """
    args, device = representation.args, representation.accelerator.device
    return {
        'model': representation.trained_model.name,
        **_data_columns(representation),
        'stage_1': _stage_1_columns(representation),
        'experiment': args.experiment,
        'features': args.features,
        'tune': args.tune,
        'bn': args.bn,
        'command': provenance.command_line(1),
        'environment': provenance.environment(device),
        **code,
        **provenance.peak_memory(device),
        'classifiers': classifiers,
    }


def _data_columns(representation: Representation) -> dict[str, Any]:
    """Return what an export and a row state of the data."""
    return {
        **data_columns(representation.train_set),
        'seed': representation.args.seed,
        'val_fraction': representation.val_fraction,
    }


def _stage_1_columns(representation: Representation) -> dict[str, Any]:
    """Return what is known of the model of stage 1, without paths of this machine."""
    source = representation.args.source

    # a folder of this machine is called by its name; an export is called as its run
    path = Path(source.removeprefix('local-dir:'))
    if path.exists():
        source = path.parent.name if path.name == 'export' else path.name

    columns = {'source': source}
    known = representation.trained_model.provenance
    for name in _STAGE_1:
        if known.get(name) is not None:
            columns[name] = known[name]
    return columns
