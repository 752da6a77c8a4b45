"""Where images come from: folders, published lists, whatever `datasets` opens; all of it made up and small."""
import dataclasses
import os
import pickle
import time

import numpy as np
import pytest
import torch
from PIL import Image

from timm_longtail.cli import pack
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import create_dataset, long_tail_counts
from timm_longtail.data.images import decode_images
from timm_longtail.data.sources import lists, registry
from timm_longtail.data.sources.folder import list_files
from timm_longtail.data.sources.hub import choose_image_column, choose_label_column, require_random_access
from timm_longtail.data.sources.parquet import TableImages, load_table
from timm_longtail.training.build import create_datasets
from timm_longtail.utils.errors import UserError


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Keep the small data sets out of the user's cache."""
    import datasets
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


def draw(path, size=(8, 8), mode='RGB', seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def write_classes(root, counts, end='png', size=(8, 8)):
    for label, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number in range(count):
            draw(root / name / f'{number:02d}.{end}', size, seed=100 * label + number)
    return root


COUNTS = {'ant': 12, 'bee': 6, 'cow': 3}


@pytest.fixture
def folder(tmp_path):
    write_classes(tmp_path / 'data' / 'train', COUNTS)
    return write_classes(tmp_path / 'data' / 'test', dict.fromkeys(COUNTS, 2)).parent


def refused(words, name, root=None, split='train', **options):
    with pytest.raises(UserError, match=words) as error:
        create_dataset(name, split, root, **options)
    assert '\n' not in str(error.value)


# ------------------------------------------------------------------------------------------------ folders

def test_a_folder_keeps_its_counts(folder):
    train, test = (create_dataset('folder', split, folder) for split in ('train', 'test'))
    assert train.class_names == test.class_names == ['ant', 'bee', 'cow']
    assert train.class_counts == train.shot_counts == [12, 6, 3] and train.real_imbalance_factor == 4
    assert test.class_counts == [2, 2, 2] and train.note == test.note == ''
    assert train.source_names[11:13] == ['ant/11.png', 'bee/00.png']


@pytest.mark.parametrize('factor, counts', [(1, [12, 6, 3]), (2, [12, 6, 3]), (6, [12, 4, 2]), (12, [12, 3, 1])])
def test_a_folder_is_cut_on_request(folder, factor, counts):
    train = create_dataset('folder', 'train', folder, imbalance_factor=factor)
    assert train.class_counts == counts == np.minimum(long_tail_counts(12, 3, factor), [12, 6, 3]).tolist()
    assert train.imbalance_factor == factor and train.real_imbalance_factor == 12 / counts[-1]


def test_a_small_folder_is_resident_and_measured(folder):
    train = create_dataset('folder', 'train', folder)
    pixels = train.images.double() / 255
    assert train.resident and train.input_size == (3, 8, 8)
    assert train.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert train.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist(), abs=1e-4)
    assert torch.equal(train.images[12].permute(1, 2, 0), torch.from_numpy(
        np.array(Image.open(folder / 'train' / 'bee' / '00.png'))))


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


@pytest.mark.parametrize('mode, end', [
    ('L', 'png'), ('LA', 'png'), ('RGBA', 'png'), ('P', 'png'), ('P', 'gif'), ('1', 'png'), ('CMYK', 'jpg'),
    ('L', 'jpeg'), ('RGB', 'webp'), ('RGB', 'BMP'),
])
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, end):
    path = draw(tmp_path / 'a' / f'x.{end}', mode=mode)
    write_classes(tmp_path, {'b': 4})
    dataset = create_dataset('folder', 'train', tmp_path)
    assert dataset.class_counts == [1, 3] and dataset.images.shape[1:] == (3, 8, 8)
    assert torch.equal(dataset.images[0], torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1))


def test_the_size_of_a_small_set_does_not_hang_on_its_first_image(tmp_path):
    write_classes(tmp_path / 'train', {'ant': 3, 'bee': 2})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    (tmp_path / 'train' / 'ant' / '00.png').write_bytes(b'no image')
    with pytest.raises(UserError, match='00.png: not an image'):
        create_dataset('folder', 'train', tmp_path)
    dataset = create_dataset('folder', 'train', tmp_path, skip_bad_images=True)
    assert dataset.resident and dataset.class_counts == [2, 2] and dataset.bad_images == ['ant/00.png']


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


