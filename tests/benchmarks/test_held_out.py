"""The split that settings are chosen on has no test image, and none twice."""
from collections import Counter

import numpy as np

from benchmarks.held_out import part
from timm_longtail.data import LongTailDataset

NUM_CLASSES, PER_CLASS, NUM_TEST = 10, 250, 50


def balanced() -> LongTailDataset:
    """Return a balanced training split in which no two images are equal."""
    rows = np.arange(NUM_CLASSES * PER_CLASS)
    images = np.zeros((len(rows), 3, 1, 2), dtype=np.uint8)
    images[:, 0, 0] = np.stack([rows // 256, rows % 256], axis=1)
    return LongTailDataset(
        name='grey', split='train', images=images, targets=rows % NUM_CLASSES, mean=(0.5,) * 3, std=(0.25,) * 3,
        class_names=[str(c) for c in range(NUM_CLASSES)], indices=rows, source_names=[str(row) for row in rows])


def test_images_are_parted():
    whole = balanced()
    train, test = part(whole, NUM_TEST, seed=0)

    # balanced, and exponential from 200 to 2 images
    assert test.class_counts == [NUM_TEST] * NUM_CLASSES
    assert train.class_counts == train.shot_counts == [int(200 * 100 ** (-c / 9)) for c in range(NUM_CLASSES)]

    assert not set(train.indices) & set(test.indices)
    assert max(Counter([*train.indices, *test.indices]).values()) == 1
    for split in (train, test):
        assert (split.name, split.hub_id) == ('grey_lt_held_out', None)
        assert np.array_equal(split.targets, whole.targets[split.indices])
        assert np.array_equal(np.asarray(split.images), whole.images[split.indices])


def test_another_seed_draws_others():
    first, second = (part(balanced(), NUM_TEST, seed)[1] for seed in (0, 1))
    assert len(first) == len(second) and set(first.indices) != set(second.indices)
