"""Checkpoints on disk: whole after a crash at any moment, refused when damaged or when they could run code, readable by
timm; and weights of other programs."""
import logging
import os
import pickle
import zipfile
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_longtail.methods import create_method
from timm_longtail.training import checkpoint
from timm_longtail.training.checkpoint import (
    find_checkpoint,
    load_method_state,
    method_state,
    read_checkpoint,
    read_part,
    write_checkpoint,
)
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import BEST, LAST, PREVIOUS

from ..support.plain_values import assert_same


def state(epoch):
    """Return the least that resuming reads, of a network of one tensor."""
    return {
        'epoch': epoch, 'step': 0, 'arch': 'some_net',
        'state_dict': {'weight': torch.full((50, 50), float(epoch))}, 'method_state': {},
        'optimizer': {}, 'optimizers': [], 'args': {'method_kwargs': {}}, 'about': {}, 'protocol': {},
        'tree_hashes': [], 'seconds': 0.0, 'history': [{}] * epoch, 'best': None,
    }


def epochs_on_disk(folder):
    return {path.name: read_checkpoint(path)['epoch'] for path in folder.glob('*.pth.tar')}


def small_method(name='ce', **kwargs):
    options = dict(dict(num_classes=4, layers=(1, 1, 1), channels=(8, 16, 32)), **kwargs)
    return create_method(name, timm.create_model('resnet20_cifar', **options), [1] * options['num_classes'])


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_the_former_file_becomes_the_previous_one(tmp_path):
    for epoch in range(3):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    write_checkpoint(state(1), tmp_path / BEST)
    write_checkpoint(state(2), tmp_path / BEST)
    assert epochs_on_disk(tmp_path) == {LAST: 2, PREVIOUS: 1, BEST: 2}
    assert {path.name for path in tmp_path.iterdir()} == {LAST, PREVIOUS, BEST}  # no temporary file stays
    path, content = find_checkpoint(tmp_path)
    assert path == tmp_path / LAST and torch.equal(content['state_dict']['weight'], state(2)['state_dict']['weight'])


@pytest.mark.parametrize('keep_previous', [True, False])
@pytest.mark.parametrize('failing', ['save', 'fsync', 'replace 1', 'replace 2'])
def test_a_crash_while_writing_leaves_a_whole_file(failing, keep_previous, tmp_path, monkeypatch):
    for epoch in (1, 2):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    replaced = []

    def save(content, f):
        f.write(b'PK half a file')
        raise SystemError('killed')

    def fsync(descriptor):
        raise SystemError('killed')

    def replace(source, target, original=os.replace):
        replaced.append(target)
        if len(replaced) == int(failing.split()[-1]):
            raise SystemError('killed')
        original(source, target)

    with monkeypatch.context() as patch:
        if failing == 'save':
            patch.setattr(checkpoint.torch, 'save', save)
        elif failing == 'fsync':
            patch.setattr(checkpoint.os, 'fsync', fsync)
        else:
            patch.setattr(checkpoint.os, 'replace', replace)
        if failing == 'replace 2' and not keep_previous:
            write_checkpoint(state(3), tmp_path / LAST)
            assert epochs_on_disk(tmp_path) == {LAST: 3, PREVIOUS: 1} and len(replaced) == 1
            return
        with pytest.raises(SystemError, match='killed'):
            write_checkpoint(state(3), tmp_path / LAST, keep_previous=keep_previous)
    # between the two renames the newest whole file is the previous one
    assert epochs_on_disk(tmp_path) == ({PREVIOUS: 2} if failing == 'replace 2' else {LAST: 2, PREVIOUS: 1})
    assert find_checkpoint(tmp_path)[1]['epoch'] == 2
    write_checkpoint(state(4), tmp_path / LAST, keep_previous=keep_previous)  # what was left over is in nobody's way
    assert find_checkpoint(tmp_path)[1]['epoch'] == 4
    assert not list(tmp_path.glob('*.tmp'))