def test_part_of_a_set_is_packed(tmp_path):
    whole = create_dataset('digits_lt', 'train', imbalance_factor=20)
    for name, options in {'a': [], 'b': [], 'c': ['--data-seed', '1']}.items():
        pack.main(['--dataset', 'digits_lt', '--imbalance-factor', '20', '--images-per-class', '30', '--packed',
                   str(tmp_path / f'{name}.safetensors'), *options])
    part, again, other = (create_dataset(f'packed:{tmp_path}/{name}.safetensors', 'train') for name in 'abc')
    assert part.class_counts == part.shot_counts == [min(count, 30) for count in whole.class_counts]
    assert part.hash == again.hash != other.hash
    assert {*map(bytes, part.digests)} <= {*map(bytes, whole.digests)}
    with pytest.raises(UserError, match='--images-per-class must be at least 1, got 0'):
        pack.main(['--dataset', 'digits_lt', '--images-per-class', '0', '--packed', str(tmp_path / 'd.safetensors')])


def test_a_flat_folder_gives_a_fifth_to_the_test(tmp_path):
    write_classes(tmp_path, {'a': 10, 'b': 5, 'train': 1})
    train, test = (create_dataset('folder', split, tmp_path) for split in ('train', 'test'))
    assert train.class_counts == [8, 4, 1] and test.class_counts == [2, 1, 0]
    assert sorted([*train.source_names, *test.source_names]) == [
        f'{name}/{number:02d}.png' for name, count in (('a', 10), ('b', 5), ('train', 1)) for number in range(count)]
    assert train.note == test.note and '20 % of the images of each class' in train.note
    assert create_dataset('folder', 'test', tmp_path).source_names == test.source_names


@pytest.mark.parametrize('there, taken', [
    (['val'], 'val'), (['valid'], 'valid'), (['validation', 'valid'], 'validation'), (['val', 'test'], 'test')])
def test_the_test_folder_is_the_first_of_the_usual_names(tmp_path, there, taken):
    write_classes(tmp_path / 'train', COUNTS)
    for name in there:
        write_classes(tmp_path / name, {'ant': 1 + (name == taken)})
    test = create_dataset('folder', 'test', tmp_path)
    assert test.class_counts == [2, 0, 0]
    assert (f'{taken} is the test split' in test.note) == (len(there) > 1)


def test_the_splits_may_be_named(folder):
    write_classes(folder / 'extra', {'ant': 1, 'bee': 1})
    assert create_dataset('folder', 'test', folder, test_split='extra').class_counts == [1, 1, 0]
    assert create_dataset('folder', 'train', folder, train_split='extra').class_counts == [1, 1]
    refused("class 'cow' that", 'folder', folder, 'test', train_split='extra')
    refused("no split 'dev'; it has extra, test, train", 'folder', folder, test_split='dev')
    refused("'train' is the training split", 'folder', folder, test_split='train')
    refused('no folder dev; it has extra', 'folder', folder, train_split='dev')


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
    assert dataset.class_names == ['B', 'a', 'a-b', 'a10', 'a9', 'b']  # as torchvision's ImageFolder
    assert [name.split('/')[0] for name in dataset.source_names] == dataset.class_names


def test_a_name_that_is_no_utf8(tmp_path):
    write_classes(tmp_path, {'a': 2, 'b': 2}, size=(9, 8))
    before = create_dataset('folder', 'train', tmp_path).hash
    os.rename(tmp_path / 'a' / '00.png', os.fsencode(tmp_path / 'a') + b'/\xe4.png')
    os.rename(tmp_path / 'a' / '01.png', os.fsencode(tmp_path / 'a') + b'/\xe5.png')
    assert create_dataset('folder', 'train', tmp_path).hash != before


