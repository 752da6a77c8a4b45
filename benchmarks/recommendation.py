"""Is the recommendation of `compare` good? On sets that it was not tuned on, as a table in Markdown.

`python -m benchmarks.recommendation --cifar100 FOLDER --fashion-mnist FOLDER` runs the command at its defaults on
frozen ImageNet weights, and beside it scikit-learn's recipe on the same features. A set whose folder is not given is
left out; digits come with scikit-learn.
"""
import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.torch import load_file

from timm_longtail.cli import compare
from timm_longtail.data.longtail import long_tail_counts

from .pretrained import MODEL, cifar100, fashion_mnist, scikit_learn_recipe, write_photos, write_weights

parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
parser.add_argument('--cifar100', type=Path, help='folder of its Parquet files')
parser.add_argument('--fashion-mnist', type=Path, help='folder that torchvision keeps its data sets in')
parser.add_argument('--skip-digits', action='store_true')
parser.add_argument('--seed', type=int, default=0, help='of the 20 classes of CIFAR-100 among the last 50')
parser.add_argument('--img-size', type=int, default=224)
parser.add_argument('--num-train', type=int, help='images of the largest class; default: 200, of Fashion-MNIST 500')
parser.add_argument('--num-test', type=int, default=50, help='test images of each class')
parser.add_argument('--output', type=Path, default=Path('output/recommendation'))


@dataclass
class Photos:
    """A set in the table.

    Attributes:
        title: What the table calls it.
        options: Options of `compare` that name its data.
    """
    title: str
    options: list[str]


def create_sets(args: argparse.Namespace) -> dict[str, Photos]:
    """Write the sets that are asked for; returns what to compare on, by name."""
    sets = {}
    if args.cifar100:
        # the first 50 classes were there to develop on
        classes = np.random.default_rng(args.seed).choice(np.arange(50, 100), 20, replace=False).tolist()
        counts = long_tail_counts(args.num_train or 200, 20, imbalance_factor=50)
        folder = args.output / 'cifar100' / 'photos'
        write_photos(folder, partial(cifar100, args.cifar100), classes, counts, args.num_test)
        sets['cifar100'] = Photos('20 classes of CIFAR-100', ['--dataset', 'folder', '--data-dir', str(folder)])

    if args.fashion_mnist:
        counts = long_tail_counts(args.num_train or 500, 10, imbalance_factor=100)
        folder = args.output / 'fashion' / 'photos'
        write_photos(folder, partial(fashion_mnist, args.fashion_mnist), range(10), counts, args.num_test)
        sets['fashion'] = Photos('Fashion-MNIST', ['--dataset', 'folder', '--data-dir', str(folder)])

    if not args.skip_digits:
        sets['digits'] = Photos('digits', ['--dataset', 'digits_lt'])
    return sets


def cached_features(folder: Path) -> tuple[tuple, tuple]:
    """Return features and classes of the training and of the test images.

    The training images stand out among the two files: their classes are not of one size.
    """
    splits = []
    for path in sorted(folder.glob('*.safetensors')):
        kept = load_file(path)
        values, targets = kept['values'].numpy(), kept['targets'].numpy()
        counts = np.bincount(targets)
        splits.append((counts.max() / counts.min(), values, targets))
    test, train = sorted(splits, key=lambda split: split[0])
    return train[1:], test[1:]


def measure(name: str, photos: Photos, args: argparse.Namespace) -> dict:
    """Compare on one set; returns the figures of its row."""
    folder = args.output / name
    compare.main([
        MODEL, '--initial-checkpoint', str(args.output / 'weights.safetensors'), *photos.options,
        '--img-size', str(args.img_size), '--feature-cache', str(folder / 'features'), '--output', str(folder)])

    content = json.loads((folder / 'compare.json').read_text())
    train, test = cached_features(folder / 'features')
    counts = np.bincount(train[1])
    return {
        'set': f'{photos.title}, {counts.max()} to {counts.min()} images a class; {len(test[1])} test images',
        'chosen': next(row for row in content['rows'] if row['name'] == content['chosen']),
        'best': max(content['rows'], key=lambda row: row['test']),
        'scikit_learn': scikit_learn_recipe(train, test),
    }


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown, all figures in percent."""
    lines = [
        '| set | recommended | cross-validated | test | best in hindsight | difference | scikit-learn\'s recipe |',
        '| :-- | :-- | --: | --: | :-- | --: | --: |',
    ]
    for row in rows:
        chosen, best = row['chosen'], row['best']
        cells = [
            row['set'],
            f'`{chosen["name"]}`',
            f'{chosen["cv"]:.1f} ± {chosen["cv_se"]:.1f}',
            f'{chosen["test"]:.1f}',
            f'`{best["name"]}` {best["test"]:.1f}',
            f'{chosen["test"] - best["test"]:.1f}',
            f'{row["scikit_learn"]:.1f}',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def main():
    """Measure every set, then print the table."""
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write_weights(args.output / 'weights.safetensors')

    rows = []
    for name, photos in create_sets(args).items():
        rows.append(measure(name, photos, args))
        (args.output / f'{name}.json').write_text(json.dumps(rows[-1], indent=2))
    print(f'\n{table(rows)}')


if __name__ == '__main__':
    main()
