"""Rows of results: the hash that ties them to the code, and that each committed row can be run again from a commit."""
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from unittest.mock import ANY

import pytest

from timm_longtail.config.recipe import find_recipe
from timm_longtail.training import outputs, provenance
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import write_json
from tools import result_tables

from ..support.runs import digits, make_run

ROOT = Path(__file__).parents[2]
ROWS = sorted(ROOT.glob('results/*.json'))
DECIDING = ('timm_longtail', *provenance.ENTRY_POINTS)

# the columns of a row are a file format: README tables and later issues read them
PROTOCOL = {
    'tag', 'model', 'method', 'method_kwargs', 'dataset', 'imbalance_factor', 'subset_hash', 'subset_order',
    'original_order', 'class_counts', 'shot_counts', 'seed', 'data_seed', 'val_fraction', 'epochs',
    'global_batch_size', 'mixed_precision', 'num_processes', 'command', 'environment',
}
# since the first rows
ADDED = {'hub_id', 'imbalance_profile', 'img_size', 'pretrained', 'initial_checkpoint', 'resident',
         'dataset_name', 'sampler', 'epoch_length', 'experiment', 'model_kwargs'}
PROTOCOL |= ADDED
CODE = {'recipe', 'tree_hash', 'dirty'}
COST = {'images_seen', 'forward_passes', 'seconds', 'train_seconds_per_epoch', 'peak_rss_gb'}
METRICS = {'all', 'many', 'medium', 'few', 'balanced', 'worst_class', 'macro_f1', 'ece', 'loss', 'num_images'}
VOTE = {'ece', 'loss'}  # no probabilities
UNMEASURED = {'moco': VOTE, 'pnda': VOTE, 'rais': {'many', 'medium', 'few', 'macro_f1', 'class_correct'}}


def git(*arguments, root=ROOT, stdin=None):
    command = ['git', '-C', str(root), *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=True).stdout


def why_no_history(root=ROOT):
    """Return why the history of a folder cannot be asked, or None."""
    try:
        if git('rev-parse', '--is-shallow-repository', root=root).strip() == b'true':
            return 'a shallow clone has no history'
        top = Path(git('rev-parse', '--show-toplevel', root=root).decode().strip())
        return None if top.resolve() == Path(root).resolve() else 'the project is not a git repository of its own'
    except OSError:
        return 'git is not installed'
    except subprocess.CalledProcessError:
        return 'not a git repository'


def needs_history():
    if reason := why_no_history():
        pytest.skip(reason)


def tree_of(commit, names, root=ROOT):
    """Return path -> object id of the files of a commit under some names."""
    listing = git('ls-tree', '-r', '-z', commit, '--', *names, root=root).decode().split('\0')[:-1]
    entries = (line.split('\t', 1) for line in listing)
    return {path: description.split()[2] for description, path in entries if description.split()[1] == 'blob'}


def read_blobs(ids, root=ROOT):
    """Return the bytes of git objects by id, in one call."""
    ids = sorted(set(ids))
    answer = git('cat-file', '--batch', root=root, stdin='\n'.join([*ids, '']).encode())
    blobs, position = {}, 0
    for blob in ids:
        end = answer.index(b'\n', position)
        size = int(answer[position:end].split()[2])
        blobs[blob] = answer[end + 1:end + 1 + size]
        position = end + 1 + size + 1
    return blobs


def tree_hashes(recipes, root=ROOT):
    """Return the tree hashes of all commits in the history, for each of some recipes (or None)."""
    names = [*DECIDING, *filter(None, recipes)]
    commits = git('rev-list', '--full-history', 'HEAD', '--', *names, root=root).decode().split()
    trees = {frozenset(tree_of(commit, names, root).items()) for commit in commits}
    blobs = read_blobs([blob for tree in trees for _, blob in tree], root) if trees else {}
    return {
        recipe: {
            provenance.tree_hash({path: blobs[tree[path]] for path in provenance.tree_files(tree, recipe)})
            for tree in map(dict, trees)
        }
        for recipe in recipes
    }


@cache
def history():
    return tree_hashes({json.loads(path.read_text()).get('recipe') for path in ROWS})


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
    recipe = provenance.relative_to_root(find_recipe('bcl_resnet20.digits_lt_if20'))
    if provenance.is_dirty(recipe):
        pytest.skip('the working tree differs from the last commit')
    names = provenance.tree_files(git('ls-tree', '-r', '--name-only', 'HEAD').decode().splitlines(), recipe)
    contents = {name: git('show', f'HEAD:{name}') for name in names}
    assert {recipe, 'train.py', 'timm_longtail/training/loop.py'} < contents.keys()
    assert provenance.working_tree_hash(recipe) == provenance.tree_hash(contents)
    assert provenance.working_tree_hash(recipe) in tree_hashes({recipe})[recipe]