@pytest.mark.parametrize('files, words', [
    ([], 'has no class folder'),
    (['x.png'], 'has no class folder'),
    (['a/x.png'], 'has one class folder only, a'),
    (['train/x.png'], 'train has no class folder'),
    (['train/x.png', 'test/x.png'], 'test has no class folder'),
    (['train/x.png', 'test/a/x.png'], 'train has no class folder'),
    (['train/a/x.png', 'train/b/x.png'], 'has train but no test folder: looked for test, testing, val'),
    (['test/a/x.png', 'other/a/x.png'], 'has no folder train; it has other, test'),
    (['train/a/x.txt', 'train/b/.x.png', 'test/a/x.png'], 'train holds no image'),
    (['a/x.txt', 'b/x.txt'], 'holds no image'),
    (['train/a/x.png', 'train/b/x.txt', 'test/a/x.png'], r'class 1 \(b\) has no image'),
])
def test_a_folder_that_is_not_one(tmp_path, files, words):
    for path in files:
        draw(tmp_path / 'data' / (path.removesuffix('txt') + 'png' * path.endswith('txt'))).rename(
            tmp_path / 'data' / path)
    (tmp_path / 'data').mkdir(exist_ok=True)
    refused(words, 'folder', tmp_path / 'data')


def test_a_folder_has_to_be_named(tmp_path, folder):
    refused('folder needs --data-dir', 'folder')
    refused('absent is not a folder', 'folder', tmp_path / 'absent')
    refused('folder takes no --input-key', 'folder', folder, input_key='image')
    write_classes(folder / 'test', {'yak': 1})
    refused("a class 'yak' that .*train has not", 'folder', folder, 'test')


def test_a_broken_photo_is_named_when_it_is_read(folder):
    (folder / 'train' / 'bee' / '03.png').write_bytes(b'garbage')
    refused('train/bee/03.png', 'folder', folder)
    kept = create_dataset('folder', 'train', folder, skip_bad_images=True)
    assert kept.bad_images == ['bee/03.png'] and kept.class_counts == [12, 5, 3]


# ------------------------------------------------------------------------------------------------ lists

SPEC = lists.ListSpec(
    name='Made-LT', folder='Made_LT', files={'train': 'Made_train.txt', 'test': 'Made_test.txt'},
    totals={'train': 20, 'test': 6}, num_classes=3, name_depth=1, origin='the lists of nobody')
TRAIN = [f'train/kind {label}/{n}.jpg {label}' for label, count in ((2, 12), (0, 5), (1, 3)) for n in range(count)]
TEST = [f'val/{number}.jpg {number % 3}' for number in range(6)]


@pytest.fixture
def listed(tmp_path, monkeypatch):
    root = tmp_path / 'images'
    for line in TRAIN + TEST:
        draw(root / line.rsplit(maxsplit=1)[0], (12, 8), seed=len(line))
    write_list(root, 'train', TRAIN)
    write_list(root, 'test', TEST)
    monkeypatch.setitem(registry.REGISTRY, 'made_lt', registry.RegisteredDataset(
        lambda split, options: lists.load_list(SPEC, split, options), 1.))
    return root


def write_list(root, split, lines):
    (root / SPEC.files[split]).write_text('\n'.join(lines) + '\n')


def test_a_list_names_images_and_labels(listed):
    train, test = (create_dataset('made_lt', split, listed) for split in ('train', 'test'))
    assert train.class_counts == [5, 3, 12] and test.class_counts == [2, 2, 2] and train.shot_counts == [5, 3, 12]
    assert train.class_names == test.class_names == ['kind 0', 'kind 1', 'kind 2']
    assert train.source_names[0] == 'train/kind 2/0.jpg' and train.targets[0] == 2
    assert not train.resident and train.decode(4).size == (12, 8)
    refused('cannot be cut by a factor of 10', 'made_lt', listed, imbalance_factor=10)


def test_lists_may_lie_in_the_folder_of_their_release(listed):
    (listed / 'Made_LT').mkdir()
    for name in SPEC.files.values():
        (listed / name).rename(listed / 'Made_LT' / name)
    assert len(create_dataset('made_lt', 'train', listed)) == 20
    (listed / 'Made_LT' / 'Made_test.txt').unlink()
    refused(r'no list at .*Made_test.txt or .*Made_LT/Made_test.txt; .*lists of nobody', 'made_lt', listed, 'test')


