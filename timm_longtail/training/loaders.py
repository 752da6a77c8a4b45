"""The loaders of a run: one a data stream of the method, and those that show each image once."""
import os
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..data import EpochSampler, LongTailDataset, Preprocessing, create_loader, create_sampler
from ..methods import Batch, Method
from ..utils.errors import UserError
from ..utils.progress import progress
from .accelerator import usable_cores
from .options import Options

__all__ = ['RunData', 'TrainBatches', 'check_ensemble', 'create_eval_loader', 'create_run_data']

# of one process, where --workers does not say
_MAX_WORKERS = 8


class TrainBatches:
    """`batches` of `Method.start_epoch`: training images in the `eval` view.

    Called, it iterates over all of them once.

    Args:
        dataset: Training images.
        loader: Loader that shows each of them once.
    """

    def __init__(self, dataset: LongTailDataset, loader):
        self._dataset = dataset
        self.loader = loader

    @property
    def digests(self):
        """sha256 of each training image's uint8 HWC pixels, by index."""
        return self._dataset.digests

    def __call__(self) -> Iterator[Batch]:
        return iter(progress(self.loader, 'training images', unit='batch'))


@dataclass
class RunData:
    """The images of a run, as it sees them.

    Attributes:
        loaders: One a data stream.
        eval_loader: Images that each epoch is evaluated on, sharded over the processes.
        train_batches: Training images as the hooks of the method get them; None where it has no
            such hooks.
        preprocessing: How an image is prepared, in training, evaluation and export.
    """
    loaders: list
    eval_loader: Any
    train_batches: TrainBatches | None
    preprocessing: Preprocessing

    def all_loaders(self) -> list:
        """Return every loader that reads images."""
        loaders = [*self.loaders, self.eval_loader]
        if self.train_batches is not None:
            loaders.append(self.train_batches.loader)
        return loaders


def create_run_data(
        options: Options,
        accelerator: Accelerator,
        method: Method,
        train_set: LongTailDataset,
        eval_set: LongTailDataset,
        preprocessing: Preprocessing,
        batch_size: int,
) -> RunData:
    """Create the loaders of a run, each a shard of this process.

    Args:
        options: Resolved options.
        accelerator: Accelerator of this process.
        method: Method, which has views and, where it wants to, samplers of its own.
        train_set: Training images.
        eval_set: Images that each epoch is evaluated on.
        preprocessing: Input of the model.
        batch_size: Images of a micro-batch of one process.

    Raises:
        UserError: A sampler or an epoch length that the method leaves no room for; too few images
            for a batch.
    """
    shard = {'rank': accelerator.process_index, 'world_size': accelerator.num_processes}

    loaders = []
    for stream, sampler in enumerate(_choose_samplers(options, method, train_set.targets)):
        loaders.append(create_loader(
            train_set,
            method.views,
            sampler,
            batch_size=batch_size,
            seed=options.seed,
            stream=stream,
            **shard,
            **_common_options(options, preprocessing, accelerator.device),
        ))

    return RunData(
        loaders=loaders,
        eval_loader=create_eval_loader(
            eval_set, options, preprocessing, accelerator.device, tta=options.tta, **shard),
        train_batches=TrainBatches(
            train_set, create_eval_loader(train_set, options, preprocessing, accelerator.device)),
        preprocessing=preprocessing,
    )


def check_ensemble(dataset: LongTailDataset, tta: str | None):
    """Raise a `UserError` for an ensemble of views of images in memory, which are looked at whole.

    Args:
        dataset: Images.
        tta: Ensemble of views, see `Preprocessing.test_views`; None is one view.
    """
    if tta is not None and dataset.resident:
        raise UserError(
            f'--tta {tta} is for image files, and {dataset.name} is decoded in memory: '
            'add --loader worker, which takes a set that has files')


def create_eval_loader(
        dataset: LongTailDataset,
        options: Namespace,
        preprocessing: Preprocessing,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
        tta: str | None = None,
):
    """Return the loader that shows each image once, in the `eval` view or in those of an ensemble.

    Args:
        dataset: Images.
        options: Options `validation_batch_size`, `workers` and `skip_bad_images`.
        preprocessing: Input of the model.
        device: Device of the batches.
        rank: Number of the shard.
        world_size: Number of shards.
        tta: Ensemble of views, see `Preprocessing.test_views`; None is one view.

    Raises:
        UserError: An ensemble of views of images in memory.
    """
    check_ensemble(dataset, tta)
    return create_loader(
        dataset,
        preprocessing.test_views(tta),
        batch_size=options.validation_batch_size,
        training=False,
        rank=rank,
        world_size=world_size,
        **_common_options(options, preprocessing, device),
    )


def _common_options(options: Namespace, preprocessing: Preprocessing, device: torch.device) -> dict[str, Any]:
    """Return the arguments of `create_loader` that all loaders of a run have in common."""
    num_workers = options.workers
    if num_workers is None:
        share = usable_cores() // int(os.environ.get('LOCAL_WORLD_SIZE', 1))
        num_workers = min(share, _MAX_WORKERS)

    return {
        'device': device,
        'img_size': preprocessing.img_size,
        'mean': preprocessing.mean,
        'std': preprocessing.std,
        'num_workers': num_workers,
        'skip_bad_images': options.skip_bad_images,
    }


def _choose_samplers(options: Options, method: Method, targets: np.ndarray) -> list[EpochSampler]:
    """Return the sampler of each data stream: the method's own, else `--sampler`."""
    samplers = method.samplers(targets)

    is_asked_for = options.sampler != method.sampler or options.epoch_length != 'natural'
    if is_asked_for and None not in samplers:
        raise UserError(f'--sampler and --epoch-length: method {options.method} samples all its streams itself')
    if options.epoch_length != 'natural' and len(samplers) > 1:
        raise UserError(
            f'--epoch-length: method {options.method} has {len(samplers)} streams: an epoch ends with the shorter')

    chosen = []
    for sampler in samplers:
        if sampler is None:
            sampler = create_sampler(options.sampler, targets, options.epochs, options.epoch_length)
        chosen.append(sampler)
    return chosen