def test_a_row_has_these_columns():
    args, run = make_run('ce')
    run.history = [{'epoch': 0, 'train_seconds': 2.0}, {'epoch': 1, 'train_seconds': 4.0}]
    protocol, code = outputs._protocol(args, run, digits()), provenance.code_state()
    cost = outputs._cost(run)
    assert (protocol.keys(), code.keys(), cost.keys()) == (PROTOCOL, CODE, COST)
    assert json.loads(json.dumps(protocol)) == {**protocol, 'model_kwargs': ANY}  # plain types only, but for tuples
    assert cost['images_seen'] == 2 * 64 and cost['forward_passes'] == 128 and cost['train_seconds_per_epoch'] == 3.0
    assert protocol['environment'].keys() >= {'device', 'device_type', 'threads', 'python', 'torch', 'timm'}
    assert code['tree_hash'] == provenance.working_tree_hash() and protocol['class_counts'] == digits().class_counts


def test_recipes_are_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / 'recipes')
    assert provenance.relative_to_root(Path('x.yaml')) == 'recipes/x.yaml'
    assert provenance.relative_to_root(find_recipe('bcl_resnet20.digits_lt_if20')) == (
        'timm_longtail/config/recipes/bcl_resnet20.digits_lt_if20.yaml')
    assert provenance.relative_to_root(None) is None
    assert provenance.relative_to_root(tmp_path / 'x.yaml') == str((tmp_path / 'x.yaml').resolve())


@pytest.mark.parametrize('started, num_processes, launcher', [
    ('/at/train.py', 1, 'python train.py'),
    ('/at/train.py', 4, './distributed_train.sh 4'),
    # what `__main__` writes in the place of the script
    ('timm-longtail train', 1, 'timm-longtail train'),
    ('python -m timm_longtail train', 1, 'python -m timm_longtail train'),
    ('timm-longtail train', 4, 'torchrun --standalone --nproc-per-node 4 -m timm_longtail train'),
    ('python -m timm_longtail train', 4, 'torchrun --standalone --nproc-per-node 4 -m timm_longtail train'),
])
def test_command_can_be_typed_again(started, num_processes, launcher, monkeypatch):
    monkeypatch.setenv('TIMM_LONGTAIL_DATA', '/data/sets')
    monkeypatch.setattr('sys.argv', [started, '--model', 'x', '--data-dir', '/data/sets/uoft-cs/cifar100'])
    assert provenance.command_line(num_processes) == (
        f'{launcher} --model x --data-dir $TIMM_LONGTAIL_DATA/uoft-cs/cifar100')


@pytest.mark.parametrize('started, launcher', [
    ('train.py', 'NNODES=2 ./distributed_train.sh 2'),
    ('python -m timm_longtail train', 'torchrun --nnodes 2 --nproc-per-node 2 -m timm_longtail train'),
])
def test_command_of_two_hosts(started, launcher, monkeypatch):
    monkeypatch.setenv('GROUP_WORLD_SIZE', '2')
    monkeypatch.setattr('sys.argv', [started, '--seed', '1'])
    assert provenance.command_line(4) == f'{launcher} --seed 1'


@pytest.mark.parametrize('started, other', [
    ('train.py', 'python validate.py'),
    ('timm-longtail train', 'timm-longtail validate'),
    ('python -m timm_longtail retrain', 'python -m timm_longtail validate'),
])
def test_another_command_is_started_in_the_same_way(started, other, monkeypatch):
    monkeypatch.setattr('sys.argv', [started, '--seed', '1'])
    assert provenance.start_of('validate') == other


def test_a_package_inside_another_project_has_no_commit_of_its_own(project):
    root, commit = project
    installed = root / 'env' / 'site-packages'
    (installed / 'timm_longtail').mkdir(parents=True)
    (installed / 'timm_longtail' / '__init__.py').write_text('version = 1\n')
    commit()

    assert provenance.is_dirty(root=installed) is None