@pytest.mark.parametrize('row, line, words', [
    (4, 'train/kind 2/4.jpg', 'line 5: the label .*4.jpg.* is no integer'),
    (4, 'train/one.jpg', 'line 5: expected `path label`, got .train/one.jpg.'),
    (4, '', 'line 5: expected `path label`'),
    (4, 'train/kind 2/4.jpg two', "line 5: the label 'two' is no integer"),
    (4, 'train/kind 2/4.jpg 3', r'line 5: label 3 lies outside 0\.\.2'),
    (4, 'train/kind 2/4.jpg -1', r'line 5: label -1 lies outside 0\.\.2'),
    (4, 'train/kind 2/3.jpg 2', 'line 5: train/kind 2/3.jpg is there already, in line 4'),
    (4, '/train/kind 2/4.jpg 2', 'line 5: /train/kind 2/4.jpg is no path below'),
    (4, 'train/../kind 2/4.jpg 2', 'line 5: .* is no path below'),
    (4, None, 'has 19 lines, the published list of Made-LT 20'),
    (4, 'train/kind 2/40.jpg 2', 'line 5: .*train/kind 2/40.jpg is not there; 1 of 20 images are missing'),
    (4, 'other/4.jpg 2', 'line 5: .*other/4.jpg is not there; 1 of 20'),
    (4, 'train/kind 2/4.jpg/x.jpg 2', 'line 5: .*x.jpg is not there; 1 of 20'),
])
def test_a_wrong_line_is_named(listed, row, line, words):
    write_list(listed, 'train', TRAIN[:row] + [line] * (line is not None) + TRAIN[row + 1:])
    refused(f'Made_train.txt.* {words}', 'made_lt', listed)


def test_other_faults_of_a_list(listed, tmp_path):
    (listed / 'val' / '2.jpg').unlink()
    (listed / 'val' / '4.jpg').unlink()
    refused('Made_test.txt, line 3: .*val/2.jpg is not there; 2 of 6 images', 'made_lt', listed, 'test')
    assert len(create_dataset('made_lt', 'train', listed)) == 20
    write_list(listed, 'test', [line[:-1] + '1' for line in TEST])
    refused('Made_test.txt: 2 of 3 classes have no image, the first is 0', 'made_lt', listed, 'test')
    refused('Made-LT: needs --data-dir', 'made_lt')
    refused('Made-LT: --data-dir .*absent is not a folder', 'made_lt', tmp_path / 'absent')
    refused('Made-LT takes no --test-split', 'made_lt', listed, test_split='val')


@pytest.mark.parametrize('name, files', [
    ('imagenet_lt', 'ImageNet_LT_train.txt or .*ImageNet_LT/ImageNet_LT_train.txt.*OLTR'),
    ('places_lt', 'Places_LT_train.txt or .*Places_LT/Places_LT_train.txt.*OLTR'),
    ('inat2018', 'iNaturalist18_train.txt or .*iNaturalist18/iNaturalist18_train.txt.*Kang'),
])
def test_the_published_lists_are_looked_for(tmp_path, name, files):
    refused(files, name, tmp_path)


@pytest.mark.parametrize('depth, folders, names', [
    (1, ['train/n01', 'train/n02'], ['n01', 'n02']),
    (2, ['data/a/attic', 'data/f/field/wild'], ['attic', 'field/wild']),
    (2, ['data/a/attic', 'data/b/attic'], ['0', '1']),
    (2, ['data/a', 'data/b'], ['0', '1']),
])
def test_folders_name_the_classes(depth, folders, names):
    paths = [f'{folder}/{n}.jpg' for folder in folders for n in range(2)]
    spec = dataclasses.replace(SPEC, num_classes=2, name_depth=depth)
    assert lists._name_classes(paths, np.repeat([0, 1], 2), spec) == names
    assert lists._name_classes(paths + ['x/y/z/0.jpg'], np.array([0, 0, 1, 1, 0]), spec)[0] == '0'


def test_a_long_list_is_checked_by_folder(listed, monkeypatch):
    looked = []
    list_folder = os.listdir
    monkeypatch.setattr(os, 'listdir', lambda path: looked.append(path) or list_folder(path))
    create_dataset('made_lt', 'train', listed)
    assert len(looked) == 3


# ------------------------------------------------------------------------------------------------ what `datasets` opens

