"""CIFAR-100-LT without test images, to choose settings by: `python -m benchmarks.held_out FILE.safetensors`.

Of the 500 training images of each class of CIFAR-100, drawn by a seed, 100 become the test split of a packed file. The
other 400 are cut to the long-tailed training split, with an imbalance factor of 100: 400 images of the first class, 4
of the last one. `train.py --dataset packed:FILE.safetensors` trains and evaluates on it.
"""
import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from timm_longtail.data import LongTailDataset, create_dataset
from timm_longtail.data.longtail import long_tail_counts, long_tail_indices
from timm_longtail.data.packed import write_packed

IMBALANCE_FACTOR = 100

parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
parser.add_argument('file', type=Path, help='packed file to write')
parser.add_argument('--dataset', default='cifar100', help='balanced data set whose training split is parted')
parser.add_argument('--data-dir', type=Path, help='local copy of it')
parser.add_argument('--num-test', type=int, default=100, help='images of each class that become test images')
parser.add_argument('--seed', type=int, default=0)


def part(whole: LongTailDataset, num_test: int, seed: int) -> tuple[LongTailDataset, LongTailDataset]:
    """Return a long-tailed training split and a balanced test split, both of training images.

    Args:
        whole: Training split of a balanced set.
        num_test: Images of each class in the test split.
        seed: Seed of both draws.
    """
    counts = np.array(whole.class_counts)
    test_rows = long_tail_indices(whole.targets, [num_test] * whole.num_classes, seed)
    rest = whole.subset(np.setdiff1d(np.arange(len(whole)), test_rows))

    kept = long_tail_counts(int(counts.min()) - num_test, whole.num_classes, IMBALANCE_FACTOR)
    train = rest.subset(long_tail_indices(rest.targets, kept, seed))
    name = f'{whole.name}_lt_held_out'
    train = replace(train, name=name, imbalance_factor=IMBALANCE_FACTOR, seed=seed, shot_counts=kept, hub_id=None)
    return train, replace(whole.subset(test_rows), name=name, split='test', shot_counts=None, hub_id=None)


def main(argv: list[str] | None = None):
    """Write the packed file."""
    args = parser.parse_args(argv)
    whole = create_dataset(args.dataset, 'train', args.data_dir)
    train, test = part(whole, args.num_test, args.seed)
    command = f'benchmarks.held_out --dataset {args.dataset} --num-test {args.num_test} --seed {args.seed}'
    write_packed(args.file, train, test, {'source': f'training split of {whole.name}', 'command': command})
    print(f'{args.file}: {len(train)} training images of {train.class_counts[0]} to {train.class_counts[-1]} a class, '
          f'{len(test)} test images; fingerprint {train.hash}')


if __name__ == '__main__':
    main()
