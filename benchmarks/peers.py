"""How the published code trains: Pillow images, torchvision transforms, a torch DataLoader, float32, no compiler.

Model, loss, batch and views are those of the run it is compared with. What would slow it down without need is left
out: no loss is read from the device in a step, images of a set in memory are decoded once, and the number of workers
is the best of those tried.
"""
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from timm_longtail.methods import create_method
from timm_longtail.training.run import Run
from timm_longtail.training.timing import Clock, Timing
from timm_longtail.training.weights import create_task_model
from timm_longtail.utils import rng
from timm_longtail.utils.calls import parse_call
from timm_longtail.utils.errors import UserError, unknown_name

Steps = tuple[list[Callable], list[Callable]]


class Cutout:
    """Set a square of a tensor [3,S,S] to zero; its centre is any pixel, so it may reach over the border."""

    def __init__(self, length: int):
        self.length = length

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        _, height, width = image.shape
        mask = np.ones((height, width), np.float32)
        y, x = int(torch.randint(height, ())), int(torch.randint(width, ()))
        half = self.length // 2
        mask[max(0, y - half):y + half, max(0, x - half):x + half] = 0
        return image * torch.from_numpy(mask)


def _crop_flip(size: int, resident: bool, padding: int | None = None) -> Steps:
    if resident:
        crop = [T.RandomCrop(size, size // 8 if padding is None else padding)]
    else:
        crop = [T.Resize(size * 8 // 7), T.RandomCrop(size)]
    return [*crop, T.RandomHorizontalFlip()], []


def _autoaugment(
        size: int,
        resident: bool,
        padding: int | None = None,
        cutout: int | None = None,
        fill: int = 128,
) -> Steps:
    pillow, _ = _crop_flip(size, resident, padding)
    policy = T.AutoAugment(T.AutoAugmentPolicy.CIFAR10, fill=[fill] * 3)
    return [*pillow, policy], [Cutout(size // 2 if cutout is None else cutout)]


def _sim(size: int, resident: bool, scale: float = 0.2) -> Steps:
    jitter = T.RandomApply([T.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    crop = T.RandomResizedCrop(size, scale=(scale, 1.))
    return [crop, T.RandomHorizontalFlip(), jitter, T.RandomGrayscale(0.2)], []


def _blur(size: int) -> Callable:
    taps = 2 * min(6, size - 1) + 1
    return T.RandomApply([T.GaussianBlur(taps, (0.1, 2.))], p=0.5)


def _sim_blur(size: int, resident: bool, scale: float = 0.2) -> Steps:
    return [*_sim(size, resident, scale)[0], _blur(size)], []


def _rrc(size: int, resident: bool, scale: float = 0.08, jitter: float = 0.) -> Steps:
    colour = [T.ColorJitter(jitter, jitter, jitter, 0.)] if jitter else []
    return [T.RandomResizedCrop(size, scale=(scale, 1.)), T.RandomHorizontalFlip(), *colour], []


def _glmc(size: int, resident: bool, scale: float = 0.08) -> Steps:
    return [*_rrc(size, resident, scale, 0.4)[0], T.RandomGrayscale(0.2), _blur(size)], []


def _rand(size: int, resident: bool, n: int = 2, m: int = 10, mstd: float = 0.5, jitter: float = 0.4) -> Steps:
    augment = rand_augment_transform(f'rand-n{n}-m{m}-mstd{mstd}', {'translate_const': int(size * 0.45)})
    return [*_rrc(size, resident, jitter=jitter)[0], augment], []


def _eval(size: int, resident: bool, crop_pct: float = 0.875) -> Steps:
    return [] if resident else [T.Resize(int(size / crop_pct)), T.CenterCrop(size)], []


def _flip(size: int, resident: bool, crop_pct: float = 0.875) -> Steps:
    return [*_eval(size, resident, crop_pct)[0], T.RandomHorizontalFlip()], []


_VIEWS = {
    'crop_flip': _crop_flip, 'autoaugment': _autoaugment, 'sim': _sim, 'sim_blur': _sim_blur, 'rrc': _rrc,
    'glmc': _glmc, 'rand': _rand, 'eval': _eval, 'flip': _flip,
}


def create_transform(view: str, side: int, img_size: int, mean, std, resident: bool = True) -> T.Compose:
    """Return the transform of a Pillow image that stands for one of our views.

    Args:
        view: Name, with arguments if need be: `sim(scale=0.08)`.
        side: Side of the view in pixels: that of images in memory, else of the model's input.
        img_size: Side of the model's input; what is of another size is resized to it at the end, as ours is.
        mean, std: Per-channel constants for pixels in [0, 1].
        resident: Whether images lie in memory, all of one size.

    Raises:
        UserError: A view that has no counterpart here.
    """
    name, arguments = parse_call('view', view)
    if name not in _VIEWS:
        raise unknown_name('view of the peers', name, _VIEWS)
    pillow, tensor = _VIEWS[name](side, resident, **arguments)
    resize = [] if side == img_size else [T.Resize([img_size, img_size])]
    return T.Compose([*pillow, T.ToTensor(), *tensor, *resize, T.Normalize(mean, std)])


class PeersDataset(Dataset):
    """Images as the published code keeps them: an array in memory, or files that are decoded at every visit.

    Args:
        dataset: What `create_dataset` returns.
        transforms: One a view.
    """

    def __init__(self, dataset, transforms: list[Callable]):
        self.dataset = dataset
        self.transforms = transforms
        self.pixels = dataset.images.permute(0, 2, 3, 1).contiguous().numpy() if dataset.resident else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: int) -> tuple[tuple[torch.Tensor, ...], int, int]:
        """Return the views [3,S,S], the class and the position."""
        image = self.dataset.decode(position) if self.pixels is None else Image.fromarray(self.pixels[position])
        return tuple(transform(image) for transform in self.transforms), int(self.dataset.targets[position]), position


@contextmanager
def as_torch_ships_it():
    """Precision of float32 as in a fresh torch (TF32 in convolutions), and cuDNN's search, which published code asks.
    """
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, 'none'
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=True):
            yield
    finally:
        matmul.fp32_precision = before


class Peers:
    """The reference pipeline: trains what a run trains, as published code does.

    Args:
        args: Options of `train.py`.
        run: The run to compare with; gives batch, device and preprocessing.
        dataset: The training set.

    Raises:
        UserError: A run of several processes, streams or phases, or with accumulation.
    """

    def __init__(self, args: Namespace, run: Run, dataset):
        if run.accelerator.num_processes > 1 or run.options.grad_accum_steps > 1:
            raise UserError('--compare takes one process and no --grad-accum-steps')
        if len(run.loaders) > 1 or len(run.method.phases) > 1:
            raise UserError(f'--compare: {args.method} has several streams or phases, and the reference pipeline one')

        self.device = run.accelerator.device
        self.batch_size = run.images_per_step

        # the images, each view by transforms of torchvision
        about = run.data.preprocessing
        side = dataset.input_size[-1] if dataset.resident else about.img_size
        self.dataset = PeersDataset(dataset, [
            create_transform(view, side, about.img_size, about.mean, about.std, dataset.resident)
            for view in run.method.views])

        # a model and an optimizer of its own, from the same options
        model = create_task_model(args, dataset.num_classes, about.img_size)
        method = create_method(args.method, model, dataset.class_counts, **args.method_kwargs)
        self.method = method.to(self.device).train()
        self.method.start_epoch(0, args.epochs, rng.generator(args.seed, 0, purpose='method'), run.train_batches)
        self.optimizer = torch.optim.SGD(
            self.method.parameters(), lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay)
        self.clip_grad = args.clip_grad

        self.workers = 0

    def choose_workers(self, steps: int, lead: int) -> dict[int, float]:
        """Take the number of workers that trains fastest; returns images a second by the numbers tried.

        Args:
            steps: Steps of a trial.
            lead: Steps before it.
        """
        rates = {}
        for self.workers in sorted({0, 1, 2, os.cpu_count() or 1}):
            rates[self.workers] = 1e3 * self.batch_size * steps / sum(self.time_steps(steps, lead).step_ms)
        self.workers = max(rates, key=rates.get)
        return rates

    def time_steps(self, steps: int, lead: int = 0, synchronous: bool = False) -> Timing:
        """Train for some steps and time them. The workers start before and stop after, so they disturb nobody else.

        Args:
            steps: Steps to time.
            lead: Steps before, beyond those that the workers prepare in advance.
            synchronous: See `Clock`.
        """
        clock = Clock(self.device, synchronous)
        lead += 2 * self.workers
        batches = self._batches()

        clock.start()
        with as_torch_ships_it():
            for _ in range(lead + steps):
                clock.begin()

                views, target, index = next(batches)
                views = tuple(view.to(self.device, non_blocking=True) for view in views)
                batch = views, target.to(self.device, non_blocking=True), index.to(self.device, non_blocking=True)
                clock.ready()

                self._train(batch)
            clock.stop()

        batches.close()
        return clock.timing(lead)

    def _batches(self) -> Iterator:
        """Yield batches without end."""
        loader = DataLoader(
            self.dataset, self.batch_size, shuffle=True, drop_last=True, num_workers=self.workers,
            persistent_workers=self.workers > 0, pin_memory=self.device.type == 'cuda')
        while True:
            yield from loader

    def _train(self, batch):
        loss = self.method(batch)['loss']
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_grad is not None:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.clip_grad)
        self.optimizer.step()
        with torch.no_grad():
            self.method.after_step('main')
