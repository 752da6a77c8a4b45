"""Export of a trained model: a folder that is exactly what is pushed to the Hub.

`config.json` (timm's, with the run's provenance under `timm_longtail`), `model.safetensors`, `README.md` (the card).
"""
import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import save_for_hf
from torch import nn

from .card import write_card
from .errors import UserError
from .push import push_model
from .version import __version__

__all__ = ['deploy', 'export_model', 'load_exported', 'push_model']


def deploy(model: nn.Module) -> nn.Module:
    """Return a copy of a model as it is deployed: no branches, on the CPU, fp32, contiguous, in eval mode."""
    deployed = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).eval()
    if hasattr(deployed, 'branches'):
        del deployed.branches
    # timm records what the factory was called with; the exported model is built without branches
    deployed._model_args = {k: v for k, v in getattr(model, '_model_args', {}).items() if k != 'branches'}
    return deployed


def export_model(
        model: nn.Module,
        folder: str | Path,
        provenance: dict[str, Any] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        input_size: tuple[int, int, int] | None = None,
        class_names: list[str] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        license: str | None = None,
) -> Path:
    """Write a model as a folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads bit for bit.

    A timm backbone with its own linear classifier loads without this package.

    Args:
        model: Model built by `timm.create_model`; its branches are left out.
        folder: Folder to write; one that stands there is replaced, in one step.
        provenance: How the model came about (method, data set, counts, seeds, `metrics`), written to `config.json` and
            to the card.
        mean, std: Normalisation of the images, per channel, for values in [0, 1].
        input_size: Channels, height and width of the training images.
        class_names: Name of each class.
        crop_pct: Share of the shorter side of an image that evaluation looks at; None, here and for the other figures
            of the input, keeps those of the model.
        interpolation: How evaluation resizes it.
        license: Licence of the weights; None is that of the model's pretrained weights, '' leaves it open.

    Raises:
        UserError: The model was not built by timm.
    """
    if not hasattr(model, 'pretrained_cfg'):
        raise UserError('only a model built by timm.create_model can be exported: it has no pretrained_cfg')
    provenance = {'version': __version__, **(provenance or {})}
    folder = Path(folder)
    temporary = folder.with_name(folder.name + '.tmp')
    shutil.rmtree(temporary, ignore_errors=True)
    data_config = {
        'mean': mean, 'std': std, 'input_size': input_size, 'crop_pct': crop_pct, 'interpolation': interpolation,
        'crop_mode': 'center',
    }
    about = {'tag': provenance.get('tag', ''), 'license': license}
    save_for_hf(
        deploy(model),
        str(temporary),
        model_config={
            'label_names': class_names,
            'pretrained_cfg': {k: v for k, v in about.items() if v is not None},
            'timm_longtail': provenance,
        },
        safe_serialization=True,
        data_config={k: v for k, v in data_config.items() if v is not None},
    )
    write_card(temporary)
    _replace_folder(temporary, folder)
    return folder


def _replace_folder(new: Path, folder: Path):
    """Put `new` in the place of `folder`; where that fails, the old one stays."""
    old = folder.with_name(folder.name + '.old')
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    try:
        os.replace(new, folder)
    except OSError:
        if old.exists():
            os.replace(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_exported(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load an exported model: the model in eval mode, and its `config.json`.

    Args:
        source: Its folder, `local-dir:FOLDER`, or `hf-hub:USER/NAME` with an optional `@REVISION`.

    Raises:
        UserError: The folder is not an export; the Hub does not have it, or cannot be reached.
    """
    scheme, _, place = str(source).rpartition(':')
    if scheme in ('hf-hub', 'hf_hub'):
        return _load_from_hub(place)
    folder = Path(place)
    for name in ('config.json', 'model.safetensors'):
        if not (folder / name).is_file():
            raise UserError(f'{folder} is not an exported model: no {name} in it')
    model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    return model, json.loads((folder / 'config.json').read_text())


def _load_from_hub(place: str) -> tuple[nn.Module, dict[str, Any]]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    repository, _, revision = place.partition('@')
    try:
        path = hf_hub_download(repository, 'config.json', revision=revision or None)
        model = timm.create_model(f'hf-hub:{place}', pretrained=True).eval()
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as e:
        raise UserError(f'cannot load hf-hub:{place}: {" ".join(str(e).split())[:300]}') from e
    return model, json.loads(Path(path).read_text())
