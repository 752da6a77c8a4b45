"""Counts, chosen images, fingerprints, groups and the hold-out."""
import itertools

import numpy as np
import pytest
import torch

from timm_longtail.data import (
    create_dataset,
    head_tail_groups,
    hold_out_indices,
    image_digests,
    long_tail_counts,
    long_tail_indices,
    shot_groups,
    subset_hash,
)
from timm_longtail.utils.errors import UserError

from ..support.data_sets import refused, write_classes


@pytest.mark.parametrize('max_count, num_classes, factor, total', [
    (500, 100, 200, 9502), (500, 100, 100, 10847), (500, 100, 50, 12608), (500, 100, 10, 19573),
    (5000, 10, 100, 12406), (5000, 10, 50, 13996), (5000, 10, 10, 20431),
])
def test_counts_sum_to_the_published_totals(max_count, num_classes, factor, total):
    counts = long_tail_counts(max_count, num_classes, factor)
    assert len(counts) == num_classes and sum(counts) == total
    assert counts == sorted(counts, reverse=True) and counts[0] == max_count


def test_counts_of_cifar10_are_the_published_list():
    assert long_tail_counts(5000, 10, 100) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]


def test_counts_at_the_limits():
    assert long_tail_counts(7, 3, 1) == [7, 7, 7]
    assert long_tail_counts(7, 1, 100) == [7]
    assert long_tail_counts(10, 3, 1000)[-1] == 0  # an empty class is the caller's to refuse


@pytest.mark.parametrize('arguments, message', [
    ((500, 100, 0.5), 'factor'),
    ((500, 100, float('nan')), 'factor'),
    ((0, 100, 10), 'at least one'),
    ((500, 0, 10), 'at least one'), ((500, 100, 10, 'pareto'), 'unknown profile'),
])
def test_counts_refuse(arguments, message):
    with pytest.raises(UserError, match=message):
        long_tail_counts(*arguments)


@pytest.mark.parametrize('counts, groups', [
    ({'few_inclusive': False}, (35, 35, 30)), ({'few_inclusive': True}, (35, 34, 31)),
])
def test_shot_groups_of_cifar100(counts, groups):
    split = shot_groups(long_tail_counts(500, 100, 100), **counts)
    assert tuple(map(len, split.values())) == groups
    assert sorted(itertools.chain(*split.values())) == list(range(100))


def test_shot_groups_at_the_boundaries():
    assert shot_groups([101, 100, 20, 19]) == {'many': [0], 'medium': [1, 2], 'few': [3]}
    assert shot_groups([101, 100, 20, 19], few_inclusive=True) == {'many': [0], 'medium': [1], 'few': [2, 3]}
    assert shot_groups([500]) == {'many': [0], 'medium': [], 'few': []}


def test_head_and_tail():
    groups = head_tail_groups(long_tail_counts(500, 100, 100))
    assert (len(groups['head']), len(groups['tail'])) == (35, 65)
    assert head_tail_groups([100, 99]) == {'head': [0], 'tail': [1]}


def ldam_rule(targets, counts, seed):
    """The rule as a loop over rows, written from its description."""
    random = np.random.RandomState(seed)
    chosen = []
    for label in range(len(counts)):
        rows = np.array([row for row, target in enumerate(targets) if target == label])
        random.shuffle(rows)
        chosen += [rows[place] for place in range(counts[label])]

    return chosen


@pytest.mark.parametrize('seed', [0, 5])
def test_indices_follow_the_rule_of_ldam(seed):
    targets = np.random.default_rng(1).permutation(np.repeat(np.arange(6), 30))
    counts = long_tail_counts(30, 6, 10)
    indices = long_tail_indices(targets, counts, seed)

    assert indices.dtype == np.int64 and indices.tolist() == ldam_rule(targets, counts, seed)
    assert np.array_equal(indices, long_tail_indices(targets.tolist(), counts, seed))
    assert not np.array_equal(indices, long_tail_indices(targets, counts, seed + 1))


def test_indices_leave_the_global_generator_alone_and_take_what_there_is():
    before = np.random.get_state()[1].copy()
    assert len(long_tail_indices([0, 0, 1], [5, 5])) == 3
    assert np.array_equal(before, np.random.get_state()[1])


@pytest.fixture
def images():
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (12, 3, 4, 4), dtype=np.uint8)
    )


def test_hash_ignores_row_order_and_sees_one_pixel_or_label(images):
    targets = np.arange(12) % 3
    name = subset_hash(images, targets)

    assert len(name) == 12 and int(name, 16) >= 0

    order = np.random.default_rng(1).permutation(12)

    assert subset_hash(images[torch.from_numpy(order)], targets[order]) == name
    assert subset_hash(images.to(memory_format=torch.channels_last), targets.astype(np.int32)) == name

    changed = images.clone()
    changed[3, 1, 2, 0] ^= 1

    assert subset_hash(changed, targets) != name

    other = targets.copy()
    other[4] = 0

    assert subset_hash(images, other) != name
    assert subset_hash(images[:-1], targets[:-1]) != name


def test_hash_of_known_bytes():
    import hashlib

    image = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    pixels = bytes([0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11])  # height, width, channel
    row = hashlib.sha256((7).to_bytes(8, 'little') + pixels).digest()

    assert subset_hash(image, [7]) == hashlib.sha256(row).hexdigest()[:12]
    assert image_digests(image).tobytes() == hashlib.sha256(pixels).digest()
    with pytest.raises(UserError, match='uint8'):
        image_digests(image.float())


def test_hold_out_sizes_and_invariants():
    counts = [100, 29, 10, 3, 2, 1]
    targets = np.repeat(np.arange(6), counts)
    held = hold_out_indices(targets, 0.1, seed=0)

    assert np.bincount(targets[held], minlength=6).tolist() == [10, 2, 1, 1, 1, 0]
    assert len(set(held.tolist())) == len(held) and np.array_equal(held, np.sort(held))
    assert np.array_equal(held, hold_out_indices(targets, 0.1, seed=0))
    assert not np.array_equal(held, hold_out_indices(targets, 0.1, seed=1))
    # 0.29 * 100 is below 29 in floating point
    assert np.bincount(targets[hold_out_indices(targets, 0.29, 0)])[0] == 29

    rest = np.setdiff1d(np.arange(len(targets)), hold_out_indices(targets, 0.999, 0))

    assert set(targets[rest]) == set(range(6))  # no class is emptied


@pytest.mark.parametrize('fraction', [0, 1, -0.1, float('nan')])
def test_hold_out_refuses(fraction):
    with pytest.raises(UserError, match='between 0 and 1'):
        hold_out_indices([0, 0], fraction, 0)


@pytest.mark.parametrize('fraction', [0.01, 0.2, 0.5, 0.99])
def test_a_class_of_one_image_stays_in_training(fraction):
    targets = np.repeat([0, 1, 2, 3, 4], [9, 1, 2, 1, 5])
    held = np.bincount(targets[hold_out_indices(targets, fraction, seed=0)], minlength=5)
    assert held.tolist() == [min(max(1, int(fraction * n + 1e-9)), n - 1) for n in (9, 1, 2, 1, 5)]
    assert (held < np.bincount(targets)).all()


def test_nothing_to_hold_out_is_said(tmp_path):
    write_classes(tmp_path / 'train', {'ant': 1, 'bee': 1})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})

    with pytest.raises(UserError, match='no class has two images: nothing can be held out'):
        create_dataset('folder', 'train', tmp_path).hold_out(0.2, 0)
    for split in ('train', 'test'):  # no test folder: a fifth of each class would be held out
        refused('no class has two images', 'folder', tmp_path / 'train', split)
