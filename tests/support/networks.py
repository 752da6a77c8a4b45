"""The registered models for tests: whole, or narrow where a contract does not depend on the size."""
import pytest
import timm
import torch
from torch import nn

TWO_BRANCH = timm.list_models(module=['two_branch', 'two_branch_resnet'])

# strides of the maps, by file and then by model
_REDUCTIONS = {
    'resnet_cifar': [1, 1, 2, 4],
    'two_branch': [1, 1, 2, 4],
    'resnet_small': [1, 1, 2, 4, 8],
    'two_branch_resnet': [2, 4, 8, 16, 32],
}
REDUCTIONS = {
    name: reductions for module, reductions in _REDUCTIONS.items()
    for name in timm.list_models(module=module)
}
MODELS = list(REDUCTIONS)

# one block in each stage, by the number of maps
_NARROW = {
    4: {'layers': (1, 1, 1), 'channels': (8, 16, 32)},
    5: {'layers': (1, 1, 1, 1), 'channels': (16, 32, 48, 64)},
}

every_model = pytest.mark.parametrize('name', MODELS)
every_two_branch = pytest.mark.parametrize('name', TWO_BRANCH)


def whole(name: str, **kwargs) -> nn.Module:
    """Build a model from a fixed seed."""
    torch.manual_seed(0)
    return timm.create_model(name, **kwargs)


def build(name: str, **kwargs) -> nn.Module:
    """Build a model, ours narrow and with one block in each stage."""
    narrow = _NARROW.get(len(REDUCTIONS.get(name, ())), {})
    return whole(name, **{**narrow, **kwargs})


def images(
        model: nn.Module | None = None,
        batch_size: int = 2,
        in_chans: int = 3,
        size: int | None = None,
) -> torch.Tensor:
    """Return images [B, in_chans, S, S] from a fixed seed, of a side that the model takes."""
    if size is None:
        size = 32 if model is None else side(model)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, in_chans, size, size, generator=generator)


def side(model: nn.Module) -> int:
    """Return a small side that the model takes: two pixels of its last map for the ImageNet stem."""
    return 64 if model.default_cfg['input_size'][1] == 224 else 32


def last_map(model: nn.Module) -> tuple[int, ...]:
    """Return the shape of the last map of two such images."""
    cfg = model.default_cfg
    pixels = cfg['pool_size'][0] * side(model) // cfg['input_size'][1]
    return 2, model.num_features, pixels, pixels


def pooled(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the features [B, D] that the classifier of a model is given."""
    return model.forward_head(model.forward_features(x), pre_logits=True)


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the state dict of a model."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def same_state(a: nn.Module, b: nn.Module) -> bool:
    """Return whether two models have the same names and values."""
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
