"""Data sets by name: the digits, small folders in CIFAR's layout, packed files, and the real CIFAR-100."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from timm_longtail.data import (
    create_dataset,
    list_datasets,
    long_tail_counts,
    read_packed,
    write_packed,
)
from timm_longtail.data.sources.benchmarks import _CIFAR100
from timm_longtail.data.sources.parquet import DATA_VARIABLE
from timm_longtail.utils.errors import UserError

from ..support import forks
from ..support.data_sets import draw, write_classes

pytestmark = pytest.mark.usefixtures('private_cache')


def draw_images(targets, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (len(targets), 8, 8, 3), dtype=np.uint8)
    return [encode(image) for image in pixels]


def encode(pixels, kind='PNG'):
    import io

    from PIL import Image
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def write_folder(
        folder, targets, images=None, names=4, label='fine_label', splits=('train', 'test'), file_names=None):
    """Write a repository in the layout of CIFAR-100's; `names` None leaves the labels plain integers."""
    from datasets import ClassLabel, Dataset, Features, Image, Value

    kind = Value('int64') if names is None else ClassLabel(names=[f'kind{n}' for n in range(names)])
    images = draw_images(targets) if images is None else images
    file_names = file_names or [f'picture_{row}.png' for row in range(len(images))]
    rows = [{'bytes': data, 'path': path} for path, data in zip(file_names, images, strict=True)]
    (folder / 'cifar100').mkdir(parents=True)
    data = Dataset.from_dict(
        {'img': rows, label: list(targets)}, Features({'img': Image(), label: kind})
    )
    for split in splits:
        data.to_parquet(folder / 'cifar100' / f'{split}-00000-of-00001.parquet')

    return folder


TARGETS = np.random.default_rng(3).permutation(np.repeat(np.arange(4), 20)).tolist()


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / 'data', TARGETS)


# ------------------------------------------------------------------------ digits

def test_digits_need_nothing_and_never_change():
    train, test = (create_dataset('digits_lt', split) for split in ('train', 'test'))

    assert train.images.shape == (492, 3, 32, 32) and train.images.dtype == torch.uint8
    assert train.targets.dtype == np.int64 and train.class_counts[-1] == 7
    assert train.num_classes == 10
    assert train.shot_counts == train.class_counts and test.shot_counts is None
    assert min(test.class_counts) == 34 and len(test) == 355
    # every weight of the up-sampling is a binary fraction: exact anywhere
    assert train.hash == 'da71936075b3'
    assert not set(train.source_names) & set(test.source_names)
    assert train.imbalance_factor == 20
    assert len(create_dataset('digits_lt', 'train', imbalance_factor=1)) == 1442
    assert create_dataset('digits_lt', 'train', seed=1).hash != train.hash


def test_the_constants_are_those_of_the_digits():
    whole = create_dataset('digits_lt', 'train', imbalance_factor=1)
    pixels = whole.images.float() / 255
    assert pixels.mean().item() == pytest.approx(whole.mean[0], abs=1e-4)
    assert pixels.std().item() == pytest.approx(whole.std[0], abs=1e-4)


