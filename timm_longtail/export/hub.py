"""Upload of an exported folder to the Hub: checked first, then one commit of exactly its three files."""
import logging
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id
from safetensors.torch import load_file

from ..evaluation.tables import format_table
from ..utils.errors import UserError, one_line
from ..utils.files import reading
from ..utils.finite import check_finite
from ..utils.version import __version__
from .checks import (
    CARD,
    CONFIG,
    CONFIG_KIND,
    FILES,
    WEIGHTS,
    check_tensors,
    require_files,
    require_ours,
)
from .checksums import is_sealed, read_config, verify_weights
from .hub_client import ANSWER_SECONDS, LOGIN, SLOWEST, call_hub, hub_errors, impatient
from .metadata import model_name, shown_metrics

__all__ = ['check_export', 'push_model']

_logger = logging.getLogger(__name__)


def push_model(
        folder: str | Path,
        repo_id: str,
        token: str | None = None,
        private: bool = False,
        revision: str | None = None,
        commit_message: str | None = None,
        replace: bool = False,
        timeout: float = ANSWER_SECONDS,
) -> str:
    """Upload an exported folder to a model repository of the Hub, created where it does not exist.

    The repository then holds the three files and nothing else. Nothing is sent before the folder
    has passed `check_export`.

    Args:
        folder: Folder that `export_model` wrote.
        repo_id: `USER/NAME`, or `ORGANISATION/NAME`.
        token: Token with the right to write; None takes the one of `hf auth login` or `$HF_TOKEN`.
        private: Create the repository private; refused where it is there and public.
        revision: Branch to write to, created where it does not exist; None is `main`.
        commit_message: First line of the commit.
        replace: Delete other files that the repository holds, in the same commit; without it they
            are refused.
        timeout: Seconds that the Hub may take to answer; for the upload the time that its size
            takes is added.

    Returns:
        URL of the commit; of the last one, where nothing has changed since.

    Raises:
        UserError: The folder is not an export or contradicts itself; a bad name; no token, or one
            without the right; the Hub cannot be reached, does not answer in time, or refuses.
    """
    folder = Path(folder)
    config = check_export(folder)
    _check_repo_id(repo_id)
    token = token or get_token()
    if not token:
        raise UserError(f'no token for the Hub: give one {LOGIN}')

    api = HfApi(token=token, library_name='timm_longtail', library_version=__version__)
    with hub_errors(repo_id, revision), impatient(timeout):
        # by the Hub's own rules, before a repository is created
        call_hub(timeout, _validate_card, api.endpoint, folder / CARD)
        call_hub(timeout, api.create_repo, repo_id, private=private or None, exist_ok=True)

        # a reference such as refs/pr/1 is not a branch that could be created
        if revision is not None and not revision.startswith('refs/'):
            call_hub(timeout, api.create_branch, repo_id, branch=revision, exist_ok=True)

        info = call_hub(timeout, api.model_info, repo_id, revision=revision)
        if private and not info.private:
            raise UserError(
                f'{repo_id} is there already and public: make it private on the Hub, or leave out '
                'private')

        # .gitattributes is the Hub's: it says which files are large
        stale = sorted({file.rfilename for file in info.siblings} - {*FILES, '.gitattributes'})
        if stale and not replace:
            raise UserError(
                f'{repo_id} holds other files, such as {stale[0]}: name another repository, or '
                'add --replace to delete them')

        # not `upload_folder`: it may split an upload into several commits
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        operations += [CommitOperationAdd(name, folder / name) for name in FILES]
        operations += [CommitOperationDelete(name) for name in stale]
        message = commit_message or f'{model_name(config)}, by timm_longtail {__version__}'
        size = sum((folder / name).stat().st_size for name in FILES)
        commit = call_hub(
            timeout + size / SLOWEST,
            api.create_commit,
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
        )
    return str(commit.commit_url)


def _validate_card(endpoint: str, path: Path):
    """Raise a `ValueError` that says why the Hub would refuse a card.

    This is `ModelCard.validate`, which before huggingface_hub 2 asks huggingface.co whatever Hub is
    written to.
    """
    body = {'repoType': 'model', 'content': path.read_text(encoding='utf-8')}
    response = get_session().post(f'{endpoint}/api/validate-yaml', json=body, headers={'Accept': 'text/plain'})
    if response.status_code == 400:
        raise ValueError(response.text)
    hf_raise_for_status(response)


def check_export(folder: str | Path) -> dict[str, Any]:
    """Check that a folder is what is pushed: three files that fit each other. Nothing is sent.

    An export of a version that wrote no checksums passes with a line in the log.

    Args:
        folder: Exported folder.

    Returns:
        Content of its `config.json`.

    Raises:
        UserError: A file is missing, unreadable or too many; the weights do not fit the
            architecture or their checksum, or hold what cannot be published; the card states other
            figures than `config.json`.
    """
    folder = Path(folder)
    require_files(folder, FILES)
    more = sorted(path.name for path in folder.iterdir() if path.name not in FILES)
    if more:
        raise UserError(f'{folder} holds {more[0]} besides {", ".join(FILES)}: move it away')

    config = read_config(folder)
    require_ours(config, folder / CONFIG)
    if not is_sealed(config):
        _logger.warning(
            f'{folder} was exported without checksums, so damage would not be seen; '
            f'`python -m timm_longtail.export {folder}` adds them'
        )

    verify_weights(folder, config)
    check_tensors(folder, config)
    with reading(folder / WEIGHTS, 'safetensors file'):
        check_finite(load_file(folder / WEIGHTS), folder / WEIGHTS)

    # of a config that holds texts where the card shows numbers, the config is to blame
    with reading(folder / CONFIG, CONFIG_KIND):
        _check_card(folder / CARD, config)
    return config


def _check_card(path: Path, config: dict[str, Any]):
    """Raise a `UserError` unless metadata and table of a card state the figures of a config."""
    hint = f'rewrite it with `python -m timm_longtail.export {path.parent}`'
    try:
        card = ModelCard.load(path)
    except (ValueError, TypeError, LookupError, AttributeError, OSError, yaml.YAMLError) as e:
        raise UserError(f'the metadata of {path} cannot be read: {one_line(e)}; {hint}') from e
    if not card.data.to_dict():
        raise UserError(f'{path} has no metadata; {hint}')

    stated = {result.metric_name: result.metric_value for result in card.data.eval_results or ()}
    measured = shown_metrics(config)
    for name in sorted(stated.keys() | measured.keys()):
        on_card, in_config = stated.get(name, 'not at all'), measured.get(name, 'not at all')
        if on_card != in_config:
            raise UserError(f'{path} states {name} {on_card}, config.json {in_config}; {hint}')

    if measured and _table_row(config) not in card.content:
        raise UserError(f'the table of {path} does not show the figures of config.json; {hint}')


def _table_row(config: dict[str, Any]) -> str:
    """Return the cells of the card's table, without the name of the row."""
    last_line = format_table({'': config['timm_longtail']['metrics']}).splitlines()[-1]
    _, _, cells = last_line.split('|', 2)
    return cells


def _check_repo_id(repo_id: str):
    try:
        validate_repo_id(repo_id)
    except HFValidationError as e:
        raise UserError(
            f'{repo_id!r} is no name of a model repository, which is USER/NAME: {e}') from e
    if '/' not in repo_id:
        raise UserError(f'{repo_id!r} does not say whose it is: give USER/{repo_id}')
