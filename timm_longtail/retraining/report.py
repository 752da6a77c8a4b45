"""What re-training leaves: tables, exports, figures, and the row of results."""
from pathlib import Path
from typing import Any

import torch

from ..data import create_sampler
from ..evaluation.plots.figures import (
    plot_class_accuracy,
    plot_confusion,
    plot_sampler_probabilities,
    plot_tau_curve,
    plot_weight_norms,
    require_matplotlib,
)
from ..evaluation.tables import GROUPS, format_table, write_per_class
from ..export.folder import export_model
from ..export.licenses import license_of
from ..training import provenance
from ..training.rows import data_tag, require_new_row
from ..utils.errors import UserError
from ..utils.files import writing
from ..utils.private_paths import without_folders
from .classifiers import Classifier
from .representation import Representation

__all__ = ['JOINT', 'draw_figures', 'export_classifier', 'final_lines', 'results_path', 'results_row', 'start_lines']

_SCALED = 'crt', 'lws', 'max_norm', 'linear', 'tau_norm'
_UNSHOWN = 'max_norm', 'linear', 'ncm_cosine', 'ncm_centred'  # of many curves, those next to another

JOINT = 'joint'
"""The classifier of stage 1, by the name that the literature gives to one trained with its representation."""


def start_lines(representation: Representation, refused: dict[str, str]) -> list[str]:
    """Return what is said before anything is made.

    Args:
        representation: Model and data.
        refused: Classifiers that cannot be made, and why.
    """
    args, train_set, candidate = representation.args, representation.train_set, representation.candidate
    held = representation.held_out
    by = f'trained by {candidate.trained["method"]}' if candidate.trained.get('method') else 'weights of its own'
    by += ' on these images' if representation.seen else ' on other images'
    lines = [
        f'model: {candidate.name} from {args.source}, {by}',
        f'data: {train_set.name}, {len(train_set)} images, {train_set.num_classes} classes of '
        f'{max(train_set.class_counts)} to {min(train_set.class_counts)}; subset {train_set.hash}',
        f'hold-out: {"none" if held is None else f"{len(held)} images, which no stage trains on"}',
        f'training on: {"features, computed once" if args.features == "cached" else f"images, view {args.view}"}',
    ]
    if train_set.note:
        lines.insert(2, f'note: {train_set.note}')
    return lines + [f'left out: {name}: {reason}' for name, reason in refused.items()]


def results_path(representation: Representation) -> Path | None:
    """Return the file of the row of results, or None where none was asked for.

    Raises:
        UserError: It is there already, or could not be written.
    """
    args, trained = representation.args, representation.candidate.trained
    if not args.results:
        return None
    tag = data_tag(representation.train_set)
    names = [tag, representation.candidate.name, trained.get('method'), args.experiment]
    path = Path(args.results) / 'retrained' / f'{".".join(filter(None, names))}.s{args.seed}.json'
    require_new_row(path)
    return path


def export_classifier(
        folder: Path,
        classifier: Classifier,
        representation: Representation,
        metrics: dict[str, Any],
) -> str:
    """Write the model with a classifier made anew, `FOLDER/export`, and its accuracy by class.

    Args:
        folder: Folder of this classifier.
        classifier: It.
        representation: Model and data.
        metrics: Its figures.

    Returns:
        Why the model cannot be exported, or ''.
    """
    train_set, preprocessing = representation.train_set, representation.candidate.preprocessing
    with writing(folder):
        folder.mkdir(exist_ok=True)
    columns = train_set.class_names, train_set.class_counts, train_set.shot_counts
    try:
        model = classifier.deployed(representation)
    except ValueError as e:
        write_per_class(folder / 'per_class.csv', *columns, metrics)
        return f'not exported: {e}'

    size = preprocessing.img_size
    with writing(folder / 'export'):
        export_model(
            model, folder / 'export', provenance={**_provenance(classifier, representation), 'metrics': metrics},
            mean=preprocessing.mean, std=preprocessing.std, input_size=(3, size, size),
            class_names=list(train_set.class_names), crop_pct=preprocessing.crop_pct,
            interpolation=preprocessing.interpolation, license=_license(representation))
    write_per_class(folder / 'per_class.csv', *columns, metrics)
    return ''


def _license(representation: Representation) -> str | None:
    args, candidate = representation.args, representation.candidate
    if candidate.trained:  # what an export says of its own
        return args.license or (candidate.model.pretrained_cfg or {}).get('license') or ''
    return license_of(candidate.name, not args.initial_checkpoint, args.initial_checkpoint, args.license)


def _provenance(classifier: Classifier, representation: Representation) -> dict[str, Any]:
    return {
        **_data(representation), 'method': classifier.name, 'method_kwargs': classifier.options,
        'note': classifier.note, 'stage_1': _stage_1(representation),
        'command': without_folders(provenance.command_line(1)),
        'device_type': representation.accelerator.device.type,
    }