def test_hold_out_keeps_the_shot_counts_and_the_rows():
    train = create_dataset('digits_lt', 'train')
    rest, held = train.hold_out(0.1, seed=0)

    assert held.class_counts == [max(1, n // 10) for n in train.class_counts]
    assert [a + b for a, b in zip(rest.class_counts, held.class_counts, strict=True)] == train.class_counts
    assert rest.shot_counts == held.shot_counts == train.shot_counts
    assert sorted([*rest.indices, *held.indices]) == sorted(train.indices)

    row = held.indices[5]
    place = train.indices.tolist().index(row)

    assert torch.equal(held.images[5], train.images[place])
    assert held.source_names[5] == train.source_names[place]
    assert np.array_equal(held.digests[5], train.digests[place]) and rest.hash != train.hash


# ------------------------------------------------------------------------ folders

def test_a_folder_is_cut_by_the_rule(folder):
    train = create_dataset('cifar100_lt', 'train', folder, imbalance_factor=10)
    assert train.class_counts == long_tail_counts(20, 4, 10) == train.shot_counts
    assert train.class_names == ['kind0', 'kind1', 'kind2', 'kind3']
    assert train.input_size == (3, 8, 8)
    assert np.array_equal(np.array(TARGETS)[train.indices], train.targets)
    assert train.source_names[0] == f'picture_{train.indices[0]}.png' and not train.original_order
    assert create_dataset('cifar100_lt', 'test', folder).class_counts == [20] * 4
    assert create_dataset('cifar100', 'train', folder).class_counts == [20] * 4


def test_a_benchmark_is_in_memory_unless_workers_are_asked_for(folder):
    small, files = (create_dataset('cifar100_lt', 'train', folder, 10, loader=kind) for kind in ('auto', 'worker'))
    assert small.resident and not files.resident and np.array_equal(small.indices, files.indices)
    assert np.array_equal(small.images[5].permute(1, 2, 0), files.decode(5))
    assert np.array_equal(small.digests, files.digests)


def test_content_order_gives_one_subset_whatever_the_storage(tmp_path, folder):
    order = np.random.default_rng(0).permutation(len(TARGETS))
    images = draw_images(TARGETS)
    other = write_folder(
        tmp_path / 'other', np.array(TARGETS)[order], [images[row] for row in order]
    )

    def digest(place, kind, seed=0):
        return create_dataset('cifar100_lt', 'train', place, 10, seed=seed, subset_order=kind).hash

    assert digest(folder, 'content') == digest(other, 'content') != digest(folder, 'content', seed=1)
    assert digest(folder, 'file') != digest(other, 'file')
    whole = [create_dataset('cifar100', 'train', place).hash for place in (folder, other)]
    assert whole[0] == whole[1]


def test_the_original_order_is_recognised(tmp_path):
    first = _CIFAR100.first_labels['train']
    folder = write_folder(tmp_path / 'data', [*first, *range(100)], names=100)
    assert create_dataset('cifar100', 'train', folder).original_order
    assert not create_dataset('cifar100', 'test', folder).original_order


# a name that images of two classes have, as one in CIFAR-100 is
RELEASE = [f'picture_{row}.png' for row in range(len(TARGETS))]
RELEASE[TARGETS.index(0)] = RELEASE[TARGETS.index(1)] = 'twice.png'
LINES = [f'{name}\t{target}' if name == 'twice.png' else name for name, target in zip(RELEASE, TARGETS)]


@pytest.fixture
def shuffled(tmp_path):
    """A copy that is stored in another order, and the same release in its own."""
    order = np.random.default_rng(0).permutation(len(TARGETS))
    images = draw_images(TARGETS)
    stored = write_folder(
        tmp_path / 'stored', np.array(TARGETS)[order], [images[row] for row in order],
        file_names=[RELEASE[row] for row in order])
    return stored, write_folder(tmp_path / 'release', TARGETS, images, file_names=RELEASE)


def test_a_list_of_names_gives_the_subset_of_the_release(shuffled, tmp_path):
    (tmp_path / 'order.txt').write_text('\n'.join(LINES))
    stored, release = shuffled
    published = create_dataset('cifar100_lt', 'train', release, 10)
    found = create_dataset(
        'cifar100_lt', 'train', stored, 10, subset_order='original', order_file=tmp_path / 'order.txt')
    assert found.hash == published.hash != create_dataset('cifar100_lt', 'train', stored, 10).hash
    assert found.source_names == published.source_names


def test_a_copy_in_the_original_order_needs_no_list(shuffled, monkeypatch):
    monkeypatch.setitem(_CIFAR100.first_labels, 'train', TARGETS[:10])
    published = create_dataset('cifar100_lt', 'train', shuffled[1], 10)
    found = create_dataset('cifar100_lt', 'train', shuffled[1], 10, subset_order='original')
    assert published.original_order and np.array_equal(found.indices, published.indices)


@pytest.mark.parametrize('lines, words', [
    (None, 'not stored in the order of the original release; --subset-order original needs --order-file'),
    (RELEASE, 'several images are called twice.png; put the number of the class behind it'),
    ([*LINES, 'new.png'], 'line 81: this copy has no image new.png'),
    ([*LINES, LINES[5]], 'line 81: this copy has no image .*, or the list names it twice'),
    (LINES[:-2], 'leaves out 2 images of this copy, such as picture_'),
])
def test_an_order_that_does_not_fit(lines, words, shuffled, tmp_path):
    path = None if lines is None else tmp_path / 'order.txt'
    if lines is not None:
        path.write_text('\n'.join(lines))
    with pytest.raises(UserError, match=words):
        create_dataset('cifar100_lt', 'train', shuffled[0], 10, subset_order='original', order_file=path)


def test_the_variable_names_a_folder_of_repositories(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / 'root' / 'uoft-cs' / 'cifar100', TARGETS)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / 'root'))
    before = sorted(folder.rglob('*'))

    assert len(create_dataset('cifar100', 'train')) == len(TARGETS)
    assert sorted(folder.rglob('*')) == before  # nothing is left in the data folder


# ------------------------------------------------------------------------ bad input

