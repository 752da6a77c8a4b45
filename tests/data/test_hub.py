"""Sets that `datasets` opens: splits, columns and labels of tables; all of it made up and small."""
import pickle

import numpy as np
import pytest
from PIL import Image

from timm_longtail.data import create_dataset
from timm_longtail.data.images import decode_images
from timm_longtail.data.sources.hub import (
    choose_image_column,
    choose_label_column,
    require_random_access,
)
from timm_longtail.data.sources.parquet import load_table
from timm_longtail.utils.errors import UserError

from ..support.data_sets import refused, write_parquet

pytestmark = pytest.mark.usefixtures('private_cache')


LABELS = {'train': [0, 1, 2, 0, 0, 1, 0] * 3, 'test': [0, 1, 2, 2]}


def test_a_folder_of_parquet(tmp_path):
    root = write_parquet(tmp_path / 'set', LABELS)
    train, test = (create_dataset(f'hfds/{root}', split) for split in ('train', 'test'))

    assert train.class_counts == [12, 6, 3] and test.class_counts == [1, 1, 2] and train.resident
    assert train.class_names == ['ant', 'bee', 'cow'] and train.hub_id is None
    assert train.note == test.note == ''
    assert train.source_names[2] == '2.png' and np.array_equal(train.targets, LABELS['train'])
    assert create_dataset(f'hfds/{root}', 'train', imbalance_factor=12).class_counts == [12, 3, 1]

    local = create_dataset('hfds/user/set', 'train', root)

    assert local.hash == train.hash and local.hub_id == 'user/set'


def test_an_image_folder_is_opened_too(folder):
    opened, read = create_dataset(f'hfds/{folder}', 'train'), create_dataset('folder', 'train', folder)
    assert opened.hash == read.hash and opened.class_names == read.class_names and opened.resident

    files = create_dataset(f'hfds/{folder}', 'train', loader='worker')
    position = files.source_names.index('04.png')
    path = folder / 'train' / 'ant' / '04.png'

    assert not files.resident and files.encoded.sizes()[position] == path.stat().st_size
    assert np.array_equal(files.decode(position), Image.open(path))


@pytest.mark.parametrize('names, asked, taken', [
    (('test', 'validation'), None, 'test'),
    (('validation',), None, 'validation'),
    (('dev',), None, 'dev'),
    (('test', 'dev'), 'dev', 'dev'),
])
def test_a_test_split_is_found(tmp_path, names, asked, taken):
    splits = {name: [0, 1, 2, 2] if name == taken else [0] for name in names}
    if 'dev' in names:  # `datasets` takes a folder's word for it where the card says so
        root = write_parquet(tmp_path / 'set', {'train': [0, 1, 2], **splits})
        files = '\n'.join(f'  - split: {name}\n    path: {name}-*' for name in ('train', *names))
        (root / 'README.md').write_text(
            f'---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n'
        )
    else:
        root = write_parquet(tmp_path / 'set', {'train': [0, 1, 2], **splits})
    test = create_dataset(f'hfds/{root}', 'test', test_split=asked)

    assert test.class_counts == [1, 1, 2]
    assert bool(test.note) == (len(names) > 1 and asked is None)


def test_a_set_without_a_test_split(tmp_path):
    root = write_parquet(tmp_path / 'set', {'train': [0, 1, 2] * 5})
    train, test = (create_dataset(f'hfds/{root}', split) for split in ('train', 'test'))

    assert train.class_counts == [4] * 3 and test.class_counts == [1] * 3
    assert sorted([*train.source_names, *test.source_names]) == sorted(f'{row}.png' for row in range(15))
    assert train.note == test.note and 'no test split: 20 %' in train.note

    other = write_parquet(tmp_path / 'other', {'train': [0, 1, 2], 'validation': [0, 1, 2] * 5})

    for split, count in (('train', 4), ('test', 1)):  # what is trained on is not tested on
        assert create_dataset(f'hfds/{other}', split, train_split='validation').class_counts == [count] * 3
    refused("no split 'test'; it has train", f'hfds/{root}', test_split='test')
    refused("no split 'fold'.*train", f'hfds/{root}', train_split='fold')


@pytest.mark.parametrize('kind, labels, names', [
    ('int64', [0, 2, 1, 0], ['0', '1', '2']),
    ('uint8', [0, 2, 1, 0], ['0', '1', '2']),
    ('string', ['zoo', 'ant', 'bee', 'ant'], ['ant', 'bee', 'zoo']),
])
def test_labels_without_names(tmp_path, kind, labels, names):
    import datasets

    root = write_parquet(
        tmp_path / 'set', {'train': labels, 'test': labels[:1] * 2}, kind=datasets.Value(kind)
    )
    train, test = (create_dataset(f'hfds/{root}', split) for split in ('train', 'test'))

    assert train.class_names == test.class_names == names
    assert sorted(train.class_counts) == [1, 1, 2]
    assert test.targets.tolist() == [train.targets[0]] * 2