def test_writing_json_leaves_a_whole_file(tmp_path, monkeypatch):
    path = tmp_path / 'new' / 'row.json'
    write_json(path, {'a': 1})
    monkeypatch.setattr(provenance.os, 'replace', lambda *args: (_ for _ in ()).throw(OSError('no space')))
    with pytest.raises(UserError, match='cannot write .*row.json: no space'):
        write_json(path, {'a': 2})
    assert json.loads(path.read_text()) == {'a': 1}


@pytest.mark.parametrize('path', ROWS, ids=lambda path: path.stem)
def test_committed_rows_are_whole(path):
    row = json.loads(path.read_text())
    columns = PROTOCOL | CODE | COST | {'last', 'best', 'found', 'train'}
    assert columns - ADDED - {'found', 'train'} <= row.keys() - {'peak_device_gb'} <= columns
    assert row['dirty'] is False
    assert len(row['tree_hash']) == 64 and int(row['tree_hash'], 16) >= 0
    metrics = METRICS - UNMEASURED.get(row['method'], set())
    assert row['last'].keys() >= metrics and row['best'].keys() >= metrics | {'epoch', 'selected_by'}
    if 'class_correct' not in UNMEASURED.get(row['method'], ()):
        assert len(row['last']['class_correct']) == len(row['class_counts']) == len(row['shot_counts'])
        assert row['last']['all'] == pytest.approx(
            100 * sum(row['last']['class_correct']) / sum(row['last']['class_total']), rel=1e-9)
    names = [row['tag'], row['model'], row['method'], row.get('experiment')]
    assert path.stem == f'{".".join(filter(None, names))}.e{row["epochs"]}.s{row["seed"]}'
    assert row['recipe'] is None or find_recipe(row['recipe']).is_file()
    assert '/root/' not in row['command'] and '/home/' not in row['command']


@pytest.mark.parametrize('path', ROWS, ids=lambda path: path.stem)
def test_committed_rows_come_from_a_commit(path):
    needs_history()
    row = json.loads(path.read_text())
    assert row['tree_hash'] in history()[row['recipe']], 'no commit of this repository has the code of this row'


@pytest.mark.parametrize('path', sorted((ROOT / 'results' / 'retrained').glob('*.json')), ids=lambda path: path.stem)
def test_committed_rows_of_classifiers(path):
    """They come from a commit, and stand on a row of stage 1 that is there: its `joint` has the same counts."""
    needs_history()
    row = json.loads(path.read_text())
    assert row['dirty'] is False and row['tree_hash'] in history()[None]
    assert '/' not in row['stage_1']['source'] and '/root/' not in row['command'] + row['stage_1']['command']
    stages = [json.loads(other.read_text()) for other in ROWS]
    stage_1, = (other for other in stages if other['command'] == row['stage_1']['command'])
    if 'joint' in row['classifiers']:  # MoCo has no classes
        assert row['classifiers']['joint']['class_correct'] == stage_1['last']['class_correct']
    assert 'joint' in row['classifiers'] or stage_1['method'] in UNMEASURED
    for name, metrics in row['classifiers'].items():
        assert metrics['all'] == pytest.approx(
            100 * sum(metrics['class_correct']) / sum(metrics['class_total']), rel=1e-9), name


@pytest.mark.parametrize('command, published', [
    ('python train.py --data-dir /home/me/client/photos --lr 0.1', 'python train.py --data-dir photos --lr 0.1'),
    ('python train.py --dataset packed:/a/b.safetensors --data-dir $TIMM_LONGTAIL_DATA/x',
     'python train.py --dataset packed:b.safetensors --data-dir $TIMM_LONGTAIL_DATA/x'),
    ('python train.py --initial-checkpoint /home/me/output/RUN/export',
     'python train.py --initial-checkpoint RUN/export'),
    *[("python train.py --output 'runs/a b' --model hf-hub:me/x",) * 2],
    ("python train.py --data-dir='/home/me/client X/photos' --lr=0.1", 'python train.py --data-dir=photos --lr=0.1'),
    ('python train.py --output /home/me --results /data', "python train.py --output '~' --results data"),
    ('python train.py --method-kwargs "x=[\'/a/b\', \'/c/d\']"',
     'python train.py --method-kwargs \'x=[\'"\'"\'b\'"\'"\', \'"\'"\'d\'"\'"\']\''),
    ("it's no command line: /home/me/x", "it's no command line: x"),
])
def test_folders_of_a_machine_are_not_published(command, published):
    assert provenance.without_folders(command) == published


