"""What to rent for a recipe: memory, network, loader and hours, computed without a GPU; Markdown tables.

    python -m benchmarks.scale                            # BCL on ImageNet-LT and iNaturalist 2018
    python -m benchmarks.scale --share 0.2 --link 25      # other assumptions
    python -m benchmarks.scale --model-ema --layouts 2x8  # other options of `train.py` are taken too
    python -m benchmarks.scale check                      # the model against what two CPU cores can measure

A run is built as `train.py` builds it. Its tensors are then replaced by fake ones, which have a shape and no values,
and one step is taken: memory, FLOPs and collectives are counted in it. Peaks are those of data sheets; the share of a
peak that is reached and the link between hosts are assumed; what a core decodes is measured. GB are 1e9 bytes.

It needs the fake tensors of torch 2.14; those of 2.9 will not do.
"""
import argparse
import gc
import itertools
import math
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import timm_longtail  # noqa: F401  registers the models
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import LongTailDataset
from timm_longtail.data.images import FileImages
from timm_longtail.data.sources.lists import _IMAGENET_LT, _INAT2018
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import build_run
from timm_longtail.training.flops import count_flops
from timm_longtail.training.optim import create_optimizers
from timm_longtail.training.options import resolve_options
from timm_longtail.training.run import Run

RECIPES = ['bcl_resnet50.imagenet_lt', 'bcl_resnet50.inat2018']
DATASETS = {'imagenet_lt': _IMAGENET_LT, 'inat2018': _INAT2018}

# width and height of the photographs that the loader is measured with: those of most images of the set, after the
# limit of 800 pixels that iNaturalist has
PHOTO_SIZES = {'imagenet_lt': (500, 375), 'inat2018': (800, 600)}

# the backward pass has twice the products of the forward pass
BACKWARD_SHARE = 2 / 3


class Gpu(NamedTuple):
    """A GPU by its data sheet.

    Attributes:
        peak: Dense FLOP/s by precision; `no` is TF32.
        bandwidth: Bytes/s of its memory.
        nvlink: Bytes/s between GPUs of a host, in one direction.
    """
    peak: dict[str, float]
    bandwidth: float
    nvlink: float


# NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM; NVIDIA H100 Tensor Core GPU data sheet, SXM, which prints FLOP/s
# with sparsity: half of them are dense
GPUS = {
    'A100': Gpu({'bf16': 312e12, 'no': 156e12}, bandwidth=2.039e12, nvlink=300e9),
    'H100': Gpu({'bf16': 989e12, 'no': 494e12}, bandwidth=3.35e12, nvlink=450e9),
}


class Layout(NamedTuple):
    """GPUs, one process each: `hosts` x `gpus` of a host."""
    hosts: int
    gpus: int

    @property
    def world_size(self) -> int:
        return self.hosts * self.gpus

    def __str__(self) -> str:
        return f'{self.hosts} x {self.gpus}'

    @staticmethod
    def parse(text: str) -> 'Layout':
        """Read '4x2'."""
        hosts, gpus = text.split('x')
        return Layout(int(hosts), int(gpus))


# ----------------------------------------------------------------------------------------- what is counted

class Meter(TorchDispatchMode):
    """Counts the bytes of all tensors that live, and the collectives that are called.

    Attributes:
        held: Bytes of the tensors that live now, of those that were made under the meter.
        peak: Largest `held` since the last `reset`.
        collectives: (kind, bytes of the whole tensor) of each call since the last `reset`.
    """

    # the whole tensor is what is gathered, scattered or reduced: a rank holds a part of it before or behind
    KINDS = {'all_gather': 'gather', 'allgather': 'gather', 'reduce_scatter': 'scatter',
             'all_reduce': 'reduce', 'allreduce': 'reduce', 'broadcast': 'broadcast'}

    def __init__(self):
        super().__init__()
        self.held = self.peak = 0
        self.collectives: list[tuple[str, int]] = []
        self._live: dict[int, weakref.ref] = {}

    def reset(self):
        self.peak = self.held
        self.collectives = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # a check of values, which is made on a CPU only: fake ones pass
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True

        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self.add(tensor)

        namespace, name = func.namespace, func._schema.name.split('::')[1].lstrip('_')
        kind = next((kind for start, kind in self.KINDS.items() if name.startswith(start)), None)
        if 'c10d' in namespace and kind is not None:
            sizes = [nbytes(tree_leaves(part)) for part in (args[0], result)]
            self.collectives.append((kind, max(sizes)))
        return result

    def add(self, tensor: object):
        """Count a tensor from now until nobody holds its memory; anything else is left out."""
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._live:
            return

        def forget(_):
            del self._live[key]
            self.held -= size
        self._live[key] = weakref.ref(storage, forget)
        self.held += size
        self.peak = max(self.peak, self.held)


