"""`timm-longtail predict`: what a model says of images without labels."""
import argparse
import logging
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from ..config.parser import BATCH_SIZE, IMG_SIZE, TTA_HELP, WORKERS, Parser
from ..data.image_paths import find_images
from ..data.images import FileImages
from ..evaluation.predict import Predictor, class_names_of
from ..evaluation.prediction_formats import FORMATS, UNCERTAIN, create_writer
from ..evaluation.priors import log_ratio
from ..retraining.model_prior import describe_prior, learned_prior, read_prior
from ..retraining.trained_model import TrainedModel, load_model
from ..training.accelerator import memory_format, single_device, usable_cores
from ..training.build import check_input
from ..training.start import list_some
from ..utils.errors import UserError
from ..utils.files import create_text
from ..utils.progress import progress
from ..utils.ranges import Number
from .entry import log_to_stderr

__all__ = ['create_parser', 'main']

# formats, by the ends of file names that mean them
_FORMATS = {'.csv': 'csv', '.jsonl': 'jsonl', '.ndjson': 'jsonl', '.txt': 'table'}

_LOADER_LOG = logging.getLogger('timm_longtail.data.loaders.workers')

# a few images are decoded before a process has started
_FEW = 32
_MOST_WORKERS = 8


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(description='Say which class images are of, by a trained model: one row an image.')
    parser.add_argument(
        'model', metavar='MODEL',
        help='folder of an export or of a run, checkpoint, hf-hub:USER/NAME, or a timm model with its pretrained '
             'weights')
    parser.add_argument(
        'paths', nargs='+', metavar='PATH',
        help='images; folders, with all that lie below them; text files that list a path a line; - lists on stdin')

    # what is asked
    parser.add_argument(
        '-k', '--top-k', type=Number(int, '[1, inf)'), default=1, help='classes to name for an image')
    parser.add_argument(
        '--threshold', type=Number(float, '[0, 1]'), default=0.0, metavar='P',
        help=f'answer {UNCERTAIN} where the most probable class is below this probability')
    parser.add_argument(
        '--prior', metavar='PRIOR',
        help='class distribution of these images: train, balanced, or a file with a class and a weight a line (CSV, '
             'or JSON); default: that which the model was trained to answer for')
    parser.add_argument(
        '--model-prior', metavar='PRIOR',
        help='the distribution that the model\'s outputs follow, where it does not say: train, balanced or a file')

    # how
    parser.add_argument('--img-size', type=IMG_SIZE, help='side of the model\'s input; default: that of the model')
    parser.add_argument('-b', '--batch-size', type=BATCH_SIZE, default=64, help='images at once')
    parser.add_argument(
        '-j', '--workers', type=WORKERS, help='decoding processes; default: the cores, at most 8, none for few images')

    parser.add_argument('--tta', choices=('five_crop',), help=TTA_HELP)

    # what is written
    parser.add_argument('-o', '--output', help='file to write; without it stdout')
    parser.add_argument(
        '--format', choices=FORMATS,
        help='default: by the name of the file; a table on a terminal, else CSV')
    return parser


def _log_shift(
        args: argparse.Namespace,
        trained_model: TrainedModel,
        class_names: Sequence[str],
) -> torch.Tensor | None:
    """Return what the prior that is asked for adds to the logits, float64 [C], and say which prior the model has."""
    if args.model_prior is None:
        learned = learned_prior(trained_model)
    else:
        learned = read_prior(args.model_prior, '--model-prior', trained_model, class_names)

    has = 'not known' if learned is None else describe_prior(learned)
    if args.prior is None:
        _say(f'prior: the model answers for the class distribution that it learned: {has}')
        return None

    if learned is None:
        raise UserError(
            f'--prior {args.prior}: which class distribution the outputs of {trained_model.name} follow is not known; '
            'name it by --model-prior: train, balanced or a file')
    asked = read_prior(args.prior, '--prior', trained_model, class_names)
    _say(f'prior: the model has learned {has}; answers are corrected to {describe_prior(asked)}')
    return log_ratio(asked, learned)


def _say(line: str):
    """Print a line for the reader: stdout may be read by a program."""
    print(line, file=sys.stderr, flush=True)