@pytest.mark.parametrize('text, published', [
    ('/home/me/client X/photos', 'photos'), ('/data', 'data'), ('/a/b/', 'b'), ('/', '/'), ('a / b', 'a / b'),
    ('/home/me', '~'), ('/Users/me/', '~'), ('/root', '~'), ('/home/me/export', 'export'),
    ('packed:/a/b.safetensors', 'packed:b.safetensors'), ('hfds//a/b', 'hfds/b'), ('file:///home/me/x', 'x'),
    ('see /a/b and (/c/d), not 1/2', 'see b and (d), not 1/2'),
    *[(text, text) for text in ('https://host/a/b', 'hfds/user/name', 'runs/a', '$TIMM_LONGTAIL_DATA/x', 'images/s')],
])
def test_absolute_paths_are_cut_to_their_last_name(text, published):
    assert provenance.cut_folders(text) == published
    assert provenance.cut_folders(published) == published


def test_the_home_of_this_account_has_no_name(monkeypatch):
    monkeypatch.setenv('HOME', '/srv/people/me')
    assert provenance.cut_folders('/srv/people/me') == '~' and provenance.cut_folders('/srv/people/me/x') == 'x'


ROW = json.loads(ROWS[0].read_text())


@pytest.mark.parametrize('content, words', [
    (b'', 'is damaged or not a row of results'), (b'{"tag": ', 'is damaged or not a row of results'),
    (b'[]', 'is not a row of results: it holds no object'), (b'\xff\xfe', 'is not a row of results: it is not UTF-8'),
    (b'{}', 'is not a row of results: it has no tag'),
    (json.dumps({k: v for k, v in ROW.items() if k != 'last'}).encode(), 'is not a row of results: it has no last'),
])
def test_a_damaged_row_is_named(content, words, tmp_path, monkeypatch):
    path = tmp_path / 'row.json'
    path.write_bytes(content)
    (tmp_path / 'retrained').mkdir()
    monkeypatch.setattr(result_tables, 'RESULTS', tmp_path)
    for read in (lambda: provenance.read_row(path), result_tables.published_table, result_tables.short_table):
        with pytest.raises(UserError, match=words) as raised:
            read()
        assert str(path) in str(raised.value) and '\n' not in str(raised.value)

    path.rename(tmp_path / 'retrained' / 'row.json')
    with pytest.raises(UserError, match='retrained/row.json is '):
        result_tables.retrained_table()


@pytest.mark.parametrize('place, reason', [
    ('/proc', ''), ('/proc/1/nowhere', ''), ('FILE', 'File exists|Not a directory'), ('FILE/in', 'Not a directory'),
    ('x' * 300, 'File name too long'), ('a\0b', 'null'), ('READ_ONLY', 'Permission denied'),
])
def test_results_that_could_not_be_written_are_refused(place, reason, tmp_path, monkeypatch):
    (tmp_path / 'FILE').write_text('')
    if place == 'READ_ONLY':  # to root, no folder is
        monkeypatch.setattr(Path, 'touch', lambda path: (_ for _ in ()).throw(PermissionError(13, 'Permission denied')))
    args, _ = make_run('ce')
    args.results = str(tmp_path / place)
    with pytest.raises(UserError, match=f'--results: cannot write .*{reason}') as raised:
        provenance.results_path(args, digits())
    assert '\n' not in str(raised.value) and (tmp_path / 'FILE').read_text() == ''


def test_results_that_can_be_written_leave_their_folder_alone(tmp_path, monkeypatch):
    args, _ = make_run('ce')
    args.results = str(tmp_path / 'new')
    path = provenance.results_path(args, digits())
    assert path.parent == tmp_path / 'new' and not any(path.parent.iterdir())
    write_json(path, ROW)
    with pytest.raises(UserError, match='is there already'):
        provenance.results_path(args, digits())

    monkeypatch.setenv('RANK', '1')  # the row is written by the main process, on its host
    args.results = '/proc/nowhere'
    assert provenance.results_path(args, digits()).parent == Path('/proc/nowhere')


def test_peak_memory_is_of_this_process_alone():
    """A process that was started by a large one has not been large itself."""
    program = '''
import subprocess, sys
large = b'1' * 1_500_000_000
print = "from timm_longtail.training.provenance import *; import torch; print(peak_memory(torch.device('cpu'))['peak_rss_gb'])"
sys.exit(subprocess.run([sys.executable, '-c', print]).returncode)
'''
    result = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=True)
    assert 0.1 < float(result.stdout) < 1.3