def write_parquet(root, splits, image='image', label='label', kind=None, with_image=True, **columns):
    """Write a repository: a list of labels a split, an 8x8 image each."""
    import datasets
    root.mkdir(parents=True)
    drawn = draw(root.parent / 'drawn.png').read_bytes()
    for name, labels in splits.items():
        kind = kind or datasets.ClassLabel(names=['ant', 'bee', 'cow'])
        rows = [{'bytes': drawn, 'path': f'{row}.png'} for row in range(len(labels))]
        features = {image: datasets.Image(), label: kind, **dict.fromkeys(columns, kind)}
        data = {image: rows, label: labels, **dict.fromkeys(columns, labels)}
        if not with_image:
            features[image] = datasets.Value('binary')
            data[image] = [drawn] * len(labels)
        table = datasets.Dataset.from_dict(data, datasets.Features(features))
        table.to_parquet(root / f'{name}-00000-of-00001.parquet')
    return root


LABELS = {'train': [0, 1, 2, 0, 0, 1, 0] * 3, 'test': [0, 1, 2, 2]}


def test_a_folder_of_parquet(tmp_path):
    root = write_parquet(tmp_path / 'set', LABELS)
    train, test = (create_dataset(f'hfds/{root}', split) for split in ('train', 'test'))
    assert train.class_counts == [12, 6, 3] and test.class_counts == [1, 1, 2] and train.resident
    assert train.class_names == ['ant', 'bee', 'cow'] and train.hub_id is None and train.note == test.note == ''
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
    (('test', 'validation'), None, 'test'), (('validation',), None, 'validation'), (('dev',), None, 'dev'),
    (('test', 'dev'), 'dev', 'dev'),
])
def test_a_test_split_is_found(tmp_path, names, asked, taken):
    splits = {name: [0, 1, 2, 2] if name == taken else [0] for name in names}
    if 'dev' in names:  # `datasets` takes a folder's word for it where the card says so
        root = write_parquet(tmp_path / 'set', {'train': [0, 1, 2], **splits})
        files = '\n'.join(f'  - split: {name}\n    path: {name}-*' for name in ('train', *names))
        (root / 'README.md').write_text(f'---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n')
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
    root = write_parquet(tmp_path / 'set', {'train': labels, 'test': labels[:1] * 2}, kind=datasets.Value(kind))
    train, test = (create_dataset(f'hfds/{root}', split) for split in ('train', 'test'))
    assert train.class_names == test.class_names == names and sorted(train.class_counts) == [1, 1, 2]
    assert test.targets.tolist() == [train.targets[0]] * 2


@pytest.mark.parametrize('kind, train, test, words', [
    (None, [0, 1, 2], [-1, -1], r'\(test\): the labels are hidden, all are -1.*--test-split'),
    ('int64', [0, 1], [0, 2], r'label 2 is none of the 2 classes of .*\(train\)'),
    ('string', ['a', 'b'], ['a', 'c'], r"\(test\), row 1: the label 'c' is no class of the training split"),
    ('string', ['a', 'b'], ['a', None], 'row 1: the label None is missing'),
    ('int64', [0, 1], [0, None], r'\(test\): 1 of 2 rows have no label'),
    ('float32', [0, 1], [0, 1], 'column label holds float32, not one integer'),
])
def test_labels_that_are_none(tmp_path, kind, train, test, words):
    import datasets
    root = write_parquet(tmp_path / 'set', {'train': train, 'test': test}, kind=kind and datasets.Value(kind))
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
    assert train.class_counts == [12, 6, 3] and train.input_size == (3, 8, 8) and train.source_names[1] == 'row 1'


def test_a_choice_of_columns_is_left_to_the_user(tmp_path):
    root = write_parquet(tmp_path / 'set', LABELS, 'photo', 'fine', coarse=True)
    refused('several label columns, fine, coarse: choose one with --target-key', f'hfds/{root}')
    assert create_dataset(f'hfds/{root}', 'train', target_key='coarse').class_counts == [12, 6, 3]
    refused("no column 'x'; its columns are photo, fine, coarse", f'hfds/{root}', target_key='x')
    refused("no column 'x'; its columns are photo", f'hfds/{root}', target_key='fine', input_key='x')
    refused(r'column coarse holds ClassLabel\(.*, not encoded images', f'hfds/{root}', input_key='coarse')
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


@pytest.mark.parametrize('name, words', [
    ('hfids/user/set', 'hfids/ streams .*random access.*hfds/USER/SET'),
    ('wds/user/set', 'wds/ streams .*random access.*--dataset folder'),
    ('tfds/mnist', 'tfds/ .*is not read here.*hfds/USER/SET'),
    ('torch/cifar10', 'torch/ .*is not read here.*--dataset folder'),
    ('hfds/', 'behind the slash is missing'),
    ('hfds/a/b/c', 'a/b/c is neither a folder nor a Hub repository'),
    ('hfds//absent', '/absent is neither a folder'),
])
def test_names_that_are_not_served(name, words):
    refused(words, name)


