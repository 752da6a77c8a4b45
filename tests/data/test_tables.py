"""Sets that `datasets` opens: labels by name, files a table may read, configurations, and data that changes."""
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate.state import AcceleratorState

from timm_longtail.cli import pack, train
from timm_longtail.data import create_dataset, create_splits, hold_out_indices
from timm_longtail.data.file_state import first_changed_file
from timm_longtail.data.sources.labels import _cached_copy
from timm_longtail.data.sources.parquet import TableImages, load_table
from timm_longtail.training import outputs, provenance
from timm_longtail.utils.errors import UserError

from ..support.runs import TINY
from .test_sources import draw, private_cache, refused, write_classes  # noqa: F401  a fixture

GREYS = {'cat': 10, 'dog': 120, 'emu': 250}


def png(level: int) -> bytes:
    import io

    from PIL import Image
    buffer = io.BytesIO()
    Image.new('RGB', (8, 8), (level,) * 3).save(buffer, 'PNG')
    return buffer.getvalue()


def write_named(path: Path, animals: list[str], names: list[str] | None, kind: str = 'parquet'):
    """Write a table of animals, each with an image of its own grey.

    Args:
        path: File without its end.
        animals: Animal of each row.
        names: Order that the numbers of the label column follow; None writes the animals as words.
        kind: `parquet` or `arrow`.
    """
    import datasets
    label = datasets.Value('string') if names is None else datasets.ClassLabel(names=names)
    rows = {
        'image': [{'bytes': png(GREYS[animal]), 'path': None} for animal in animals],
        'label': animals if names is None else [names.index(animal) for animal in animals]}
    table = datasets.Dataset.from_dict(rows, datasets.Features({'image': datasets.Image(), 'label': label}))
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == 'parquet':
        table.to_parquet(f'{path}.parquet')
    else:
        with pa.OSFile(f'{path}.arrow', 'wb') as file, pa.ipc.new_stream(file, table.data.table.schema) as writer:
            writer.write_table(table.data.table)


def write_numbers(root: Path, **splits):
    """Write plain Parquet: one 8x8 image and one number a row, without metadata of `datasets`."""
    root.mkdir(parents=True, exist_ok=True)
    for split, labels in splits.items():
        labels = labels if isinstance(labels, pa.Array) else pa.array(labels)
        images = pa.array([{'bytes': png(row % 251), 'path': f'{row}.png'} for row in range(len(labels))])
        pq.write_table(pa.table({'image': images, 'label': labels}), root / f'{split}-0.parquet')
    return root


def seen_greys(dataset) -> dict[str, set[int]]:
    """Return the greys of the images of each class."""
    found = {}
    for image, label in zip(dataset.images, dataset.targets, strict=True):
        found.setdefault(dataset.class_names[label], set()).add(int(image.float().mean()))
    return found


# ------------------------------------------------------------------------------------------------ labels by name

@pytest.mark.parametrize('train, test', [
    (['cat', 'dog', 'emu'], ['emu', 'dog', 'cat']),
    (['cat', 'dog', 'emu'], ['yak', 'cat', 'emu', 'dog']),
    (['cat', 'yak', 'dog', 'emu'], ['dog', 'emu', 'cat']),
    (None, None),
])
def test_labels_are_matched_by_name(tmp_path, train, test):
    write_named(tmp_path / 'set' / 'train-0', ['cat', 'dog', 'emu', 'cat'], train)
    write_named(tmp_path / 'set' / 'test-0', ['dog', 'emu', 'emu'], test)
    train_set, test_set = create_splits(f'hfds/{tmp_path}/set')
    assert sorted(train_set.class_names) == ['cat', 'dog', 'emu']
    assert seen_greys(train_set) == {name: {grey} for name, grey in GREYS.items()}
    assert seen_greys(test_set) == {'dog': {120}, 'emu': {250}}
    assert ('1 class names have no image and are left out: yak' in train_set.note) == ('yak' in (train or ()))


