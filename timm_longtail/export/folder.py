"""Export of a trained model: a folder that is exactly what is pushed to the Hub.

`config.json` (timm's, with the run's provenance under `timm_longtail`), `model.safetensors`, `README.md` (the card).
"""
import copy
import errno
import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg, save_for_hf
from torch import nn

from ..utils.errors import UserError, one_line, unknown_name
from ..utils.files import reading, writing
from ..utils.private_paths import cut_folders, without_folders
from ..utils.version import __version__
from .card import write_card
from .exported import CONFIG, WEIGHTS, check_tensors, check_values, read_config, require_files, seal, verify_weights
from .hub import push_model
from .hub_client import ANSWER_SECONDS, SLOWEST, call_hub, hub_errors, impatient

__all__ = ['deploy', 'export_model', 'load_exported', 'push_model']


def deploy(model: nn.Module) -> nn.Module:
    """Return a copy of a model as it is deployed: no branches, on the CPU, fp32, contiguous, in eval mode.

    Args:
        model: Model; `torch.compile`, DistributedDataParallel, Accelerate and moving averages may have wrapped it.
    """
    model = _unwrap(model)
    deployed = copy.deepcopy(model).cpu().float().to(memory_format=torch.contiguous_format).eval()

    # what was compiled by parts, too
    for module in list(deployed.modules()):
        for name, child in list(module.named_children()):
            if '_orig_mod' in child._modules:
                setattr(module, name, child._orig_mod)

    # Accelerate puts a forward of its own, in mixed precision, before that of the class
    for name in ('forward', '_original_forward'):
        deployed.__dict__.pop(name, None)

    if hasattr(deployed, 'branches'):
        del deployed.branches
    # timm records what the factory was called with; the exported model is built without branches
    deployed._model_args = {k: v for k, v in getattr(model, '_model_args', {}).items() if k != 'branches'}
    return deployed


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the model that timm built, out of everything that was put around it."""
    while True:
        if '_orig_mod' in model._modules:  # torch.compile
            model = model._orig_mod
        elif 'module' in model._modules and not hasattr(model, 'pretrained_cfg'):
            model = model.module
        else:
            return model


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
    """Write a model as a folder that `timm.create_model('local-dir:FOLDER', pretrained=True)` loads bit for bit.

    A timm backbone with its own linear classifier loads without this package. `config.json` holds the checksum of the
    weights.

    Args:
        model: Model built by `timm.create_model`, wrapped or not; its branches are left out.
        folder: Folder to write; one that stands there is replaced, in one step.
        provenance: How the model came about (method, data set, counts, seeds, `metrics`), written to `config.json` and
            to the card; of absolute paths in it the last name is kept.
        mean: Mean of the images, per channel, for values in [0, 1].
        std: Their standard deviation.
        input_size: Channels, height and width of the training images.
        class_names: Name of each class, no two alike.
        crop_pct: Share of the shorter side of an image that evaluation looks at; None, here and for the other figures
            of the input, keeps those of the model.
        interpolation: How evaluation resizes it.
        license: Licence of the weights; None is that of the model's pretrained weights, '' leaves it open.

    Raises:
        UserError: The model was not built by timm, or has weights that are not finite; the names do not fit its
            classes; the provenance or the disk cannot be written.
    """
    deployed = deploy(model)
    deployed.pretrained_cfg = _complete_cfg(deployed)
    if class_names is not None:
        _check_names(class_names, deployed.num_classes)
    check_values(deployed.state_dict(), 'not exported')

    provenance = _published({'version': __version__, **(provenance or {})})
    data_config = {
        'mean': mean, 'std': std, 'input_size': input_size, 'crop_pct': crop_pct, 'interpolation': interpolation,
        'crop_mode': 'center',
    }
    about = {'tag': provenance.get('tag', ''), 'license': license}

    folder = Path(folder)
    with writing(folder), _beside(folder) as work:
        new = work / 'new'
        save_for_hf(
            deployed,
            str(new),
            model_config={
                'label_names': None if class_names is None else list(class_names),
                'pretrained_cfg': {k: v for k, v in about.items() if v is not None},
                'timm_longtail': provenance,
            },
            safe_serialization=True,
            data_config={k: v for k, v in data_config.items() if v is not None},
        )
        seal(new)
        write_card(new)
        _replace_folder(new, folder, work)
    return folder


def _complete_cfg(model: nn.Module) -> dict[str, Any]:
    """Return a model's `pretrained_cfg` as timm has it since it was built, whatever it was replaced by."""
    if not hasattr(model, 'pretrained_cfg'):
        raise UserError('only a model built by timm.create_model can be exported: it has no pretrained_cfg')

    cfg = model.pretrained_cfg
    cfg = cfg.to_dict() if isinstance(cfg, PretrainedCfg) else dict(cfg or {})
    architecture = cfg.get('architecture')
    if not architecture:
        raise UserError('the pretrained_cfg of this model does not say its architecture, which timm builds it by')
    if not timm.is_model(architecture):
        raise unknown_name('architecture', architecture, timm.list_models())

    # what timm reads without asking whether it is there
    defaults = PretrainedCfg().to_dict()
    return {**{name: defaults[name] for name in ('input_size', 'custom_load')}, **cfg}


