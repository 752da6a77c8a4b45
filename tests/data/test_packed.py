"""Packed files: what is damaged is noticed, what is old is read, and nothing is overwritten."""
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from timm_longtail.cli import pack
from timm_longtail.data import (
    LongTailDataset,
    create_dataset,
    packed_data,
    read_packed,
    write_packed,
)
from timm_longtail.utils.errors import UserError

from ..support.data_sets import draw, write_classes

TARGETS = {'train': [0, 0, 1, 1, 0, 1], 'test': [1, 0, 1]}


def make_split(split: str, name: str = 'made_lt') -> LongTailDataset:
    targets = np.array(TARGETS[split])
    pixels = np.random.default_rng(len(targets)).integers(
        0, 256, (len(targets), 3, 6, 6), dtype=np.uint8
    )

    return LongTailDataset(
        name=name,
        split=split,
        images=torch.from_numpy(pixels),
        targets=targets,
        class_names=['ant', 'bee'],
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.2, 0.1),
        indices=np.arange(len(targets)) * 2,
        seed=3,
        source_names=[f'{split}/{row}.png' for row in range(len(targets))],
        shot_counts=[3, 3] if split == 'train' else None,
    )


@pytest.fixture(scope='module')
def packed(tmp_path_factory) -> Path:
    """A set that was packed from memory."""
    path = tmp_path_factory.mktemp('packed') / 'set.safetensors'
    return write_packed(path, make_split('train'), make_split('test'), {'license': 'mit'})


@pytest.fixture(scope='module')
def packed_files(tmp_path_factory) -> Path:
    """A set that was packed from files."""
    root = tmp_path_factory.mktemp('files')
    for split in ('train', 'test'):
        write_classes(root / split, {'ant': 3, 'bee': 2}, size=(7, 6))
    return write_packed(
        root / 'set.safetensors',
        *(create_dataset('folder', s, root) for s in ('train', 'test')),
        {},
    )


