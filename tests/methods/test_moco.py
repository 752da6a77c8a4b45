"""MoCo and PNDA: the queue, the key encoder, whose statistics a key is normalised by, and the ends of PNDA."""
import logging
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_longtail.evaluation.evaluators import KNNEvaluator, LongTailEvaluator
from timm_longtail.methods import create_method
from timm_longtail.methods._flags import write_flags
from timm_longtail.models import deployed_state_dict
from timm_longtail.models.layers import BatchNormGroups, projection_mlp, unit_rows
from timm_longtail.models.tuning import frozen_names
from timm_longtail.training.checkpoint import load_method_state, method_state
from timm_longtail.training.weights import load_initial_weights
from timm_longtail.utils.errors import UserError

from ..support.ddp import run_distributed
from ..support.runs import digits, make_run

SMALL_IMAGES = '--img-size', '8'


def make_batch(batch_size=16, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(batch_size, 3, 8, 8, generator=generator, dtype=dtype) for _ in range(2))
    return views, torch.zeros(batch_size, dtype=torch.int64), torch.arange(batch_size)


def make_method(name='moco', seed=0, **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model('resnet20_cifar', num_classes=0, layers=(1, 1, 1), channels=(8, 16, 32))
    method = create_method(name, model, [1] * 10, **{'queue_size': 40, 'out_features': 8, **kwargs})
    method.rng = np.random.default_rng(0)
    return method


def test_groups_are_forwards_one_after_the_other():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        projection_mlp(4, 6, 2)).double()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(12, 3, 5, 5, dtype=torch.float64)
    with BatchNormGroups(3):
        whole = net(x)
    statistics = {k: v.clone() for k, v in net.state_dict().items() if 'running' in k}
    gradients = torch.autograd.grad(whole.square().sum(), [*net.parameters()])
    net.load_state_dict(state)
    parts = torch.cat([net(part) for part in x.chunk(3)])
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(gradients, torch.autograd.grad(parts.square().sum(), [*net.parameters()]))
    torch.testing.assert_close(statistics, {k: net.state_dict()[k] for k in statistics})
    assert not torch.allclose(net(x), parts)


def test_the_queue_holds_the_newest_keys_in_their_order():
    method = make_method(queue_size=40, bn_groups=1)
    expected = [*method.queue.clone()]
    written, keys, enqueue = 0, [], method._enqueue
    method._enqueue = lambda k: (keys.append(k), enqueue(k))
    for step in range(5):  # 80 keys: twice round, 16 at a time
        method(make_batch(seed=step))
        for key in keys[-1]:
            expected[written % 40] = key
            written += 1
        assert torch.equal(method.queue, torch.stack(expected))
        assert method.queue_start.item() == written % 40
    with pytest.raises(UserError, match='queue_size=12 is shorter than a global batch of 16'):
        make_method(queue_size=12)(make_batch())


def test_loss_and_queue_are_those_of_lightly(monkeypatch):
    theirs = pytest.importorskip('lightly.loss').NTXentLoss(temperature=0.2, memory_bank_size=(48, 8))
    method = make_method(queue_size=48, bn_groups=1)
    theirs.memory_bank.bank.copy_(method.queue)
    for seed in range(5):  # round the queue and on
        torch.manual_seed(seed)
        query, key = (unit_rows(torch.randn(16, 8)) for _ in range(2))
        own, other = query.clone().requires_grad_(), query.clone().requires_grad_()
        monkeypatch.setattr(method, '_embed', Mock(return_value=own))
        monkeypatch.setattr(method, '_keys', Mock(return_value=key[None]))
        loss, expected = method(make_batch(16))['loss'], theirs(other, key)
        torch.testing.assert_close(loss, expected)
        (gradient,), (expected,) = torch.autograd.grad(loss, own), torch.autograd.grad(expected, other)
        tangent = expected - (expected * query).sum(1, keepdim=True) * query  # they normalise once more
        torch.testing.assert_close(gradient - (gradient * query).sum(1, keepdim=True) * query, tangent)
        torch.testing.assert_close(method.queue, theirs.memory_bank.bank)


