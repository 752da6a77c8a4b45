"""Features on disk, under a digest of all that they follow from: weights, input, images.

N images, D width of the features.
"""
import argparse
import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ..data import LongTailDataset, Preprocessing
from ..utils.errors import UserError
from ..utils.files import readable_by_others, reading, writing

__all__ = [
    'FeatureCache',
    'KeptFeatures',
    'add_feature_cache',
    'default_cache_folder',
    'features_digest',
    'open_cache',
]

_FORMAT = '2'  # of the digest and the file; another one finds none of the old files

# arguments of a model that say nothing about its features
_OF_THE_CLASSIFIER = ('num_classes', 'cosine_scale', 'pretrained')


def default_cache_folder() -> Path:
    """Return where features are kept.

    $TIMM_LONGTAIL_CACHE, or else `timm_longtail/features` in $XDG_CACHE_HOME or ~/.cache.
    """
    named = os.environ.get('TIMM_LONGTAIL_CACHE')
    if named:
        return Path(named)
    root = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(root) / 'timm_longtail' / 'features'


def add_feature_cache(parser: argparse.ArgumentParser):
    """Add the option that says where features are kept.

    Args:
        parser: Parser of a command.
    """
    parser.add_argument(
        '--feature-cache', metavar='FOLDER',
        help='where features are kept, so that the next call with the same weights and images starts at once; default '
             '$TIMM_LONGTAIL_CACHE or ~/.cache/timm_longtail/features; \'\' keeps none')


def open_cache(args: argparse.Namespace) -> 'FeatureCache | None':
    """Return the cache that the option names, or None.

    Args:
        args: Option `feature_cache`.
    """
    if args.feature_cache is None:
        return FeatureCache(default_cache_folder())
    return FeatureCache(args.feature_cache) if args.feature_cache else None


def features_digest(
        model: nn.Module,
        preprocessing: Preprocessing,
        dataset: LongTailDataset,
        device_type: str = 'cpu',
) -> str:
    """Return the sha256 of what features follow from.

    The weights of the backbone by name, not those of the classifier; the arguments that the model
    was built with, such as its pooling; the input; the images by `hash` and order, and of files
    size and time of change, since the hash of a set of files knows no pixels; and the kind of
    device, which decides the last digits.

    Args:
        model: timm model.
        preprocessing: What becomes of an image before the model sees it.
        dataset: Images.
        device_type: `cpu` or `cuda`.
    """
    arguments = getattr(model, '_model_args', {})
    about = {
        'format': _FORMAT,
        'architecture': type(model).__name__,
        'registered': getattr(model, 'default_cfg', {}).get('architecture'),
        'arguments': sorted((name, repr(arguments[name])) for name in arguments.keys() - set(_OF_THE_CLASSIFIER)),
        'preprocessing': repr(preprocessing),
        'images': [dataset.hash, dataset.order, len(dataset), dataset.resident],
        'device': device_type,
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    if dataset.file_state is not None:
        digest.update(dataset.file_state.state.tobytes())

    classifier = {id(tensor) for tensor in model.get_classifier().state_dict(keep_vars=True).values()}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in classifier:
            continue
        value = tensor.detach().cpu().contiguous()
        digest.update(f'{name} {value.dtype} {list(value.shape)}\0'.encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class KeptFeatures(NamedTuple):
    """Content of one file.

    Attributes:
        values: Features, float32 [N, D].
        targets: Class of each image, int64 [N].
        index: Position of each image in its data set, int64 [N].
        bad_images: Names of images that could not be read, and why.
    """
    values: torch.Tensor
    targets: torch.Tensor
    index: torch.Tensor
    bad_images: dict[str, str]


class FeatureCache:
    """Features in files of a folder, `<digest>.safetensors`.

    Args:
        folder: Where they are kept; made when the first is written.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def load(self, digest: str) -> KeptFeatures | None:
        """Return what was kept under a digest, or None. A file that cannot be read counts as none.

        Args:
            digest: From `features_digest`.
        """
        path = self._path(digest)
        if not path.is_file():
            return None

        try:
            with reading(path, 'file of features'), safe_open(path, 'pt') as file:
                tensors = [file.get_tensor(name) for name in ('values', 'targets', 'index')]
                return KeptFeatures(*tensors, json.loads(file.metadata()['bad_images']))
        except UserError:
            return None  # of a process that was killed, or of a disk that was full: made again

    def save(self, digest: str, kept: KeptFeatures):
        """Keep features so that a crash leaves no half of a file.

        Args:
            digest: From `features_digest`.
            kept: Features, and which images they are of.

        Raises:
            UserError: The disk refuses.
        """
        path = self._path(digest)
        temporary = path.with_name(f'{path.name}.{os.getpid()}.tmp')
        tensors = {name: getattr(kept, name).contiguous() for name in ('values', 'targets', 'index')}
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with readable_by_others(temporary):
                    save_file(tensors, temporary, metadata={'bad_images': json.dumps(kept.bad_images)})
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self.folder / f'{digest}.safetensors'
