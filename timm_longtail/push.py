"""Upload of an exported folder to the Hub: checked first, then one commit of exactly its three files.

    python -m timm_longtail push hub/NAME --repo-id USER/NAME
"""
import argparse
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library that the installed client uses: the base of what a failed connection raises
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .card import is_ours, model_name, shown_metrics
from .cli import create_timm_model
from .errors import UserError, unknown_name
from .evaluate import format_table
from .options import Parser
from .version import __version__

__all__ = ['check_export', 'main', 'push_model']

FILES = ('README.md', 'config.json', 'model.safetensors')
_LOGIN = 'with `hf auth login`, or put it into $HF_TOKEN'

_logger = logging.getLogger(__name__)


def push_model(
        folder: str | Path,
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        replace: bool = False,
) -> str:
    """Upload an exported folder to a model repository of the Hub, which is created where it does not exist.

    The repository then holds the three files and nothing else. Nothing is sent before the folder has passed
    `check_export`.

    Args:
        folder: Folder that `export_model` wrote.
        repo_id: `USER/NAME`, or `ORGANISATION/NAME`.
        token: Token with the right to write; None takes the one of `hf auth login` or `$HF_TOKEN`.
        private: Create the repository private; refused where it is there and public.
        revision: Branch to write to, created where it does not exist; None is `main`.
        commit_message: First line of the commit.
        replace: Delete other files that the repository holds, in the same commit; without it they are refused.

    Returns:
        URL of the commit; of the last one, where nothing has changed since.

    Raises:
        UserError: The folder is not an export or contradicts itself; a bad name; no token, or one without the right;
            the Hub cannot be reached, or refuses.
    """
    folder = Path(folder)
    config = check_export(folder)
    _check_repo_id(repo_id)
    token = token or get_token()
    if not token:
        raise UserError(f'no token for the Hub: give one {_LOGIN}')
    api = HfApi(token=token, library_name='timm_longtail', library_version=__version__)
    with _one_line(api.endpoint, repo_id, revision):
        ModelCard.load(folder / 'README.md').validate()  # by the Hub's own rules, before a repository is created
        api.create_repo(repo_id, private=private or None, exist_ok=True)
        # a reference such as refs/pr/1 is not a branch that could be created
        if revision is not None and not revision.startswith('refs/'):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
        if private and not info.private:
            raise UserError(f'{repo_id} is there already and public: make it private on the Hub, or leave out private')
        # .gitattributes is the Hub's: it says which files are large
        stale = sorted({file.rfilename for file in info.siblings} - {*FILES, '.gitattributes'})
        if stale and not replace:
            raise UserError(f'{repo_id} holds other files, such as {stale[0]}: name another repository, or '
                            'add --replace to delete them')
        # not `upload_folder`: it may split an upload into several commits
        commit = api.create_commit(
            repo_id,
            [CommitOperationAdd(name, folder / name) for name in FILES] + [CommitOperationDelete(n) for n in stale],
            commit_message=commit_message or f'{model_name(config)}, by timm_longtail {__version__}',
            revision=revision,
        )
    return str(commit.commit_url)


def check_export(folder: str | Path) -> dict[str, Any]:
    """Check that a folder is what is pushed: three files that fit each other. Nothing is sent.

    Returns:
        Content of its `config.json`.

    Raises:
        UserError: A file is missing, unreadable or too many; the weights do not fit the architecture; the card states
            other figures than `config.json`.
    """
    folder = Path(folder)
    for name in FILES:
        if not (folder / name).is_file():
            raise UserError(f'{folder} is not an exported model: no {name} in it')
    more = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if more:
        raise UserError(f'{folder} holds {more[0]} besides {", ".join(FILES)}: move it away')
    try:
        config = json.loads((folder / 'config.json').read_text())
    except ValueError as e:
        raise UserError(f'{folder / "config.json"} is not JSON: {e}') from e
    missing = {'architecture', 'num_classes', 'pretrained_cfg', 'timm_longtail'} - set(config)
    if missing:
        raise UserError(f'{folder / "config.json"} says nothing of {min(missing)}: export_model did not write it')
    if not timm.is_model(config['architecture']):
        raise unknown_name('architecture', config['architecture'], timm.list_models())
    _check_weights(folder, config['architecture'])
    _check_card(folder / 'README.md', config)
    return config


def _check_weights(folder: Path, architecture: str):
    path = folder / 'model.safetensors'
    try:
        with safe_open(path, 'pt') as f:
            stored = {name: tuple(f.get_slice(name).get_shape()) for name in f.keys()}
    except (SafetensorError, OSError) as e:
        raise UserError(f'{path} cannot be read: {e}') from e
    with torch.device('meta'):
        model = create_timm_model(f'local-dir:{folder}')
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(stored.keys() | wanted.keys()):
        if stored.get(name) != wanted.get(name):
            raise UserError(
                f'{path} does not fit {architecture}: {name} is {stored.get(name, "not there")}, '
                f'in the model {wanted.get(name, "not there")}')