def test_keys_are_those_of_their_images():
    """Shuffled, turned, embedded, and back in the order of the images."""
    method = make_method('pnda', rotations='pda').eval()  # no statistics of the batch
    (_, x), _, _ = make_batch()
    keys = method._keys(x)
    assert keys.shape == (4, 16, 8) and not keys.requires_grad
    for turn in range(4):
        rotated = x.rot90(turn, (2, 3))
        expected = unit_rows(method.key_model.branches['projector'](method.key_model(rotated)))
        torch.testing.assert_close(keys[turn], expected)


def test_each_turn_is_shuffled_by_itself():
    method = make_method('pnda', rotations='pda', bn_groups=4).double()
    same, dealt = np.arange(16), np.arange(16).reshape(4, 4).T.ravel()
    method.rng = Mock(permutation=Mock(side_effect=[same] * 4 + [same, dealt, dealt, dealt]))
    (_, x), _, _ = make_batch(dtype=torch.float64)
    alike, apart = method._keys(x), method._keys(x)
    torch.testing.assert_close(alike[0], apart[0])
    assert all(not torch.allclose(alike[turn], apart[turn]) for turn in (1, 2, 3))


def test_shuffling_hides_the_group_of_a_query():
    """In order, a key shares the statistics of the very images its query shares them with."""
    method = make_method(bn_groups=4).double()
    (_, x), _, _ = make_batch(dtype=torch.float64)

    class InOrder:
        def permutation(self, n):
            return np.arange(n)
    keys = method._keys(x)
    method.rng = InOrder()
    in_order = method._keys(x)
    expected = torch.cat([unit_rows(method.key_model.branches['projector'](method.key_model(p))) for p in x.chunk(4)])
    torch.testing.assert_close(in_order[0], expected)
    assert not torch.allclose(keys, in_order)


def test_compiled_backbones_have_the_same_groups():
    plain, compiled = make_method('pnda'), make_method('pnda')
    compiled.compile_features(backend='eager')
    torch.testing.assert_close(compiled(make_batch()), plain(make_batch()))
    for key, value in plain.state_dict().items():
        if 'running' in key:
            torch.testing.assert_close(compiled.state_dict()[key], value)


def test_the_key_encoder_follows():
    method = make_method(momentum=0.9)
    before = [p.clone() for p in method.key_model.parameters()]
    buffers = {k: v.clone() for k, v in method.model.named_buffers()}
    with torch.no_grad():
        for parameter in method.model.parameters():
            parameter.add_(torch.randn_like(parameter))
        method.after_step('main')
    for old, new, query in zip(before, method.key_model.parameters(), method.model.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * query)
        assert not new.requires_grad
    assert all(torch.equal(v, buffers[k]) for k, v in method.key_model.named_buffers())  # statistics are its own
    method(make_batch())['loss'].backward()
    assert all(p.grad is None for p in method.key_model.parameters())


def losses_of(*options, flags=None):
    method = make_method('pnda', **dict(options))
    method._is_positive = flags
    result = method(make_batch())
    result['loss'].backward()
    return result['loss'], [p.grad for p in method.model.parameters()]


def test_the_ends_of_pnda(tmp_path):
    """All rotations positive is PDA, all negative NDA, and none at all MoCo."""
    pnda = ('rotations', 'pnda'), ('flags', 'a file')
    all_of_them, mixed = torch.ones(16, dtype=torch.bool), torch.arange(16) < 5
    pda, nda = losses_of(('rotations', 'pda')), losses_of(('rotations', 'nda'))
    torch.testing.assert_close(losses_of(*pnda, flags=all_of_them), pda, rtol=0, atol=0)
    torch.testing.assert_close(losses_of(*pnda, flags=~all_of_them), nda, rtol=0, atol=0)
    torch.testing.assert_close(
        losses_of(('rotations', 'none'))[0], make_method('moco')(make_batch())['loss'], rtol=0, atol=0)
    between = losses_of(*pnda, flags=mixed)
    assert len({loss.item() for loss, _ in (pda, nda, between)}) == 3


