"""Samplers: class probabilities against their closed forms, what is drawn against the probabilities."""
import re

import numpy as np
import pytest
import torch

from timm_longtail.data import (
    ClassSampler,
    UniformSampler,
    class_probabilities,
    create_loader,
    create_sampler,
    list_samplers,
)
from timm_longtail.training.loop import fit
from timm_longtail.training.start import start_lines
from timm_longtail.utils import rng
from timm_longtail.utils.errors import UserError

from ..support.runs import digits, make_run

COUNTS = [400, 100, 25, 4]
TARGETS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
SHARE = np.array(COUNTS) / 529


def drawn(name, epochs=range(40), num_epochs=40, length='natural', seed=0):
    """Return how often each class is drawn in each epoch, [epochs, C], and the sampler."""
    sampler = create_sampler(name, TARGETS, num_epochs, length)
    sampler.seed = seed
    counts = []
    for epoch in epochs:
        sampler.set_epoch(epoch)
        counts.append(np.bincount(TARGETS[sampler.order()], minlength=4))

    return np.array(counts), sampler


@pytest.mark.parametrize('name, expected', [
    ('instance', SHARE),
    ('class_balanced', [0.25] * 4),
    ('sqrt', np.array([20, 10, 5, 2]) / 37),
    ('power', np.array([1, 4, 16, 100]) / 121),
    ('power(q=-0.5)', np.array([10, 20, 40, 100]) / 170),
    ('power(q=1)', SHARE),
])
def test_class_probabilities(name, expected):
    assert np.allclose(create_sampler(name, TARGETS, 10).class_probabilities, expected, atol=1e-15)


def test_progressive_moves_from_the_instances_to_the_classes():
    """(1 - t/T) p_IB + (t/T) p_CB."""
    sampler = create_sampler('progressive', TARGETS, 8)
    assert np.allclose(sampler.class_probabilities, SHARE)

    sampler.set_epoch(2)
    assert np.allclose(sampler.class_probabilities, 0.75 * SHARE + 0.25 * 0.25)

    sampler.set_epoch(8)
    assert np.allclose(sampler.class_probabilities, 0.25)


def test_a_class_without_images_is_never_drawn():
    assert class_probabilities([3, 0, 3], -1.0).tolist() == [0.5, 0.0, 0.5]
    sampler = create_sampler('class_balanced', [0, 2, 2, 0], 10)
    assert sampler.class_probabilities.tolist() == [0.5, 0.0, 0.5] and len(sampler.order()) == 4


@pytest.mark.parametrize('name', ['class_balanced', 'sqrt', 'power', 'progressive'])
def test_classes_are_drawn_as_probable(name):
    """Chi-square with 3 degrees of freedom a batch of epochs: 16.27 is exceeded once in 1000."""
    epochs = [7] if name == 'progressive' else range(40)
    counts, sampler = drawn(name, epochs, num_epochs=10, length='class-aware')
    sampler.set_epoch(epochs[-1])
    expected = sampler.class_probabilities * counts.sum()

    assert ((counts.sum(axis=0) - expected) ** 2 / expected).sum() < 16.27
    assert len(epochs) == 1 or counts.std(axis=0).min() > 0  # drawn, not dealt


@pytest.mark.parametrize('name', ['class_balanced', 'sqrt', 'power'])
def test_two_processes_share_one_order(name):
    """The batches of two processes, put together, are those of one, and each has every class as probable."""
    dataset = digits(160)
    sampler = create_sampler(name, dataset.targets, 1, 'class-aware')
    whole, *parts = ([
        index.tolist() for _, _, index in create_loader(
            dataset, ('eval',), create_sampler(name, dataset.targets, 1, 'class-aware'), batch_size=32 // world_size,
            seed=5, rank=rank, world_size=world_size)
    ] for world_size, rank in ((1, 0), (2, 0), (2, 1)))

    assert whole == [first + second for first, second in zip(*parts, strict=True)]
    for part in parts:
        counts = np.bincount(dataset.targets[np.concatenate(part)], minlength=10)
        expected = sampler.class_probabilities * counts.sum()
        # 9 degrees of freedom, once in 1000
        assert ((counts - expected) ** 2 / expected).sum() < 27.88


