"""The output folder: full disks, folders that cannot be written, two runs at one folder. Real disks and processes."""
import csv
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file

from timm_longtail.cli import train
from timm_longtail.training import loop, output_folder, outputs, provenance, trackers
from timm_longtail.training.checkpoint import read_checkpoint, write_checkpoint
from timm_longtail.utils import output_lock
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST, PREVIOUS, write_json, writing
from timm_longtail.utils.output_lock import create_folder, held_folder, hold_folder, release_folder

from ..cli.test_train import refused
from ..support.runs import TINY, refused_and_printed
from .test_checkpoint import epochs_on_disk, state

EXPORTED = {'config.json', 'model.safetensors', 'README.md'}
FULL = 'No space left on device'
SHORT = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--batch-size', '256', '--epochs', '1']


@pytest.fixture(autouse=True)
def released():
    yield
    release_folder()


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    for epoch in (1, 2):
        write_checkpoint(state(epoch), tmp_path / LAST, keep_previous=True)
    temporary = tmp_path / f'{LAST}.tmp'
    temporary.symlink_to('/dev/full')
    with pytest.raises(UserError) as error:
        write_checkpoint(state(3), tmp_path / LAST, keep_previous=True)
    assert str(error.value) == f'cannot write {tmp_path / LAST}: {FULL}; the last good state is in {tmp_path / LAST}'
    assert epochs_on_disk(tmp_path) == {LAST: 2, PREVIOUS: 1}
    assert not temporary.is_symlink()
    write_checkpoint(state(4), tmp_path / LAST, keep_previous=True)
    assert epochs_on_disk(tmp_path) == {LAST: 4, PREVIOUS: 2}


def test_a_disk_that_fills_up_inside_a_file(tmp_path):
    """Then torch.save raises an error of its own, which does not name the reason."""
    write_checkpoint(state(1), tmp_path / LAST)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(UserError, match=f'{LAST}: File too large; the last good state is in .*{LAST}$'):
            write_checkpoint({'state_dict': {'weight': torch.zeros(100_000)}}, tmp_path / LAST)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_a_full_disk_stops_each_kind_of_file(tmp_path):
    (tmp_path / 'metrics.json.tmp').symlink_to('/dev/full')
    with pytest.raises(UserError, match=f'cannot write .*metrics.json: {FULL}$'):
        write_json(tmp_path / 'metrics.json', {'a': 1})
    with pytest.raises(UserError, match='cannot write .*export: .*No such file'), writing(tmp_path / 'export'):
        save_file({'a': torch.zeros(9)}, tmp_path / 'nowhere' / 'a')  # not to /dev/full, which it would replace
    full = open('/dev/full', 'w', newline='')
    with pytest.raises(UserError, match=f'cannot write .*a.csv: {FULL}'), writing(tmp_path / 'a.csv'), full:
        csv.writer(full).writerow(['a'])
    with pytest.raises(RuntimeError, match='of another kind'), writing(tmp_path):
        raise RuntimeError('of another kind')


def test_a_full_disk_leaves_the_former_json_whole(tmp_path, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.ENOSPC, FULL)
    path = tmp_path / 'new' / 'row.json'
    write_json(path, {'a': 1})

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(UserError, match=f'cannot write .*row.json: {FULL}'):
        write_json(path, {'a': 2})
    assert json.loads(path.read_text()) == {'a': 1}