def test_flags_are_those_of_the_data(tmp_path):
    digests = digits().digests
    order = np.random.default_rng(1).permutation(len(digests))
    flags = write_flags(tmp_path / 'flags', digests[order], np.arange(len(digests)) / 10, 3.0)
    options = f'pnda rotations=pnda flags={tmp_path / "flags"}'
    _, run = make_run(options, *SMALL_IMAGES)
    run.start_epoch(2)
    index = torch.tensor([5, 0, 63])
    assert run.method.rotation_positive(index).tolist() == [flags[list(order).index(i)] for i in index.tolist()]
    # a run that goes on meets the flags that it began with
    state = run.method.state_dict()
    write_flags(tmp_path / 'flags', digests, np.arange(len(digests)) / 10, 3.0)
    _, run = make_run(options, *SMALL_IMAGES)
    run.method.load_state_dict(state)
    with pytest.raises(UserError, match='flags holds other flags than those that this run began with'):
        run.start_epoch(2)
    write_flags(tmp_path / 'flags', digests[:60], np.arange(60) / 10, 3.0)
    _, run = make_run(options, *SMALL_IMAGES)
    with pytest.raises(UserError, match='it lacks 4 of these 64'):
        run.start_epoch(2)


@pytest.mark.parametrize('name, kwargs, message', [
    ('pnda', {'rotations': 'some'}, 'rotations is one of none, pda, nda, pnda'),
    ('pnda', {'rotations': 'pnda'}, 'rotations=pnda takes flags=FILE'),
    ('pnda', {'flags': 'file'}, 'rotations=pnda takes flags=FILE'),
    ('moco', {'views': ('sim',)}, "'views' of method 'moco' must be 2 names"),
    ('moco', {'bn_groups': 0}, r"'bn_groups' of method 'moco' must be in \[1, 4096\], got 0"),
])
def test_options_that_make_no_sense(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        make_method(name, **kwargs)


def test_statistics_of_the_whole_batch_are_refused():
    method = nn.SyncBatchNorm.convert_sync_batchnorm(make_method())
    with pytest.raises(UserError, match='bn_groups over parts of it'):
        method.start_epoch(0, 1, np.random.default_rng(0), None)


@pytest.mark.parametrize('batch_size', [14, 4])
def test_a_batch_that_cannot_be_grouped(batch_size):
    with pytest.raises(UserError, match=f'a batch of {batch_size} cannot be cut into 4 groups'):
        make_method()(make_batch(batch_size))


def two_steps(rank, name, world_size, mixed=False, **kwargs):
    """Two steps on a global batch of 16, BatchNorm in training mode: the losses, gradients and what is left."""
    method = make_method(name, bn_groups=2, **kwargs).double()
    method.key_model.load_state_dict(method.model.state_dict())
    if mixed:
        method._is_positive = torch.arange(16) % 3 == 0
    task = DistributedDataParallel(method) if world_size > 1 else method

    losses = []
    for step in range(2):
        # the share of this process
        views, target, index = make_batch(seed=step, dtype=torch.float64)
        share = slice(rank * 16 // world_size, (rank + 1) * 16 // world_size)
        loss = task((tuple(v[share] for v in views), target[share], index[share]))['loss']
        method.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in method.model.parameters():
                parameter -= 0.1 * parameter.grad
            method.after_step('main')
        losses.append(loss.detach())

    total = torch.stack(losses)
    if world_size > 1:
        torch.distributed.all_reduce(total)
    return total / world_size, {n: p.grad for n, p in method.model.named_parameters()}, method.queue


@pytest.mark.ddp
@pytest.mark.parametrize('name, kwargs', [
    ('moco', {}), ('pnda', {'rotations': 'pda'}), ('pnda', {'rotations': 'nda', 'mixed': True})])
def test_two_processes_are_two_groups_of_one(name, kwargs):
    losses, gradients, queue = two_steps(0, name, 1, **kwargs)
    (other, own) = run_distributed(two_steps_of, name, kwargs)
    for other_losses, other_gradients, other_queue in (other, own):
        torch.testing.assert_close(other_losses, losses, rtol=1e-10, atol=0)
        torch.testing.assert_close(other_queue, queue, rtol=1e-9, atol=1e-12)
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[parameter], gradient, rtol=1e-7, atol=1e-10)
    assert torch.equal(own[2], other[2])  # to the bit


def two_steps_of(rank, name, kwargs):
    return two_steps(rank, name, 2, **kwargs)


class Identity(nn.Module):
    """A model whose features are its input."""

    def forward_features(self, x):
        return x

    def forward_head(self, x, pre_logits=False):
        return x


def test_neighbours_vote():
    generator = torch.Generator().manual_seed(0)
    bank, bank_target = torch.randn(30, 4, generator=generator).double(), torch.arange(30) % 3
    x, target = torch.randn(8, 4, generator=generator).double(), torch.arange(8) % 3

    def train_batches():
        return iter([((bank[:20],), bank_target[:20], None), ((bank[20:],), bank_target[20:], None)])
    evaluator = KNNEvaluator([10, 10, 10], num_neighbors=7, temperature=0.2)
    evaluator.start(Identity(), train_batches)
    votes = evaluator.vote(unit_rows(x)).exp()
    predicted = []
    for i in range(8):
        cosines = [float(torch.cosine_similarity(x[i], row, dim=0)) for row in bank]
        nearest = sorted(range(30), key=lambda j: -cosines[j])[:7]
        expected = [sum(np.exp(cosines[j] / 0.2) for j in nearest if j % 3 == c) for c in range(3)]
        np.testing.assert_allclose(votes[i], np.array(expected) / sum(expected), rtol=1e-9)
        predicted.append(int(np.argmax(expected)))
    evaluator.update(Identity(), x, target)
    metrics = evaluator.compute()
    assert metrics['all'] == pytest.approx(100 * np.mean([p == t for p, t in zip(predicted, target.tolist())]))
    expected_names = LongTailEvaluator([10, 10, 10]).compute().keys()
    of_probabilities = {'loss', 'ece', 'bin_total', 'bin_correct', 'bin_confidence'}
    assert metrics.keys() == expected_names - of_probabilities and len(evaluator._bank) == 0


def test_its_weights_start_supervised_training(tmp_path, caplog):
    """The classifier alone is missing; the projector of one method is none of another's."""
    weights = deployed_state_dict(make_method().model)
    save_file({k: v.contiguous() for k, v in weights.items()}, tmp_path / 'model.safetensors')
    model = timm.create_model('bcl_resnet20', num_classes=10, layers=(1, 1, 1), channels=(8, 16, 32), branches=True)
    with caplog.at_level(logging.INFO):
        load_initial_weights(model, tmp_path / 'model.safetensors')
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in weights.items())
    assert {name for name in model.state_dict().keys() - weights.keys() if 'branches' not in name} == {'fc.weight'}
    assert 'unexpected: none' in caplog.text


