"""The code, the command and the machine that a result comes from."""
import os
from pathlib import Path

import pytest

from timm_longtail.training import provenance
from timm_longtail.utils.errors import UserError

from ..support.history import ROOT, git, needs_history, tree_hashes


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository of its own with two commits of a small project, and a function that commits what lies there."""
    try:
        git('--version', root=tmp_path)
    except OSError:
        pytest.skip('git is not installed')
    for variable in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv('GIT_CONFIG_GLOBAL', os.devnull)
    root = tmp_path / 'project'
    files = {
        'timm_longtail/__init__.py': 'version = 1\n', 'timm_longtail/losses/ce.py': 'loss = 1\n',
        'timm_longtail/notes.txt': 'no code\n', 'train.py': 'train = 1\n', 'recipes/a.yaml': 'lr: 0.1\n',
        'recipes/b.yaml': 'lr: 0.2\n', 'README.md': 'read\n', '.gitignore': 'ignored.py\n',
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)

    def commit():
        git('add', '-A', root=root)
        git('-c', 'user.name=t', '-c', 'user.email=t@t', '-c', 'commit.gpgsign=false', 'commit', '-qm', 'c', root=root)
    git('init', '-q', root=root)
    commit()
    return root, commit


def test_tree_hash_is_one_of_paths_and_bytes():
    files = {'timm_longtail/a.py': b'one', 'train.py': b'two'}
    digest = provenance.tree_hash(files)
    assert len(digest) == 64
    assert digest == provenance.tree_hash(dict(reversed(files.items())))
    others = [
        {'timm_longtail/a.py': b'One', 'train.py': b'two'},
        {'timm_longtail/b.py': b'one', 'train.py': b'two'},
        {'timm_longtail/a.py': b'two', 'train.py': b'one'},
        {'timm_longtail/a.py': b'one', 'train.py': b'two\n'},
        {'timm_longtail/a.py': b'onet', 'rain.py': b'two'},
        {'timm_longtail/a.py': b'onetrain.py\x00two'},
        {'timm_longtail/a.py': b'one'},
        {**files, 'validate.py': b''},
    ]
    assert len({digest, *map(provenance.tree_hash, others)}) == len(others) + 1


def test_the_files_that_decide_a_result():
    names = [
        'train.py', 'timm_longtail/rng.py', 'timm_longtail/data/views.py', 'timm_longtail/notes.txt', 'README.md',
        'tests/timm_longtail/x.py', 'recipes/a.yaml', 'recipes/b.yaml', 'other/train.py', 'timm_longtail.py',
    ]
    decide = ['timm_longtail/data/views.py', 'timm_longtail/rng.py', 'train.py']
    assert provenance.tree_files(names) == decide
    assert provenance.tree_files(reversed(names), 'recipes/a.yaml') == ['recipes/a.yaml', *decide]


def test_hash_of_what_lies_on_disk(project):
    root, _ = project

    def digest(recipe=None):
        return provenance.working_tree_hash(recipe, root)
    first = digest()
    assert first != digest('recipes/a.yaml') != digest('recipes/b.yaml')
    assert first == provenance.tree_hash({
        'timm_longtail/__init__.py': b'version = 1\n', 'timm_longtail/losses/ce.py': b'loss = 1\n',
        'train.py': b'train = 1\n'})
    for name in ('README.md', 'recipes/a.yaml', 'timm_longtail/notes.txt', 'tests.py'):
        (root / name).write_text('other\n')
    assert digest() == first
    seen = {first}
    for name in ('timm_longtail/losses/ce.py', 'timm_longtail/losses/new.py', 'train.py', 'validate.py'):
        (root / name).write_text('other\n')
        assert digest() not in seen
        seen.add(digest())


@pytest.mark.parametrize('name, dirty', [
    ('train.py', True), ('timm_longtail/losses/ce.py', True), ('timm_longtail/new.py', True), ('validate.py', True),
    ('timm_longtail/new/file.py', True), ('recipes/a.yaml', True), ('recipes/b.yaml', False), ('README.md', False),
    ('timm_longtail/notes.txt', False), ('tests/test_x.py', False), ('output/args.yaml', False),
])
def test_dirty_is_what_decides_a_result(name, dirty, project):
    root, commit = project
    assert provenance.is_dirty('recipes/a.yaml', root) is False
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text('other\n')
    assert provenance.is_dirty('recipes/a.yaml', root) is dirty
    commit()
    assert provenance.is_dirty('recipes/a.yaml', root) is False


def test_a_deleted_or_renamed_file_is_dirty(project):
    root, commit = project
    (root / 'timm_longtail/losses/ce.py').unlink()
    assert provenance.is_dirty(root=root) is True
    commit()
    for target in ('moved.py', 'timm_longtail/old.txt'):
        git('mv', 'timm_longtail/__init__.py', target, root=root)
        assert provenance.is_dirty(root=root) is True, target
        git('mv', target, 'timm_longtail/__init__.py', root=root)


def test_an_ignored_module_is_not_passed_over(project):
    # git does not list it, but it is hashed: such a row could never be run from a commit
    root, _ = project
    (root / 'timm_longtail' / 'ignored.py').write_text('x = 1\n')
    assert provenance.working_tree_hash(root=root) not in tree_hashes({None}, root)[None]
    assert provenance.is_dirty(root=root) is True


def test_without_git_nobody_knows(tmp_path):
    (tmp_path / 'timm_longtail').mkdir()
    assert provenance.is_dirty(root=tmp_path) is None


def test_a_recipe_outside_the_project_does_not_hide_a_dirty_tree(project, tmp_path):
    root, _ = project
    recipe = tmp_path / 'mine.yaml'
    recipe.write_text('lr: 1\n')
    (root / 'train.py').write_text('other\n')
    assert provenance.is_dirty(str(recipe), root)


def test_a_dirty_tree_is_refused(monkeypatch):
    for dirty in (False, None):
        monkeypatch.setattr(provenance, 'is_dirty', lambda recipe, dirty=dirty: dirty)
        provenance.require_clean_tree()
    monkeypatch.setattr(provenance, 'is_dirty', lambda recipe: True)
    with pytest.raises(UserError, match='--results: the code differs from the last commit'):
        provenance.require_clean_tree('recipes/a.yaml')


def test_hashes_of_the_history_are_those_that_the_runs_wrote(project):
    root, commit = project
    written = {None: set(), 'recipes/a.yaml': set(), 'recipes/missing.yaml': set()}
    for version in range(3):
        (root / 'timm_longtail/losses/ce.py').write_text('loss = 2\n' * version)  # an empty file, too
        (root / 'recipes/a.yaml').write_text(f'lr: {version}\n')
        for recipe, hashes in written.items():
            hashes.add(provenance.working_tree_hash(recipe, root))
        commit()
    found = tree_hashes(set(written), root)
    assert all(hashes <= found[recipe] for recipe, hashes in written.items())
    assert len(found[None]) == 4  # the first commit of all, and three more
    (root / 'train.py').write_text('not committed\n')
    assert provenance.working_tree_hash(None, root) not in found[None]


def test_the_working_tree_is_the_last_commit_when_nothing_changed():
    needs_history()
    recipe = 'timm_longtail/config/recipes/bcl_resnet20.digits_lt_if20.yaml'
    if provenance.is_dirty(recipe):
        pytest.skip('the working tree differs from the last commit')
    names = provenance.tree_files(git('ls-tree', '-r', '--name-only', 'HEAD').decode().splitlines(), recipe)
    contents = {name: git('show', f'HEAD:{name}') for name in names}
    assert {recipe, 'train.py', 'timm_longtail/training/loop.py'} < contents.keys()
    assert provenance.working_tree_hash(recipe) == provenance.tree_hash(contents)
    assert provenance.working_tree_hash(recipe) in tree_hashes({recipe})[recipe]


def test_recipes_are_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / 'recipes')
    assert provenance.relative_to_root(Path('x.yaml')) == 'recipes/x.yaml'
    assert provenance.relative_to_root(None) is None
    assert provenance.relative_to_root(tmp_path / 'x.yaml') == str((tmp_path / 'x.yaml').resolve())


@pytest.mark.parametrize('num_processes, launcher', [(1, 'python train.py'), (4, './distributed_train.sh 4')])
def test_command_can_be_typed_again(num_processes, launcher, monkeypatch):
    monkeypatch.setenv('TIMM_LONGTAIL_DATA', '/data/sets')
    monkeypatch.setattr('sys.argv', ['/at/train.py', '--model', 'x', '--data-dir', '/data/sets/uoft-cs/cifar100'])
    assert provenance.command_line(num_processes) == (
        f'{launcher} --model x --data-dir $TIMM_LONGTAIL_DATA/uoft-cs/cifar100')