@pytest.mark.parametrize('kind', ['parquet', 'arrow'])
def test_files_of_one_split_are_matched_by_name(tmp_path, kind):
    write_named(tmp_path / 'set' / 'train-0', ['cat', 'dog', 'cat'], ['cat', 'dog'], kind)
    write_named(tmp_path / 'set' / 'train-1', ['emu', 'dog'], ['emu', 'dog'], kind)
    write_named(tmp_path / 'set' / 'test-0', ['dog', 'emu'], ['dog', 'emu'], kind)
    for dataset in create_splits(f'hfds/{tmp_path}/set'):
        assert seen_greys(dataset).items() <= {name: {grey} for name, grey in GREYS.items()}.items()
        assert dataset.class_names == ['cat', 'dog', 'emu']


@pytest.mark.parametrize('names', [['cat', 'dog', 'emu'], None])
def test_a_class_that_only_the_test_split_has(tmp_path, names):
    write_named(tmp_path / 'set' / 'train-0', ['cat', 'dog'], names and names[:2])
    write_named(tmp_path / 'set' / 'test-0', ['cat', 'emu'], names)
    refused(r"\(test\), row 1: the label 'emu' is no class of the training split", f'hfds/{tmp_path}/set', split='test')


@pytest.mark.parametrize('named', ['train', 'test'])
def test_names_on_one_side_and_numbers_on_the_other(tmp_path, named):
    write_numbers(tmp_path / 'set', train=[0, 1], test=[0, 1])
    write_named(tmp_path / 'set' / f'{named}-0', ['cat', 'dog'], ['dog', 'cat'])
    words = rf'class names in .*{named}-0.parquet and plain values in .*-0.parquet: they cannot be matched'
    refused(words, f'hfds/{tmp_path}/set', split='test')


def test_words_and_named_numbers_are_matched_or_refused(tmp_path):
    write_named(tmp_path / 'set' / 'train-0', ['cat', 'dog'], ['dog', 'cat'])
    write_named(tmp_path / 'set' / 'test-0', ['cat', 'dog'], None)
    refused('class names in .*train-0.parquet and plain values in .*test-0', f'hfds/{tmp_path}/set', split='test')


def test_a_copy_of_a_benchmark_with_other_names_is_refused(tmp_path):
    import datasets
    for split, names in (('train', range(100)), ('test', range(99, -1, -1))):
        features = datasets.Features(
            {'img': datasets.Image(), 'fine_label': datasets.ClassLabel(names=[f'kind {name}' for name in names])})
        rows = {'img': [{'bytes': png(label), 'path': None} for label in range(100)], 'fine_label': [*range(100)]}
        (tmp_path / 'set').mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(tmp_path / 'set' / f'{split}-0.parquet')
    refused('test-0.parquet gives other names to the labels of column fine_label', 'cifar100', tmp_path / 'set')


def test_files_on_the_hub_are_looked_for_in_its_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants
    address = 'hf://datasets/user/set@0123abc/data/train-0.parquet'
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    assert _cached_copy(address) == address and _cached_copy('/a/b.parquet') == '/a/b.parquet'


# ------------------------------------------------------------------------------------------------ numbers

@pytest.mark.parametrize('labels, names', [
    ([0, 1, 1, 2], ['0', '1', '2']),
    ([1, 2, 2, 3], ['1', '2', '3']),
    ([0, 200_000_000, 7, 7], ['0', '7', '200000000']),
    ([2 ** 62, 5, 5, 2 ** 62], ['5', str(2 ** 62)]),
    ([True, False, True, True], ['False', 'True']),
])
def test_numbers_are_classes_in_their_order(tmp_path, labels, names):
    root = write_numbers(tmp_path / 'set', train=labels, test=labels[:2])
    train, test = create_splits(f'hfds/{root}')
    assert train.class_names == names and train.num_classes == len(set(labels))
    assert [train.class_names[label] for label in train.targets] == [str(label) for label in labels]
    assert [test.class_names[label] for label in test.targets] == [str(label) for label in labels[:2]]
    in_order = names[0] in ('0', 'False') and len(names) == max(labels) + 1
    assert ('classes are numbered in their order' in train.note) != in_order


