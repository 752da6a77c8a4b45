"""Folders of images: counts and cuts, what is kept in memory, and which images are listed."""
import os

import numpy as np
import pytest
import torch
from PIL import Image

from timm_longtail.cli import pack
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import create_dataset, long_tail_counts
from timm_longtail.data.sources.folder import list_files
from timm_longtail.training.build import create_datasets
from timm_longtail.utils.errors import UserError

from ..support.data_sets import draw, refused, write_classes

pytestmark = pytest.mark.usefixtures('private_cache')

# ------------------------------------------------------------------------ counts and names

def test_a_folder_keeps_its_counts(folder):
    train, test = (create_dataset('folder', split, folder) for split in ('train', 'test'))
    assert train.class_names == test.class_names == ['ant', 'bee', 'cow']
    assert train.class_counts == train.shot_counts == [12, 6, 3]
    assert train.real_imbalance_factor == 4
    assert test.class_counts == [2, 2, 2] and train.note == test.note == ''
    assert train.source_names[11:13] == ['ant/11.png', 'bee/00.png']


@pytest.mark.parametrize('factor, counts', [(1, [12, 6, 3]), (2, [12, 6, 3]), (6, [12, 4, 2]), (12, [12, 3, 1])])
def test_a_folder_is_cut_on_request(folder, factor, counts):
    train = create_dataset('folder', 'train', folder, imbalance_factor=factor)
    assert train.class_counts == counts == np.minimum(long_tail_counts(12, 3, factor), [12, 6, 3]).tolist()
    assert train.imbalance_factor == factor and train.real_imbalance_factor == 12 / counts[-1]


def test_what_lies_below_a_class(tmp_path):
    hidden, others = ('.hidden.png', '.trash/x.png'), ('Thumbs.db', 'labels.h5')
    for path in ('z.png', 'sub/deep/y.JPG', 'sub/a.png', 'b c.png', *hidden, *others):
        draw((tmp_path / 'a' / path).with_suffix('.png')).rename(tmp_path / 'a' / path)
    write_classes(tmp_path / 'elsewhere', {'d': 2})
    (tmp_path / 'a' / 'link').symlink_to(tmp_path / 'elsewhere' / 'd')

    assert list_files(tmp_path / 'a').images == [
        'b c.png', 'link/00.png', 'link/01.png', 'sub/a.png', 'sub/deep/y.JPG', 'z.png']

    (tmp_path / 'a' / 'sub' / 'loop').symlink_to(tmp_path / 'a')

    with pytest.raises(UserError, match='loop is a link back to'):
        list_files(tmp_path / 'a')


def test_the_order_is_that_of_the_names(tmp_path):
    write_classes(tmp_path, {'b': 2, 'a-b': 2, 'a': 2, 'B': 2, 'a10': 2, 'a9': 2})
    dataset = create_dataset('folder', 'train', tmp_path)
    # as torchvision's ImageFolder
    assert dataset.class_names == ['B', 'a', 'a-b', 'a10', 'a9', 'b']
    assert [name.split('/')[0] for name in dataset.source_names] == dataset.class_names


def test_a_name_that_is_no_utf8(tmp_path):
    write_classes(tmp_path, {'a': 2, 'b': 2}, size=(9, 8))
    before = create_dataset('folder', 'train', tmp_path).hash
    os.rename(tmp_path / 'a' / '00.png', os.fsencode(tmp_path / 'a') + b'/\xe4.png')
    os.rename(tmp_path / 'a' / '01.png', os.fsencode(tmp_path / 'a') + b'/\xe5.png')

    assert create_dataset('folder', 'train', tmp_path).hash != before


# ------------------------------------------------------------------------ decoded or not

@pytest.mark.parametrize('mode, end', [
    ('L', 'png'),
    ('LA', 'png'),
    ('RGBA', 'png'),
    ('P', 'png'),
    ('P', 'gif'),
    ('1', 'png'),
    ('CMYK', 'jpg'),
    ('L', 'jpeg'), ('RGB', 'webp'), ('RGB', 'BMP'),
])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, end):
    path = draw(tmp_path / 'a' / f'x.{end}', mode=mode)
    write_classes(tmp_path, {'b': 4})
    dataset = create_dataset('folder', 'train', tmp_path)

    assert dataset.class_counts == [1, 3] and dataset.images.shape[1:] == (3, 8, 8)
    assert torch.equal(dataset.images[0], torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1))


def test_photos_stay_encoded(tmp_path):
    write_classes(tmp_path / 'train', {'a': 2, 'b': 2}, 'jpg', size=(40, 30))
    write_classes(tmp_path / 'val', {'a': 1, 'b': 1}, 'jpg', size=(30, 40))
    train, test = (create_dataset('folder', split, tmp_path) for split in ('train', 'test'))

    assert not train.resident and train.images is None and train.mean == (0.485, 0.456, 0.406)
    assert train.decode(0).size == (40, 30) and test.decode(1).size == (30, 40)
    assert np.array_equal(train.decode(3), Image.open(tmp_path / 'train' / 'b' / '01.jpg'))

    before = train.hash
    draw(tmp_path / 'train' / 'b' / '01.jpg', (20, 10))

    assert create_dataset('folder', 'train', tmp_path).hash != before


def test_a_small_folder_is_resident_and_measured(folder):
    train = create_dataset('folder', 'train', folder)
    pixels = train.images.double() / 255

    assert train.resident and train.input_size == (3, 8, 8)
    assert train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    assert torch.equal(train.images[12].permute(1, 2, 0), torch.from_numpy(
        np.array(Image.open(folder / 'train' / 'bee' / '00.png'))))


def test_the_size_of_a_small_set_does_not_hang_on_its_first_image(tmp_path):
    write_classes(tmp_path / 'train', {'ant': 3, 'bee': 2})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    (tmp_path / 'train' / 'ant' / '00.png').write_bytes(b'no image')

    with pytest.raises(UserError, match='00.png: not an image'):
        create_dataset('folder', 'train', tmp_path)

    dataset = create_dataset('folder', 'train', tmp_path, skip_bad_images=True)
    assert dataset.resident and dataset.class_counts == [2, 2]
    assert dataset.bad_images == ['ant/00.png']


@pytest.mark.parametrize('place, other', [('train', 'test'), ('test', 'train')])
def test_both_splits_are_kept_alike(place, other, tmp_path):
    write_classes(tmp_path / 'train', {'ant': 3, 'bee': 2})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    draw(tmp_path / place / 'bee' / 'large.png', (9, 9))

    assert create_dataset('folder', other, tmp_path).resident

    args = parse_train_args(['--dataset', 'folder', '--data-dir', str(tmp_path), '--method', 'ce'])

    assert [dataset.resident for dataset in create_datasets(args)] == [False] * 3

    path = tmp_path / 'both.safetensors'
    pack.main(['--dataset', 'folder', '--data-dir', str(tmp_path), '--packed', str(path)])

    assert [create_dataset(f'packed:{path}', split).resident for split in ('train', 'test')] == [False] * 2


def test_a_broken_photo_is_named_when_it_is_read(folder):
    (folder / 'train' / 'bee' / '03.png').write_bytes(b'garbage')
    refused('train/bee/03.png', 'folder', folder)
    kept = create_dataset('folder', 'train', folder, skip_bad_images=True)
    assert kept.bad_images == ['bee/03.png'] and kept.class_counts == [12, 5, 3]
