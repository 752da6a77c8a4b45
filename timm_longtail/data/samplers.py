"""Orders of an epoch. A sampler gives the global order; `ShardedBatches` cuts it for the processes.

A sampler keeps no generator: its order is a function of (seed, epoch, stream), so every process
computes the same one and a resumed run needs no state. `create_loader` sets `seed` and `stream`.

The four samplings of Kang et al., `Decoupling Representation and Classifier for Long-Tailed
Recognition`, ICLR 2020, https://arxiv.org/abs/1910.09217, section 3: instance-balanced,
class-balanced, square-root, progressively-balanced.

N images, C classes, n_j images of class j, n samples of an epoch over all processes.
"""
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ..utils.calls import call_by_name
from ..utils.errors import UserError
from ..utils.rng import generator

__all__ = [
    'ClassSampler',
    'EpochSampler',
    'InstanceSampler',
    'PowerSampler',
    'ProgressiveSampler',
    'UniformSampler',
    'class_probabilities',
    'create_sampler',
    'epoch_samples',
    'list_samplers',
]

_LENGTHS = ('natural', 'class-aware')


class EpochSampler:
    """Base of samplers: a sub-class says what one epoch draws, in `draw`.

    Args:
        num_samples: Number of samples of an epoch, over all processes.
        seed: Training seed.
        stream: Data stream; a two-stream method draws independent orders.

    Attributes:
        name: What the sampler is called on screen.
    """

    name = ''

    def __init__(self, num_samples: int, seed: int = 0, stream: int = 0):
        if num_samples < 1:
            raise UserError(f'a sampler needs at least one sample an epoch, got {num_samples}')
        self.num_samples = num_samples
        self.seed = seed
        self.stream = stream
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int):
        """Choose the epoch that `order` and iteration give, from 0."""
        self.epoch = epoch

    def order(self) -> np.ndarray:
        """Return the positions in the data set that the epoch visits, over all processes: int64 [num_samples]."""
        random = generator(self.seed, self.epoch, self.stream, 'order')
        return self.draw(random).astype(np.int64, copy=False)

    def draw(self, random: np.random.Generator) -> np.ndarray:
        """Draw the order of the current epoch from a generator made for it."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[int]:
        return iter(self.order().tolist())


class UniformSampler(EpochSampler):
    """Every image once an epoch, shuffled."""

    name = 'uniform'

    def draw(self, random: np.random.Generator) -> np.ndarray:
        return random.permutation(self.num_samples)


def class_probabilities(class_counts: Sequence[int] | np.ndarray, q: float) -> np.ndarray:
    """Return p_j = n_j^q / sum_i n_i^q (Kang et al., equation 1), float64 [C].

    A class without images has probability 0.

    Args:
        class_counts: Number of images n_j of each class, [C].
        q: Exponent: 1 is instance-balanced, 1/2 square-root, 0 class-balanced; below 0 the rare
            classes are drawn most.
    """
    counts = np.asarray(class_counts, np.float64)
    weights = np.zeros_like(counts)
    # 0 ** q is not 0 for q <= 0
    weights[counts > 0] = counts[counts > 0] ** q
    return weights / weights.sum()


class ClassSampler(EpochSampler):
    """Draws a class from `class_probabilities`, then an image of it.

    Classes are drawn independently of each other. Within a class every image is visited evenly:
    over an epoch the numbers of visits of two images of one class differ by at most one.

    Args:
        targets: Class of each image, [N].
        num_samples: Number of samples of an epoch; None is N.
        seed: Training seed.
        stream: Data stream.
    """

    def __init__(
            self,
            targets: Sequence[int] | np.ndarray,
            num_samples: int | None = None,
            seed: int = 0,
            stream: int = 0,
    ):
        labels = np.asarray(targets, np.int64)
        super().__init__(len(labels) if num_samples is None else num_samples, seed, stream)
        self.class_counts = np.bincount(labels)

        # positions of the images of each class
        by_class = np.argsort(labels, kind='stable')
        self._images = np.split(by_class, np.cumsum(self.class_counts)[:-1])

    @property
    def class_probabilities(self) -> np.ndarray:
        """Probability of each class in the current epoch, float64 [C]."""
        raise NotImplementedError

    def draw(self, random: np.random.Generator) -> np.ndarray:
        # the class of each sample of the epoch
        num_classes = len(self.class_counts)
        classes = random.choice(num_classes, size=self.num_samples, p=self.class_probabilities)
        wanted = np.bincount(classes, minlength=num_classes)

        # the images of each class, dealt to the samples of that class
        visits = []
        for images, count in zip(self._images, wanted, strict=True):
            visits.append(_visits(images, count, random))
        order = np.empty(self.num_samples, np.int64)
        order[np.argsort(classes, kind='stable')] = np.concatenate(visits)
        return order


def _visits(images: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Return `count` visits of some images: each as often as any other, or once more."""
    if count == 0:
        return images[:0]

    rounds = math.ceil(count / len(images))
    visits = np.concatenate([random.permutation(images) for _ in range(rounds)])
    return visits[:count]