def test_the_bytes_are_on_disk_before_the_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(checkpoint.os, 'fsync', lambda *args: calls.append('fsync') or fsync(*args))
    monkeypatch.setattr(checkpoint.os, 'replace', lambda *args: calls.append('replace') or replace(*args))
    write_checkpoint(state(0), tmp_path / LAST)
    assert calls[:2] == ['fsync', 'replace']


def truncate(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:int(len(content) * size) if isinstance(size, float) else size])


@pytest.mark.parametrize('size', [0, 1, 2, 100, 0.5, 0.99, -1])
def test_a_truncated_file_falls_back_to_the_previous(size, tmp_path, caplog):
    for epoch in (1, 2):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    truncate(tmp_path / LAST, size)
    with pytest.raises(UserError, match=f'{LAST} is truncated'):
        read_checkpoint(tmp_path / LAST)
    with caplog.at_level(logging.WARNING, logger='timm_longtail'):
        path, content = find_checkpoint(tmp_path)
    assert path == tmp_path / PREVIOUS and content['epoch'] == 1
    assert len(caplog.messages) == 1
    assert LAST in caplog.messages[0] and 'falling back to the previous checkpoint' in caplog.messages[0]


def test_two_broken_files_are_an_error_and_none_is_not(tmp_path):
    assert find_checkpoint(tmp_path) is None
    for epoch in (1, 2):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    for name in (LAST, PREVIOUS):
        truncate(tmp_path / name, 0.5)
    with pytest.raises(UserError, match='is truncated'):
        find_checkpoint(tmp_path)
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(UserError, match=f'{LAST} is truncated'):
        find_checkpoint(tmp_path)
    with pytest.raises(UserError, match='no checkpoint at'):
        read_checkpoint(tmp_path / PREVIOUS)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('protocol', [2, 4])
@pytest.mark.parametrize('write', ['torch.save', 'torch.save, legacy', 'pickle.dump'])
def test_a_pickle_with_an_object_is_refused_and_not_run(write, protocol, tmp_path):
    path, canary = tmp_path / LAST, tmp_path / 'canary'
    content = {'epoch': 1, 'state_dict': {'weight': Canary(canary)}}
    if write == 'pickle.dump':
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization='legacy' not in write)
    with pytest.raises(UserError, match='refused: it is a pickle that holds more than tensors and plain types'):
        read_checkpoint(path)
    assert not canary.exists()
    pickle.loads(pickle.dumps(content, protocol))  # the canary sings when it is let
    assert canary.exists()


@pytest.mark.parametrize('content, words', [
    (torch.zeros(3), 'it holds a Tensor'),
    ([1, 2], 'it holds a list'),
    ({'epoch': 3}, 'it holds no weights'),
    ({'weight': torch.zeros(3)}, 'it holds weights only, which --initial-checkpoint takes'),
    ({'model': {'weight': torch.zeros(3)}}, 'it holds weights only, which --initial-checkpoint takes'),
    ({'epoch': 3, 'arch': 'resnet50', 'state_dict': {'weight': torch.zeros(3)}, 'optimizer': {}, 'version': 2,
      'args': Namespace(lr=0.1), 'metric': 71.0},
     r"it is of another program, such as timm's train.py; --initial-checkpoint takes its weights \(state_dict\)"),
])
def test_a_file_that_is_no_checkpoint_of_ours(content, words, tmp_path):
    torch.save(content, tmp_path / LAST)
    with pytest.raises(UserError, match=f'{LAST} is no training checkpoint of timm_longtail: {words}$'):
        read_checkpoint(tmp_path / LAST)


def test_safetensors_are_no_training_checkpoint(tmp_path):
    save_file({'weight': torch.zeros(3)}, tmp_path / 'model.safetensors')
    with pytest.raises(UserError, match='holds weights only, which --initial-checkpoint takes'):
        read_checkpoint(tmp_path / 'model.safetensors')


# ------------------------------------------------------------------------------------------------ changed bits

