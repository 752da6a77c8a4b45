"""Methods that `compare` trains beside the classifiers, each for as many images."""
import argparse
import inspect
import shlex
from pathlib import Path

from ..config.data_options import data_words
from ..methods import method_class
from ..retraining.trained_model import TrainedModel, named_data
from ..utils.errors import UserError
from . import train

__all__ = ['require_trainable', 'train_methods']


def require_trainable(args: argparse.Namespace, folder: Path):
    """Raise a `UserError` where methods cannot be trained from the model or by the options, or would write over a run.

    Args:
        args: Options of `compare`.
        folder: Folder of the runs.
    """
    source = args.sources[0]
    if source.startswith('hf-hub:'):
        raise UserError(f'--train: {source} is on the Hub; download it, and name its folder')
    try:
        shlex.split(args.train_args)
    except ValueError as e:
        raise UserError(f'--train-args {args.train_args}: {e}') from e
    for method in args.train:
        method_class(method)
        if (folder / method).exists():
            raise UserError(f'--train {method}: {folder / method} is there already; name another --output')


def train_methods(args: argparse.Namespace, trained_model: TrainedModel, folder: Path) -> list[Path]:
    """Train the model by each method, from its weights and without the hold-out.

    Args:
        args: Options of `compare`.
        trained_model: Model to start from.
        folder: Folder of the runs.

    Returns:
        Output folder of each run.
    """
    # what all have in common; typed options come last, and win
    data = data_words(*named_data(args, trained_model))
    common = [
        '--model', trained_model.name,
        *_weights(args),
        *data,
        '--val-fraction', str(args.val_fraction),
        *_input(args),
        '--seed', str(args.seed),
        '--no-recipe',
        '--output', str(folder),
    ]
    typed = shlex.split(args.train_args)

    for method in args.train:
        print(f'\n{method}', flush=True)
        epochs = _epochs(method, args.train_epochs)
        train.main([*common, '--method', method, '--epochs', str(epochs), '--experiment', method, *typed])
    return [folder / method for method in args.train]


def _weights(args: argparse.Namespace) -> list[str]:
    """Return the options of `train` that name the weights of the model."""
    source = args.sources[0].removeprefix('local-dir:')
    if args.initial_checkpoint:
        return ['--initial-checkpoint', args.initial_checkpoint]
    if Path(source).exists():
        return ['--initial-checkpoint', source]
    return ['--pretrained']


def _input(args: argparse.Namespace) -> list[str]:
    words = []
    if args.img_size is not None:
        words += ['--img-size', str(args.img_size)]
    if args.workers is not None:
        words += ['--workers', str(args.workers)]
    return words


def _epochs(method: str, epochs: int) -> int:
    """Return the epochs in which a method has seen as many images as one with a single data stream.

    Args:
        method: Name of the method; its `forward` names a batch of each stream.
        epochs: Epochs of a method with one stream.
    """
    streams = set(inspect.signature(method_class(method).forward).parameters) - {'self', 'phase'}
    return max(1, round(epochs / len(streams)))
