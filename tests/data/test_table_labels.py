"""Label columns of tables: names, words and numbers, matched between splits and files."""
import pyarrow as pa
import pytest

from timm_longtail.data import create_splits
from timm_longtail.data.sources.labels import _cached_copy

from ..support.data_sets import GREYS, png, refused, write_named, write_numbers

pytestmark = pytest.mark.usefixtures('private_cache')


def seen_greys(dataset) -> dict[str, set[int]]:
    """Return the greys of the images of each class."""
    found = {}
    for image, label in zip(dataset.images, dataset.targets, strict=True):
        found.setdefault(dataset.class_names[label], set()).add(int(image.float().mean()))
    return found


# ------------------------------------------------------------------------ labels by name

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
    refused(
        r"\(test\), row 1: the label 'emu' is no class of the training split",
        f'hfds/{tmp_path}/set',
        split='test',
    )


@pytest.mark.parametrize('named', ['train', 'test'])
def test_names_on_one_side_and_numbers_on_the_other(tmp_path, named):
    write_numbers(tmp_path / 'set', train=[0, 1], test=[0, 1])
    write_named(tmp_path / 'set' / f'{named}-0', ['cat', 'dog'], ['dog', 'cat'])
    words = rf'class names in .*{named}-0.parquet and plain values in .*-0.parquet: they cannot be matched'
    refused(words, f'hfds/{tmp_path}/set', split='test')


def test_words_and_named_numbers_are_matched_or_refused(tmp_path):
    write_named(tmp_path / 'set' / 'train-0', ['cat', 'dog'], ['dog', 'cat'])
    write_named(tmp_path / 'set' / 'test-0', ['cat', 'dog'], None)
    refused(
        'class names in .*train-0.parquet and plain values in .*test-0',
        f'hfds/{tmp_path}/set',
        split='test',
    )


def test_a_copy_of_a_benchmark_with_other_names_is_refused(tmp_path):
    import datasets

    for split, names in (('train', range(100)), ('test', range(99, -1, -1))):
        features = datasets.Features(
            {'img': datasets.Image(), 'fine_label': datasets.ClassLabel(names=[f'kind {name}' for name in names])})
        rows = {'img': [{'bytes': png(label), 'path': None} for label in range(100)], 'fine_label': [*range(100)]}
        (tmp_path / 'set').mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(
            tmp_path / 'set' / f'{split}-0.parquet'
        )

    refused(
        'test-0.parquet gives other names to the labels of column fine_label',
        'cifar100',
        tmp_path / 'set',
    )


def test_files_on_the_hub_are_looked_for_in_its_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    address = 'hf://datasets/user/set@0123abc/data/train-0.parquet'
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    assert _cached_copy(address) == address and _cached_copy('/a/b.parquet') == '/a/b.parquet'


# ------------------------------------------------------------------------ numbers

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
    (pa.array([0, 2 ** 63], pa.uint64()), pa.array([0], pa.uint64()),
     'label 9223372036854775808 is too large'),
    ([*range(5000, 6500)], [5000], r'\(train\): each of the 1500 rows has a label of its own'),
])
def test_numbers_that_are_no_classes(tmp_path, train, test, words):
    root = write_numbers(tmp_path / 'set', train=train, test=test)
    refused(words, f'hfds/{root}', split='test')
