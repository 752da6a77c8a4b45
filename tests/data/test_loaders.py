"""Loaders: shapes, sharding, the same pixels whatever the chunks and processes, starting inside an epoch."""
import itertools

import numpy as np
import pytest
import torch

from timm_longtail.data import (
    EpochSampler,
    LongTailDataset,
    ShardedBatches,
    UniformSampler,
    create_loader,
    create_view,
)
from timm_longtail.utils import rng
from timm_longtail.utils.errors import UserError

ALL = ('crop_flip', 'autoaugment', 'sim', 'sim_blur')


@pytest.fixture(scope='module')
def dataset():
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (90, 3, 16, 16), dtype=np.uint8)
    return LongTailDataset(
        name='noise',
        split='train',
        images=torch.from_numpy(pixels),
        targets=np.arange(90) % 4,
        class_names=list('abcd'),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        indices=np.arange(90),
        source_names=[str(n) for n in range(90)],
    )


def read(dataset, views=ALL, epoch=0, start=0, batch_size=8, **options):
    loader = create_loader(dataset, views, batch_size=batch_size, **options)
    loader.set_epoch(epoch, start)
    return list(loader)


def join_processes(parts):
    """Put the batches of all processes together, in the order of the processes."""
    joined = []
    for batches in zip(*parts, strict=True):
        views, targets, indices = zip(*batches, strict=True)
        whole_views = tuple(torch.cat(same_view) for same_view in zip(*views, strict=True))
        joined.append((whole_views, torch.cat(targets), torch.cat(indices)))
    return joined


def assert_equal(first, second):
    assert len(first) == len(second) > 0
    for (views, *rest), (other_views, *other_rest) in zip(first, second, strict=True):
        for one, other in zip([*views, *rest], [*other_views, *other_rest], strict=True):
            assert torch.equal(one, other)


def test_a_batch(dataset):
    loader = create_loader(dataset, ALL, batch_size=8)
    batches = list(loader)

    assert len(batches) == len(loader) == 11 and loader.global_batch_size == 8
    for views, target, index in batches:
        assert isinstance(views, tuple) and len(views) == 4
        for view in views:
            assert view.shape == (8, 3, 16, 16) and view.dtype == torch.float32
        assert target.dtype == index.dtype == torch.int64
        assert np.array_equal(target, dataset.targets[index])

    seen = torch.cat([index for *_, index in batches]).tolist()

    assert len(set(seen)) == 88 and seen != sorted(seen)


def test_normalisation(dataset):
    (view,), _, index = read(dataset, ('eval',))[0]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (dataset.mean, dataset.std))

    torch.testing.assert_close(view, (dataset.images[index] / 255 - mean) / std)

    (view,), _, index = read(dataset, ('eval',), mean=(0, 0, 0), std=(1, 1, 1))[0]
    torch.testing.assert_close(view, dataset.images[index] / 255)


@pytest.mark.parametrize('chunk_size', [1, 7, 8, 50, 4096])
def test_the_chunk_size_changes_no_pixel(dataset, chunk_size):
    assert_equal(read(dataset, chunk_size=chunk_size), read(dataset, chunk_size=24))


