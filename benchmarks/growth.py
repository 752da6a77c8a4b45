"""How a training step grows with the images, the batch, the views, the classes and the processes.

    python -m benchmarks.growth --axis batch classes

Prints a Markdown table an axis and adds the JSON lines of `benchmark.py` to `--output`. Each point is a process of its
own (two share the cores where an axis says so), on made-up images of 32 x 32 pixels, ResNet-20, cross-entropy where an
axis does not say otherwise.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from timm_longtail.data import LongTailDataset
from timm_longtail.data.packed import write_packed

ROOT = Path(__file__).parent.parent
STEPS = ['--no-recipe', '--steps', '10', '--blocks', '3', '--warmup', '2']
CE, BCL = ['--model', 'resnet20_cifar', '--method', 'ce'], ['--model', 'bcl_resnet20', '--method', 'bcl']
# axis: its points, each a name, images, classes, processes and options
AXES = {
    'images': [(str(n), n, 100, 1, [*CE, '-b', '128']) for n in (5_000, 20_000, 50_000)],
    'batch': [(str(b), 20_000, 100, 1, [*CE, '-b', str(b)]) for b in (32, 64, 128, 256, 512)],
    'views': [
        ('1, ce', 20_000, 100, 1, [*CE, '-b', '64']),
        ('2, moco', 20_000, 100, 1, ['--model', 'resnet20_cifar', '--method', 'moco', '-b', '64']),
        ('3, bcl', 20_000, 100, 1, [*BCL, '-b', '64']),
    ],
    'classes': [(str(c), 20_000, c, 1, [*BCL, '-b', '64']) for c in (10, 100, 1000, 8142)],
    'processes': [(str(p), 20_000, 100, p, [*CE, '-b', str(128 // p)]) for p in (1, 2)],
}
TITLES = ['images/s', 'step ms p50', 'data share', 'RSS GB', 'warm-up s']


def write_images(path: Path, num_images: int, num_classes: int):
    """Write a packed set of noise: one image twice and more, so that it is made quickly, every class about as often."""
    random = np.random.default_rng(0)
    few = torch.from_numpy(random.integers(0, 256, (1000, 3, 32, 32), np.uint8))

    def split(name: str, count: int) -> LongTailDataset:
        return LongTailDataset(
            name='noise', split=name, images=few[torch.arange(count) % len(few)],
            targets=np.arange(count, dtype=np.int64) % num_classes, class_names=[str(c) for c in range(num_classes)],
            mean=(0.5,) * 3, std=(0.25,) * 3, indices=np.arange(count), source_names=[str(i) for i in range(count)])
    train = split('train', num_images)
    train.shot_counts = list(train.class_counts)
    write_packed(path, train, split('test', num_classes), {'source': 'noise'})


def measure(packed: Path, processes: int, options: list[str]) -> dict:
    """Return what `benchmark.py` says of one point."""
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', '--standalone', '--local-addr', 'localhost', '--nproc-per-node',
                    str(processes)]
    with tempfile.NamedTemporaryFile('r') as line:
        subprocess.run([*command, 'benchmark.py', *STEPS, '--dataset', f'packed:{packed}', *options, '--output',
                        line.name], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(line.read())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--axis', nargs='+', choices=list(AXES), default=list(AXES))
    parser.add_argument('--output', type=Path, help='file that the JSON lines are added to')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for axis in args.axis:
            print(f'| {axis} | ' + ' | '.join(TITLES) + ' |\n|' + ' --- |' * (1 + len(TITLES)), flush=True)
            for name, images, classes, processes, options in AXES[axis]:
                packed = Path(folder) / f'{images}_{classes}.safetensors'
                if not packed.exists():
                    write_images(packed, images, classes)
                row = measure(packed, processes, options)
                if args.output:
                    with open(args.output, 'a') as file:
                        file.write(json.dumps({'axis': axis, 'point': name, **row, 'dataset': 'noise'}) + '\n')
                print(f'| {name} | {row["images_per_s"]:.1f} | {row["step_ms_p50"]:.0f} | {row["data_share"]:.3f} | '
                      f'{row["peak_rss_gb"]:.2f} | {row["warmup_seconds"]:.1f} |', flush=True)
            print()


if __name__ == '__main__':
    main()