@pytest.mark.parametrize('name', list_samplers())
@pytest.mark.parametrize('length', ['natural', 'class-aware'])
def test_images_of_a_class_are_visited_evenly(name, length):
    sampler = create_sampler(name, TARGETS, 10, length)

    assert len(sampler) == (529 if length == 'natural' else 1600)
    for epoch in (0, 9):
        sampler.set_epoch(epoch)
        order = sampler.order()
        assert order.dtype == np.int64 and len(order) == len(sampler)
        visits = np.bincount(order, minlength=529)
        for c in range(4):
            assert np.ptp(visits[c == TARGETS]) <= 1

    first = order

    assert np.array_equal(first, sampler.order())

    sampler.set_epoch(8)

    assert not np.array_equal(first, sampler.order())


def test_rare_images_change_from_epoch_to_epoch():
    """An epoch of 10 draws from 4 images: which of them come a third time is chance, not their place in the set."""
    sampler = create_sampler('class_balanced', np.repeat(np.arange(2), [16, 4]), 10)
    total = np.zeros(20)
    for epoch in range(200):
        sampler.set_epoch(epoch)
        total += np.bincount(sampler.order(), minlength=20)

    assert total[16:].std() / total[16:].mean() < 0.05
    assert total[:16].std() / total[:16].mean() < 0.15


def test_instance_is_the_uniform_shuffle():
    """The default costs nothing: the order of runs before there were samplers."""
    uniform, instance = UniformSampler(529, seed=3), create_sampler('instance', TARGETS, 10)
    instance.seed = 3
    assert np.array_equal(uniform.order(), instance.order())
    assert np.array_equal(uniform.order(), rng.generator(3, 0, 0, 'order').permutation(529))


@pytest.mark.parametrize('name, words', [
    ('balanced', "unknown sampler 'balanced'; did you mean class_balanced"),
    ('sqrt(q=1)', 'sampler sqrt takes no arguments'),
    ('power(p=1)', "sampler power takes q; got 'p'"),
    ('power(q="x")', 'q must be a number, in [-10, 10]'),
    ('power(2)', 'cannot read the sampler'),
])
def test_unknown_samplers(name, words):
    with pytest.raises(UserError, match=re.escape(words)):
        create_sampler(name, TARGETS, 10)
    with pytest.raises(UserError, match='natural or class-aware'):
        create_sampler('sqrt', TARGETS, 10, 'long')


def test_two_streams_keep_their_length():
    make_run('glmc', '--sampler', 'class_balanced')
    with pytest.raises(UserError, match='--epoch-length: method glmc has 2 streams'):
        make_run('glmc', '--epoch-length', 'class-aware')


def test_a_run_samples_as_it_is_told():
    dataset = digits(100)
    _, run = make_run(
        'ce', '--sampler', 'class_balanced', '--epoch-length', 'class-aware', dataset=dataset
    )
    expected = max(dataset.class_counts) * 10

    assert run.loaders[0].num_samples == expected and run.steps_per_epoch == expected // 16
    assert isinstance(run.loaders[0].sampler, ClassSampler)
    assert run.protocol.agreed['sampler'] == 'class_balanced'
    assert run.protocol.agreed['epoch_length'] == 'class-aware'

    seen = torch.cat([target for _, target, _ in run.loaders[0]])

    assert torch.bincount(seen, minlength=10).min() > 0
    assert fit(run, 1)[0]['train_loss'] > 0


def test_a_method_that_samples_by_itself_takes_no_sampler():
    """The toy's second stream is its own, the first takes `--sampler`."""
    _, run = make_run('toy', '--sampler', 'progressive')
    first, second = (loader.sampler for loader in run.loaders)
    assert first.num_epochs == 2 and type(second) is UniformSampler


@pytest.mark.parametrize('method, options, names', [
    ('toy', ['--sampler', 'progressive'], ['progressive', 'uniform']),
    ('glmc resample_power=0.25', [], ['instance', 'power(q=0.75)']),
    ('ce', ['--sampler', 'power(q=-0.5)'], ['power(q=-0.5)']),
])
def test_start_lines_name_the_sampler_of_each_stream(method, options, names):
    _, run = make_run(method, *options)
    assert [loader.sampler.name for loader in run.loaders] == names
    lines = start_lines(run, digits(), None)
    assert f'sampler: {"; then ".join(names)}, {run.loaders[0].num_samples} samples an epoch' in lines