@pytest.mark.parametrize('kind, train, test, words', [
    (None, [0, 1, 2], [-1, -1], r'\(test\): the labels are hidden, all are -1.*--test-split'),
    ('int64', [0, 1], [0, 2], r'label 2 is none of the 2 classes of .*\(train\)'),
    ('string', ['a', 'b'], ['a', 'c'],
     r"\(test\), row 1: the label 'c' is no class of the training split"),
    ('string', ['a', 'b'], ['a', None], 'row 1: the label None is missing'),
    ('int64', [0, 1], [0, None], r'\(test\): 1 of 2 rows have no label'),
    ('float32', [0, 1], [0, 1], 'column label holds float32, not one integer'),
])
def test_labels_that_are_none(tmp_path, kind, train, test, words):
    import datasets
    root = write_parquet(
        tmp_path / 'set', {'train': train, 'test': test}, kind=kind and datasets.Value(kind)
    )
    refused(words, f'hfds/{root}', split='test')


def test_several_labels_of_a_row(tmp_path):
    import datasets

    kind = datasets.Sequence(datasets.Value('int64'))
    root = write_parquet(tmp_path / 'set', {'train': [[0, 1], [1, 2]]}, kind=kind)
    refused('column label holds 1 dimensions of int64, not one integer label a row', f'hfds/{root}')


@pytest.mark.parametrize('image, label', [('img', 'fine_label'), ('picture', 'kind'), ('image', 'labels')])
def test_columns_are_found_by_their_kind(tmp_path, image, label):
    root = write_parquet(tmp_path / 'set', LABELS, image, label)
    assert create_dataset(f'hfds/{root}', 'train').class_counts == [12, 6, 3]


def test_columns_are_found_by_their_name(tmp_path):
    import datasets

    root = write_parquet(
        tmp_path / 'set', LABELS, 'img', 'target', kind=datasets.Value('int64'), with_image=False)
    train = create_dataset(f'hfds/{root}', 'train')

    assert train.class_counts == [12, 6, 3] and train.input_size == (3, 8, 8)
    assert train.source_names[1] == 'row 1'


def test_a_choice_of_columns_is_left_to_the_user(tmp_path):
    root = write_parquet(tmp_path / 'set', LABELS, 'photo', 'fine', coarse=True)

    refused('several label columns, fine, coarse: choose one with --target-key', f'hfds/{root}')
    assert create_dataset(f'hfds/{root}', 'train', target_key='coarse').class_counts == [12, 6, 3]
    refused("no column 'x'; its columns are photo, fine, coarse", f'hfds/{root}', target_key='x')
    refused(
        "no column 'x'; its columns are photo", f'hfds/{root}', target_key='fine', input_key='x'
    )
    refused(
        r'column coarse holds ClassLabel\(.*, not encoded images',
        f'hfds/{root}',
        input_key='coarse',
    )

    table = load_table(str(root))['train']

    with pytest.raises(UserError, match='t has no label column that is known as one.*columns are photo'):
        choose_label_column(table.select_columns('photo'), None, 't')
    with pytest.raises(UserError, match='t has no image column that is known as one.*columns are fine'):
        choose_image_column(table.select_columns('fine'), None, 't')
    with pytest.raises(UserError, match='several image columns, photo, other'):
        choose_image_column(table.map(lambda row: {'other': row['photo']}), None, 't')


def test_files_that_changed_are_read_again(tmp_path):
    import pandas
    card = '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet\n---\n'

    def keep(folder, values):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'README.md').write_text(card)
        pandas.DataFrame({'label': values}).to_parquet(folder / 'train.parquet')
        return load_table(str(folder))['train']['label'][:]

    assert keep(tmp_path / 'one' / 'set', [1, 2, 3]) == [1, 2, 3]
    assert keep(tmp_path / 'two' / 'set', [7, 8]) == [7, 8]
    assert keep(tmp_path / 'one' / 'set', [4, 5, 6]) == [4, 5, 6]


def test_a_stream_is_refused(tmp_path):
    import datasets

    stream = datasets.Dataset.from_dict({'label': [0]}).to_iterable_dataset()

    for splits in (stream, datasets.IterableDatasetDict({'train': stream})):
        with pytest.raises(UserError, match='opens as a stream.*random access'):
            require_random_access(splits, 'user/set')


def test_tiny_imagenet_is_read_from_a_copy(tmp_path):
    import datasets

    kind = datasets.ClassLabel(names=[f'n{label:03d}' for label in range(200)])
    root = write_parquet(
        tmp_path / 'set',
        {'train': [*range(200), *range(200)], 'valid': [*range(200)]},
        kind=kind,
    )
    train = create_dataset('tiny_imagenet_lt', 'train', root, imbalance_factor=2)

    assert train.class_counts == [2, *[1] * 199] and train.hub_id == 'zh-plus/tiny-imagenet'
    assert train.resident
    assert create_dataset('tiny_imagenet', 'test', root).class_counts == [1] * 200
    refused('takes no --test-split', 'tiny_imagenet', root, 'test', test_split='test')


def test_the_first_rows_of_a_split_decode_alike(tmp_path):
    root = write_parquet(tmp_path / 'set', LABELS)
    dataset = create_dataset(f'hfds/{root}', 'train', loader='worker')
    # as it travels to a worker
    pixels, kept = decode_images(pickle.loads(pickle.dumps(dataset.encoded)))
    assert len(kept) == 21 and np.array_equal(pixels[0].permute(1, 2, 0), dataset.decode(0))
