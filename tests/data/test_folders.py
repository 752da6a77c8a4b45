"""Folders of images: which sub-folders are splits and which are classes, and what is not used."""
import os

import pytest

from timm_longtail.data import create_dataset, create_splits
from timm_longtail.utils.errors import UserError

from ..support.data_sets import COUNTS, draw, refused, write_classes

CLASSES = {'ant': 4, 'bee': 3, 'cow': 2}
NOT_UTF8 = os.fsdecode(b'caf\xe9')


def write_splits(root, *names, counts=CLASSES):
    for name in names:
        write_classes(root / name, counts)
    return root


# ------------------------------------------------------------------------ splits

@pytest.mark.parametrize('train, test', [
    ('Train', 'Test'),
    ('TRAIN', 'TEST'),
    ('Training', 'Testing'),
    ('training', 'validation'),
    ('train', 'Valid'),
    ('Train', 'eval'), ('train', 'Evaluation'), ('TRAINING', 'Dev'),
])
def test_splits_are_known_by_their_usual_names(tmp_path, train, test):
    write_splits(tmp_path, train)
    write_splits(tmp_path, test, counts=dict.fromkeys(CLASSES, 1))
    train_set, test_set = create_splits('folder', data_dir=tmp_path)

    assert train_set.class_names == test_set.class_names == list(CLASSES)
    assert train_set.class_counts == [4, 3, 2] and test_set.class_counts == [1, 1, 1]
    assert train_set.note == test_set.note == ''


@pytest.mark.parametrize('there, words', [
    (['Train', 'train', 'test'],
     'has Train and train, one split in two spellings; choose with --train-split'),
    (['train', 'TEST', 'test'],
     'has TEST and test, one split in two spellings; choose with --test-split'),
    (['train', 'training', 'test'],
     'has train and training: choose the training split with --train-split'),
])
def test_a_split_that_is_there_twice(tmp_path, there, words):
    write_splits(tmp_path, *there)
    refused(words, 'folder', tmp_path)
    chosen = create_dataset('folder', 'test', tmp_path, train_split=there[0], test_split=there[-1])
    assert chosen.class_names == list(CLASSES)


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    write_classes(tmp_path, {'Train': 5, 'bus': 5})
    assert create_dataset('folder', 'train', tmp_path).class_names == ['Train', 'bus']


@pytest.mark.parametrize('folders, below, words', [
    (['left', 'right'], ['cat', 'dog'],
     'left, right all hold the same sub-folders, cat, dog, and are no classes'),
    (['cat', 'dog', 'owl'], ['test', 'train'],
     'cat, dog, owl all hold the same sub-folders, test, train'),
    (['photos'], ['test', 'train'], 'one class folder only, photos.*is --data-dir .*photos meant'),
])
def test_a_folder_level_too_high(tmp_path, folders, below, words):
    for folder in folders:
        write_classes(tmp_path / folder, dict.fromkeys(below, 2))
    refused(words, 'folder', tmp_path)


def test_the_images_of_each_class_may_lie_in_a_sub_folder_of_one_name(tmp_path):
    """As in the release of Tiny ImageNet: `CLASS/images/*`."""
    for name in ('ant', 'bee'):
        write_classes(tmp_path / name, {'images': 5})
    assert create_dataset('folder', 'train', tmp_path).class_counts == [4, 4]


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


def test_a_flat_folder_gives_a_fifth_to_the_test(tmp_path):
    write_classes(tmp_path, {'a': 10, 'b': 5, 'train': 1})
    train, test = (create_dataset('folder', split, tmp_path) for split in ('train', 'test'))

    assert train.class_counts == [8, 4, 1] and test.class_counts == [2, 1, 0]
    assert sorted([*train.source_names, *test.source_names]) == [
        f'{name}/{number:02d}.png' for name, count in (('a', 10), ('b', 5), ('train', 1)) for number in range(count)]
    assert train.note == test.note and '20 % of the images of each class' in train.note
    assert create_dataset('folder', 'test', tmp_path).source_names == test.source_names