def nbytes(tensors) -> int:
    """Return the bytes of some tensors; anything else has none."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


@dataclass
class Cost:
    """What one step takes on one process.

    Attributes:
        images, views: Images of the step, and what passes the network of them.
        decoded: Images that the loaders decode: as many for each stream.
        weights: Bytes of parameters and buffers of the method.
        buffers: Bytes of the buffers alone, which DDP sends before each forward.
        optimizer, ema: Bytes of their states.
        gradients: Bytes of the gradients of all phases.
        buckets: Bytes of DDP's copy of the gradients, 0 for one process.
        step: Largest bytes of what a step makes and leaves again: inputs, activations, gradients.
        loss: The same where the features are given: classifier, branches, gathered rows, similarities, and the
            gradients of these.
        flops: FLOPs of forward and backward.
        collectives: (kind, bytes of the whole tensor) of the method's own.
    """
    images: int
    views: int
    decoded: int
    weights: int
    buffers: int
    optimizer: int
    ema: int
    gradients: int
    buckets: int
    step: int
    loss: int
    flops: int
    collectives: list[tuple[str, int]]

    @property
    def memory(self) -> int:
        """Bytes at the peak of a step."""
        return self.weights + self.optimizer + self.ema + self.buckets + self.step


class Traffic(NamedTuple):
    """Bytes that one of W processes sends in a step, in rings."""
    gradients: float
    gathered: float
    buffers: float

    @property
    def total(self) -> float:
        return sum(self)


def traffic(cost: Cost, world_size: int) -> Traffic:
    """Return what a step sends: each collective in a ring, the main process's buffers passed on."""
    part = (world_size - 1) / world_size
    factors = {'gather': part, 'scatter': part, 'reduce': 2 * part, 'broadcast': part}
    return Traffic(
        gradients=factors['reduce'] * cost.gradients,
        gathered=sum(factors[kind] * size for kind, size in cost.collectives),
        buffers=factors['broadcast'] * cost.buffers if world_size > 1 else 0,
    )


# -------------------------------------------------------------------------------------- a step without values

def create_run(accelerator: Accelerator, recipe: str, folder: Path, world_size: int = 1, options=()) -> Run:
    """Build the run of a recipe, with one process's share of the batch, on one image a class.

    Args:
        accelerator: Accelerator of this process.
        recipe: Name of the recipe, `<model>.…<dataset>`.
        folder: Folder of `*.jpg`, which the images are.
        world_size: Processes that share the recipe's batch; those of `accelerator` share it by themselves.
        options: Further options of `train.py`.
    """
    model, dataset = recipe.split('.')[0], recipe.split('.')[-1]
    args = parse_train_args([
        '-c', recipe, '--model', model, '--dataset', dataset, '--data-dir', str(folder), '--workers', '0', *options])
    if args.global_batch_size is not None:
        args.global_batch_size //= world_size

    num_classes = DATASETS[dataset].num_classes
    files = sorted(path.name for path in folder.glob('*.jpg'))
    names = [files[number % len(files)] for number in range(num_classes)]
    targets = np.arange(num_classes)
    images = LongTailDataset(
        name=dataset, split='train', images=None, targets=targets, class_names=[str(c) for c in targets],
        mean=(0.5,) * 3, std=(0.25,) * 3, indices=targets, source_names=names, shot_counts=[1] * num_classes,
        encoded=FileImages(folder, names))

    run = build_run(resolve_options(args, accelerator), accelerator, images, images)
    run.start_epoch(args.epochs)
    return run


def write_grey(folder: Path) -> Path:
    """Write an image for runs that never look at it; return the folder."""
    Image.new('RGB', (8, 8)).save(folder / 'grey.jpg')
    return folder


