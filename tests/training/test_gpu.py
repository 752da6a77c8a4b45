"""The device path: skipped without CUDA."""
import pytest
import torch

from timm_longtail.data import create_loader
from timm_longtail.training.loop import fit

from ..support.runs import all_methods, digits, make_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device'),
]


@pytest.mark.parametrize('precision', ['no', 'bf16', 'fp16'])
@pytest.mark.parametrize('method', all_methods())
def test_methods_train(method, precision):
    _, run = make_run(method, '--mixed-precision', precision, '--clip-grad', '5', '--epochs', '4')
    history = fit(run, 4)
    assert next(run.method.parameters()).device.type == 'cuda'
    assert history[-1]['train_loss'] < history[0]['train_loss']


@pytest.mark.parametrize('view', ['crop_flip', 'autoaugment', 'sim', 'sim_blur', 'rrc(jitter=0.4)', 'glmc', 'eval'])
def test_views_have_the_pixels_of_the_cpu(view):
    batches = []
    for device in ('cpu', 'cuda'):
        loader = create_loader(digits(), (view,), batch_size=64, device=device)
        loader.set_epoch(0)
        (x,), _, index = next(iter(loader))
        batches.append((x.cpu(), index.cpu()))
    assert torch.equal(batches[0][1], batches[1][1])
    # one level of 255 over a standard deviation: float interpolation rounds differently
    assert (batches[0][0] - batches[1][0]).abs().max() <= 1 / 255 / min(digits().std) + 1e-5