@pytest.mark.parametrize('files, words', [
    ([], 'has no class folder'),
    (['x.png'], 'has no class folder'),
    (['a/x.png'], 'has one class folder only, a'),
    (['train/x.png'], 'train has no class folder'),
    (['train/x.png', 'test/x.png'], 'test has no class folder'),
    (['train/x.png', 'test/a/x.png'], 'train has no class folder'),
    (['train/a/x.png', 'train/b/x.png'],
     'has train but no test folder: looked for test, testing, val'),
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


# ------------------------------------------------------------------------ what is not used

def test_files_that_are_not_read_are_counted(tmp_path):
    write_splits(tmp_path, 'train', 'test')
    for name in ('1.heic', '2.HEIC', 'scan', 'labels.txt', '.hidden'):
        (tmp_path / 'train' / 'bee' / name).touch()
    (tmp_path / 'test' / 'ant' / '00.png').rename(tmp_path / 'test' / 'ant.png')

    train_set, test_set = create_splits('folder', data_dir=tmp_path)
    assert train_set.class_counts == [4, 3, 2] and test_set.class_counts == [3, 3, 2]
    assert 'train: files not read as images: 2 .heic, 1 .txt, 1 without extension, the first is bee/1.heic (HEIC ' in (
        train_set.note)
    assert 'test: images outside the class folders, not used: 1, the first is ant.png' in train_set.note
    assert '\n' not in train_set.note


def test_a_class_of_other_files_only_says_so(tmp_path):
    write_splits(tmp_path, 'train', 'test')
    for path in (tmp_path / 'train' / 'cow').iterdir():
        path.rename(path.with_suffix('.heic'))
    refused(
        r'class 2 \(cow\) has no image; .*files not read as images: 2 .heic', 'folder', tmp_path
    )


def test_links_to_themselves_and_folders_that_cannot_be_read(tmp_path, monkeypatch):
    write_splits(tmp_path, 'train', 'test')
    for place in (tmp_path / 'loop', tmp_path / 'train' / 'loop', tmp_path / 'train' / 'ant' / 'loop'):
        place.symlink_to(place)
    train_set = create_dataset('folder', 'train', tmp_path)
    assert train_set.class_names == list(CLASSES)
    assert '1 without extension, the first is ant/loop' in train_set.note

    scan = os.scandir

    def deny(path):
        if str(path).endswith('bee'):
            raise PermissionError(13, 'Permission denied')
        return scan(path)
    monkeypatch.setattr(os, 'scandir', deny)
    refused('cannot read the folder .*bee: Permission denied', 'folder', tmp_path)


def test_a_class_name_that_is_no_utf8(tmp_path):
    write_splits(tmp_path, 'train', 'test', counts={'ant': 2, NOT_UTF8: 2})
    for loader in ('resident', 'worker'):
        train_set, test_set = create_splits('folder', data_dir=tmp_path, loader=loader)
        assert train_set.class_names == test_set.class_names == ['ant', NOT_UTF8]
        assert train_set.source_names[-1] == f'{NOT_UTF8}/01.png'
        assert train_set.hash == train_set.hash


# ------------------------------------------------------------------------ for a trained model

KNOWN = ('bee', 'ant', 'owl', 'cow')


def test_classes_of_a_model_take_labels_by_name(tmp_path):
    """A test folder is enough, and may lack classes; the order of the classes is the model's."""
    write_splits(tmp_path, 'Test')
    test_set = create_dataset('folder', 'test', tmp_path, class_names=KNOWN)

    assert test_set.class_names == list(KNOWN) and test_set.class_counts == [3, 4, 0, 2]
    assert [test_set.source_names[row].split('/')[0] for row in (0, 3, 7)] == ['bee', 'ant', 'cow']
    refused(
        "Test has a class 'cow' that the model has not",
        'folder',
        tmp_path,
        'test',
        class_names=('ant', 'bee'),
    )
    refused('has no folder train', 'folder', tmp_path, 'train', class_names=KNOWN)


def test_a_folder_without_splits_is_evaluated_whole(tmp_path):
    write_classes(tmp_path, CLASSES)
    whole = create_dataset('folder', 'test', tmp_path, class_names=KNOWN, whole=True)
    part = create_dataset('folder', 'test', tmp_path, class_names=KNOWN)

    assert whole.class_counts == [3, 4, 0, 2]
    assert 'all of its 9 images are the test split' in whole.note
    assert sum(part.class_counts) < 9 and '20 %' in part.note
    assert set(part.source_names) < set(whole.source_names)


def test_one_class_of_a_model_is_enough(tmp_path):
    write_classes(tmp_path, {'cow': 3})
    assert create_dataset('folder', 'test', tmp_path, class_names=KNOWN, whole=True).class_counts == [0, 0, 0, 3]
    with pytest.raises(UserError, match='one class folder only'):
        create_dataset('folder', 'test', tmp_path, whole=True)
