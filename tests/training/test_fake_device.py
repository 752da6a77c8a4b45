"""A step on an accelerator, without one: forward, views, evaluators and `after_step` read nothing back.

See `tests/support/fake_device.py`: tensors have a place and no values, so an operation on tensors of two devices
raises, and so does reading a value back, for which the host would wait.
"""
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, unset_fake_temporarily

from timm_longtail.data import create_view
from timm_longtail.data.views import ops
from timm_longtail.data.views.view import list_views
from timm_longtail.evaluation.evaluators import KNNEvaluator, LongTailEvaluator
from timm_longtail.methods import list_methods
from timm_longtail.training.loop import _add, _check

from ..support.fake_device import DEVICE, fake, fake_device, move_module, move_run
from ..support.loss_cases import CASES, INTEGERS, make_sample
from ..support.runs import SMALL, VARIANTS, make_run

METHODS = [*list_methods(), *VARIANTS]
VIEWS = [name for name in list_views() if not create_view(name, 16).files_only]

# a batch of two views of 2048 images and the classes of iNaturalist 2018
BATCH_SIZE, NUM_CLASSES, WIDTH = 4096, 8142, 128


@pytest.fixture
def tables_of_the_host(monkeypatch):
    """Blurs take their weights from NumPy, which knows real tensors only; they are copied to the device as ever."""
    blur_weights = ops.blur_weights

    def on_the_host(sigmas, size, radius, device=None):
        with unset_fake_temporarily():
            weights = blur_weights(sigmas, size, radius)
        return weights.to(device)
    monkeypatch.setattr(ops, 'blur_weights', on_the_host)


def batches_of(run):
    """Return the first batch of each stream, as the loaders make it on the device."""
    for loader in run.loaders:
        loader.set_epoch(run.epoch)
    return [next(iter(loader)) for loader in run.loaders]


@pytest.mark.parametrize('name', METHODS)
def test_a_step_of_each_method(name, tables_of_the_host):
    """Schedules, views, MixUp and CutMix, forward, logged sums, momentum encoder and queue, average of the weights."""
    _, run = make_run(name, '--model-ema', *SMALL)
    assert len(run.train_batches.digests) == 64  # of the images as they were read, on the host

    with fake_device(autocast=True):
        move_run(run)
        run.task.train()
        batches = batches_of(run)
        for run.epoch in range(2):
            run.start_epoch(2)
            for phase in run.method.phases:
                if phase in run.method.idle_phases:
                    continue
                result = run.method(*batches, phase=phase)
                _add(run, phase, result, batches[0][1])
                run.method.after_step(phase)
                assert result['loss'].device == DEVICE and result['loss'].ndim == 0
            run.ema.update(run.method.model, step=1)

        # all that a method keeps is still where it was put
        state = run.method.state_dict(keep_vars=True)
        assert {tensor.device for tensor in state.values()} == {DEVICE}
        assert {sums.device for sums in run.epoch_state.sums.values()} == {DEVICE}


@pytest.mark.parametrize('name', VIEWS)
def test_each_view(name, tables_of_the_host):
    view = create_view(name, 16)
    uniforms = np.random.default_rng(0).random((4, view.num_uniforms))
    with fake_device():
        pixels = torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device=DEVICE)
        seen = view.apply(pixels, view.sample(uniforms))
    assert (seen.device, seen.dtype, seen.shape) == (DEVICE, torch.uint8, pixels.shape)


def large_sample():
    """Return a sample on the device, as large as any that trains."""
    small = make_sample()
    batch_size, num_classes = small.logits.shape
    width = small.embeddings.shape[1]
    sizes = {batch_size: BATCH_SIZE, num_classes: NUM_CLASSES, width: WIDTH, 3: 3}

    values = {}
    for field in fields(small):
        tensor = getattr(small, field.name)
        dtype = tensor.dtype if field.name in INTEGERS else torch.float32
        shape = [sizes[length] for length in tensor.shape]
        values[field.name] = torch.empty(shape, dtype=dtype, device=DEVICE)
    return replace(small, **values)


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_each_loss_at_its_size(case):
    with fake_device():
        loss = case(large_sample())
    assert (loss.device, loss.shape) == (DEVICE, ())


@pytest.mark.parametrize('evaluator', [
    LongTailEvaluator([200, 50, 5], confusion=True), KNNEvaluator([200, 50, 5], num_neighbors=8),
], ids=lambda evaluator: type(evaluator).__name__)
def test_evaluators_read_nothing_back_before_their_figures(evaluator):
    _, run = make_run('ce', *SMALL)
    model = run.method.model.eval()
    model.reset_classifier(3)

    with fake_device():
        move_module(model)
        images = torch.zeros(16, 3, 16, 16, device=DEVICE)
        target = torch.zeros(16, dtype=torch.int64, device=DEVICE)
        evaluator.start(model, lambda: [((images,), target, target)])
        for _ in range(2):
            evaluator.update(model, images, target)
        with pytest.raises(DataDependentOutputException):
            evaluator.compute()


def test_the_log_interval_reads_back():
    """Whether losses and weights are finite, and whether a signal came, of all processes: without it a run that
    diverged would go on, and would be saved.
    """
    _, run = make_run('ce', *SMALL)
    with fake_device():
        move_run(run)
        run.start_epoch(2)
        first_bad = torch.full((), -1, dtype=torch.int64, device=DEVICE)
        with pytest.raises(DataDependentOutputException):
            _check(run, first_bad, {})


def test_the_log_interval_reads_back_once(monkeypatch):
    """All of it in one transfer; counted where tensors have values."""
    read = []
    for name in ('tolist', 'item', '__bool__', '__int__', '__float__', 'cpu', 'numpy'):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name,
            lambda tensor, *args, _name=name, _original=original: read.append(_name) or _original(tensor, *args))

    _, run = make_run('ce', *SMALL, '--model-ema')
    run.start_epoch(2)
    first_bad = torch.full((), -1, dtype=torch.int64)
    read.clear()
    assert _check(run, first_bad, {}) == 0
    assert read == ['tolist']


@pytest.mark.parametrize('wrong, error', [
    (lambda loss: loss.item(), DataDependentOutputException),
    (lambda loss: loss if loss > 0 else -loss, Exception),
    (lambda loss: loss + torch.ones(3), RuntimeError),
    (lambda loss: loss[loss > 0], Exception),
], ids=['a value', 'a branch', 'two devices', 'a shape'])
def test_the_instrument_sees(wrong, error):
    with fake_device(), pytest.raises(error):
        wrong(fake(torch.zeros(3)).sum()[None].squeeze())
