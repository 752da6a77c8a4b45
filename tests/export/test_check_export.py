"""What is refused before anything is sent to the Hub: folders that contradict themselves, and bad names."""
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from timm_longtail.export.__main__ import main as update_folders
from timm_longtail.export.card import write_card
from timm_longtail.export.checksums import seal
from timm_longtail.export.hub import check_export, push_model
from timm_longtail.export.loading import load_exported
from timm_longtail.training.checkpoint import read_weights
from timm_longtail.utils.errors import UserError

from ..support.exports import DIGITS, contents, drop_weights_checksum, edit_config, read_config


@pytest.fixture
def folder(tmp_path):
    """A copy of the released digits model, to be spoiled."""
    return Path(shutil.copytree(DIGITS, tmp_path / 'export'))


def edit(folder: Path, name: str, old: str, new: str):
    """Replace a text of a file once."""
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def unseal(folder: Path):
    """Take the checksums out, as versions did that wrote none."""
    config = read_config(folder)
    del config['config_sha256'], config['timm_longtail']['weights']
    (folder / 'config.json').write_text(json.dumps(config))


def spoil_tensor(folder: Path, name: str, change: Callable | None, stated: bool = False):
    """Change a tensor in the file of the weights, or take it out.

    Args:
        folder: Exported folder.
        name: Name of the tensor.
        change: What is made of the tensor; None takes it out.
        stated: Whether `config.json` states the checksum of the changed file.
    """
    path = folder / 'model.safetensors'
    tensors = load_file(path)
    if change is None:
        del tensors[name]
    else:
        tensors[name] = change(tensors.get(name))
    save_file(tensors, path)
    if stated:
        drop_weights_checksum(folder)
        seal(folder)
        write_card(folder)


NAN, INF = float('nan'), float('inf')


@pytest.mark.parametrize('spoil, words', [
    (lambda f: (f / 'events.out').write_text(''), 'holds events.out besides README.md, config.json, model.safetensors'),
    (lambda f: (f / 'README.md').unlink(), 'is not an exported model: no README.md in it'),
    (lambda f: (f / 'model.safetensors').unlink(), 'is not an exported model: no model.safetensors in it'),
    (lambda f: (f / 'config.json').write_text('{'), 'config.json is damaged or not a config of an exported model: '),
    (lambda f: (f / 'config.json').write_text('[]'), 'config.json is not a config .*: it holds no object'),
    (lambda f: (f / 'config.json').write_text('[' * 100_000), 'config.json is damaged or not a config'),
    (lambda f: (f / 'config.json').write_bytes(b'{"a": "\xff"}'), 'config.json is not a config .*: it is not UTF-8'),
    (lambda f: (f / 'config.json').write_text('{}'), 'config.json says nothing of architecture'),
    (lambda f: edit(f, 'config.json', '"seed": 0', '"seed": 1'), 'config.json is damaged, or was edited: '),
    (lambda f: edit_config(f, architecture='bcl_resnet21'), "unknown architecture 'bcl_resnet21'; did you"),
    (lambda f: edit_config(f, architecture='bcl_resnet32'),
     r'model.safetensors does not fit bcl_resnet32: layer1.3.bn1.bias is not there, in the model \(16,\)'),
    (lambda f: edit_config(f, num_classes=9), 'label_names holds 10 names for 9 classes|num_classes is 9, model_args'),
    (lambda f: edit_config(f, num_classes=9, label_names=None, model_args={'num_classes': 9}),
     r'model.safetensors does not fit bcl_resnet20: fc.weight is \(10, 64\), in the model \(9, 64\)'),
    (lambda f: edit_config(f, num_classes=10**12, label_names=None, model_args={'num_classes': 10**12}),
     r'fc.weight is \(10, 64\), in the model \(1000000000000, 64\)'),
    (lambda f: edit_config(f, num_classes=True), "num_classes is True, expected a number of classes"),
    (lambda f: edit_config(f, architecture=['x']), r"architecture is \['x'\], expected a name"),
    (lambda f: edit_config(f, model_args='x'), "model_args is 'x', expected an object"),
    (lambda f: edit_config(f, model_args={'no_such': 1}), "config.json is damaged .*no_such"),
    (lambda f: edit_config(f, label_names='0123456789'), "label_names is '0123456789', expected a list"),
    (lambda f: edit_config(f, label_names=[0] * 10), 'label_names holds something else than texts'),
    (lambda f: edit_config(f, pretrained_cfg={**read_config(f)['pretrained_cfg'], 'mean': 'x'}),
     "pretrained_cfg.mean is 'x', expected a list of numbers"),
    (lambda f: edit_config(f, timm_longtail=[]), r'timm_longtail is \[\], expected an object'),
    (lambda f: edit_config(f, timm_longtail={**read_config(f)['timm_longtail'], 'metrics': 5}),
     'timm_longtail.metrics is 5, expected an object'),
    (lambda f: edit_config(f, timm_longtail={**read_config(f)['timm_longtail'], 'metrics': {'all': 'x'}}),
     'config.json is damaged or not a config of an exported model'),
    (lambda f: os.truncate(f / 'model.safetensors', 9000), 'model.safetensors is damaged or not a safetensors file'),
    (lambda f: os.truncate(f / 'model.safetensors', 0), 'model.safetensors is damaged or not a safetensors file'),
    (lambda f: spoil_tensor(f, 'fc.weight', lambda t: t + 1e-6), 'model.safetensors is damaged, or of another model'),
    (lambda f: spoil_tensor(f, 'fc.weight', None, stated=True), r'fc.weight is not there, in the model \(10, 64\)'),
    (lambda f: spoil_tensor(f, 'more', lambda t: torch.zeros(2), stated=True), r'more is \(2,\), in the model'),
    (lambda f: spoil_tensor(f, 'fc.weight', lambda t: t * NAN, stated=True), 'fc.weight holds NaN or inf'),
    (lambda f: spoil_tensor(f, 'bn1.running_var', lambda t: t.fill_(INF), stated=True),
     'bn1.running_var holds NaN or infinity in 16 of 16'),
    (lambda f: spoil_tensor(f, 'fc.weight', lambda t: t.to(torch.int8), stated=True), 'fc.weight is int8, expected'),
    (lambda f: spoil_tensor(f, 'fc.weight', lambda t: t.double(), stated=True), 'fc.weight is float64, expected float'),
    (lambda f: spoil_tensor(f, 'bn1.num_batches_tracked', lambda t: t.float(), stated=True),
     'bn1.num_batches_tracked is float32, expected int64'),
    (lambda f: edit(f, 'README.md', 'value: 89.2958', 'value: 98.2958'),
     r'README.md states Top-1 \(all\) 98.2958, config.json 89.2958; rewrite it'),
    (lambda f: edit(f, 'README.md', 'name: "Few-shot"', 'name: "Rare"'), 'README.md states Few-shot not at all'),
    (lambda f: edit(f, 'README.md', '|  89.30 |', '|  98.30 |'), 'the table of .*README.md does not show the figures'),
    (lambda f: edit(f, 'README.md', 'model-index:\n', 'model-index: [\n'), 'metadata of .*README.md cannot be read'),
    (lambda f: edit(f, 'README.md', '  - task:', '  - tasks:'), 'metadata of .*README.md cannot be read'),
    (lambda f: (f / 'README.md').write_text('# A model\n'), 'README.md has no metadata'),
    (lambda f: (f / 'README.md').write_bytes(b'---\nlicense: "\xff"\n---\n'), 'metadata of .*README.md cannot be read'),
])
def test_a_folder_that_is_no_export_is_refused(spoil, words, folder):
    spoil(folder)
    with pytest.raises(UserError, match=words) as raised:
        push_model(folder, 'alice/model', token='hf_alice')
    assert '\n' not in str(raised.value)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_may_be_pushed(dtype, folder):
    for name in load_file(folder / 'model.safetensors'):
        if not name.endswith('num_batches_tracked'):
            spoil_tensor(folder, name, lambda tensor: tensor.to(dtype))
    drop_weights_checksum(folder)
    seal(folder)
    assert check_export(folder)['timm_longtail']['weights']['dtype'] == str(dtype).removeprefix('torch.')


