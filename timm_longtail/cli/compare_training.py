"""Methods that `compare` trains beside the classifiers, each for as many images."""
import argparse
import inspect
import shlex
from pathlib import Path

from ..config.data_options import data_words
from ..methods import method_class
from ..retraining.representation import Representation
from ..retraining.trained_model import named_data
from ..utils.errors import UserError
from . import train

__all__ = ['require_trainable', 'train_methods']

# images of a batch of `train`, where no other number is given
_DEFAULT_BATCH_SIZE = 128


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


def train_methods(args: argparse.Namespace, start: Representation, folder: Path) -> list[Path]:
    """Train the model by each method, from its weights and without the hold-out.

    Args:
        args: Options of `compare`.
        start: Model to start from, and its data.
        folder: Folder of the runs.

    Returns:
        Output folder of each run.
    """
    # what all have in common; typed options come last, and win
    data = data_words(*named_data(args, start.trained_model))
    typed = shlex.split(args.train_args)
    common = [
        '--model', start.trained_model.name,
        *_weights(args),
        *data,
        '--val-fraction', str(args.val_fraction),
        *_input(args),
        *_batch_size(len(start.train_set), typed),
        '--seed', str(args.seed),
        '--no-recipe',
        '--output', str(folder),
    ]

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


def _batch_size(num_images: int, typed: list[str]) -> list[str]:
    """Return the options that make a small set one batch, of which an epoch needs one."""
    is_given = any(word.startswith('--global-batch-size') for word in typed)
    if num_images >= _DEFAULT_BATCH_SIZE or is_given:
        return []
    return ['--batch-size', str(num_images)]


def _epochs(method: str, epochs: int) -> int:
    """Return the epochs in which a method has seen as many images as one with a single data stream.

    Args:
        method: Name of the method; its `forward` names a batch of each stream.
        epochs: Epochs of a method with one stream.
    """
    streams = set(inspect.signature(method_class(method).forward).parameters) - {'self', 'phase'}
    return max(1, round(epochs / len(streams)))