def test_a_folder_is_named_once(tmp_path):
    refused('is a folder already: leave --data-dir', f'hfds/{tmp_path}', tmp_path)
    refused('x is not a folder: --data-dir is a copy of the Hub repository user/set', 'hfds/user/set', tmp_path / 'x')
    (tmp_path / 'empty').mkdir()
    refused('cannot load the splits of .*empty', f'hfds/{tmp_path / "empty"}')


def test_a_stream_is_refused(tmp_path):
    import datasets
    stream = datasets.Dataset.from_dict({'label': [0]}).to_iterable_dataset()
    for splits in (stream, datasets.IterableDatasetDict({'train': stream})):
        with pytest.raises(UserError, match='opens as a stream.*random access'):
            require_random_access(splits, 'user/set')


def test_a_hub_that_does_not_answer_is_given_up_soon(tmp_path, monkeypatch):
    import datasets
    monkeypatch.setattr(datasets.config, 'HF_ENDPOINT', 'http://127.0.0.1:9')
    start = time.monotonic()
    for name in ('hfds/nobody/nothing', 'tiny_imagenet'):
        refused('not in the cache, and the Hub cannot be reached.*--data-dir or', name)
    assert time.monotonic() - start < 10 and not datasets.config.HF_HUB_OFFLINE


# ------------------------------------------------------------------------------------------------ tables

def make_table(rows):
    import datasets
    images = [{'bytes': bytes(row), 'path': f'a/{row}.png'} for row in range(rows)]
    images[3] = None
    images[5] = {'bytes': b'xyz', 'path': None}
    return datasets.Dataset.from_dict({'image': images}, datasets.Features({'image': datasets.Image()}))


@pytest.mark.parametrize('arrange', [
    lambda table: table,
    lambda table: table.select(np.arange(40)[::-1]).select(np.arange(40)[::-1]),
])
def test_sizes_and_names_of_a_table(arrange, monkeypatch):
    monkeypatch.setattr(TableImages, 'block_size', 7)
    import datasets
    chunked = datasets.concatenate_datasets([make_table(40).select(range(11)), make_table(40).select(range(11, 40))])
    images = TableImages(arrange(chunked), 'image', 'place')
    sizes = [0 if row == 3 else 3 if row == 5 else row for row in range(40)]
    names = [f'row {row}' if row in (3, 5) else f'{row}.png' for row in range(40)]
    assert images.sizes().tolist() == sizes and images.names() == names
    rows = np.array([39, 3, 5, 0, 12, 3, 13])
    some = images.take(rows)
    assert some.sizes().tolist() == [sizes[row] for row in rows] and some.names() == [names[row] for row in rows]
    assert some.describe(4) == 'place, row 12 (12.png)' and images.take(rows[:0]).sizes().dtype == np.int64
    assert [len(data or b'') for data in some.read(range(len(rows)))] == some.sizes().tolist()


def test_tiny_imagenet_is_read_from_a_copy(tmp_path):
    import datasets
    kind = datasets.ClassLabel(names=[f'n{label:03d}' for label in range(200)])
    root = write_parquet(tmp_path / 'set', {'train': [*range(200), *range(200)], 'valid': [*range(200)]}, kind=kind)
    train = create_dataset('tiny_imagenet_lt', 'train', root, imbalance_factor=2)
    assert train.class_counts == [2, *[1] * 199] and train.hub_id == 'zh-plus/tiny-imagenet' and train.resident
    assert create_dataset('tiny_imagenet', 'test', root).class_counts == [1] * 200
    refused('takes no --test-split', 'tiny_imagenet', root, 'test', test_split='test')


def test_the_first_rows_of_a_split_decode_alike(tmp_path):
    root = write_parquet(tmp_path / 'set', LABELS)
    dataset = create_dataset(f'hfds/{root}', 'train', loader='worker')
    pixels, kept = decode_images(pickle.loads(pickle.dumps(dataset.encoded)))  # as it travels to a worker
    assert len(kept) == 21 and np.array_equal(pixels[0].permute(1, 2, 0), dataset.decode(0))