class PowerSampler(ClassSampler):
    """Draws class j with p_j = n_j^q / sum_i n_i^q.

    Args:
        targets: Class of each image, [N].
        q: Exponent, see `class_probabilities`.
        num_samples: Number of samples of an epoch; None is N.
        seed: Training seed.
        stream: Data stream.
    """

    def __init__(
            self,
            targets: Sequence[int] | np.ndarray,
            q: float,
            num_samples: int | None = None,
            seed: int = 0,
            stream: int = 0,
    ):
        super().__init__(targets, num_samples, seed, stream)
        self.q = q
        self.name = f'power(q={q:g})'

    @property
    def class_probabilities(self) -> np.ndarray:
        return class_probabilities(self.class_counts, self.q)


class InstanceSampler(PowerSampler):
    """Every image once, shuffled, and again from the start where an epoch is longer: p_j = n_j / N.

    Args:
        targets: Class of each image, [N].
        num_samples: Number of samples of an epoch; None is N.
        seed: Training seed.
        stream: Data stream.
    """

    def __init__(
            self,
            targets: Sequence[int] | np.ndarray,
            num_samples: int | None = None,
            seed: int = 0,
            stream: int = 0,
    ):
        super().__init__(targets, 1.0, num_samples, seed, stream)
        self.name = 'instance'

    def draw(self, random: np.random.Generator) -> np.ndarray:
        return _visits(np.arange(self.class_counts.sum()), self.num_samples, random)


class ProgressiveSampler(ClassSampler):
    """Instance-balanced at first, class-balanced at the end: p_j(t) = (1 - t/T) p_j^IB + (t/T) p_j^CB (equation 2).

    t is the epoch from 0 and T their number, as the paper writes it; its released code divides by T
    - 1.

    Args:
        targets: Class of each image, [N].
        num_epochs: T, number of epochs.
        num_samples: Number of samples of an epoch; None is N.
        seed: Training seed.
        stream: Data stream.
    """

    def __init__(
            self,
            targets: Sequence[int] | np.ndarray,
            num_epochs: int,
            num_samples: int | None = None,
            seed: int = 0,
            stream: int = 0,
    ):
        super().__init__(targets, num_samples, seed, stream)
        self.name = 'progressive'
        self.num_epochs = num_epochs

    @property
    def class_probabilities(self) -> np.ndarray:
        share = self.epoch / self.num_epochs  # t/T
        instance = class_probabilities(self.class_counts, q=1.0)
        balanced = class_probabilities(self.class_counts, q=0.0)
        return (1 - share) * instance + share * balanced


def epoch_samples(class_counts: Sequence[int] | np.ndarray, length: str = 'natural') -> int:
    """Return the number of samples of an epoch.

    Args:
        class_counts: Number of images n_j of each class, [C].
        length: `natural` is N; `class-aware` is C times the largest n_j, so that even a
            class-balanced epoch sees every image.

    Raises:
        UserError: An unknown length.
    """
    if length not in _LENGTHS:
        raise UserError(f'the length of an epoch is {" or ".join(_LENGTHS)}, got {length!r}')

    if length == 'natural':
        return int(sum(class_counts))
    return int(max(class_counts) * len(class_counts))


# ------------------------------------------------------------------------ by name

_Targets = Sequence[int] | np.ndarray


def _instance(targets: _Targets, num_epochs: int, num_samples: int) -> ClassSampler:
    return InstanceSampler(targets, num_samples)


def _class_balanced(targets: _Targets, num_epochs: int, num_samples: int) -> ClassSampler:
    return PowerSampler(targets, 0.0, num_samples)


def _sqrt(targets: _Targets, num_epochs: int, num_samples: int) -> ClassSampler:
    return PowerSampler(targets, 0.5, num_samples)


def _progressive(targets: _Targets, num_epochs: int, num_samples: int) -> ClassSampler:
    return ProgressiveSampler(targets, num_epochs, num_samples)


def _power(targets: _Targets, num_epochs: int, num_samples: int, q: float = -1.0) -> ClassSampler:
    return PowerSampler(targets, float(q), num_samples)


_SAMPLERS: dict[str, Callable[..., ClassSampler]] = {
    'instance': _instance,
    'class_balanced': _class_balanced,
    'sqrt': _sqrt,
    'progressive': _progressive,
    'power': _power,
}


def list_samplers() -> list[str]:
    """Return the names of all samplers."""
    return list(_SAMPLERS)


def create_sampler(
        name: str,
        targets: Sequence[int] | np.ndarray,
        num_epochs: int,
        length: str = 'natural',
) -> ClassSampler:
    """Build a sampler from its name.

    Args:
        name: One of `list_samplers()`; `power` takes its exponent, `power(q=-0.5)`, and is 1 / n_j
            without one.
        targets: Class of each image, [N].
        num_epochs: Number of epochs of the run, which shapes the progressive sampler.
        length: Length of an epoch, see `epoch_samples`.

    Raises:
        UserError: An unknown name, length or argument.
    """
    num_samples = epoch_samples(np.bincount(np.asarray(targets)), length)
    sampler = call_by_name('sampler', name, _SAMPLERS, targets, num_epochs, num_samples)
    sampler.name = name
    return sampler