def _check_names(names: Sequence[str], num_classes: int):
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f'class_names is {one_line(repr(names), 60)}, expected a list of {num_classes} names')
    if len(names) != num_classes:
        raise UserError(f'class_names holds {len(names)} names, and the model has {num_classes} classes')

    seen = {}
    for number, name in enumerate(names):
        shown = one_line(repr(name), 60)
        if not isinstance(name, str):
            raise UserError(f'class_names: that of class {number} is {shown}, expected a text')
        if name in seen:
            raise UserError(f'class_names: classes {seen[name]} and {number} are both called {shown}')
        seen[name] = number


def _published(provenance: dict[str, Any]) -> dict[str, Any]:
    """Return a provenance as it is published: plain JSON, without the folders of this machine."""
    def publish(value: Any, key: str = '') -> Any:
        if isinstance(value, str):
            return without_folders(value) if key == 'command' else cut_folders(value)
        if isinstance(value, dict):
            return {publish(name): publish(item, name) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [publish(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            return None  # JSON has no NaN
        return value

    published = publish(provenance)
    try:
        json.dumps(published)
    except (TypeError, ValueError) as e:
        raise UserError(f'the provenance cannot be written as JSON: {one_line(e)}') from e
    return published


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """Make a folder to work in, beside another, and remove it; and those that killed processes have left there.

    Each is locked while its process lives, by a lock of the kernel's on the folder itself.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = f'.{folder.name}.', '.tmp'
    for _ in range(5):
        work = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
        descriptor = _lock(work)
        if descriptor is not None and work.is_dir():
            break  # otherwise another process has taken it for one that was left, before it was locked

    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)

    # only now, when the new export is in its place: what is left may hold the former one
    for left in folder.parent.iterdir():
        if left.name.startswith(prefix) and left.name.endswith(suffix):
            descriptor = _lock(left)
            if descriptor is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(descriptor)


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds the lock of a folder; None where another process does, or there are no locks."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _replace_folder(new: Path, folder: Path, work: Path):
    """Put `new` in the place of `folder`; where that fails, the old one stays.

    Args:
        new: Folder to put there.
        folder: Its place.
        work: Folder of this process on the same disk; what stood in the place ends in it.
    """
    old = None
    while True:
        try:
            os.replace(new, folder)
            return
        except OSError as e:
            occupied = e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
            if not occupied or not folder.is_dir():
                if old is not None and not folder.exists():
                    os.replace(old, folder)
                raise

        # a folder is there: the former export, or that of another process which was faster
        old = Path(tempfile.mkdtemp(prefix='old.', dir=work)) / folder.name
        with suppress(FileNotFoundError):
            os.replace(folder, old)


def load_exported(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load an exported model: the model in eval mode, and its `config.json`.

    Weights that differ from the checksum in `config.json` are refused; exports of versions that wrote none, and models
    of timm's own, are loaded unverified.

    Args:
        source: Its folder, `local-dir:FOLDER`, or `hf-hub:USER/NAME` with an optional `@REVISION`.

    Raises:
        UserError: The folder is not an export, or damaged; the Hub does not have it, or cannot be reached.
    """
    scheme, _, place = str(source).partition(':')
    if scheme in ('hf-hub', 'hf_hub'):
        return _load_from_hub(place)
    return _load_folder(Path(place if scheme == 'local-dir' else source))


def _load_folder(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    require_files(folder)
    config = read_config(folder)
    verify_weights(folder, config)

    with reading(folder / WEIGHTS, 'file of weights for this config.json'):
        model = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    if 'timm_longtail' in config:
        check_tensors(folder, config, model)
    return model, config


def _load_from_hub(place: str) -> tuple[nn.Module, dict[str, Any]]:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    repository, _, revision = place.partition('@')
    try:
        with hub_errors(repository, revision or 'main'), impatient(ANSWER_SECONDS):
            path = Path(call_hub(ANSWER_SECONDS, hf_hub_download, repository, CONFIG, revision=revision or None))
            config = read_config(path.parent)

            # a model of timm's own may have its weights in another file
            if 'timm_longtail' not in config:
                return timm.create_model(f'hf-hub:{place}', pretrained=True).eval(), config

            # of the same commit, whose files lie side by side
            commit = path.parent.name
            if not (path.parent / WEIGHTS).is_file():
                url = hf_hub_url(repository, WEIGHTS, revision=commit)
                size = call_hub(ANSWER_SECONDS, get_hf_file_metadata, url).size or 0
                seconds = ANSWER_SECONDS + size / SLOWEST
                call_hub(seconds, hf_hub_download, repository, WEIGHTS, revision=commit)
            return _load_folder(path.parent)
    except UserError as e:
        raise UserError(f'cannot load hf-hub:{place}: {e}') from e