def read_parts(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    with safe_open(path, framework='numpy') as file:
        metadata = file.metadata()
    return load_file(path), metadata


def to_format_1(path: Path, old: Path) -> Path:
    """Write a packed file as the first version of the format had it."""
    tensors, metadata = read_parts(path)
    kept = {key: value for key, value in tensors.items() if not key.endswith('byte_digests')}
    for key in ('train.names', 'test.names'):
        kept[key] = np.where(kept[key] == 0, ord('\n'), kept[key]).astype(np.uint8)
    del metadata['checksum']
    save_file(kept, old, metadata={**metadata, 'format': 'timm_longtail.packed/1'})

    return old


def content(dataset: LongTailDataset) -> list:
    """Return everything that a run reads of a data set."""
    images = dataset.images if dataset.resident else [dataset.decode(n) for n in range(len(dataset))]
    fields = ('name', 'class_names', 'mean', 'std', 'seed', 'source_names', 'shot_counts', 'imbalance_factor',
              'subset_order', 'original_order', 'profile', 'hub_id', 'hash')

    return [
        np.stack([np.asarray(image) for image in images]).tobytes(), dataset.targets.tolist(),
        dataset.indices.tolist(), *(getattr(dataset, field) for field in fields)]


def read_or_refuse(path: Path, loader: str) -> list | None:
    """Return the content of both splits, None where the file is refused in one line that names it."""
    try:
        return [content(read_packed(path, split, loader)) for split in ('train', 'test')]
    except UserError as error:
        assert '\n' not in str(error) and str(path) in str(error)
        return None


def test_others_can_read_it(packed, tmp_path):
    (tmp_path / 'new').touch()

    assert packed.stat().st_mode == (tmp_path / 'new').stat().st_mode


# ------------------------------------------------------------------------ damage

@pytest.mark.parametrize('loader', ['resident', 'worker'])
def test_a_flipped_bit_is_noticed_or_harmless(packed, tmp_path, loader):
    data, whole = packed.read_bytes(), read_or_refuse(packed, loader)
    random, path = np.random.default_rng(0), tmp_path / 'damaged.safetensors'
    refused = 0
    for position in np.linspace(0, len(data) - 1, 120).astype(int):
        damaged = bytearray(data)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        found = read_or_refuse(path, loader)
        assert found in (None, whole), position
        refused += found is None

    assert refused > 100  # a bit of unused space may change


@pytest.mark.parametrize('share', [0, 1e-3, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_file_that_was_cut_short(packed, tmp_path, share):
    path = tmp_path / 'cut.safetensors'
    path.write_bytes(packed.read_bytes()[:int(share * packed.stat().st_size)])
    assert read_or_refuse(path, 'resident') is None


def change_header(**fields):
    def change(tensors, metadata):
        metadata['data'] = json.dumps({**json.loads(metadata['data']), **fields})

    return change


def drop_field(field):
    def change(tensors, metadata):
        header = json.loads(metadata['data'])
        del header[field]
        metadata['data'] = json.dumps(header)

    return change


def change_tensor(key, function):
    def change(tensors, metadata):
        tensors[f'train.{key}'] = np.ascontiguousarray(function(tensors[f'train.{key}']))

    return change


def change_metadata(**fields):
    def change(tensors, metadata):
        metadata.update(fields)

    return change


def drop_split(tensors, metadata):
    for key in [key for key in tensors if key.startswith('train.')]:
        del tensors[key]


def put(row, value):
    def function(tensor):
        tensor[row] = value
        return tensor

    return function


DAMAGE = {
    'JSON': (change_metadata(data='{"name": '), 'Expecting value'),
    'no object': (change_metadata(data='[]'), 'its header holds no object'),
    'no data': (lambda tensors, metadata: metadata.pop('data'), "'data'"),
    'format': (change_metadata(format='timm_longtail.packed/9'), "its format is 'timm_longtail.packed/9'"),
    'no name': (drop_field('name'), 'its header has no name'),
    'no hash': (drop_field('hash'), 'its header has no hash'),
    'hash': (change_header(hash='a'), 'hash in its header is a, expected one hash a split'),
    'other hash': (change_header(hash={'train': 'a', 'test': 'a'}), 'the hash of train is [0-9a-f]{12}, .* says a'),
    'classes': (change_header(class_names=[]), r'class_names in its header is \[\], expected a list of strings'),
    'a class': (change_header(class_names=['ant', 3]), 'class_names'),
    'mean': (change_header(mean=[0.5, 0.5]), r'mean in its header is \[0.5, 0.5\], expected three numbers'),
    'not a number': (change_header(mean=[0.5, 0.5, float('nan')]), 'expected three numbers'),
    'std': (change_header(std=[0.5, 0.5, 0]), 'expected three numbers above zero'),
    'factor': (change_header(imbalance_factor='100'), 'expected a number of at least 1'),
    'seed': (change_header(seed=1.5), 'seed in its header is 1.5, expected an integer'),
    'shot counts': (change_header(shot_counts=[1]), 'not one count a class'),
    'resident': (change_header(resident=None), 'resident in its header is None, expected true or false'),
    'hub id': (change_header(hub_id=[]), 'hub_id'),
    'falling offsets': (change_tensor('offsets', put(2, 10 ** 6)), 'offsets do not rise from 0 to'),
    'negative offset': (change_tensor('offsets', put(0, -1)), 'offsets do not rise'),
    'last offset': (change_tensor('offsets', lambda offsets: offsets + offsets // offsets[-1]), 'offsets do not rise'),
    'fewer offsets': (change_tensor('offsets', lambda offsets: offsets[:-1]), r'shape \(6,\), expected \(7,\)'),
    'no offsets': (change_tensor('offsets', lambda offsets: offsets[:0]), r'shape \(0,\), expected \(7,\)'),
    'type': (change_tensor('targets', lambda targets: targets.astype(np.int32)), 'int32 of 1 dim.*expected int64 of 1'),
    'shape': (change_tensor('digests', np.ravel), 'uint8 of 1 dimensions, expected uint8 of 2'),
    'digests': (change_tensor('digests', lambda rows: rows[:, :31]), r'shape \(6, 31\), expected \(6, 32\)'),
    'bytes': (change_tensor('bytes', lambda data: data.astype(np.int8)), r'train.bytes is I8 .*, expected U8'),
    'fewer bytes': (change_tensor('bytes', lambda data: data[:-9]), 'offsets do not rise'),
    'label': (change_tensor('targets', put(1, 2)), r'targets lie outside 0\.\.1'),
    'negative label': (change_tensor('targets', put(1, -1)), r'targets lie outside 0\.\.1'),
    'flipped label': (change_tensor('targets', lambda targets: 1 - targets), 'the hash of train is'),
    'names': (change_tensor('names', lambda names: names[:9]), '1 names and 6 labels in train'),
    'no split': (drop_split, 'train.offsets'),
}


@pytest.mark.parametrize('case', DAMAGE)
def test_a_wrong_field_is_named(packed, tmp_path, case):
    change, words = DAMAGE[case]
    # format 1: its fields are checked one by one, with no checksum before them
    tensors, metadata = read_parts(to_format_1(packed, tmp_path / 'old.safetensors'))
    change(tensors, metadata)
    path = tmp_path / 'damaged.safetensors'
    save_file(tensors, path, metadata=metadata)

    for loader in ('resident', 'worker'):
        with pytest.raises(UserError, match=words) as error:
            read_packed(path, 'train', loader)
        assert '\n' not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize('key', ['targets', 'indices', 'names', 'digests', 'byte_digests'])
@pytest.mark.parametrize('kind', ['packed', 'packed_files'])
def test_the_checksum_covers_what_the_hash_does_not(key, kind, tmp_path, request):
    tensors, metadata = read_parts(request.getfixturevalue(kind))
    tensors[f'train.{key}'].ravel()[-1] ^= 1
    path = tmp_path / 'damaged.safetensors'
    save_file(tensors, path, metadata=metadata)

    assert len(read_packed(path, 'test')) > 0
    for use in (packed_data, partial(read_packed, split='train'), partial(read_packed, split='train', loader='worker')):
        with pytest.raises(UserError, match='header and labels of train differ from their checksum'):
            use(path)


def test_a_worker_notices_the_image_that_is_damaged(packed_files, tmp_path):
    tensors, metadata = read_parts(packed_files)
    offsets = tensors['train.offsets']
    tensors['train.bytes'][offsets[3] + 60] ^= 1
    path = tmp_path / 'damaged.safetensors'
    save_file(tensors, path, metadata=metadata)
    dataset = read_packed(path, 'train')

    assert not dataset.resident and dataset.decode(2).size == (7, 6)
    with pytest.raises(UserError, match=r'train row 3 \(bee/00.png\) differs from its digest'):
        dataset.decode(3)


# ------------------------------------------------------------------------ format 1

@pytest.mark.parametrize('kind, loader', [
    ('packed', 'resident'), ('packed', 'worker'), ('packed_files', 'resident'), ('packed_files', 'worker')])
def test_format_1_is_read_and_its_hash_compared(kind, loader, tmp_path, request):
    path = request.getfixturevalue(kind)
    old = to_format_1(path, tmp_path / 'old.safetensors')
    assert read_or_refuse(old, loader) == read_or_refuse(path, loader)

    tensors, metadata = read_parts(old)
    tensors['train.targets'] = 1 - tensors['train.targets']
    save_file(tensors, old, metadata=metadata)
    with pytest.raises(UserError, match='the hash of train is'):
        read_packed(old, 'train', loader)


def test_the_hash_does_not_hang_on_the_format(packed, tmp_path):
    old = to_format_1(packed, tmp_path / 'old.safetensors')
    for split in ('train', 'test'):
        assert read_packed(old, split).hash == read_packed(packed, split).hash == make_split(split).hash


# ------------------------------------------------------------------------ writing

def test_nothing_is_overwritten(packed, tmp_path):
    before = packed.read_bytes()

    with pytest.raises(UserError, match='is there already'):
        write_packed(packed, read_packed(packed, 'train'), read_packed(packed, 'test'), {})

    link = tmp_path / 'link.safetensors'
    link.symlink_to(packed)

    with pytest.raises(UserError, match='is there already'):
        pack.main(['--dataset', f'packed:{packed}', '--packed', str(link)])
    assert packed.read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.replace', refuse)

    with pytest.raises(UserError, match='cannot write .*set.safetensors: No space left on device'):
        write_packed(tmp_path / 'set.safetensors', make_split('train'), make_split('test'), {})
    assert not any(tmp_path.iterdir())


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


@pytest.mark.parametrize('size', [(6, 6), (7, 6)])
def test_unreadable_images_are_reported(tmp_path, capsys, size):
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'ant': 3, 'bee': 2}, size=size)
    (tmp_path / 'train' / 'ant' / '01.png').write_bytes(b'no image')
    command = ['--dataset', 'folder', '--data-dir', str(tmp_path), '--packed', str(tmp_path / 'set.safetensors')]
    with pytest.raises(UserError, match='ant/01.png: not an image'):
        pack.main(command)

    pack.main([*command, '--skip-bad-images'])
    assert 'train: 1 image cannot be read and is left out: ant/01.png' in capsys.readouterr().out
    train = create_dataset(f'packed:{tmp_path}/set.safetensors', 'train')
    assert train.class_counts == train.shot_counts == [2, 2]
    assert 'ant/01.png' not in train.source_names


def test_a_class_without_a_readable_image_is_not_packed(tmp_path):
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'ant': 3, 'bee': 1}, size=(7, 6))
    (tmp_path / 'train' / 'bee' / '00.png').write_bytes(b'no image')

    with pytest.raises(UserError, match=r'class 1 \(bee\) has no image'):
        pack.main(['--dataset', 'folder', '--data-dir', str(tmp_path), '--skip-bad-images', '--packed',
                   str(tmp_path / 'set.safetensors')])
    assert not (tmp_path / 'set.safetensors').exists()


@pytest.mark.parametrize('loader', ['resident', 'worker'])
def test_an_image_that_a_camera_turned_is_the_same_packed(tmp_path, loader):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'ant': 1, 'bee': 1}, 'jpg')
        with Image.open(draw(tmp_path / 'plain.png')) as image:
            image.save(tmp_path / split / 'bee' / '00.jpg', exif=exif)
    folder = ['--dataset', 'folder', '--data-dir', str(tmp_path), '--loader', loader]
    pack.main([*folder, '--packed', str(tmp_path / 'set.safetensors')])
    unpacked = create_dataset('folder', 'train', tmp_path, loader=loader)
    back = create_dataset(f'packed:{tmp_path}/set.safetensors', 'train')

    assert back.resident == unpacked.resident and content(back)[0] == content(unpacked)[0]


