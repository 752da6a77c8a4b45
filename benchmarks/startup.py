"""How long a large list of image files takes to open: `python -m benchmarks.startup`.

Writes the training list of iNaturalist 2018, 437,513 empty files in 8142 folders, and opens it as a run does before its
first batch: the lines are read, every file is looked at, names, lengths and labels are hashed; of photographs only the
header of the first is read. Seconds and CPU seconds of each time. `--folder` keeps the files, for another commit of
this project to be measured in alternation.
"""
import argparse
import tempfile
import time
from pathlib import Path

from timm_longtail.data import create_dataset
from timm_longtail.data.sources.lists import _INAT2018

parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
parser.add_argument('--folder', type=Path, help='where the files are, or are written; default: a temporary folder')
parser.add_argument('--repeats', type=int, default=3)


def write_list(folder: Path):
    """Write the list and its empty files."""
    num_images, num_classes = _INAT2018.totals['train'], _INAT2018.num_classes
    lines = []
    for row in range(num_images):
        label = row % num_classes
        place = Path('train_val2018', 'Plantae', str(label))
        if row < num_classes:
            (folder / place).mkdir(parents=True)
        path = place / f'{row:032x}.jpg'
        (folder / path).touch()
        lines.append(f'{path} {label}\n')
    (folder / _INAT2018.files['train']).write_text(''.join(lines))


def main(argv: list[str] | None = None):
    """Open the list some times and print how long it took."""
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / _INAT2018.files['train']).exists():
            write_list(folder)

        for _ in range(args.repeats):
            started, cpu_started = time.perf_counter(), time.process_time()
            dataset = create_dataset('inat2018', 'train', folder, loader='worker')
            name = dataset.hash
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            print(f'{len(dataset)} images, {name}: {seconds:.1f} s, {cpu_seconds:.1f} s of CPU', flush=True)


if __name__ == '__main__':
    main()