def make_fake(module: nn.Module):
    """Replace the parameters and buffers of a module by fake ones; called under a FakeTensorMode."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


@contextmanager
def fake_processes(world_size: int) -> Iterator[None]:
    """Let collectives be called as one of some processes, of which there are no others."""
    if world_size == 1:
        yield
        return
    dist.init_process_group('fake', store=FakeStore(), rank=0, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def step_cost(run: Run, world_size: int, precision: str = 'bf16') -> Cost:
    """Take a step of a run without values, and count. The run is of no use afterwards.

    The kernels are those of the CPU: workspaces of cuDNN, what NCCL and CUDA hold, and fragmentation are not in it.

    Args:
        run: Run whose batch is that of one process; a step takes its micro-batches one after the other.
        world_size: Number of processes W.
        precision: `bf16` for autocast, or `no`.
    """
    method, ema = run.method, run.ema
    num_micro_batches = run.options.grad_accum_steps
    with FakeTensorMode(), fake_processes(world_size), Meter() as meter:
        make_fake(method)
        if ema is not None:
            make_fake(ema.module)
        optimizers, _ = create_optimizers(run.options, method, run.steps_per_epoch)
        method.train()

        def step(img_size: int) -> tuple[int, int]:
            """Return the bytes of the largest gradients of a phase, and of those that are reduced in all phases."""
            batches = make_batches(run, img_size)
            largest = total = 0
            for phase, optimizer in zip(method.phases, optimizers):
                for _ in range(num_micro_batches):
                    with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bf16'):
                        loss = method(*batches, phase=phase)['loss'] / num_micro_batches
                    loss.backward()

                gradients = nbytes(parameter.grad for parameter in method.parameters())
                largest, total = max(largest, gradients), total + gradients

                optimizer.step()
                method.zero_grad(set_to_none=True)
                with torch.no_grad():
                    method.after_step(phase)
            if ema is not None:
                ema.update(method.model, step=1)
            return largest, total

        # the optimizers make their states in the first step
        step(run.data.preprocessing.img_size)
        before = meter.held
        meter.reset()
        largest, gradients = step(run.data.preprocessing.img_size)
        peak, collectives = meter.peak - before, list(meter.collectives)

        # in a step of its own: the counter holds tensors for longer
        with count_flops() as counter:
            step(run.data.preprocessing.img_size)
        gc.collect()

        # the same on given features: the images are not looked at
        views = 0

        def features(x: torch.Tensor) -> torch.Tensor:
            nonlocal views
            views += len(x)
            dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
            return torch.empty(len(x), method.model.num_features, dtype=dtype, requires_grad=True)
        method.features = features
        meter.reset()
        step(2)
        loss_peak = meter.peak - before

    batch_size = run.images_per_step
    buffers = nbytes(method.buffers())
    return Cost(
        images=batch_size,
        views=views,
        decoded=batch_size * len(run.loaders),
        weights=nbytes(method.parameters()) + buffers,
        buffers=buffers,
        optimizer=sum(nbytes(tree_leaves(optimizer.state_dict()['state'])) for optimizer in optimizers),
        ema=0 if ema is None else nbytes(ema.module.state_dict().values()),
        gradients=gradients,
        buckets=largest if world_size > 1 else 0,
        step=peak,
        loss=loss_peak,
        flops=counter.get_total_flops(),
        collectives=collectives,
    )


def make_batches(run: Run, img_size: int) -> list:
    """Return a fake micro-batch of each stream, as the loaders give it."""
    batch_size = run.images_per_step // run.options.grad_accum_steps
    batches = []
    for _ in run.loaders:
        views = tuple(torch.empty(batch_size, 3, img_size, img_size) for _ in run.method.views)
        target, index = (torch.empty(batch_size, dtype=torch.int64) for _ in range(2))
        batches.append((views, target, index))
    return batches


# ----------------------------------------------------------------------------------- what a core can decode

def write_photos(folder: Path, size: tuple[int, int]) -> Path:
    """Write scikit-learn's two photographs as JPEG files of a size (width, height), quality 90; return the folder."""
    from sklearn.datasets import load_sample_images

    for number, pixels in enumerate(load_sample_images().images):
        image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
        image.save(folder / f'{number}.jpg', quality=90)
    return folder


def decoding_rate(run: Run, num_images: int) -> float:
    """Return images per second of CPU time: a worker decodes an image and places all its views.

    The changes of colour are not in it: they are the device's work.

    Args:
        run: Run on photographs; its loader has no workers of its own.
        num_images: Images to decode, about.
    """
    epochs = itertools.repeat(run.loaders[0]._loader)
    batches = itertools.chain.from_iterable(epochs)
    next(batches)

    done, start = 0, time.process_time()
    while done < num_images:
        views, *_ = next(batches)
        done += len(views[0])
    return done / (time.process_time() - start)