@pytest.mark.parametrize('train, test, words', [
    ([0, 1, -1], [0], r'\(train\): 1 of 3 labels are negative, the first is -1 in row 2'),
    ([0, 1], [-1, -1], r'\(test\): the labels are hidden, all are -1'),
    ([0, 1], [-2, 1], r'\(test\): 1 of 2 labels are negative, the first is -2 in row 0'),
    ([0., 1.], [0.], 'column label holds float32, not one integer label a row'),
    ([0, 1, None], [0], r'\(train\): 1 of 3 rows have no label'),
    ([True, None], [True], r'\(train\): 1 of 2 rows have no label'),
    ([3, 9], [3, 5], r'\(test\): label 5 is none of the 2 classes of .*\(train\)'),
    (pa.array([0, 2 ** 63], pa.uint64()), pa.array([0], pa.uint64()), 'label 9223372036854775808 is too large'),
    ([*range(5000, 6500)], [5000], r'\(train\): each of the 1500 rows has a label of its own'),
])
def test_numbers_that_are_no_classes(tmp_path, train, test, words):
    root = write_numbers(tmp_path / 'set', train=train, test=test)
    refused(words, f'hfds/{root}', split='test')


# ------------------------------------------------------------------------------------------------ image columns

@pytest.mark.parametrize('kind', [
    pa.struct({'bytes': pa.binary(), 'path': pa.string()}),
    pa.struct({'path': pa.string(), 'bytes': pa.binary()}),
    pa.struct({'bytes': pa.large_binary(), 'path': pa.large_string()}),
    pa.struct({'bytes': pa.binary_view(), 'path': pa.string_view()}),
    pa.struct({'bytes': pa.binary(), 'path': pa.null()}),
    pa.struct({'bytes': pa.binary()}),
    pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(len(png(7))),
], ids=str)
def test_images_as_other_programs_write_them(tmp_path, kind):
    is_struct = pa.types.is_struct(kind)
    name = 'picture' if is_struct else 'image'  # a struct is known by its fields, bytes by the name of the column
    values = {'bytes': png(7), 'path': None if is_struct and 'null' in str(kind) else 'x.png'}
    keys = [kind.field(number).name for number in range(kind.num_fields)] if is_struct else []
    image = {key: values[key] for key in keys} if is_struct else values['bytes']
    table = pa.table({name: pa.array([image] * 4, kind), 'label': [0, 0, 0, 1]})
    for split in ('train', 'test'):
        pq.write_table(table, tmp_path / f'{split}-0.parquet')
    train = create_dataset(f'hfds/{tmp_path}', 'train')
    assert train.class_counts == [3, 1] and train.images.shape == (4, 3, 8, 8) and (train.images == 7).all()


# ------------------------------------------------------------------------------------------------ files of a table

def write_paths(root: Path, paths: list[str | None]):
    """Write a table whose images are paths, without bytes."""
    import datasets
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['cat', 'dog'])})
    images = [{'bytes': None, 'path': path} for path in paths]
    table = pa.table({'image': images, 'label': [row % 2 for row in range(len(paths))]}, features.arrow_schema)
    root.mkdir(parents=True, exist_ok=True)
    for split in ('train', 'test'):
        pq.write_table(table, root / f'{split}-0.parquet')
    return root


@pytest.fixture
def private(tmp_path) -> Path:
    return draw(tmp_path / 'home' / 'private.png')


def test_a_table_names_no_file_outside_its_folder(tmp_path, private):
    root = tmp_path / 'set'
    draw(root / 'images' / 'a.png')
    draw(tmp_path / 'set-twin' / 'private.png')
    (root / 'link.png').symlink_to(private)
    (root / 'folder').symlink_to(private.parent)
    table = load_table(str(write_paths(root, ['images/a.png', 'images/a.png'])))['train']
    spelled = [
        str(private), '../home/private.png', f'{root}/../home/private.png', f'{root}/images/../../home/private.png',
        'link.png', 'folder/private.png', 'images/../link.png', f'{root}-twin/private.png', 'a\0b.png', '..', '.']
    for path in spelled:
        rows = table.map(lambda row, path=path: {'image': {'bytes': None, 'path': path}}, features=table.features)
        with pytest.raises(UserError, match='place: .* lies outside .*set; a table may name files of its own folder'):
            TableImages(rows, 'image', 'place', [root])
        with pytest.raises(UserError, match='lies outside the table'):
            TableImages(rows, 'image', 'place')


@pytest.mark.parametrize('column', ['image', 'words'])
def test_a_file_outside_is_not_packed(tmp_path, private, column):
    root = write_paths(tmp_path / 'set', [str(private)] * 2)
    if column == 'words':  # a column of paths
        for split in ('train', 'test'):
            pq.write_table(pa.table({'image': [str(private)] * 2, 'label': [0, 1]}), root / f'{split}-0.parquet')
    packed = tmp_path / 'set.safetensors'
    with pytest.raises(UserError, match='private.png. lies outside'):
        pack.main(['--dataset', f'hfds/{root}', '--skip-bad-images', '--packed', str(packed)])
    assert not packed.exists()


