"""How a training step grows with the images, the batch, the views, the classes and the processes.

    python -m benchmarks.growth --axis batch classes

Prints a Markdown table an axis; `--output` adds the JSON lines of `benchmark.py` to a file. Each point is a run of its
own of ResNet-20 on made-up images of 32 x 32 pixels: 20,000 of 100 classes, batches of 64, where the axis does not say
otherwise. Two processes share a batch, and the cores, whatever `OMP_NUM_THREADS` says. Take the numbers on a machine
that does nothing else.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from timm_longtail.data import LongTailDataset
from timm_longtail.data.packed import write_packed
from timm_longtail.training.accelerator import usable_cores

ROOT = Path(__file__).parent.parent
STEPS = ('--steps', '10', '--blocks', '3', '--warmup', '2')
COLUMNS = {
    'images_per_s': ('images/s', '.0f'), 'step_ms_p50': ('step ms p50', '.0f'), 'data_share': ('data share', '.3f'),
    'peak_rss_gb': ('RSS GB', '.2f'),
}


class Point(NamedTuple):
    """One run."""
    name: str
    method: str = 'ce'
    batch_size: int = 64  # of a process
    images: int = 20_000
    classes: int = 100
    processes: int = 1


AXES = {  # what grows: its points
    'images': [Point(f'{n}', images=n) for n in (5_000, 20_000, 80_000)],
    'batch': [Point(f'{n}', batch_size=n) for n in (32, 64, 128, 256, 512)],
    'views': [Point('1 (ce)'), Point('2 (moco)', 'moco'), Point('3 (bcl)', 'bcl')],
    'classes': [Point(f'{n} (bcl)', 'bcl', classes=n) for n in (10, 100, 1000, 8142)],
    'processes': [Point(f'{n}', batch_size=64 // n, processes=n) for n in (1, 2)],
}


def write_images(path: Path, images: int, classes: int):
    """Write a packed set of grey ramps, which are quick to encode, with as many images of every class."""
    side = torch.arange(32, dtype=torch.uint8)
    ramps = (side[None] + torch.arange(256, dtype=torch.uint8)[:, None])[:, None, None].expand(-1, 3, 32, -1)

    def split(name: str, count: int) -> LongTailDataset:
        rows = np.arange(count)
        return LongTailDataset(
            name='ramps', split=name, images=ramps[torch.from_numpy(rows % len(ramps))], targets=rows % classes,
            class_names=[str(c) for c in range(classes)], mean=(0.5,) * 3, std=(0.25,) * 3, indices=rows,
            source_names=[str(row) for row in rows])

    train = split('train', images)
    train.shot_counts = list(train.class_counts)
    write_packed(path, train, split('test', classes), {'source': 'ramps'})


def measure(point: Point, packed: Path) -> dict[str, Any]:
    """Return what `benchmark.py` says of a point; its processes share the cores."""
    threads = max(1, usable_cores() // point.processes)
    command = [sys.executable]
    if point.processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', '--local-addr', 'localhost']
        command += ['--nproc-per-node', str(point.processes)]
    with tempfile.NamedTemporaryFile('r') as line:
        command += [
            'benchmark.py', '--model', 'resnet20_cifar', '--method', point.method, '--no-recipe', *STEPS,
            '--batch-size', str(point.batch_size), '--dataset', f'packed:{packed}', '--output', line.name]
        env = {**os.environ, 'OMP_NUM_THREADS': str(threads)}
        subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        return json.loads(line.read())


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--axis', nargs='+', choices=[*AXES], default=[*AXES], help='what grows')
    parser.add_argument('--output', type=Path, help='file that the JSON lines are added to')
    args = parser.parse_args(argv)

    with tempfile.TemporaryDirectory() as folder:
        for axis in args.axis:
            titles = [axis, *(title for title, _ in COLUMNS.values())]
            print(f'| {" | ".join(titles)} |\n|{" --- |" * len(titles)}')

            for point in AXES[axis]:
                # several points share their images
                packed = Path(folder) / f'{point.images}.{point.classes}.safetensors'
                if not packed.exists():
                    write_images(packed, point.images, point.classes)

                row = {'axis': axis, 'point': point.name, **measure(point, packed), 'dataset': 'ramps'}
                if args.output:
                    with open(args.output, 'a') as file:
                        file.write(json.dumps(row) + '\n')

                figures = [format(row[key], spec) for key, (_, spec) in COLUMNS.items()]
                print(f'| {" | ".join([point.name, *figures])} |', flush=True)
            print()


if __name__ == '__main__':
    main()