@pytest.mark.parametrize('world_size', [2, 3])
def test_the_number_of_processes_changes_no_pixel(dataset, world_size):
    whole = read(dataset, batch_size=12)
    parts = []
    for rank in range(world_size):
        process = {'rank': rank, 'world_size': world_size, 'chunk_size': 5 + rank}
        parts.append(read(dataset, batch_size=12 // world_size, **process))

    assert_equal(whole, join_processes(parts))


@pytest.mark.parametrize('start', [1, 4, 10])
def test_starting_inside_an_epoch_gives_the_same_batches(dataset, start):
    resumed = read(dataset, epoch=3, start=start, chunk_size=16)
    assert_equal(resumed, read(dataset, epoch=3, chunk_size=24)[start:])

    loader = create_loader(dataset, batch_size=8)
    loader.set_epoch(0, 11)

    assert list(loader) == [] and len(loader) == 11

    loader.set_epoch(1)
    assert len(list(loader)) == 11


def test_pixels_come_from_the_uniforms_of_the_global_epoch(dataset):
    batches = read(
        dataset, ('flip', 'sim'), epoch=2, seed=5, stream=1, mean=(0, 0, 0), std=(1, 1, 1)
    )
    view = create_view('sim', 16)
    uniforms = rng.generator(5, 2, 1, 'view1').random((90, view.num_uniforms))
    order = UniformSampler(90, seed=5, stream=1)
    order.set_epoch(2)
    pixels = view.apply(dataset.images[torch.from_numpy(order.order())], view.sample(uniforms))

    torch.testing.assert_close(torch.cat([views[1] for views, *_ in batches]), pixels[:88] / 255)


def test_epochs_seeds_streams_and_views_differ(dataset):
    base = read(dataset, ('sim', 'sim'))
    (first, second), *_ = base[0]

    assert not torch.equal(first, second)
    for options in ({'epoch': 1}, {'seed': 1}, {'stream': 1}):
        other = read(dataset, ('sim', 'sim'), **options)
        assert not torch.equal(base[0][2], other[0][2])
        assert not torch.equal(base[0][0][0], other[0][0][0])
    assert not torch.equal(read(dataset, epoch=1)[0][2], read(dataset, seed=1)[0][2])
    assert_equal(base, read(dataset, ('sim', 'sim')))


def test_global_generators_are_left_alone(dataset):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    read(dataset)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


# ------------------------------------------------------------------------ sharding

@pytest.mark.parametrize('world_size', [1, 2, 3, 7])
@pytest.mark.parametrize('batch_size', [1, 8, 100])
def test_evaluation_sees_every_image_once(dataset, world_size, batch_size):
    parts = [
        read(dataset, ('eval',), batch_size=batch_size, training=False, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    index = [torch.cat([index for *_, index in part]).tolist() for part in parts]

    assert list(itertools.chain(*index)) == list(range(90))
    assert max(map(len, index)) - min(map(len, index)) <= 1


def test_evaluation_of_fewer_images_than_processes(dataset):
    small = dataset.subset([4, 2])
    sizes = [len(read(small, ('eval',), training=False, rank=rank, world_size=3)) for rank in range(3)]
    assert sum(sizes) == 2 and 0 in sizes


def test_sharded_batches_cut_each_global_batch_in_equal_parts():
    parts = [ShardedBatches(23, 3, rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == [3, 3] and parts[0].global_batch_size == 6
    assert [[part.span(batch) for part in parts] for batch in range(3)] == [
        [(0, 3), (3, 6)], [(6, 9), (9, 12)], [(12, 15), (15, 18)]]


def test_bad_input(dataset):
    with pytest.raises(UserError, match=r'no batch: an epoch has 90 samples.*128 \(2 x 64\); lower the batch size'):
        create_loader(dataset, batch_size=64, world_size=2)
    with pytest.raises(UserError, match='batch size must be at least 1'):
        create_loader(dataset, batch_size=0)
    with pytest.raises(UserError, match='rank 2 is not one of 2'):
        create_loader(dataset, batch_size=4, rank=2, world_size=2)
    with pytest.raises(UserError, match='takes no sampler'):
        create_loader(dataset, batch_size=4, training=False, sampler=UniformSampler(90))
    with pytest.raises(UserError, match='unknown view'):
        create_loader(dataset, ('crop',), batch_size=4)

    wide = dataset.subset([0, 1])
    wide.images = wide.images[..., :8]

    with pytest.raises(UserError, match='8x16 pixels.*square'):
        create_loader(wide, batch_size=1)


# ------------------------------------------------------------------------ samplers

def test_uniform_sampler():
    sampler = UniformSampler(50, seed=3, stream=1)
    sampler.set_epoch(4)
    order = sampler.order()

    assert order.dtype == np.int64 and sorted(order) == list(range(50))
    assert list(sampler) == order.tolist()
    assert np.array_equal(order, rng.generator(3, 4, 1, 'order').permutation(50))
    assert len(sampler) == 50

    sampler.set_epoch(5)

    assert not np.array_equal(order, sampler.order())
    with pytest.raises(UserError, match='at least one sample'):
        UniformSampler(0)


def test_a_sampler_of_ones_own_draws_with_replacement(dataset):
    class OneClass(EpochSampler):
        def draw(self, random):
            rows = np.flatnonzero(dataset.targets == 2)
            return random.choice(rows, self.num_samples).astype(np.int32)

    sampler = OneClass(200)
    batches = read(dataset, ('crop_flip',), sampler=sampler, seed=9, stream=1)
    assert (sampler.seed, sampler.stream) == (9, 1) and len(batches) == 25
    assert all((target == 2).all() for _, target, _ in batches)

    # one image drawn twice is two views
    views = torch.cat([views[0] for views, _, _ in batches])
    index = torch.cat([index for _, _, index in batches])
    same = views[index == index[0]]
    assert len(same) > 2 and not all(torch.equal(same[0], other) for other in same[1:])
