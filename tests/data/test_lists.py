"""Benchmarks that are a folder of images and published lists; the lists here are made up and small."""
import dataclasses
import os

import numpy as np
import pytest

from timm_longtail.data import create_dataset
from timm_longtail.data.sources import lists, registry

from ..support.data_sets import draw, refused

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
    assert train.class_counts == [5, 3, 12] and test.class_counts == [2, 2, 2]
    assert train.shot_counts == [5, 3, 12]
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
    refused(
        r'no list at .*Made_test.txt or .*Made_LT/Made_test.txt; .*lists of nobody',
        'made_lt',
        listed,
        'test',
    )


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
    (4, 'train/kind 2/40.jpg 2',
     'line 5: .*train/kind 2/40.jpg is not there; 1 of 20 images are missing'),
    (4, 'other/4.jpg 2', 'line 5: .*other/4.jpg is not there; 1 of 20'),
    (4, 'train/kind 2/4.jpg/x.jpg 2', 'line 5: .*x.jpg is not there; 1 of 20'),
])
def test_a_wrong_line_is_named(listed, row, line, words):
    write_list(listed, 'train', TRAIN[:row] + [line] * (line is not None) + TRAIN[row + 1:])
    refused(f'Made_train.txt.* {words}', 'made_lt', listed)


def test_other_faults_of_a_list(listed, tmp_path):
    (listed / 'val' / '2.jpg').unlink()
    (listed / 'val' / '4.jpg').unlink()

    refused(
        'Made_test.txt, line 3: .*val/2.jpg is not there; 2 of 6 images',
        'made_lt',
        listed,
        'test',
    )
    assert len(create_dataset('made_lt', 'train', listed)) == 20

    write_list(listed, 'test', [line[:-1] + '1' for line in TEST])

    refused(
        'Made_test.txt: 2 of 3 classes have no image, the first is 0', 'made_lt', listed, 'test'
    )
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