@pytest.mark.parametrize('name, words', [
    ('args.yaml', ''),
    (f'{LAST}.tmp', ''),
    ('summary.csv', f'; the last good state is in run/{LAST}'),
    ('per_class.csv', f'; the last good state is in run/{LAST}'),
])
def test_a_full_disk_ends_a_run_in_one_line(name, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir('run')
    os.symlink('/dev/full', f'run/{name}')
    line, printed = refused_and_printed(
        capsys, monkeypatch, *SHORT, '--output', '.', '--experiment', 'run', '--resume', 'auto')
    assert line == f'train.py: error: cannot write run/{name.removesuffix(".tmp")}: {FULL}{words}'
    if name == 'per_class.csv':  # a table costs nothing else
        left = {path.name for path in (tmp_path / 'run').iterdir()}
        assert {'export', 'metrics.json', 'summary.csv'} <= left
        assert '| last epoch' in printed and {path.name for path in (tmp_path / 'run/export').iterdir()} >= EXPORTED
    if words:
        assert read_checkpoint(tmp_path / 'run' / LAST)['epoch'] == 1
        os.unlink(f'run/{name}')  # space is found again
        train.main([*SHORT, '--output', '.', '--experiment', 'run', '--resume', 'auto'])
        assert (tmp_path / 'run' / name).stat().st_size > 0


def test_a_folder_that_is_removed_while_the_run_trains(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trackers, '_log', lambda run, figures, step: shutil.rmtree(run.output_dir))
    line = refused(capsys, monkeypatch, *SHORT, '--epochs', '2', '--output', tmp_path, '--experiment', 'run')
    assert line == f'train.py: error: cannot write {tmp_path / "run" / LAST}: No such file or directory'


def test_a_folder_that_becomes_read_only_while_the_run_trains(tmp_path, capsys, monkeypatch):
    def refuse(*paths):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(trackers, '_log', lambda run, figures, step: monkeypatch.setattr(os, 'replace', refuse))
    line = refused(capsys, monkeypatch, *SHORT, '--epochs', '2', '--output', tmp_path, '--experiment', 'run')
    last = tmp_path / 'run' / LAST
    assert line == (
        f'train.py: error: cannot write {last}: Read-only file system; the last good state is in {last}')
    assert read_checkpoint(last)['epoch'] == 1


@pytest.mark.skipif(sys.platform != 'linux', reason='needs /proc')
def test_a_place_where_no_folder_can_be(capsys, monkeypatch):
    line = refused(capsys, monkeypatch, *SHORT, '--output', '/proc')
    assert line.startswith('train.py: error: cannot write /proc/')


@pytest.mark.parametrize('options, words', [
    (['--opt', 'no_such'], 'unknown optimizer'),
    (['--batch-size', '100000'], 'lower the batch size'),
    (['--clip-grad', '1', '--results', 'FILE'], '--results: cannot write FILE'),
    (['--resume', 'FILE'], 'FILE'),
])
def test_a_run_that_is_refused_leaves_no_folder(options, words, tmp_path, capsys, monkeypatch):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(provenance, 'is_dirty', lambda recipe: False)
    options = [option.replace('FILE', str(tmp_path / 'file')) for option in options]
    line = refused(capsys, monkeypatch, *SHORT, '--output', tmp_path / 'new' / 'runs', *options)
    assert words.replace('FILE', str(tmp_path / 'file')) in line
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_an_export_that_cannot_be_written_is_found_before_the_first_epoch(tmp_path, capsys, monkeypatch):
    def refuse(model, folder, **kwargs):
        (folder.with_name(folder.name + '.tmp')).mkdir()  # half of it
        raise UserError('no export')
    monkeypatch.setattr(outputs, 'export_model', refuse)
    monkeypatch.setattr(loop, 'train_one_epoch', lambda run, progress: pytest.fail('trained'))
    for resume in ([], ['--resume', 'auto']):
        line = refused(capsys, monkeypatch, *SHORT, '--output', tmp_path / 'new', *resume)
        assert line == 'train.py: error: no export'
        assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('there, newest', [
    ([], 'run'),
    (['run'], 'run'),
    (['run', 'run-2', 'run-3'], 'run-3'),
    (['run', 'run-3'], 'run'),  # made by hand
    (['run-2'], 'run'),
])
def test_the_newest_of_the_numbered_folders_is_resumed(there, newest, tmp_path):
    for name in there:
        (tmp_path / name).mkdir()

    assert output_folder._newest_folder(tmp_path / 'run') == tmp_path / newest


def test_a_folder_that_was_there_stays(tmp_path):
    hold_folder(tmp_path / 'old')
    (tmp_path / 'old' / 'file').write_text('')
    release_folder()
    assert (tmp_path / 'old' / 'file').is_file()
    (tmp_path / 'old' / 'file').unlink()
    hold_folder(tmp_path / 'old')
    release_folder()
    assert (tmp_path / 'old').is_dir()


def test_without_locks_a_folder_can_still_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(output_lock, 'fcntl', None)  # as on Windows
    hold_folder(tmp_path / 'run')
    assert held_folder() == tmp_path / 'run' and (tmp_path / 'run').is_dir()


def test_a_file_in_the_place_of_the_folder(tmp_path, capsys, monkeypatch):
    (tmp_path / 'output').write_text('')
    for output in (tmp_path / 'output', tmp_path / 'output' / 'below'):
        line = refused(capsys, monkeypatch, *SHORT, '--output', output)
        assert f'cannot write {output}: ' in line


HOLD = 'import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print(); sys.stdin.read()'


def test_a_folder_that_another_run_writes(tmp_path, capsys, monkeypatch):
    folder = tmp_path / 'run'
    folder.mkdir()
    write_checkpoint(state(1), folder / LAST)
    with subprocess.Popen(
            [sys.executable, '-c', HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for options in (['--resume', folder], ['--resume', folder / LAST],
                        ['--resume', 'auto', '--output', tmp_path, '--experiment', 'run']):
            line = refused(capsys, monkeypatch, *SHORT, *options)
            assert line.startswith(f'train.py: error: {folder} is being written by another run')
        other.send_signal(signal.SIGKILL)
        other.wait()
    hold_folder(folder)
    assert {path.name for path in folder.iterdir()} == {LAST}  # no file is left by the lock


def test_a_held_folder_is_let_go_with_its_process(tmp_path):
    def held():
        return subprocess.run([sys.executable, '-c', HOLD.replace('LOCK_EX', 'LOCK_EX | fcntl.LOCK_NB'), tmp_path],
                              input=b'', capture_output=True).returncode != 0
    hold_folder(tmp_path)
    assert held_folder() == tmp_path and held()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # a worker that lives on
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    assert held()
    release_folder()
    assert held_folder() is None and not held()
    os.close(writer), os.close(reader)
    os.waitpid(child, 0)


def test_runs_that_start_at_once_get_folders_of_their_own(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(create_folder, [tmp_path / 'new' / 'run'] * 32))
    assert sorted(path.name for path in folders) == sorted(['run', *(f'run-{i}' for i in range(2, 33))])