def _check_card(path: Path, config: dict[str, Any]):
    hint = 'write it anew with `python -m timm_longtail.card FOLDER`'
    try:
        card = ModelCard.load(path)
    except (ValueError, yaml.YAMLError) as e:
        raise UserError(f'the metadata of {path} cannot be read: {" ".join(str(e).split())}; {hint}') from e
    if not card.data.to_dict():
        raise UserError(f'{path} has no metadata; {hint}')
    stated = {result.metric_name: result.metric_value for result in card.data.eval_results or ()}
    measured = shown_metrics(config)
    for name in sorted(stated.keys() | measured.keys()):
        if stated.get(name) != measured.get(name):
            raise UserError(
                f'{path} states {name} {stated.get(name, "not at all")}, config.json '
                f'{measured.get(name, "not at all")}; {hint}')
    if measured and _table_row(config) not in card.content:
        raise UserError(f'the table of {path} does not show the figures of config.json; {hint}')


def _table_row(config: dict[str, Any]) -> str:
    """Return the cells of the card's table, without the name of the row."""
    return format_table({'': config['timm_longtail']['metrics']}).splitlines()[-1].split('|', 2)[2]


def _check_repo_id(repo_id: str):
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise UserError(f'{repo_id!r} is no name of a model repository, which is USER/NAME: {e}') from e
    if '/' not in repo_id:
        raise UserError(f'{repo_id!r} does not say whose it is: give USER/{repo_id}')


@contextmanager
def _one_line(endpoint: str, repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into a `UserError`."""
    try:
        yield
    except UserError:
        raise
    except HfHubHTTPError as e:
        raise UserError(_answer(e, endpoint, repo_id, revision)) from e
    except (HTTPError, OfflineModeIsEnabled) as e:
        raise UserError(f'cannot reach {endpoint}: {_flat(e)}') from e
    except (ValueError, RuntimeError) as e:  # the card, or the upload of the weights, refused
        reason = f'{_flat(e)} {_flat(e.__cause__)}' if isinstance(e.__cause__, HTTPError) else _flat(e)
        raise UserError(f'{endpoint} refuses {repo_id}: {reason}') from e


def _answer(error: HfHubHTTPError, endpoint: str, repo_id: str, revision: str | None) -> str:
    if isinstance(error, RevisionNotFoundError):
        return f'{repo_id} has no revision {revision}'
    if isinstance(error, RepositoryNotFoundError):
        return f'{endpoint} shows no model repository {repo_id} to this token'
    status = error.response.status_code
    if status == 401:
        return f'{endpoint} does not accept the token (401): give a valid one {_LOGIN}'
    if status == 403:
        return f'the token may not write to {repo_id} (403): it needs the right to write, in this namespace'
    return f'{endpoint} answers {status} for {repo_id}: {_flat(error.server_message or error)}'


def _flat(error) -> str:
    return ' '.join(str(error).split())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser('python -m timm_longtail push', description='Upload an exported model to the Hub.')
    parser.add_argument('folder', help='folder that train.py exported, or one of hub/')
    parser.add_argument('--repo-id', required=True, metavar='USER/NAME', help='model repository; created if need be')
    parser.add_argument('--private', action='store_true', help='create it private')
    parser.add_argument('--revision', help='branch, created if need be; without it main')
    parser.add_argument('--message', help='first line of the commit')
    parser.add_argument('--replace', action='store_true', help='delete other files that the repository holds')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None):
    """Check, show and upload a folder; `argv` as after `python -m timm_longtail push`."""
    args = parse_args(argv)
    folder, name = Path(args.folder), args.repo_id + (f'@{args.revision}' if args.revision else '')
    config = check_export(folder)
    print(f'{model_name(config)}: ' + ', '.join(f'{n} {(folder / n).stat().st_size / 1e3:.1f} kB' for n in FILES))
    if shown_metrics(config):
        print(format_table({'last epoch': config['timm_longtail']['metrics']}))
    print(f'to {name}', flush=True)
    url = push_model(
        folder, args.repo_id, private=args.private, revision=args.revision, commit_message=args.message,
        replace=args.replace)
    print(url)
    print('load it with' + (', after `import timm_longtail`,' if is_ours(config['architecture']) else ''))
    print(f'timm.create_model(\'hf-hub:{name}\', pretrained=True)')
