"""The good files: one of every format that is read, all tiny, and a few places that are no files at all."""
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trial import Workshop

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = ['--model', 'resnet20_cifar', '--model-kwargs', 'layers=(1,1,1)', 'channels=(8,16,32)', 'cosine_scale=16.0']
PICTURES = {
    'png': 'a.png', 'jpeg': 'b.jpg', 'gif': 'c.gif', 'tiff': 'd.tif', 'bmp': 'e.bmp', 'webp': 'f.webp',
    'png16': 'g.png',
}
LISTS = {'train': 'list_train.txt', 'test': 'list_test.txt'}


def prepare(workshop: 'Workshop'):
    """Write the good files into the folder of a workshop, in processes of their own."""
    here = workshop.folder / 'here'
    for name in ('here', 'home', 'tmp'):
        (workshop.folder / name).mkdir()

    code = 'import sys; from tools.fuzz import place; place.write(sys.argv[1])'
    output = ['--output', '../place', '--experiment', 'run', '--no-recipe', '--img-size', '16', '--epochs', '2']
    train = [ROOT / 'train.py', *TINY, '--method', 'bcl', '--batch-size', '256', '--save-steps', '1', *output]
    for argv in (train, ['-c', code, workshop.place]):
        ended = workshop.run([str(word) for word in argv], workshop.folder)
        if ended.status != 0:
            raise RuntimeError(f'the good files could not be written: {ended.stderr or ended.stdout}')

    rows = workshop.place / 'rows'
    rows.mkdir()
    shutil.copy(workshop.place / 'run' / 'metrics.json', rows / 'row.json')
    shutil.rmtree(here)


def write(folder: str):
    """Write all but the run, which `train.py` writes."""
    folder = Path(folder)
    _write_photos(folder / 'photos')
    _write_pictures(folder / 'pictures')
    _write_lists(folder / 'lists')
    _write_table(folder / 'table')
    _write_packed(folder / 'packed.safetensors', folder / 'photos')
    _write_flags(folder / 'flags.safetensors')
    shutil.copy(ROOT / 'timm_longtail/config/recipes/bcl_resnet20.digits_lt_if20.yaml', folder / 'recipe.yaml')
    (folder / 'queue.txt').write_text(
        '# two lines\n../place/recipe.yaml --seeds 0 1\nresnet32_cifar.cifar100_lt_if100 --epochs 3\n')
    (folder / 'text.txt').write_text('nothing but words\n')

    # what has a name and is no file
    (folder / 'folder').mkdir()
    os.mkfifo(folder / 'fifo')
    (folder / 'loop').symlink_to('loop')
    (folder / 'zero').symlink_to('/dev/zero')


def copy(source: Path, target: Path):
    """Copy the good files; links stay links, a pipe is made again."""
    def ignore(folder, names):
        return ['fifo'] if 'fifo' in names else []

    shutil.copytree(source, target, symlinks=True, ignore=ignore)
    os.mkfifo(target / 'fifo')


def _draw(path: Path, number: int, side: int = 16, mode: str = 'RGB'):
    import numpy as np
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3))
    if mode == 'I;16':
        Image.fromarray((pixels[..., 0] * 256).astype(np.uint16)).save(path)
    else:
        Image.fromarray(pixels.astype(np.uint8)).save(path)


def _write_photos(folder: Path):
    for split, counts in (('train', {'ant': 6, 'bee': 4, 'cat': 2}), ('test', {'ant': 2, 'bee': 2, 'cat': 2})):
        for label, (name, count) in enumerate(counts.items()):
            for number in range(count):
                _draw(folder / split / name / f'{number}.png', 100 * label + number)


def _write_pictures(folder: Path):
    for number, (kind, name) in enumerate(PICTURES.items()):
        _draw(folder / 'train' / 'ant' / name, number, mode='I;16' if kind == 'png16' else 'RGB')
    for split in ('train', 'test'):
        for name in ('ant', 'bee'):
            _draw(folder / split / name / 'plain.png', 50)


def _write_lists(folder: Path):
    for split, count in (('train', 3), ('test', 1)):
        lines = []
        for label, name in enumerate(('ant', 'bee')):
            for number in range(count):
                path = f'{split}/{name}/{number}.png'
                _draw(folder / path, number)
                lines.append(f'{path} {label}\n')
        (folder / LISTS[split]).write_text(''.join(lines))


def _write_table(folder: Path):
    import datasets
    folder.mkdir()
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['ant', 'bee'])})
    for split, count in (('train', 4), ('test', 2)):
        paths = [folder.parent / 'photos' / 'train' / 'ant' / f'{number}.png' for number in range(count)]
        images = [{'bytes': path.read_bytes(), 'path': path.name} for path in paths]
        rows = {'image': images, 'label': [number % 2 for number in range(count)]}
        datasets.Dataset.from_dict(rows, features).to_parquet(folder / f'{split}-00000-of-00001.parquet')


def _write_packed(path: Path, photos: Path):
    from timm_longtail.data import create_splits, write_packed
    write_packed(path, *create_splits('folder', data_dir=photos), {'dataset': 'photos'})


def _write_flags(path: Path):
    import numpy as np

    from timm_longtail.data import create_dataset
    from timm_longtail.methods._flags import write_flags
    digests = create_dataset('digits_lt', 'train').digests
    write_flags(path, digests, np.random.default_rng(0).random(len(digests)), 0.5)