def test_a_table_names_files_of_its_folder(tmp_path, monkeypatch):
    root = tmp_path / 'set'
    first, second = draw(root / 'images' / 'a.png', seed=1), draw(root / 'b.png', seed=2)
    (root / 'inside.png').symlink_to(first)
    write_paths(root, ['images/a.png', str(second), 'inside.png', 'images/../b.png'])
    monkeypatch.chdir(tmp_path / 'set' / 'images')  # a relative path starts at the folder of the set
    for loader in ('resident', 'worker'):
        dataset = create_dataset(f'hfds/{root}', 'train', loader=loader)
        images = dataset.images if dataset.resident else [np.asarray(dataset.decode(n)) for n in range(4)]
        assert [np.array_equal(images[0], image) for image in images] == [True, False, True, False]
        assert dataset.source_names == ['a.png', 'b.png', 'inside.png', 'b.png']


def test_a_missing_file_of_a_table_is_named(tmp_path):
    root = write_paths(tmp_path / 'set', ['a.png', 'b.png'])
    draw(root / 'a.png')
    os.mkfifo(root / 'b.png')  # as good as missing: it would never end
    refused(r'row 1 \(b.png\): there is none', f'hfds/{root}')


# ------------------------------------------------------------------------------------------------ configurations

CARD = '''---
configs:
- config_name: small
  data_files:
  - {split: train, path: s/train-*}
  - {split: test, path: s/test-*}
- config_name: large
  data_files:
  - {split: train, path: l/train-*}
  - {split: test, path: l/test-*}
---
'''


@pytest.fixture
def two_sets(tmp_path) -> Path:
    write_numbers(tmp_path / 'set' / 's', train=[0, 1], test=[0, 1])
    write_numbers(tmp_path / 'set' / 'l', train=[0, 1, 2], test=[0, 1])
    return tmp_path / 'set'


def test_a_configuration_is_chosen(two_sets):
    (two_sets / 'README.md').write_text(CARD)
    refused(f'has several configurations, small, large: choose one, as in --dataset hfds/{two_sets}:small',
            f'hfds/{two_sets}')
    assert create_dataset(f'hfds/{two_sets}:small', 'train').num_classes == 2
    assert create_dataset(f'hfds/{two_sets}:large', 'train').num_classes == 3
    assert create_dataset('hfds/user/set:large', 'train', two_sets).hub_id == 'user/set'
    refused(r"no configuration and no folder 'medium'.*its configurations are small, large", f'hfds/{two_sets}:medium')
    refused('behind the colon is missing', f'hfds/{two_sets}:')


def test_several_folders_are_not_read_as_one(two_sets):
    refused(f'holds several data sets, in the folders l, s: choose one, as in --dataset hfds/{two_sets}:l',
            f'hfds/{two_sets}')
    assert create_dataset(f'hfds/{two_sets}:s', 'train').num_classes == 2
    assert create_dataset(f'hfds/{two_sets}/l', 'train').num_classes == 3
    # one folder a split is one set
    for split in ('train', 'test'):
        write_numbers(two_sets.parent / 'other' / split, **{split: [0, 1]})
    assert load_table(str(two_sets.parent / 'other')).keys() == {'train', 'test'}


def test_a_folder_may_have_a_colon(tmp_path):
    root = write_numbers(tmp_path / 'a:b', train=[0, 1], test=[0, 1])
    assert create_dataset(f'hfds/{root}', 'train').num_classes == 2


# ------------------------------------------------------------------------------------------------ data that changes

def write_photos(root: Path) -> Path:
    for split in ('train', 'test'):
        write_classes(root / split, {'ant': 4, 'bee': 2}, size=(12, 8))
    return root


