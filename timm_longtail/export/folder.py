"""Export of a trained model: a folder that is exactly what is pushed to the Hub.

`config.json` (timm's, with the run's provenance under `timm_longtail`), `model.safetensors`,
`README.md` (the card).
"""
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from timm.models import PretrainedCfg, save_for_hf
from torch import nn

from ..utils.errors import UserError, one_line, unknown_name
from ..utils.files import readable_by_others, writing
from ..utils.finite import check_finite
from ..utils.private_paths import cut_folders, without_folders
from ..utils.version import __version__
from .card import write_card
from .checks import WEIGHTS
from .checksums import seal
from .deploy import deploy
from .replacing import replacing

__all__ = ['export_model']


def export_model(
        model: nn.Module,
        folder: str | Path,
        provenance: dict[str, Any] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        input_size: tuple[int, int, int] | None = None,
        class_names: Sequence[str] | None = None,
        crop_pct: float | None = None,
        interpolation: str | None = None,
        license: str | None = None,
) -> Path:
    """Write a model as a folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads.

    It loads bit for bit; a timm backbone with its own linear classifier does so without this
    package. `config.json` holds the checksum of the weights.

    Args:
        model: Model built by `timm.create_model`, wrapped or not; its branches are left out.
        folder: Folder to write; one that is there already is replaced, in one step.
        provenance: How the model came about (method, data set, counts, seeds, `metrics`), written
            to `config.json` and to the card; of absolute paths in it the last name is kept.
        mean: Mean of the images by channel, for values in [0, 1].
        std: Standard deviation of the images by channel, for values in [0, 1].
        input_size: Channels, height and width of the training images.
        class_names: Name of each class [C], no two alike.
        crop_pct: Share of the shorter side of an image that evaluation looks at; None, here and
            for the other figures of the input, keeps those of the model.
        interpolation: Interpolation by which evaluation resizes an image.
        license: Licence of the weights; None is that of the model's pretrained weights, '' leaves
            it open.

    Returns:
        Path of the folder.

    Raises:
        UserError: The model was not built by timm, or has weights that are not finite; the names
            do not fit its classes; the provenance or the disk cannot be written.
    """
    deployed = deploy(model)
    deployed.pretrained_cfg = _complete_cfg(deployed)

    label_names = None
    if class_names is not None:
        _check_names(class_names, deployed.num_classes)
        label_names = list(class_names)
    check_finite(deployed.state_dict(), 'not exported')

    # what is not given is left to what the model's own configuration says
    provenance = _published({'version': __version__, **(provenance or {})})
    about = {'tag': provenance.get('tag', ''), 'license': license}
    data_config = {
        'mean': mean,
        'std': std,
        'input_size': input_size,
        'crop_pct': crop_pct,
        'interpolation': interpolation,
        'crop_mode': 'center',
    }

    folder = Path(folder)
    with writing(folder), replacing(folder) as new:
        new.mkdir(exist_ok=True)
        with readable_by_others(new / WEIGHTS):
            save_for_hf(
                deployed,
                str(new),
                model_config={
                    'label_names': label_names,
                    'pretrained_cfg': _without_none(about),
                    'timm_longtail': provenance,
                },
                safe_serialization=True,
                data_config=_without_none(data_config),
            )
        seal(new)
        write_card(new)
    return folder


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _complete_cfg(model: nn.Module) -> dict[str, Any]:
    """Return a model's `pretrained_cfg` with all that timm needs in it, whatever replaced it."""
    if not hasattr(model, 'pretrained_cfg'):
        raise UserError(
            'only a model built by timm.create_model can be exported: it has no pretrained_cfg')

    cfg = model.pretrained_cfg
    if isinstance(cfg, PretrainedCfg):
        cfg = cfg.to_dict()

    architecture = (cfg or {}).get('architecture')
    if not architecture:
        raise UserError(
            'the pretrained_cfg of this model does not say its architecture, which timm builds it by')
    if not timm.is_model(architecture):
        raise unknown_name('architecture', architecture, timm.list_models())

    # what timm reads without asking whether it is there
    defaults = PretrainedCfg().to_dict()
    return {'input_size': defaults['input_size'], 'custom_load': defaults['custom_load'], **cfg}


def _check_names(names: Sequence[str], num_classes: int):
    """Raise a `UserError` unless each class has a name of its own."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        shown = one_line(repr(names), 60)
        raise UserError(f'class_names is {shown}, expected a list of {num_classes} names')
    if len(names) != num_classes:
        raise UserError(
            f'class_names holds {len(names)} names, and the model has {num_classes} classes')

    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        shown = one_line(repr(name), 60)
        if not isinstance(name, str):
            raise UserError(f'class_names: that of class {number} is {shown}, expected a text')
        if name in seen:
            raise UserError(
                f'class_names: classes {seen[name]} and {number} are both called {shown}')
        seen[name] = number


def _published(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return a provenance as it is published: plain JSON, without the folders of this machine."""
    published = _publish(provenance)
    try:
        json.dumps(published)
    except (TypeError, ValueError) as e:
        raise UserError(f'the provenance cannot be written as JSON: {one_line(e)}') from e
    return published


def _publish(value: Any, key: str = '') -> Any:
    """Return a value of the provenance, or of an object in it, as it is published.

    Args:
        value: Any value, of any depth.
        key: Key under which it stands; a `command` is a line of a shell.
    """
    if isinstance(value, str):
        return without_folders(value) if key == 'command' else cut_folders(value)
    if isinstance(value, dict):
        return {_publish(name): _publish(item, name) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_publish(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    return value
