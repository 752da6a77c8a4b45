"""AutoAugment's CIFAR-10 policy on a batch, one sub-policy an image.

Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019, https://arxiv.org/abs/1805.09501.
The policy is torchvision's table. Magnitudes are discrete, so torchvision's own operations are run once, on an image of
pixel numbers and on one of all 256 levels: a geometric operation becomes a map of pixels, a point operation a table of
levels, and a batch needs one look-up for each, exact on any device. n images, S side of the square image.
"""
import math

import numpy as np
import torch
from torchvision.transforms import AutoAugment as TorchvisionAutoAugment
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms import functional as F
from torchvision.transforms.v2.functional import equalize

from . import ops

__all__ = ['AutoAugment']

_BINS = 10  # levels of magnitude in the paper's search space
_SIGNED = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate', 'Brightness', 'Color', 'Contrast', 'Sharpness')
_BLENDS = {
    'Color': ops.adjust_saturation,
    'Contrast': ops.adjust_contrast,
    'Sharpness': ops.adjust_sharpness,
}
_WHOLE = {'AutoContrast': F.autocontrast, 'Equalize': equalize}


def magnitude(name: str, level: int | None, size: int) -> float:
    """Return the magnitude of an operation at a level (0 to 9), in the units that the operation takes."""
    if level is None:
        return 0.
    if name == 'Posterize':
        return 8. - round(4 * level / (_BINS - 1))
    first, last = {
        'ShearX': (0, 0.3),
        'ShearY': (0, 0.3),
        'TranslateX': (0, 150 / 331 * size),  # the paper's 150 pixels of a 331-pixel image
        'TranslateY': (0, 150 / 331 * size),
        'Rotate': (0, 30),
        'Solarize': (255, 0),
    }.get(name, (0, 0.9))
    # single precision, as torchvision's table: the last digit decides a level here and there
    return torch.linspace(first, last, _BINS)[level].item()


def _geometric(image: torch.Tensor, name: str, amount: float) -> torch.Tensor | None:
    """Apply a geometric operation with zeros outside; None for any other operation."""
    if name == 'Rotate':
        return F.rotate(image, amount)
    shear, shift = math.degrees(math.atan(amount)), int(amount)
    place = {
        'ShearX': {'shear': [shear, 0.], 'center': [0, 0]},
        'ShearY': {'shear': [0., shear], 'center': [0, 0]},
        'TranslateX': {'translate': [shift, 0]},
        'TranslateY': {'translate': [0, shift]},
    }.get(name)
    if place is None:
        return None
    return F.affine(image, **{'angle': 0., 'translate': [0, 0], 'scale': 1., 'shear': [0., 0.], **place})


def _pointwise(levels: torch.Tensor, name: str, amount: float) -> torch.Tensor | None:
    """Apply an operation that looks at one level only; None for any other operation."""
    if name == 'Brightness':
        return F.adjust_brightness(levels, 1 + amount)
    if name == 'Posterize':
        return F.posterize(levels, int(amount))
    if name == 'Solarize':
        return F.solarize(levels, amount)
    return F.invert(levels) if name == 'Invert' else None


class AutoAugment:
    """A sub-policy of two operations, chosen uniformly for each image.

    Uniforms of an image: sub-policy, two for "applied?", two for the sign.

    Args:
        size: S.
        fill: Level outside the moved image. The long-tailed code bases use 128; torchvision's default is 0.
    """
    num_uniforms = 5

    def __init__(self, size: int, fill: int = 128):
        self.size = size
        self.fill = fill
        self.policies = TorchvisionAutoAugment(AutoAugmentPolicy.CIFAR10).policies
        # action 0 does nothing; another is a kind and its argument: a row of `maps` or `tables`, or a factor
        self._kinds: list[str] = ['']
        self._arguments: list[float] = [0.]
        self._maps: list[torch.Tensor] = []
        self._tables: list[torch.Tensor] = []
        known: dict[tuple[str, float], int] = {}
        self.actions = np.array([  # [policy,slot,sign]
            [[self._action(known, name, level, sign) for sign in (-1, 1)] for name, _, level in policy]
            for policy in self.policies
        ])
        self.probabilities = np.array([[operation[1] for operation in policy] for policy in self.policies])
        self.kinds, self.arguments = np.array(self._kinds), np.array(self._arguments)
        self.maps, self.tables = torch.stack(self._maps), torch.stack(self._tables)

    def _action(self, known: dict[tuple[str, float], int], name: str, level: int | None, sign: int) -> int:
        """Return the number of an operation at a magnitude, building its look-up table the first time."""
        amount = magnitude(name, level, self.size) * (sign if name in _SIGNED else 1)
        if (name, amount) in known:
            return known[name, amount]
        numbers = torch.arange(1, self.size ** 2 + 1, dtype=torch.float32).view(1, self.size, self.size)
        moved = _geometric(numbers, name, amount)
        levels = _pointwise(torch.arange(256, dtype=torch.uint8).view(1, 1, 256), name, amount)
        kind, argument = name, 1 + amount
        if moved is not None:
            kind, argument = 'map', len(self._maps)
            self._maps.append(moved.flatten().long())  # 0: outside the image
        elif levels is not None:
            kind, argument = 'table', len(self._tables)
            self._tables.append(levels.flatten())
        self._kinds.append(kind)
        self._arguments.append(argument)
        return known.setdefault((name, amount), len(self._kinds) - 1)

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """Map uniforms [n,5] to `policy` [n] and the two `actions` [n,2] of each image (0: none)."""
        policy = (uniforms[:, 0] * len(self.policies)).astype(np.int64)
        applied = uniforms[:, 1:3] < self.probabilities[policy]
        sign = (uniforms[:, 3:5] >= 0.5).astype(np.int64)
        actions = self.actions[policy[:, None], np.arange(2), sign]
        return {'policy': policy, 'actions': np.where(applied, actions, 0)}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        """Apply both operations of each image to uint8 [n,3,S,S]."""
        images = images.clone()
        self.maps, self.tables = self.maps.to(images.device), self.tables.to(images.device)
        for slot in range(2):
            actions = params['actions'][:, slot]
            kinds = self.kinds[actions]
            for kind in np.unique(kinds[kinds != '']):
                chosen = np.flatnonzero(kinds == kind)
                rows = torch.from_numpy(chosen).to(images.device)
                images[rows] = self._run(str(kind), images[rows], self.arguments[actions[chosen]])
        return images

    def _run(self, kind: str, images: torch.Tensor, arguments: np.ndarray) -> torch.Tensor:
        """Apply one kind of operation to images that all have it."""
        if kind in _BLENDS:
            return _BLENDS[kind](images, arguments)
        if kind in _WHOLE:
            return _WHOLE[kind](images)
        rows = torch.from_numpy(arguments.astype(np.int64)).to(images.device)
        flat = images.flatten(2)
        if kind == 'map':
            outside = flat.new_full((*flat.shape[:2], 1), self.fill)
            sources = self.maps[rows][:, None].expand(-1, 3, -1)
            return torch.cat([outside, flat], 2).gather(2, sources).view_as(images)
        return self.tables[rows][:, None].expand(-1, 3, -1).gather(2, flat.long()).view_as(images)