@pytest.mark.parametrize('name, kwargs', [
    ('vit_tiny_patch16_224', {'img_size': 32, 'depth': 1}), ('convnext_atto', {'depths': (1, 1, 1, 1)})])
def test_any_backbone_will_do(name, kwargs):
    method = create_method('pnda', timm.create_model(name, num_classes=0, **kwargs), [1], queue_size=8, bn_groups=2)
    method.rng = np.random.default_rng(0)
    method((tuple(torch.randn(2, 4, 3, 32, 32)), torch.zeros(4), torch.arange(4)))['loss'].backward()
    method.after_step('main')
    assert all(p.grad is not None for p in method.model.parameters())


# ------------------------------------------------------------------------------------------- a part of the model

def test_the_encoders_share_what_is_frozen():
    method = make_method(tune='last_block').double().train()
    frozen = frozen_names(method.model)
    keys = dict(method.key_model.named_parameters())
    before = {name: key.clone() for name, key in keys.items()}
    with torch.no_grad():
        for query in method.model.parameters():
            if query.requires_grad:
                query.add_(1)

    method.after_step('main')

    assert {'conv1.weight', 'layer2.0.conv1.weight'} < frozen
    for name, query in method.model.named_parameters():
        assert (keys[name] is query) == (name in frozen), name
        expected = before[name] if name in frozen else before[name] + (1 - method.momentum)
        torch.testing.assert_close(keys[name].detach(), expected)


def test_the_key_encoder_keeps_frozen_statistics():
    method = make_method(tune='last_block').train()
    before = {name: value.clone() for name, value in method.key_model.named_buffers()}

    method(make_batch())

    changed = {name for name, value in method.key_model.named_buffers() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith(('layer3.', 'branches.')) for name in changed)
    assert not any(module.training for module in method.eval().key_model.modules())


def test_a_checkpoint_holds_no_frozen_tensor_of_the_key_encoder():
    method, other = make_method(tune='last_block'), make_method(seed=0, tune='last_block')
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    method.after_step('main')

    state = method_state(method)
    load_method_state(other, state, 'it')

    held = {name.removeprefix('key_model.') for name in state['method_state'] if name.startswith('key_model.')}
    names = {name for name, _ in method.key_model.named_parameters()}
    assert names & held == names - frozen_names(method.model)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in method.state_dict().items())
