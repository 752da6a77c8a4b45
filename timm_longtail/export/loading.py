"""Exported models loaded again, from a folder or from the Hub, verified by their checksums."""
from pathlib import Path
from typing import Any

import timm
from torch import nn

from ..utils.errors import UserError
from ..utils.files import reading
from .checks import CONFIG, WEIGHTS, check_tensors, require_files
from .checksums import read_config, verify_weights
from .hub_client import ANSWER_SECONDS, SLOWEST, call_hub, hub_errors, impatient

__all__ = ['load_exported']


def load_exported(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load an exported model: the model in eval mode, and its `config.json`.

    Weights that differ from the checksum in `config.json` are refused; exports of versions that
    wrote none, and models of timm's own, are loaded unverified.

    Args:
        source: Path of the folder, `local-dir:FOLDER`, or `hf-hub:USER/NAME` with an optional
            `@REVISION`.

    Raises:
        UserError: The folder is not an export, or damaged; the Hub does not have it, or cannot be
            reached.
    """
    scheme, _, place = str(source).partition(':')
    if scheme in ('hf-hub', 'hf_hub'):
        return _load_from_hub(place)
    if scheme == 'local-dir':
        return _load_folder(Path(place))
    return _load_folder(Path(source))


def _load_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    require_files(folder)
    config = read_config(folder)
    verify_weights(folder, config)

    with reading(folder / WEIGHTS, 'file of weights for this config.json'):
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()

    # timm has drawn anew what did not fit
    if 'timm_longtail' in config:
        check_tensors(folder, config, model)
    return model, config


def _load_from_hub(place: str) -> tuple[nn.Module, dict[str, Any]]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository, _, revision = place.partition('@')
    try:
        with hub_errors(repository, revision or 'main'), impatient(ANSWER_SECONDS):
            path = call_hub(
                ANSWER_SECONDS, hf_hub_download, repository, CONFIG, revision=revision or None)
            folder = Path(path).parent
            config = read_config(folder)

            # a model of timm's own may have its weights in another file
            if 'timm_longtail' not in config:
                return timm.create_model(f'hf-hub:{place}', pretrained=True).eval(), config

            # the weights of the same commit, whose files lie side by side
            commit = folder.name
            if not (folder / WEIGHTS).is_file():
                url = hf_hub_url(repository, WEIGHTS, revision=commit)
                size = call_hub(ANSWER_SECONDS, get_hf_file_metadata, url).size or 0
                seconds = ANSWER_SECONDS + size / SLOWEST
                call_hub(seconds, hf_hub_download, repository, WEIGHTS, revision=commit)
            return _load_folder(folder)
    except UserError as e:
        raise UserError(f'cannot load hf-hub:{place}: {e}') from e
