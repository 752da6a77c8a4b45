"""Sets that `datasets` opens: images of a table, files that it may read, and configurations."""
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timm_longtail.cli import pack
from timm_longtail.data import create_dataset
from timm_longtail.data.sources.parquet import TableImages, load_table
from timm_longtail.utils.errors import UserError

from ..support.data_sets import draw, png, refused, write_numbers, write_paths

pytestmark = pytest.mark.usefixtures('private_cache')


# ------------------------------------------------------------------------ image columns

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
    import datasets

    is_struct = pa.types.is_struct(kind)
    # a struct is known by its fields, bytes by the name of the column
    name = 'picture' if is_struct else 'image'
    values = {'bytes': png(7), 'path': None if is_struct and 'null' in str(kind) else 'x.png'}
    keys = [kind.field(number).name for number in range(kind.num_fields)] if is_struct else []
    image = {key: values[key] for key in keys} if is_struct else values['bytes']
    table = pa.table({name: pa.array([image] * 4, kind), 'label': [0, 0, 0, 1]})
    try:
        datasets.Features.from_arrow_schema(table.schema)
    except ValueError as e:  # of an old version
        pytest.skip(str(e))

    for split in ('train', 'test'):
        pq.write_table(table, tmp_path / f'{split}-0.parquet')
    train = create_dataset(f'hfds/{tmp_path}', 'train')

    assert train.class_counts == [3, 1] and train.images.shape == (4, 3, 8, 8)
    assert (train.images == 7).all()


def make_table(rows):
    import datasets

    images = [{'bytes': bytes(row), 'path': f'a/{row}.png'} for row in range(rows)]
    images[3] = None
    images[5] = {'bytes': b'xyz', 'path': None}
    return datasets.Dataset.from_dict(
        {'image': images}, datasets.Features({'image': datasets.Image()})
    )


@pytest.mark.parametrize('arrange', [
    lambda table: table,
    lambda table: table.select(np.arange(40)[::-1]).select(np.arange(40)[::-1]),
])
def test_sizes_and_names_of_a_table(arrange, monkeypatch):
    monkeypatch.setattr(TableImages, 'block_size', 7)
    import datasets

    chunked = datasets.concatenate_datasets(
        [make_table(40).select(range(11)), make_table(40).select(range(11, 40))]
    )
    images = TableImages(arrange(chunked), 'image', 'place')
    sizes = [0 if row == 3 else 3 if row == 5 else row for row in range(40)]
    names = [f'row {row}' if row in (3, 5) else f'{row}.png' for row in range(40)]

    assert images.sizes().tolist() == sizes and images.names() == names

    rows = np.array([39, 3, 5, 0, 12, 3, 13])
    some = images.take(rows)

    assert some.sizes().tolist() == [sizes[row] for row in rows]
    assert some.names() == [names[row] for row in rows]
    assert some.describe(4) == 'place, row 12 (12.png)'
    assert images.take(rows[:0]).sizes().dtype == np.int64
    assert [len(data or b'') for data in some.read(range(len(rows)))] == some.sizes().tolist()


# ------------------------------------------------------------------------ files of a table

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
        rows = table.map(
            lambda row, path=path: {'image': {'bytes': None, 'path': path}},
            features=table.features,
        )
        with pytest.raises(UserError, match='place: .* lies outside .*set; a table may name files of its own folder'):
            TableImages(rows, 'image', 'place', [root])
        with pytest.raises(UserError, match='lies outside the table'):
            TableImages(rows, 'image', 'place')


@pytest.mark.parametrize('column', ['image', 'words'])
def test_a_file_outside_is_not_packed(tmp_path, private, column):
    root = write_paths(tmp_path / 'set', [str(private)] * 2)
    if column == 'words':  # a column of paths
        for split in ('train', 'test'):
            pq.write_table(
                pa.table({'image': [str(private)] * 2, 'label': [0, 1]}),
                root / f'{split}-0.parquet',
            )
    packed = tmp_path / 'set.safetensors'

    with pytest.raises(UserError, match='private.png. lies outside'):
        pack.main(['--dataset', f'hfds/{root}', '--skip-bad-images', '--packed', str(packed)])
    assert not packed.exists()


def test_a_table_names_files_of_its_folder(tmp_path, monkeypatch):
    root = tmp_path / 'set'
    first, second = draw(root / 'images' / 'a.png', seed=1), draw(root / 'b.png', seed=2)
    (root / 'inside.png').symlink_to(first)
    write_paths(root, ['images/a.png', str(second), 'inside.png', 'images/../b.png'])
    # a relative path starts at the folder of the set
    monkeypatch.chdir(tmp_path / 'set' / 'images')

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


# ------------------------------------------------------------------------ configurations

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
    refused(
        r"no configuration and no folder 'medium'.*its configurations are small, large",
        f'hfds/{two_sets}:medium',
    )
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
