"""The history of a repository: which files its commits have, and the hashes of the code in each."""
import subprocess
from pathlib import Path

import pytest

from timm_longtail.training import provenance

ROOT = Path(__file__).parents[2]
DECIDING = ('timm_longtail', *provenance.ENTRY_POINTS)


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
