"""Files of a data set that change while a run reads them."""
import json
import os
import shutil
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import train
from timm_longtail.cli import pack
from timm_longtail.cli import train as train_command
from timm_longtail.data import create_dataset
from timm_longtail.data.file_state import first_changed_file
from timm_longtail.training import outputs

from ..support.data_sets import write_classes, write_numbers, write_paths
from ..support.runs import TINY

pytestmark = pytest.mark.usefixtures('private_cache')


def write_photos(root: Path) -> Path:
    for split in ('train', 'test'):
        write_classes(root / split, {'ant': 4, 'bee': 2}, size=(12, 8))
    return root


def open_photos(root: Path, kind: str, split: str = 'train'):
    """Return a set that workers read, and a file that it reads."""
    if kind == 'folder':
        return create_dataset('folder', split, root), root / split / 'ant' / '02.png'
    if kind == 'packed':
        path = root.parent / 'set.safetensors'
        if not path.exists():
            pack.main(['--dataset', 'folder', '--data-dir', str(root), '--packed', str(path)])
        return create_dataset(f'packed:{path}', split), path
    if kind == 'paths':
        write_paths(root, ['train/ant/00.png', 'train/ant/01.png'])
        return create_dataset(f'hfds/{root}', split), root / 'train' / 'ant' / '01.png'
    table = write_numbers(root.parent / 'table', train=[0, 1], test=[0, 1])

    return create_dataset(f'hfds/{table}', split, loader='worker'), table / f'{split}-0.parquet'


def replace(path: Path):
    """Put another file of the same content in the place of a file."""
    copy = path.with_suffix('.new')
    shutil.copy(path, copy)
    copy.rename(path)


CHANGES = {
    'other bytes': lambda path: path.write_bytes(path.read_bytes()[:-1] + b'x'),
    'more bytes': lambda path: path.write_bytes(path.read_bytes() + b'x'),
    'other time': lambda path: os.utime(path, ns=(0, 0)),
    'gone': Path.unlink,
    'replaced': replace,
}


@pytest.mark.parametrize('kind, change', [
    *(('folder', change) for change in CHANGES), ('packed', 'replaced'), ('paths', 'gone'), ('parquet', 'other time')])
def test_a_file_that_changes_is_named(tmp_path, kind, change):
    dataset, path = open_photos(write_photos(tmp_path / 'photos'), kind)
    assert dataset.changed_file() is None and not dataset.resident

    # the hold-out of a run chooses its best epoch
    parts = dataset.hold_out(0.5, 0) if kind == 'folder' else [dataset]
    CHANGES[change](path)

    for part in parts:
        assert part.changed_file() == str(path) == first_changed_file(part)


def test_a_set_in_memory_does_not_change(tmp_path):
    write_classes(tmp_path, {'ant': 4, 'bee': 3})
    dataset = create_dataset('folder', 'train', tmp_path)
    shutil.rmtree(tmp_path / 'ant')
    assert dataset.resident and dataset.changed_file() is None


@pytest.mark.parametrize('is_changed', [False, True])
def test_a_run_on_changed_data_leaves_no_row(tmp_path, is_changed, monkeypatch, capsys):
    root = write_photos(tmp_path / 'photos')
    monkeypatch.setattr(train_command, 'require_clean_tree', lambda recipe: None)
    monkeypatch.setattr(outputs, 'write_summary', lambda run: (
        os.utime(root / 'test' / 'bee' / '01.png', ns=(0, 0)) if is_changed else None))
    AcceleratorState._reset_state(reset_partial_state=False)
    train.main([
        *TINY, '--no-recipe', '--method', 'ce', '--dataset', 'folder', '--data-dir', str(root), '--img-size', '16',
        '--batch-size', '4', '--epochs', '1', '--workers', '0', '--output', str(tmp_path / 'run'),
        '--results', str(tmp_path / 'rows')])

    assert len([*tmp_path.glob('rows/*.json')]) == 1 - is_changed

    metrics = json.loads(next(tmp_path.rglob('metrics.json')).read_text())

    assert ('changed_file' in metrics) == is_changed
    assert ('01.png changed while the run read it' in capsys.readouterr().out) == is_changed
    assert len([*tmp_path.rglob('model.safetensors')]) == 1