@pytest.mark.parametrize('name, nearest', [('cifar10_tl', 'cifar10_lt'), ('digits', 'digits_lt')])
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(UserError, match=f'unknown data set.*{nearest}'):
        create_dataset(name, 'train')


def test_bad_arguments(folder):
    with pytest.raises(UserError, match='unknown split'):
        create_dataset('digits_lt', 'validation')
    with pytest.raises(UserError, match='unknown subset order'):
        create_dataset('digits_lt', 'train', subset_order='name')
    with pytest.raises(UserError, match='factor.*got 0.5'):
        create_dataset('cifar100_lt', 'train', folder, imbalance_factor=0.5)
    with pytest.raises(UserError, match='name cifar100_lt'):
        create_dataset('cifar100', 'train', folder, imbalance_factor=10)
    with pytest.raises(UserError, match='no --data-dir'):
        create_dataset('digits_lt', 'train', folder)


def test_a_folder_without_the_files_says_what_was_looked_for(tmp_path):
    (tmp_path / 'README.md').write_text('empty')
    with pytest.raises(UserError, match=r'looked for \*\*/\*train\*\.parquet.*uoft-cs/cifar100'):
        create_dataset('cifar100_lt', 'train', tmp_path)
    with pytest.raises(UserError, match='no test split'):
        create_dataset(
            'cifar100_lt', 'test', write_folder(tmp_path / 'data', TARGETS, splits=('train',))
        )


def test_a_file_that_is_not_parquet(tmp_path):
    (tmp_path / 'train-0.parquet').write_bytes(b'no table')
    with pytest.raises(UserError, match='cannot load train of') as error:
        create_dataset('cifar100_lt', 'train', tmp_path)
    assert '\n' not in str(error.value)


def test_a_missing_column(tmp_path):
    folder = write_folder(tmp_path / 'data', TARGETS, label='label')
    with pytest.raises(UserError, match="no column 'fine_label'; its columns are img, label"):
        create_dataset('cifar100_lt', 'train', folder)


@pytest.mark.parametrize('label', [-1, 100])
def test_a_label_out_of_range(tmp_path, label):
    folder = write_folder(tmp_path / 'data', [*range(100), label], names=None)
    with pytest.raises(UserError, match=f'row 100 has label {label}, outside 0..99'):
        create_dataset('cifar100', 'train', folder)


def test_an_empty_class_is_named(tmp_path, folder):
    with pytest.raises(UserError, match=r'class 3 \(kind3\) has no image'):
        create_dataset('cifar100_lt', 'train', folder, imbalance_factor=25)
    with pytest.raises(UserError, match=r'class 2 \(kind2\) and 1 more has no image'):
        create_dataset('cifar100', 'train', write_folder(tmp_path / 'two', [0, 1, 0, 1]))


@pytest.mark.parametrize('data', [b'garbage', b'', encode(np.zeros((8, 8, 3), np.uint8))[:-30]])
def test_an_unreadable_image_is_named(tmp_path, data):
    images = draw_images(TARGETS)
    images[7] = data
    folder = write_folder(tmp_path / 'data', TARGETS, images)

    with pytest.raises(UserError, match=r'row 7 \(picture_7.png\)'):
        create_dataset('cifar100', 'train', folder)


def test_images_of_two_sizes(tmp_path):
    images = [encode(np.zeros((8, 8 + (row == 2), 3), np.uint8)) for row in range(4)]
    with pytest.raises(UserError, match=r'row 2 \(picture_2.png\) is 9x8, the first image 8x8'):
        create_dataset('cifar100', 'train', write_folder(tmp_path / 'data', range(4), images))


# ------------------------------------------------------------------------ packed files

@pytest.fixture
def packed(tmp_path, folder):
    train = create_dataset('cifar100_lt', 'train', folder, imbalance_factor=10)
    test = create_dataset('cifar100_lt', 'test', folder, imbalance_factor=10)
    return write_packed(tmp_path / 'set.safetensors', train, test, {'source': 'a test'}), train, test


def test_a_packed_file_gives_back_every_bit(packed):
    path, *written = packed

    for one in written:
        back = create_dataset(f'packed:{path}', one.split)
        assert torch.equal(back.images, one.images) and np.array_equal(back.targets, one.targets)
        assert np.array_equal(back.indices, one.indices)
        assert np.array_equal(back.digests, one.digests)
        for key in ('name', 'hash', 'class_counts', 'shot_counts', 'class_names', 'source_names', 'mean', 'std',
                    'imbalance_factor', 'seed', 'subset_order', 'original_order'):
            assert getattr(back, key) == getattr(one, key), key
    assert [child.name for child in path.parent.iterdir() if 'tmp' in child.name] == []