def _data(representation: Representation) -> dict[str, Any]:
    args, train_set = representation.args, representation.train_set
    return {
        'tag': data_tag(train_set), 'dataset': train_set.name, 'dataset_name': train_set.name,
        'hub_id': train_set.hub_id, 'imbalance_factor': train_set.imbalance_factor,
        'imbalance_profile': train_set.profile, 'subset_hash': train_set.hash, 'subset_order': train_set.subset_order,
        'class_counts': list(train_set.class_counts), 'shot_counts': list(train_set.shot_counts),
        'resident': train_set.resident, 'seed': args.seed, 'data_seed': train_set.seed,
        'val_fraction': representation.val_fraction,
    }


def _stage_1(representation: Representation) -> dict[str, Any]:
    """Return what is known of the model whose classifier was made anew; no paths of this machine."""
    args, trained = representation.args, representation.candidate.trained
    known = ('method', 'method_kwargs', 'sampler', 'epochs', 'seed', 'tree_hash', 'command')
    path = Path(args.source.removeprefix('local-dir:'))
    source = args.source
    if path.exists():  # of a folder of this machine its name; an export is called as its run
        source = path.parent.name if path.name == 'export' else path.name
    return {'source': source, **{name: trained[name] for name in known if trained.get(name) is not None}}


def results_row(representation: Representation, code: dict[str, Any], classifiers: dict[str, Any]) -> dict[str, Any]:
    """Return the content of `metrics.json`: data, stage 1, code, machine, and the figures of each classifier.

    Args:
        representation: Model and data.
        code: From `results.code_state`, taken when the work began.
        classifiers: Figures and options by name.
    """
    args = representation.args
    return {
        'model': representation.candidate.name, **_data(representation), 'stage_1': _stage_1(representation),
        'experiment': args.experiment, 'features': args.features, 'train': args.train, 'bn': args.bn,
        'command': provenance.command_line(1), 'environment': provenance.environment(representation.accelerator.device),
        **code, **provenance.peak_memory(representation.accelerator.device), 'classifiers': classifiers,
    }


def draw_figures(
        folder: Path,
        made: list[Classifier],
        figures: dict[str, dict],
        confusions: dict[str, torch.Tensor],
        representation: Representation,
):
    """Draw weight norms, sampling, accuracy by class, the tau curve, and the confusion before and after.

    Args:
        folder: Folder for the PNG files.
        made: Classifiers that were made.
        figures: Figures by name, those of stage 1 among them where it had the same classes.
        confusions: Confusion [C,C] by name.
        representation: Model and data.
    """
    try:
        require_matplotlib()
    except UserError as e:
        print(e)
        return
    counts = representation.train_set.shot_counts
    before = {JOINT: representation.head} if JOINT in figures else {}
    scaled = {c.name: c.module for c in made if c.name in _SCALED}  # weights of others are not comparable, or the same
    if before or scaled:
        plot_weight_norms(
            folder / 'weight_norms.png', {name: head.weight for name, head in {**before, **scaled}.items()}, counts)
    shown = {name: row['class_accuracy'] for name, row in figures.items() if name not in _UNSHOWN or len(figures) < 7}
    plot_class_accuracy(folder / 'class_accuracy.png', shown, counts)
    compared = dict.fromkeys([*before, made[0].name])
    plot_confusion(folder / 'confusion.png', {name: confusions[name] for name in compared}, counts)
    samplers = _sampling(made, representation)
    if samplers:
        plot_sampler_probabilities(folder / 'sampling.png', samplers, counts)
    for classifier in made:
        if classifier.curve:
            plot_tau_curve(
                folder / 'tau_curve.png', list(classifier.curve), list(classifier.curve.values()),
                classifier.options['tau'], title=f'Accuracy on the {classifier.curve_on}')


def _sampling(made: list[Classifier], representation: Representation) -> dict[str, Any]:
    """Return the class probabilities of the samplers of both stages."""
    trained, targets = representation.candidate.trained, representation.train_set.targets
    stages = {}
    if representation.seen:
        stages['stage 1', trained.get('sampler') or 'instance', trained.get('epochs') or 1] = None
    for classifier in made:
        if 'sampler' in classifier.options:
            stages[classifier.name, classifier.options['sampler'], classifier.options['epochs']] = None
    shown = {}
    for stage, name, epochs in stages:
        sampler, by_epoch = create_sampler(name, targets, epochs), {}
        for epoch in sorted({0, epochs // 2, epochs - 1}):
            sampler.set_epoch(epoch)
            by_epoch[epoch + 1] = sampler.class_probabilities
        shown[f'{stage}: {name}'] = by_epoch if name == 'progressive' else by_epoch[1]
    return shown


def final_lines(made: list[Classifier], figures: dict[str, dict], representation: Representation) -> list[str]:
    """Return the table, before and after, and what is to be known about its rows."""
    columns = 'all', *GROUPS, 'balanced'
    lines = ['', 'test set:', format_table(figures, columns)]
    for classifier in made:
        if classifier.curve and classifier.curve_on == 'test set':  # nothing was chosen: the reader sees all of it
            rows = {f'tau {tau:g}': row for tau, row in classifier.curve.items()}
            lines += ['', 'tau-normalisation, on the test set:', format_table(rows, ('balanced', *GROUPS))]
    lines += [f'{classifier.name}: {classifier.note}' for classifier in made if classifier.note]
    bad = representation.bad_images
    return lines + [f'{len(bad)} images could not be read and were skipped: {", ".join(sorted(bad)[:3])}'] * bool(bad)