def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def small_checkpoint(path):
    """Write a checkpoint most of whose bytes are no tensor, so that every part of the format is hit."""
    content = {**state(1), 'state_dict': {f'layer{i}.weight': torch.randn(3, 5) for i in range(8)}}
    write_checkpoint(content, path)
    return content


def test_a_changed_bit_is_refused_or_harmless(tmp_path):
    content = small_checkpoint(tmp_path / 'whole')
    whole = (tmp_path / 'whole').read_bytes()
    path, refused = tmp_path / LAST, 0
    for bit in np.random.default_rng(0).choice(8 * len(whole), 100, replace=False):
        path.write_bytes(whole)
        flip(path, int(bit))
        try:
            found = read_checkpoint(path)
        except UserError as e:
            assert '\n' not in str(e) and LAST in str(e)
            refused += 1
        else:
            assert_same(found, content)  # padding, a date, a field that no reader looks at
    assert refused > 20


def test_a_changed_weight_names_its_record(tmp_path):
    small_checkpoint(tmp_path / LAST)
    with zipfile.ZipFile(tmp_path / LAST) as archive:
        record = max(archive.infolist(), key=lambda record: record.file_size * ('/data/' in record.filename))
    start = (tmp_path / LAST).read_bytes().index(record.filename.encode())
    data = (start // 64 + 2) * 64  # behind the name and the padding that aligns a tensor
    before = torch.load(tmp_path / LAST, weights_only=True)
    flip(tmp_path / LAST, 8 * data + 3)
    with pytest.raises(AssertionError):  # what torch reads without a word
        assert_same(torch.load(tmp_path / LAST, weights_only=True), before)
    with pytest.raises(UserError, match=f'is damaged: record {record.filename} does not have its checksum'):
        read_checkpoint(tmp_path / LAST)
    with pytest.raises(UserError, match='does not have its checksum'):
        read_part(tmp_path / LAST)


def test_a_changed_weight_falls_back_to_the_previous(tmp_path, caplog):
    for epoch in (1, 2):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    flip(tmp_path / LAST, 8 * (tmp_path / LAST).read_bytes().index(np.float32(2).tobytes() * 9))
    with caplog.at_level(logging.WARNING, logger='timm_longtail'):
        path, content = find_checkpoint(tmp_path)
    assert path == tmp_path / PREVIOUS and content['epoch'] == 1
    assert 'does not have its checksum; falling back to the previous checkpoint' in caplog.messages[0]


@pytest.mark.parametrize('kind', ['without checksums', 'pickle'])
def test_files_without_checksums_are_read(kind, tmp_path):
    content = state(1)
    if kind == 'pickle':
        torch.save(content, tmp_path / LAST, _use_new_zipfile_serialization=False)
    else:
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(content, tmp_path / LAST)
        finally:
            torch.serialization.set_crc32_options(True)
    assert_same(read_checkpoint(tmp_path / LAST), content)


def test_a_file_is_opened_once(tmp_path, monkeypatch):
    for epoch in (1, 2):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    opened = []

    def counting_open(path, *args):
        opened.append(Path(path).name)
        return open(path, *args)
    monkeypatch.setattr(checkpoint, 'open', counting_open, raising=False)
    find_checkpoint(tmp_path)
    assert opened == [LAST]


# ------------------------------------------------------------------------------------------------ weights of others

WEIGHTS = {'fc.weight': torch.arange(6.0).view(2, 3)}
OTHERS = {'fc.weight': torch.zeros(2, 3)}


@pytest.mark.parametrize('content, part', [
    (WEIGHTS, ''),
    ({'model': WEIGHTS, 'args': Namespace(model='deit_base', output=Path('runs'), pure=None)}, 'model'),
    ({'state_dict': WEIGHTS, 'epoch': 3, 'best': np.float64(71.5)}, 'state_dict'),
    ({'state_dict': OTHERS, 'state_dict_ema': WEIGHTS}, 'state_dict_ema'),
    ({'model': OTHERS, 'model_ema': WEIGHTS}, 'model_ema'),
    ({'state_dict': WEIGHTS, 'model': OTHERS}, 'state_dict'),
    ({'state_dict': WEIGHTS, 'state_dict_ema': None}, 'state_dict'),
])
def test_weights_are_found_where_timm_finds_them(content, part, tmp_path):
    if 'args' in content or 'best' in content:  # of these timm takes the options, but no path and no figure
        known = {name: value for name, value in content.items() if name not in ('args', 'best')}
    else:
        known = content
    torch.save(known, tmp_path / 'timm.pth')
    torch.save(content, tmp_path / 'w.pth')
    found, weights = read_part(tmp_path / 'w.pth')
    assert found == part and torch.equal(weights['fc.weight'], WEIGHTS['fc.weight'])
    assert_same(dict(timm.models.load_state_dict(str(tmp_path / 'timm.pth'))), weights)


def test_weights_of_deepspeed(tmp_path):
    torch.save({'module': WEIGHTS}, tmp_path / 'w.pth')
    assert read_part(tmp_path / 'w.pth')[0] == 'module'


@pytest.mark.parametrize('content, words', [
    ({'epoch': 3, 'net': WEIGHTS}, 'neither by themselves nor under state_dict_ema.* it holds epoch, net'),
    ({}, 'it holds nothing'),
    ([WEIGHTS], 'it holds list'),
    ({'model': {}}, 'it holds model'),
])
def test_a_file_without_weights(content, words, tmp_path):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(UserError, match=f'w.pth holds no weights, .*{words}'):
        read_part(tmp_path / 'w.pth')


# ------------------------------------------------------------------------------------------------ damaged fields

@pytest.mark.parametrize('name, value, words', [
    ('epoch', '1', "epoch is '1', expected int"),
    ('seconds', None, 'seconds is None, expected int or float'),
    ('history', [], 'history has 0 rows, and 1 epochs are finished'),
    ('args', {}, 'args: it has no method_kwargs'),
    ('state_dict', {'weight': 3}, 'state_dict holds something else than tensors'),
    ('step', -1, 'epoch 1, step -1'),
    ('step', 1, 'it has no torch_rng'),
])
def test_a_damaged_field_is_named(name, value, words, tmp_path):
    write_checkpoint({**state(1), name: value}, tmp_path / LAST)
    with pytest.raises(UserError, match=f'{LAST} is a damaged training checkpoint: {words}$'):
        read_checkpoint(tmp_path / LAST)


# ------------------------------------------------------------------------------------------------ architectures


@pytest.mark.parametrize('kwargs, named', [
    (dict(layers=(2, 1, 1)), 'model.layer1.1.'),
    (dict(num_classes=5), 'model.fc.weight'),
])
def test_another_architecture_names_the_keys_that_differ(kwargs, named):
    method, other = small_method(), small_method(**kwargs)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    count = sum(name not in before or before[name].shape != value.shape for name, value in other.state_dict().items())
    with pytest.raises(UserError, match=rf'^FILE is of .* \(some_net\): {count} keys differ') as error:
        load_method_state(method, {**method_state(other), 'arch': 'some_net'}, 'FILE')
    assert named in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in method.state_dict().items())  # nothing half-loaded


def test_another_method_names_the_keys_that_differ():
    content = {**method_state(small_method('bcl', cosine_scale=30.0)), 'arch': 'resnet20_cifar'}
    with pytest.raises(UserError, match=r'keys differ, such as model\.branches\.projector|model\.branches\.prototype'):
        load_method_state(small_method('ce', cosine_scale=30.0), content, 'FILE')


def test_the_state_of_a_method_comes_back():
    one, other = (small_method('bcl', cosine_scale=30.0) for _ in range(2))
    content = method_state(one)
    assert not any(name.startswith('branches.') for name in content['state_dict'])
    assert any(name.startswith('model.branches.') for name in content['method_state'])
    load_method_state(other, content, 'FILE')
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
