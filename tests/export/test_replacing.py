"""An export is whole or not there: a crash, a full disk or another process leaves no half of one."""
import os
from pathlib import Path
from threading import Thread

import pytest
import torch

from timm_longtail.export import card
from timm_longtail.export import folder as export
from timm_longtail.export.card import write_card
from timm_longtail.export.folder import export_model
from timm_longtail.export.loading import load_exported
from timm_longtail.export.replacing import lock_folder
from timm_longtail.utils.errors import UserError

from ..support.exports import FILES, assert_bit_equal, build, load


def test_a_folder_that_is_there_is_replaced(tmp_path):
    folder = tmp_path / 'export'
    (folder / 'sub').mkdir(parents=True)
    (folder / 'stale.bin').write_text('of another model')

    for seed in (2, 3):
        model = build(seed=seed)
        export_model(model, folder)
        assert sorted(path.name for path in folder.iterdir()) == FILES
        assert_bit_equal(model, load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_what_a_killed_export_left_is_removed_and_other_folders_are_not(tmp_path):
    left, others = tmp_path / '.export.abc.tmp', [tmp_path / 'export.old', tmp_path / 'export.tmp']
    for path in (left, *others):
        path.mkdir()
        (path / 'config.json').write_text('{}')
    lives = tmp_path / '.export.def.tmp'
    lives.mkdir()
    lock = lock_folder(lives)  # of a process that goes on

    export_model(build(), tmp_path / 'export')

    assert sorted(tmp_path.iterdir()) == sorted([lives, tmp_path / 'export', *others])
    os.close(lock)


class FullDisk:
    """Stands for a function that writes, and fails; counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        raise OSError('no space left on device')


class FailingRename(FullDisk):
    """Stands for `os.replace`: fails once, when the new folder is put in its place for the n-th time.

    Args:
        place: Where the new folder belongs.
        attempt: 0 or 1: before, or after the old folder was moved away.
    """

    def __init__(self, place: Path, attempt: int):
        super().__init__()
        self.place, self.attempt, self.rename = place, attempt, os.replace
        self.moved_away = 0

    def __call__(self, source, target):
        if Path(target) == self.place and self.calls == 0 and self.moved_away == self.attempt:
            super().__call__()
        if Path(source) == self.place:
            self.moved_away += 1
        self.rename(source, target)


@pytest.mark.parametrize('failing', ['weights', 'card', 'first rename', 'second rename'])
def test_a_failure_leaves_the_old_folder(failing, tmp_path, monkeypatch):
    folder, old = tmp_path / 'export', build(seed=2)
    export_model(old, folder)
    fail = FullDisk()

    with monkeypatch.context() as patch:
        if failing == 'weights':
            patch.setattr('safetensors.torch.save_file', fail)
        elif failing == 'card':
            patch.setattr(export, 'write_card', fail)
        else:
            fail = FailingRename(folder, attempt=0 if failing == 'first rename' else 1)
            patch.setattr(os, 'replace', fail)
        with pytest.raises(UserError, match='cannot write .*export: no space left'):
            export_model(build(seed=3), folder)

    assert fail.calls == 1
    assert_bit_equal(old, load(folder))
    assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_a_card_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    folder = export_model(build(), tmp_path / 'export')
    before = (folder / 'README.md').read_bytes()

    with monkeypatch.context() as patch:
        patch.setattr(card, 'model_card', lambda config: 'another card')
        patch.setattr(os, 'replace', FullDisk())
        with pytest.raises(UserError, match='cannot write .*README.md: no space left'):
            write_card(folder)

    assert (folder / 'README.md').read_bytes() == before


def test_exports_to_one_folder_at_once_are_whole(tmp_path):
    """The last one stands there, and none of them has failed."""
    models = [build(seed=seed, layers=(1, 1, 1)) for seed in range(4)]
    errors = []

    def write(model):
        try:
            for _ in range(3):
                export_model(model, tmp_path / 'export')
        except BaseException as e:
            errors.append(e)

    threads = [Thread(target=write, args=[model]) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not errors
    loaded, _ = load_exported(tmp_path / 'export')
    assert any(torch.equal(loaded.fc.weight, model.fc.weight) for model in models)
    assert [path.name for path in tmp_path.iterdir()] == ['export']


def test_a_file_in_the_place_of_the_folder_is_kept(tmp_path):
    (tmp_path / 'file').write_text('mine')

    with pytest.raises(UserError, match='cannot write .*file'):
        export_model(build(), tmp_path / 'file')

    assert (tmp_path / 'file').read_text() == 'mine'
