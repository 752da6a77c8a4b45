"""Deferred re-weighting: class-balanced weights, their first epoch, weighted means over processes."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.losses import focal_loss
from timm_longtail.methods._reweight import DeferredWeights
from timm_longtail.utils.distributed import weighted_mean
from timm_longtail.utils.errors import UserError

from ..support.ddp import run_distributed
from ..support.loss_cases import make_rows
from ..support.reference import margins

COUNTS = [500, 60, 20, 3]


@pytest.mark.parametrize('beta', [0.9, 0.999, 0.9999])
def test_class_balanced_weights(beta):
    weight = DeferredWeights(torch.tensor(COUNTS), beta).weight
    torch.testing.assert_close(weight, torch.tensor(margins.class_balanced_weights(COUNTS, beta)), rtol=1e-5, atol=0)
    assert float(weight.sum()) == pytest.approx(4)


@pytest.mark.parametrize('start, num_epochs, first', [
    (0, 10, 0), (0.8, 200, 160), (0.8, 400, 320), (0.8, 2, 2), (0.5, 2, 1), (0.29, 100, 29), (1, 10, 10), (1.0, 10, 10),
    (161, 200, 160), (2, 10, 1), (10, 10, 9), (10.0, 10, 9),
])
def test_first_epoch_that_is_reweighted(start, num_epochs, first):
    weights = DeferredWeights(torch.tensor(COUNTS), start=start)
    assert weights.active == (start == 0)
    order = torch.randperm(num_epochs, generator=torch.Generator().manual_seed(0)).tolist()
    for epoch in order:  # from the epoch alone, whatever came before
        weights.start_epoch(epoch, num_epochs)
        assert weights.active == (epoch >= first)
    assert weights.state_dict() == {}


def test_reweighting_begins_with_the_first_drop_of_the_rate():
    """However the recipe is stretched."""
    recipe = 'resnet32_cifar.ldam_drw.cifar100_lt_if100'
    for num_epochs in (200, 400, 100, 30, 15, 13, 7, 3):
        args = parse_train_args(['-c', recipe, '--epochs', str(num_epochs)])
        weights = DeferredWeights(torch.tensor(COUNTS), start=args.method_kwargs['reweight_start'])
        epochs = range(1, num_epochs + 1)
        for epoch in epochs:
            weights.start_epoch(epoch - 1, num_epochs)
            assert weights.active == (epoch >= args.decay_milestones[0])


@pytest.mark.parametrize('options, message', [
    (dict(beta=1.0), 'beta must be between 0 and 1, got 1.0'),
    (dict(beta=0.0), 'beta must be between 0 and 1, got 0.0'),
    (dict(start=-0.1), 'got -0.1'),
    (dict(start=1.5), r'at a share of the run in \[0, 1\] or at a whole epoch, got 1.5'),
    (dict(start=float('nan')), 'got nan'),
])
def test_weights_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        DeferredWeights(torch.tensor(COUNTS), **options)


def test_an_epoch_that_the_run_does_not_have():
    weights = DeferredWeights(torch.tensor(COUNTS), start=161)
    with pytest.raises(UserError, match='starts at epoch 161, and the run has 160; a share of the run, such as 0.8'):
        weights.start_epoch(0, 160)
    weights.start_epoch(0, 161)


def test_deferred_weights_are_a_mean_and_then_a_weighted_mean():
    logits, target, _ = make_rows()
    weights = DeferredWeights(torch.tensor(COUNTS), start=0.5).double()
    rows = focal_loss(logits, target, reduction='none')
    for epoch, weight in enumerate((None, weights.weight)):
        weights.start_epoch(epoch, 2)
        torch.testing.assert_close(weights(rows, target), focal_loss(logits, target, weight=weight))


# weighted means over processes

class Weighted(nn.Module):
    """A classifier with a loss weighted by class, and the mean that is asked for."""

    def __init__(self, mean):
        super().__init__()
        torch.manual_seed(0)
        self.mean = mean
        self.classifier = nn.Linear(6, 4).double()
        self.register_buffer('weight', make_rows()[2])

    def forward(self, x, target):
        return self.mean(F.cross_entropy(self.classifier(x), target, reduction='none'), self.weight[target])


def local_mean(values, weights):
    """The usual mistake: each process divides by its own weights."""
    return (weights * values).sum() / weights.sum()


def gradients_of_shard(rank, mean, world_size=2):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 6, generator=generator, dtype=torch.float64)
    target = torch.tensor([0, 0, 0, 1, 0, 0, 3, 2, 3, 3, 1, 3])  # the processes have very different weights
    rows = slice(rank * 12 // world_size, (rank + 1) * 12 // world_size)
    model = Weighted(mean)
    task = DistributedDataParallel(model) if world_size > 1 else model
    loss = task(x[rows], target[rows])
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.ddp
def test_two_processes_have_the_weighted_mean_of_one():
    loss, gradients = gradients_of_shard(0, weighted_mean, world_size=1)
    torch.testing.assert_close((loss, gradients), gradients_of_shard(0, local_mean, world_size=1))
    answers = run_distributed(gradients_of_shard, weighted_mean)
    torch.testing.assert_close(sum(value for value, _ in answers) / 2, loss, rtol=1e-12, atol=0)
    for _, shared in answers:
        torch.testing.assert_close(shared, gradients, rtol=1e-12, atol=1e-14)
    (_, wrong), _ = run_distributed(gradients_of_shard, local_mean)
    assert max((a - b).abs().max() for a, b in zip(wrong, gradients)) > 0.01
