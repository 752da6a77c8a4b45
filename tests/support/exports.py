"""Models to export, and the exports of the tests."""
import json
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from timm_longtail.export.checksums import config_digest, seal

ROOT = Path(__file__).parents[2]
RELEASED = sorted(ROOT.glob('hub/*'))
DIGITS = ROOT / 'hub' / 'bcl_resnet20.digits_lt_if20'

FILES = ['README.md', 'config.json', 'model.safetensors']
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
NAMES = [f'class {c}' for c in range(10)]
METRICS = {'all': 61.25, 'many': 80.5, 'medium': 55.0, 'few': 12.345678}
PROVENANCE = {
    'tag': 'digits_lt_if20',
    'method': 'bcl',
    'dataset': 'digits_lt',
    'imbalance_factor': 20.0,
    'seed': 3,
    'data_seed': 4,
    'subset_hash': 'abcdef012345',
    'subset_order': 'file',
    'command': 'python train.py --seed 3',
    'class_counts': list(range(10, 0, -1)),
    'metrics': METRICS,
}


def build(name: str = 'bcl_resnet20', seed: int = 0, **kwargs) -> nn.Module:
    """Return a model whose every parameter and BatchNorm statistic is away from its initial value."""
    torch.manual_seed(seed)
    model = timm.create_model(name, **{'num_classes': 10, **kwargs})

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def images(in_chans: int = 3, size: int = 32) -> torch.Tensor:
    return torch.randn(2, in_chans, size, size, generator=torch.Generator().manual_seed(1))


def load(folder: Path, **kwargs) -> nn.Module:
    """Load an export as a user of timm does."""
    return timm.create_model(f'local-dir:{folder}', pretrained=True, **kwargs).eval()


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of `config.json`, unchecked."""
    return json.loads((folder / 'config.json').read_text())


def edit_config(folder: Path, **content):
    """Change keys of `config.json`, `None` taking one out, and its digest; the card stays."""
    config = {**read_config(folder), **content}
    config = {key: value for key, value in config.items() if value is not None}
    config['config_sha256'] = config_digest(config)
    (folder / 'config.json').write_text(json.dumps(config))


def edit_provenance(folder: Path, **provenance):
    """Change what an export says of its training, and its checksums; the card stays."""
    config = read_config(folder)
    config['timm_longtail'].update(provenance)
    (folder / 'config.json').write_text(json.dumps(config))
    seal(folder)


def drop_weights_checksum(folder: Path):
    """Take the checksum of the weights out, so that `seal` accepts other weights."""
    config = read_config(folder)
    del config['timm_longtail']['weights']
    (folder / 'config.json').write_text(json.dumps(config))


def assert_bit_equal(model: nn.Module, loaded: nn.Module, x: torch.Tensor | None = None):
    """Fail unless two models have the same tensors, but for branches, and the same outputs."""
    own = {name: value for name, value in model.state_dict().items() if not name.startswith('branches.')}
    other = loaded.state_dict()
    assert own.keys() == other.keys()
    assert not [name for name, value in own.items() if not torch.equal(value, other[name])]

    x = images() if x is None else x
    with torch.no_grad():
        assert torch.equal(model.eval()(x), loaded(x))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of an export."""
    return {name: (folder / name).read_bytes() for name in FILES}
