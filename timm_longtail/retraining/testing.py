"""The test set of a model that was trained before, and the figures of the model on it."""
import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data import LongTailDataset, create_dataset, create_loader, create_splits
from ..evaluation.predictions import NeighborRecorder, Recorder
from ..training.accelerator import memory_format, single_device
from ..training.loaders import check_ensemble
from ..training.loop import evaluate
from ..utils.errors import UserError
from ..utils.progress import progress
from .trained_model import TrainedModel, trained_data

__all__ = ['EvaluationData', 'load_evaluation_data', 'measure']


@dataclass
class EvaluationData:
    """What a model is evaluated on.

    Attributes:
        test_set: The test split.
        shot_counts: Images of each class that define the groups [C]: of the training set, or of that of the data set.
        train_set: Images that vote, for a model without classes; None for others.
    """
    test_set: LongTailDataset
    shot_counts: list[int]
    train_set: LongTailDataset | None = None


def load_evaluation_data(args: argparse.Namespace, trained_model: TrainedModel) -> EvaluationData:
    """Read the test split of the data that is named, or else of that which a model was trained on.

    Args:
        args: Options of `add_data_options`, with None for a data set that was not named.
        trained_model: The model.

    Raises:
        UserError: No data set is named, or one of other classes.
    """
    name, options = trained_data(args, trained_model)
    if not trained_model.has_classes:
        return _neighbor_data(name, options, trained_model)

    trained = trained_model.provenance
    if name == 'folder':
        options.update(_folder_options(trained_model, options))

    counts = trained.get('shot_counts')
    if counts:
        # not the training subset: a test split is whole, whatever the factor and the seed
        test_set = create_dataset(name, 'test', **options)
    else:
        train_set, test_set = create_splits(name, **options)
        counts = train_set.shot_counts

    # the classes of the data must be those of the model
    if not trained_model.model.num_classes == test_set.num_classes == len(counts):
        raise UserError(f'{name} has {test_set.num_classes} classes, the model {trained_model.model.num_classes}')
    for theirs, ours in zip(trained.get('class_names') or (), test_set.class_names):
        if theirs != ours:
            raise UserError(f'{name} has other classes than the model: {ours!r} where it has {theirs!r}')
    return EvaluationData(test_set, counts)


def _neighbor_data(name: str, options: dict[str, Any], trained_model: TrainedModel) -> EvaluationData:
    """Return the data for a model without classes: training images vote, without what the run held out."""
    train_set, test_set = create_splits(name, **options)

    trained = trained_model.provenance
    rest = train_set
    fraction = trained.get('val_fraction') or 0.0
    if fraction:
        rest, _ = train_set.hold_out(fraction, trained.get('data_seed') or 0)

    # of data that it was not trained on, all training images vote
    was_trained_on = rest.hash == trained.get('subset_hash')
    return EvaluationData(test_set, train_set.shot_counts, rest if was_trained_on else train_set)


def _folder_options(trained_model: TrainedModel, options: dict[str, Any]) -> dict[str, Any]:
    """Return how a folder is read for a model: its classes by name, all images where it was trained on others."""
    names = trained_model.provenance.get('class_names')
    return {
        'class_names': tuple(names) if names else None,
        'whole': not _may_be_trained_on(trained_model.provenance, options),
    }


def _may_be_trained_on(trained: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether a model may have been trained on images of a folder: it has the name, or the class counts, of its data.

    Then only what a training run holds out of a folder without splits can be evaluated.

    Args:
        trained: What the model was trained on, see `TrainedModel`.
        options: Arguments of `create_dataset`.
    """
    if options['data_dir'] is None:
        return True

    place = trained.get('dataset_name') or trained.get('data_dir') or ''
    if place and Path(place).resolve().name == Path(options['data_dir']).resolve().name:
        return True

    splits = {key: options[key] for key in ('train_split', 'test_split')}
    try:
        # encoded: no image is looked at
        train_set = create_dataset(
            'folder',
            'train',
            options['data_dir'],
            loader='worker',
            imbalance_factor=trained.get('imbalance_factor'),
            profile=trained.get('imbalance_profile') or 'exp',
            **splits,
        )
    except UserError:  # it has no training split, or too few classes for one
        return False
    return train_set.shot_counts == trained.get('shot_counts')


def measure(
        args: argparse.Namespace,
        trained_model: TrainedModel,
        data: EvaluationData,
        confusion: bool = False,
) -> tuple[dict[str, Any], Recorder]:
    """Evaluate a model in fp32.

    Args:
        args: Options `img_size` and `crop_pct`, None for those of the model; `tta`, `batch_size`,
            `workers` and `skip_bad_images`.
        trained_model: The model; it is moved to the device.
        data: What it is evaluated on.
        confusion: Count which classes are predicted as which.

    Returns:
        The figures, and the recorder with every prediction.

    Raises:
        UserError: `tta` for images in memory, or for a model without classes.
    """
    # the input that the model wants, unless another was asked for
    preprocessing = trained_model.preprocessing
    if args.img_size is not None:
        preprocessing = replace(preprocessing, img_size=args.img_size)
    if args.crop_pct is not None:
        preprocessing = replace(preprocessing, crop_pct=args.crop_pct)

    device = single_device()
    options: dict[str, Any] = {
        'views': preprocessing.test_views(args.tta),
        'batch_size': args.batch_size,
        'training': False,
        'device': device,
        'img_size': preprocessing.img_size,
        'mean': preprocessing.mean,
        'std': preprocessing.std,
        'num_workers': args.workers,
        'skip_bad_images': args.skip_bad_images,
    }
    if args.tta is not None and data.train_set is not None:
        raise UserError(f'--tta averages logits, and {trained_model.name} has no classes')
    check_ensemble(data.test_set, args.tta)
    loader = create_loader(data.test_set, **options)

    if data.train_set is None:
        train_loader = None
        recorder = Recorder(data.shot_counts, confusion=confusion)
    else:
        train_loader = create_loader(data.train_set, **options)
        recorder = NeighborRecorder(data.shot_counts, confusion=confusion)

    recorder.keeps_scores = True
    model = trained_model.model.float().to(device, memory_format=memory_format(device))
    batches = progress(recorder.follow(loader), 'evaluation', len(loader), unit='batch')
    evaluate(model, batches, recorder, lambda: iter(progress(train_loader, 'training images', unit='batch')))
    metrics = recorder.full_figures()

    for name in [*data.test_set.bad_images, *loader.bad_images]:
        print(f'skipped, cannot be read: {name}')
    return metrics, recorder