# ------------------------------------------------------------------------------------------------- the tables

class Pace(NamedTuple):
    """How fast a layout trains.

    Attributes:
        compute: Seconds of the arithmetic of a step.
        exposed: Seconds of a step in which the GPUs wait for the network.
        link: Bytes/s of a host's link at which the gradients arrive with the end of the backward pass.
        images_per_s: Images that all GPUs train on.
        hours: Hours of the whole recipe, without evaluation.
    """
    compute: float
    exposed: float
    link: float
    images_per_s: float
    hours: float


def reached(gpu: Gpu, precision: str, share: float) -> float:
    """Return the FLOP/s that are assumed: a share of the A100's peak, and of another GPU as its memory is faster.

    Residual networks wait for memory (BatchNorm, ReLU, additions) more than for products.
    """
    first = GPUS['A100']
    return share * first.peak[precision] * gpu.bandwidth / first.bandwidth


def pace(cost: Cost, layout: Layout, gpu: Gpu, flops: float, link: float, epochs: int, images: int) -> Pace:
    """Return how fast a layout trains: gradients travel during the backward pass, all else does not overlap.

    Args:
        cost: What a step takes.
        layout: Hosts and GPUs.
        gpu: Kind of GPU.
        flops: FLOP/s that one reaches.
        link: Bytes/s of a host's link in one direction.
        epochs: Epochs of the recipe.
        images: Images of an epoch.
    """
    # a ring passes each host's link once, whatever GPUs the host has
    bandwidth = gpu.nvlink if layout.hosts == 1 else link
    sent = traffic(cost, layout.world_size)

    compute = cost.flops / flops
    hidden = BACKWARD_SHARE * compute
    exposed = max(0, sent.gradients / bandwidth - hidden) + (sent.gathered + sent.buffers) / bandwidth

    global_batch_size = cost.images * layout.world_size
    step = compute + exposed
    return Pace(
        compute=compute,
        exposed=exposed,
        link=sent.gradients / hidden,
        images_per_s=global_batch_size / step,
        hours=epochs * (images // global_batch_size) * step / 3600,
    )


def print_table(titles: list[str], rows: list[list[str]]):
    """Print a Markdown table and an empty line."""
    print('| ' + ' | '.join(titles) + ' |')
    print('|' + ' --- |' * len(titles))
    for row in rows:
        print('| ' + ' | '.join(row) + ' |')
    print(flush=True)


class Estimate(NamedTuple):
    """A recipe on a layout.

    Attributes:
        recipe: Name of the recipe.
        layout: Hosts and GPUs.
        epochs: Epochs of the recipe.
        rate: Images/s that a core decodes.
        cost: What a step takes.
    """
    recipe: str
    layout: Layout
    epochs: int
    rate: float
    cost: Cost

    def name(self) -> list[str]:
        return [f'`{self.recipe}`', str(self.layout)]

    def memory_row(self) -> list[str]:
        cost = self.cost
        parts = (cost.weights, cost.optimizer, cost.ema, cost.buckets, cost.step, cost.memory, cost.loss)
        return [*self.name(), f'{cost.images} ({cost.views})', *(f'{part / 1e9:.2f}' for part in parts)]

    def traffic_row(self) -> list[str]:
        sent = traffic(self.cost, self.layout.world_size)
        return [*self.name(), *(f'{part / 1e6:.1f}' for part in (*sent, sent.total))]

    def pace_row(self, gpu_name: str, args: argparse.Namespace) -> list[str]:
        gpu = GPUS[gpu_name]
        flops = reached(gpu, args.precision, args.share)
        images = DATASETS[self.recipe.split('.')[-1]].totals['train']
        found = pace(self.cost, self.layout, gpu, flops, args.link * 1e9 / 8, self.epochs, images)

        # an image of two streams is decoded twice
        decoded_per_s = found.images_per_s * self.cost.decoded / self.cost.images
        cores = decoded_per_s / self.rate / self.layout.hosts

        return [
            *self.name(),
            gpu_name,
            f'{self.cost.flops / 1e12:.2f}',
            f'{found.compute * 1e3:.0f}',
            f'{found.exposed * 1e3:.1f}',
            f'{found.link * 8 / 1e9:.0f}',
            f'{found.images_per_s:.0f}',
            f'{math.ceil(cores)}',
            f'{found.hours:.1f}',
            f'{found.hours * self.layout.world_size:.0f}',
        ]


MEMORY = ['images (views)', 'weights', 'optimizer', 'EMA', 'DDP buckets', 'step', 'sum', 'step behind the backbone']
TRAFFIC = ['gradients', 'gathered rows', 'buffers', 'sum']
PACE = ['GPU', 'TFLOP', 'computes, ms', 'waits, ms', 'link, Gbit/s', 'images/s', 'cores a host', 'hours', 'GPU hours']


def print_tables(args: argparse.Namespace, options: list[str]):
    """Print what recipes need: loader, memory, network, time.

    Args:
        args: Options of this script.
        options: Options of `train.py`.
    """
    accelerator = create_accelerator('no')
    estimates: list[Estimate] = []
    decoded = []
    for recipe in args.recipes:
        width, height = PHOTO_SIZES[recipe.split('.')[-1]]
        with tempfile.TemporaryDirectory() as folder:
            photos = write_photos(Path(folder), (width, height))
            run = create_run(accelerator, recipe, photos, options=options)
            epochs = run.options.epochs
            # None where a batch of each process is asked for, which any layout can have
            global_batch_size, parts = run.options.global_batch_size, run.options.grad_accum_steps

            rate = args.core_rate or decoding_rate(run, args.photos)
            file_size = sum(path.stat().st_size for path in photos.iterdir()) / 2
            views = len(run.method.views)
            decoded.append([f'`{recipe}`', f'{width} x {height}', f'{file_size / 1e3:.0f}', f'{views}', f'{rate:.0f}'])

            for layout in args.layouts:
                if global_batch_size is not None and global_batch_size % (layout.world_size * parts):
                    accumulated = f' x {parts} accumulated' if parts > 1 else ''
                    print(
                        f'{recipe}: {global_batch_size} images cannot be cut into {layout}{accumulated}',
                        file=sys.stderr)
                    continue
                run = create_run(accelerator, recipe, photos, layout.world_size, options)
                cost = step_cost(run, layout.world_size, args.precision)
                estimates.append(Estimate(recipe, layout, epochs, rate, cost))

    print(f'Images that a core decodes, {"given" if args.core_rate else "measured here"}.\n')
    print_table(['recipe', 'pixels', 'KB a file', 'views', 'images/s'], decoded)

    about = ['recipe', 'hosts x GPUs']
    print(f'Memory of a GPU, {args.precision}, GB.\n')
    print_table([*about, *MEMORY], [estimate.memory_row() for estimate in estimates])
    print('Sent by a process in a step, MB.\n')
    print_table([*about, *TRAFFIC], [estimate.traffic_row() for estimate in estimates])
    print(f'Time, if an A100 reaches {args.share:.0%} of its peak, another GPU as much more as its memory is faster, '
          f'and a host has {args.link:g} Gbit/s.\n')
    rows = [estimate.pace_row(gpu, args) for estimate in estimates for gpu in args.gpus]
    print_table([*about, *PACE], rows)


def main(argv: list[str] | None = None):
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ['check']:
        from benchmarks.scale_check import main as check
        check(argv[1:])
        return

    parser = argparse.ArgumentParser(
        description=__doc__.split('\n')[0], epilog='Other options are those of train.py. `check` has a --help too.')
    parser.add_argument('--recipes', nargs='+', default=RECIPES, help='recipes on ImageNet-LT or iNaturalist 2018')
    parser.add_argument('--layouts', nargs='+', type=Layout.parse, metavar='HOSTSxGPUS',
                        default=[Layout(1, 4), Layout(1, 8), Layout(4, 2), Layout(4, 8)],
                        help='the batch of the recipe is divided among all GPUs')
    parser.add_argument('--gpus', nargs='+', choices=[*GPUS], default=[*GPUS])
    parser.add_argument('--precision', choices=['bf16', 'no'], default='bf16', help='`no` is TF32')
    parser.add_argument('--share', type=float, default=0.1, help="assumed: share of the A100's peak that is reached")
    parser.add_argument('--link', type=float, default=100, help='assumed: Gbit/s between hosts, in one direction')
    parser.add_argument('--core-rate', type=float, help='images/s that a core decodes; measured by default')
    parser.add_argument('--photos', type=int, default=1024, help='photographs that it is measured with')
    args, options = parser.parse_known_args(argv)

    torch.set_num_threads(1)
    print_tables(args, options)


if __name__ == '__main__':
    main()