def test_an_export_without_checksums_is_accepted_as_unverified(folder, caplog):
    sealed = read_config(folder)
    unseal(folder)
    write_card(folder)
    with caplog.at_level('WARNING'):
        assert 'weights' not in check_export(folder)['timm_longtail']
    assert 'was exported without checksums' in caplog.text
    update_folders([str(folder)])
    assert read_config(folder) == sealed
    assert contents(folder) == contents(DIGITS)


@pytest.mark.parametrize('name', ['model.safetensors', 'config.json'])
def test_a_flipped_bit_is_refused(name, folder):
    """Whichever bit it is, loading and pushing say so in one line, or the content is still the same."""
    path, draw = folder / name, random.Random(0)
    whole, content = path.read_bytes(), read_config(folder)
    for _ in range(100):
        position, bit = draw.randrange(len(whole)), draw.randrange(8)
        flipped = bytearray(whole)
        flipped[position] ^= 1 << bit
        path.write_bytes(flipped)
        for function in (check_export, load_exported, lambda folder: read_weights(folder / 'model.safetensors')):
            try:
                function(folder)
            except UserError as e:
                assert '\n' not in str(e)
            else:
                assert name == 'config.json' and read_config(folder) == content, (position, bit)


@pytest.mark.parametrize('repo, words', [
    ('model', "'model' does not say whose it is: give USER/model"),
    ('alice/', "'alice/' is no name of a model repository, which is USER/NAME"),
    ('alice/a model', "'alice/a model' is no name of a model repository"),
    ('alice/a--b', "'alice/a--b' is no name of a model repository"),
    ('https://huggingface.co/alice/model', 'is no name of a model repository'),
])
def test_a_bad_name_is_refused(repo, words):
    with pytest.raises(UserError, match=words) as raised:
        push_model(DIGITS, repo, token='hf_alice')
    assert '\n' not in str(raised.value)