def open_photos(root: Path, kind: str, split: str = 'train'):
    """Return a set that workers read, and a file that it reads."""
    if kind == 'folder':
        return create_dataset('folder', split, root), root / split / 'ant' / '02.png'
    if kind == 'packed':
        path = root.parent / 'set.safetensors'
        if not path.exists():
            pack.main(['--dataset', 'folder', '--data-dir', str(root), '--packed', str(path)])
        return create_dataset(f'packed:{path}', split), path
    if kind == 'paths':
        write_paths(root, ['train/ant/00.png', 'train/ant/01.png'])
        return create_dataset(f'hfds/{root}', split), root / 'train' / 'ant' / '01.png'
    table = write_numbers(root.parent / 'table', train=[0, 1], test=[0, 1])
    return create_dataset(f'hfds/{table}', split, loader='worker'), table / f'{split}-0.parquet'


CHANGES = {
    'other bytes': lambda path: path.write_bytes(path.read_bytes()[:-1] + b'x'),
    'more bytes': lambda path: path.write_bytes(path.read_bytes() + b'x'),
    'other time': lambda path: os.utime(path, ns=(0, 0)),
    'gone': Path.unlink,
    'replaced': lambda path: shutil.copy(path, path.with_suffix('.new')) and path.with_suffix('.new').rename(path),
}


@pytest.mark.parametrize('kind, change', [
    *(('folder', change) for change in CHANGES), ('packed', 'replaced'), ('paths', 'gone'), ('parquet', 'other time')])
def test_a_file_that_changes_is_named(tmp_path, kind, change):
    dataset, path = open_photos(write_photos(tmp_path / 'photos'), kind)
    assert dataset.changed_file() is None and not dataset.resident
    parts = dataset.hold_out(0.5, 0) if kind == 'folder' else [dataset]  # the hold-out of a run chooses its best epoch
    CHANGES[change](path)
    for part in parts:
        assert part.changed_file() == str(path) == first_changed_file(part)


def test_a_set_in_memory_does_not_change(tmp_path):
    write_classes(tmp_path, {'ant': 4, 'bee': 3})
    dataset = create_dataset('folder', 'train', tmp_path)
    shutil.rmtree(tmp_path / 'ant')
    assert dataset.resident and dataset.changed_file() is None


@pytest.mark.parametrize('is_changed', [False, True])
def test_a_run_on_changed_data_leaves_no_row(tmp_path, is_changed, monkeypatch, capsys):
    root = write_photos(tmp_path / 'photos')
    monkeypatch.setattr(provenance, 'require_clean_tree', lambda recipe: None)
    monkeypatch.setattr(outputs, 'write_summary', lambda run: (
        os.utime(root / 'test' / 'bee' / '01.png', ns=(0, 0)) if is_changed else None))
    AcceleratorState._reset_state(reset_partial_state=False)
    train.main([
        *TINY, '--no-recipe', '--method', 'ce', '--dataset', 'folder', '--data-dir', str(root), '--img-size', '16',
        '--batch-size', '4', '--epochs', '1', '--workers', '0', '--output', str(tmp_path / 'run'),
        '--results', str(tmp_path / 'rows')])
    assert len([*tmp_path.glob('rows/*.json')]) == 1 - is_changed
    metrics = json.loads(next(tmp_path.rglob('metrics.json')).read_text())
    assert ('changed_file' in metrics) == is_changed
    assert ('01.png changed while the run read it' in capsys.readouterr().out) == is_changed
    assert len([*tmp_path.rglob('model.safetensors')]) == 1


# ------------------------------------------------------------------------------------------------ the hold-out

@pytest.mark.parametrize('fraction', [0.01, 0.2, 0.5, 0.99])
def test_a_class_of_one_image_stays_in_training(fraction):
    targets = np.repeat([0, 1, 2, 3, 4], [9, 1, 2, 1, 5])
    held = np.bincount(targets[hold_out_indices(targets, fraction, seed=0)], minlength=5)
    assert held.tolist() == [min(max(1, int(fraction * n + 1e-9)), n - 1) for n in (9, 1, 2, 1, 5)]
    assert (held < np.bincount(targets)).all()


def test_nothing_to_hold_out_is_said(tmp_path):
    write_classes(tmp_path / 'train', {'ant': 1, 'bee': 1})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    with pytest.raises(UserError, match='no class has two images: nothing can be held out'):
        create_dataset('folder', 'train', tmp_path).hold_out(0.2, 0)
    for split in ('train', 'test'):  # no test folder: a fifth of each class would be held out
        refused('no class has two images', 'folder', tmp_path / 'train', split)