def test_names_of_images_may_hold_line_ends(tmp_path):
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'ant': 1, 'bee': 1}, size=(7, 6))
    (tmp_path / 'train' / 'ant' / '00.png').rename(tmp_path / 'train' / 'ant' / 'a\nb.png')
    splits = [create_dataset('folder', split, tmp_path) for split in ('train', 'test')]
    path = write_packed(tmp_path / 'set.safetensors', *splits, {})

    assert read_packed(path, 'train').source_names == ['ant/a\nb.png', 'bee/00.png']


# ------------------------------------------------------------------------ names

@pytest.mark.parametrize('name, title, tag', [
    ('cifar100_lt', 'cifar100_lt', 'cifar100_lt'),
    ('hfds/user/set:large', 'hfds/user/set:large', 'set-large'),
    ('two\nlines\r\x00\x1b[31m', 'two lines 31m', 'two-lines-31m'),
    ('# `code` | <b>', '# code b', '-code-b'),
    ('..', '..', 'data'),
    ('../../etc/passwd', '../../etc/passwd', 'passwd'),
    ('a:b\\c*?"', 'a:b c ?"', 'a-b-c-'),
    ('caf\udce9', 'caf?', 'caf-'),
    ('\u202egnp.exe', 'gnp.exe', 'gnp.exe'),
    ('Größe 3', 'Größe 3', 'Größe-3'),
    ('', 'data', 'data'),
])
def test_names_of_data_sets_are_safe(tmp_path, name, title, tag):
    from timm_longtail.training.rows import data_tag

    path = write_packed(
        tmp_path / 'set.safetensors', make_split('train', name), make_split('test', name), {}
    )
    dataset = read_packed(path, 'train')

    assert dataset.name == title and data_tag(dataset) == tag.lstrip('-')

    # a header of others holds what it likes
    _, metadata = read_parts(path)
    assert packed_data(path)[0] == title
    assert json.loads(metadata['data'])['class_names'] == ['ant', 'bee']


def test_long_names_are_cut():
    from timm_longtail.data.titles import file_title, plain_title
    assert len(plain_title('x' * 1000)) == 200 and plain_title('x' * 200) == 'x' * 200
    assert len(file_title('ä' * 1000).encode()) == 80