def test_a_packed_file_cannot_be_cut_again(packed):
    create_dataset(f'packed:{packed[0]}', 'train', imbalance_factor=10)
    with pytest.raises(UserError, match='cannot be cut again'):
        create_dataset(f'packed:{packed[0]}', 'train', imbalance_factor=100)


def test_files_are_packed_byte_for_byte(tmp_path):
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'ant': 3, 'bee': 2}, end='jpg', size=(40, 30))
    draw(tmp_path / 'train' / 'bee' / 'other.png', (50, 60))
    splits = [create_dataset('folder', split, tmp_path) for split in ('train', 'test')]
    path = write_packed(tmp_path / 'photos.safetensors', *splits, {})

    for one in splits:
        back = create_dataset(f'packed:{path}', one.split)
        assert not back.resident and back.hash == one.hash and back.class_names == ['ant', 'bee']
        assert [back.encoded.read([n]) for n in range(len(one))] == [one.encoded.read([n]) for n in range(len(one))]
        assert np.array_equal(back.decode(1), one.decode(1))
        assert np.array_equal(back.digests, one.digests)

    (tmp_path / 'train' / 'ant' / '00.jpg').write_bytes(b'no image')
    splits = [create_dataset('folder', split, tmp_path) for split in ('train', 'test')]

    with pytest.raises(UserError, match='00.jpg: not an image'):  # nothing unreadable is packed
        write_packed(tmp_path / 'bad.safetensors', *splits, {})


def test_what_is_not_a_packed_file(tmp_path, packed):
    path, train, test = packed

    with pytest.raises(UserError, match='no packed data set at'):
        read_packed(tmp_path / 'absent.safetensors', 'train')
    for name, data in (('text', b'not safetensors'), ('cut', path.read_bytes()[:-100])):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match='not a packed data set'):
            read_packed(tmp_path / name, 'train')

    save_file({'weight': torch.zeros(2)}, tmp_path / 'model.safetensors')

    with pytest.raises(UserError, match='is not a packed data set'):
        create_dataset(f'packed:{tmp_path / "model.safetensors"}', 'train')
    with pytest.raises(UserError, match='train and a test split'):
        write_packed(tmp_path / 'x', test, train, {})


def test_a_packed_image_that_differs_from_its_digest(tmp_path, packed):
    _, train, test = packed
    train.digests[3, 0] ^= 1
    path = write_packed(tmp_path / 'bad.safetensors', train, test, {})

    with pytest.raises(UserError, match=r'train row 3 \(picture_\d+.png\) differs from its digest'):
        read_packed(path, 'train')


def test_packed_files_are_read_without_the_heavy_libraries(packed):
    code = f'''
import sys
from timm_longtail.data import create_dataset
assert not set(sys.modules) & {{'datasets', 'sklearn', 'accelerate', 'pyarrow'}}
print(create_dataset({f"packed:{packed[0]}"!r}, 'train').hash)
assert not set(sys.modules) & {{'datasets', 'sklearn', 'accelerate', 'pyarrow'}}
'''
    run = forks.run('-c', code, cwd=forks.ROOT, server=forks.bare())

    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == packed[1].hash


def test_the_names_are_listed():
    assert list_datasets() == [
        'cifar10', 'cifar100', 'cifar100_lt', 'cifar10_lt', 'digits_lt', 'folder', 'hfds/NAME', 'imagenet_lt',
        'inat2018', 'places_lt', 'tiny_imagenet', 'tiny_imagenet_lt', 'packed:FILE.safetensors']


# ------------------------------------------------------------------------ the real thing

def real_cifar100(split, **options):
    root = os.environ.get(DATA_VARIABLE)
    if not root or not (Path(root) / 'uoft-cs' / 'cifar100').is_dir():
        pytest.skip(
            f'needs real CIFAR-100: ${DATA_VARIABLE} names no folder that holds uoft-cs/cifar100',
        )
    return create_dataset('cifar100_lt', split, **options)


def test_real_cifar100_lt_is_the_published_subset_in_size():
    train = real_cifar100('train')
    assert len(train) == 10847 and train.class_counts == long_tail_counts(500, 100, 100)
    assert train.input_size == (3, 32, 32) and train.class_names[:2] == ['apple', 'aquarium_fish']


def test_real_cifar100_by_content_is_one_subset_everywhere():
    assert real_cifar100('train', subset_order='content').hash == '2dff8ad7484b'


def test_real_cifar100_test_set_is_whole():
    test = real_cifar100('test')
    assert test.class_counts == [100] * 100 and test.hash == '9441afb8a325'
