"""The plain network that is published: out of its wrappers, without branches, bit for bit."""
import pytest
import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from timm_longtail.export.deploy import deploy, unwrap
from timm_longtail.export.folder import export_model
from timm_longtail.models import attach_branches

from ..support.exports import assert_bit_equal, build, images, load, read_config


def test_the_model_is_left_as_it_was():
    model = attach_branches(build(), 'bcl').to(torch.float64).train()

    deployed = deploy(model)

    assert model.training
    assert 'projector' in model.branches
    assert next(model.parameters()).dtype == torch.float64
    assert not deployed.training
    assert not hasattr(deployed, 'branches')
    assert {value.dtype for value in deployed.parameters()} == {torch.float32}
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(model.buffers(), deployed.buffers()))


def test_a_model_built_with_branches_is_exported_without(tmp_path):
    model = build('bcl_resnet20', branches=True)
    assert hasattr(model, 'branches')
    assert model._model_args['branches'] is True

    folder = export_model(model, tmp_path / 'export')

    assert 'branches' not in read_config(folder).get('model_args', {})
    loaded = load(folder)
    assert not hasattr(loaded, 'branches')
    assert_bit_equal(model, loaded)
    assert hasattr(load(folder, branches=True), 'branches')  # asked for, they are there, for further training


def test_a_channels_last_model(tmp_path):
    model = build().to(memory_format=torch.channels_last)

    loaded = load(export_model(model, tmp_path / 'export'))

    assert loaded.conv1.weight.is_contiguous()
    with torch.no_grad():
        assert torch.allclose(model(images()), loaded(images()), atol=1e-5)
    assert_bit_equal(model.to(memory_format=torch.contiguous_format), loaded)


class Wrapper(nn.Module):
    """What DistributedDataParallel and moving averages look like: the model is their `module`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend='eager')


def compiled_in_parts(model: nn.Module) -> nn.Module:
    model.layer1 = compiled(model.layer1)
    return model


def in_mixed_precision(model: nn.Module) -> nn.Module:
    """What Accelerate makes of a model: its forward is another's, which remembers the first."""
    model._original_forward = model.forward
    model.forward = lambda images: model._original_forward(images).half()
    return model


@pytest.mark.parametrize('wrap', [
    compiled,
    Wrapper,
    lambda model: Wrapper(compiled(model)),
    lambda model: compiled(Wrapper(model)),
    lambda model: Wrapper(Wrapper(model)),
    compiled_in_parts,
    in_mixed_precision,
    nn.DataParallel,
    lambda model: compiled(Wrapper(in_mixed_precision(model))),
])
def test_a_wrapped_model_is_exported_as_what_it_wraps(wrap, tmp_path):
    plain, wrapped = build(), wrap(build())
    before = list(wrapped.state_dict())

    assert_bit_equal(plain, load(export_model(wrapped, tmp_path / 'export')))
    assert_bit_equal(plain, deploy(wrapped))
    assert list(wrapped.state_dict()) == before


def test_the_same_model_is_unwrapped_as_by_accelerate():
    model = build()

    assert unwrap(compiled(Wrapper(model))) is model
    assert extract_model_from_parallel(compiled(model), keep_torch_compile=False) is unwrap(compiled(model))