def _predictor(
        args: argparse.Namespace,
        trained_model: TrainedModel,
        class_names: list[str],
        num_images: int,
) -> Predictor:
    """Return what goes through the images, the model on its device."""
    log_shift = _log_shift(args, trained_model, class_names)

    preprocessing = trained_model.preprocessing
    if args.img_size is not None:
        preprocessing = replace(preprocessing, img_size=args.img_size)
        check_input(trained_model.model, args.img_size)

    in_memory = trained_model.provenance.get('resident') is True
    if in_memory and args.tta is not None:
        raise UserError(
            f'--tta {args.tta}: {args.model} was trained on images in memory, which are looked at whole; '
            'it is for a model that was trained with --loader worker')

    num_workers = args.workers
    if num_workers is None:
        num_workers = 0 if num_images <= _FEW else min(usable_cores(), _MOST_WORKERS)

    device = single_device()
    return Predictor(
        trained_model.model.float().eval().to(device, memory_format=memory_format(device)),
        preprocessing,
        class_names,
        args.top_k,
        log_shift,
        args.batch_size,
        num_workers,
        in_memory=in_memory,
        tta=args.tta,
    )


def _format(args: argparse.Namespace) -> str:
    """Return the format that is asked for, or that suits where the rows go."""
    if args.format:
        return args.format
    if args.output:
        return _FORMATS.get(Path(args.output).suffix, 'csv')
    return 'table' if sys.stdout.isatty() else 'csv'


@contextmanager
def _output(path: str | None) -> Iterator[TextIO]:
    """Open the file that is asked for, or stdout, whose rows leave at once."""
    if path is not None:
        with create_text(Path(path)) as file:
            yield file
        return

    yield sys.stdout
    sys.stdout.flush()


@contextmanager
def _without_warnings(logger: logging.Logger) -> Iterator[None]:
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _summary(num_images: int, seconds: float, bad: list[str], num_uncertain: int, args: argparse.Namespace) -> str:
    rate = 60 * num_images / max(seconds, 1e-3)
    words = f'{num_images} images in {seconds:.1f} s, {rate:.0f} a minute'
    if args.threshold:
        words += f'; {num_uncertain} below {args.threshold:g}'
    if bad:
        words += f'; {len(bad)} could not be read: {list_some(bad)}'
    return words


def main(argv: list[str] | None = None):
    """Predict the class of images.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: No model, no image, a prior that cannot be used, a file that cannot be written.
    """
    args = create_parser().parse_args(argv)
    log_to_stderr()
    found = find_images(args.paths)
    if args.output and not Path(args.output).parent.is_dir():
        raise UserError(f'cannot write {args.output}: no folder {Path(args.output).parent}')

    trained_model = load_model(args.model)
    if not trained_model.has_classes:
        raise UserError(f'{args.model} was trained without classes, and has none to predict')
    class_names = _class_names(trained_model)
    args.top_k = min(args.top_k, len(class_names))
    predictor = _predictor(args, trained_model, class_names, len(found.images))
    if found.num_others:
        files = 'file that is no image' if found.num_others == 1 else 'files that are no images'
        _say(f'left out: {found.num_others} {files} by name')

    predictions = predictor(FileImages('', found.images))
    is_on_screen = args.output is None and sys.stdout.isatty()
    if not is_on_screen:  # where rows are seen, they are the progress
        predictions = progress(predictions, 'predict', len(found.images))

    started = time.perf_counter()
    bad, num_uncertain = [], 0
    with _output(args.output) as file, _without_warnings(_LOADER_LOG):  # what it cannot read is said here, once
        width = shutil.get_terminal_size().columns
        writer = create_writer(_format(args), file, args.top_k, args.threshold, found.images, class_names, width)
        for prediction in predictions:
            writer.write(prediction)
            if not prediction.error:
                num_uncertain += prediction.probability < args.threshold
                continue
            bad.append(prediction.image)
            if not is_on_screen:
                tqdm.write(prediction.error, file=sys.stderr)

    _say(_summary(len(found.images), time.perf_counter() - started, bad, num_uncertain, args))
    if len(bad) == len(found.images):
        raise UserError(f'none of the {len(bad)} images could be read')


def _class_names(trained_model: TrainedModel) -> list[str]:
    """Return the names of a model's classes: those that it states, else timm's, else numbers."""
    stated = trained_model.provenance.get('class_names')
    if stated and len(stated) == trained_model.model.num_classes:
        return list(stated)
    return class_names_of(trained_model.model)
