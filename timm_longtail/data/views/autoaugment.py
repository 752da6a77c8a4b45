"""AutoAugment's CIFAR-10 policy on a batch, one sub-policy an image.

Cubuk et al., AutoAugment: Learning Augmentation Strategies from Data, CVPR 2019,
https://arxiv.org/abs/1805.09501. The policy is torchvision's table. Magnitudes are discrete, so
torchvision's own operations are run once, on an image of pixel numbers and on one of all 256
levels: a geometric operation becomes a map of pixels, a point operation a table of levels, and a
batch needs one look-up for each, exact on any device. n images, S side of the square image.
"""
import math
from collections.abc import Sequence

import numpy as np
import torch
from torchvision.transforms import AutoAugment as TorchvisionAutoAugment
from torchvision.transforms import AutoAugmentPolicy
from torchvision.transforms import functional as F
from torchvision.transforms.v2.functional import equalize

from . import ops

__all__ = ['AutoAugment']

# levels of magnitude in the paper's search space
_BINS = 10

# operations whose magnitude has a random sign
_SIGNED = (
    'ShearX',
    'ShearY',
    'TranslateX',
    'TranslateY',
    'Rotate',
    'Brightness',
    'Color',
    'Contrast',
    'Sharpness',
)

# operations that look at more than one pixel: those with a factor of their own for each image, and
# those without
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

    # magnitudes of the lowest and of the highest level
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

    angle = math.degrees(math.atan(amount))
    if name == 'ShearX':
        return _affine(image, shear=[angle, 0.], center=[0, 0])
    if name == 'ShearY':
        return _affine(image, shear=[0., angle], center=[0, 0])
    if name == 'TranslateX':
        return _affine(image, translate=[int(amount), 0])
    if name == 'TranslateY':
        return _affine(image, translate=[0, int(amount)])
    return None


def _affine(
        image: torch.Tensor,
        translate: Sequence[int] = (0, 0),
        shear: Sequence[float] = (0., 0.),
        center: list[int] | None = None,
) -> torch.Tensor:
    """Shift or shear an image; `center` is the point that stays, None is the middle."""
    return F.affine(
        image, angle=0., translate=list(translate), scale=1., shear=list(shear), center=center)


def _pointwise(levels: torch.Tensor, name: str, amount: float) -> torch.Tensor | None:
    """Apply an operation that looks at one level only; None for any other operation."""
    if name == 'Brightness':
        return F.adjust_brightness(levels, 1 + amount)
    if name == 'Posterize':
        return F.posterize(levels, int(amount))
    if name == 'Solarize':
        return F.solarize(levels, amount)
    if name == 'Invert':
        return F.invert(levels)
    return None


class _Actions:
    """Operations at a magnitude, by number.

    Args:
        size: S.

    Attributes:
        kinds: What each action is: `map`, `table`, or the name of an operation that has neither.
            Action 0 does nothing.
        arguments: Argument of each action: a row of `maps` or of `tables`, or a factor.
        maps: Source of each pixel, from 1, and 0 for none: int64 [S*S] each.
        tables: New value of each level, uint8 [256] each.
    """

    def __init__(self, size: int):
        self.size = size
        self.kinds = ['']
        self.arguments = [0.]
        self.maps: list[torch.Tensor] = []
        self.tables: list[torch.Tensor] = []
        self._known: dict[tuple[str, float], int] = {}

    def number(self, name: str, level: int | None, sign: int) -> int:
        """Return the number of an operation, which is built the first time that it is asked for.

        Args:
            name: Operation of torchvision's policy.
            level: Level of its magnitude, 0 to 9; None for an operation without.
            sign: 1 or -1, for an operation with a signed magnitude.
        """
        amount = magnitude(name, level, self.size)
        if name in _SIGNED:
            amount *= sign
        if (name, amount) not in self._known:
            self._known[name, amount] = self._build(name, amount)
        return self._known[name, amount]

    def _build(self, name: str, amount: float) -> int:
        # the operation on an image of pixel numbers and on one of all levels
        pixels = torch.arange(1, self.size ** 2 + 1, dtype=torch.float32)
        moved = _geometric(pixels.view(1, self.size, self.size), name, amount)
        levels = torch.arange(256, dtype=torch.uint8)
        changed = _pointwise(levels.view(1, 1, 256), name, amount)

        if moved is not None:
            self.kinds.append('map')
            self.arguments.append(len(self.maps))
            self.maps.append(moved.flatten().long())
        elif changed is not None:
            self.kinds.append('table')
            self.arguments.append(len(self.tables))
            self.tables.append(changed.flatten())
        else:
            self.kinds.append(name)
            self.arguments.append(1 + amount)
        return len(self.kinds) - 1


class AutoAugment:
    """A sub-policy of two operations, chosen uniformly for each image.

    Uniforms of an image: sub-policy, two for "applied?", two for the sign.

    Args:
        size: S, side of the images.
        fill: Level outside the moved image. The long-tailed code bases use 128; torchvision's
            default is 0.
    """
    num_uniforms = 5

    def __init__(self, size: int, fill: int = 128):
        self.size = size
        self.fill = fill
        self.policies = TorchvisionAutoAugment(AutoAugmentPolicy.CIFAR10).policies

        # actions [policy,slot,sign] and their probabilities [policy,slot]
        table = _Actions(size)
        actions, probabilities = [], []
        for policy in self.policies:
            both = [[table.number(name, level, sign) for sign in (-1, 1)] for name, _, level in policy]
            actions.append(both)
            probabilities.append([probability for _, probability, _ in policy])
        self.actions = np.array(actions)
        self.probabilities = np.array(probabilities)

        self.kinds = np.array(table.kinds)
        self.arguments = np.array(table.arguments)
        self.maps = torch.stack(table.maps)
        self.tables = torch.stack(table.tables)

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
        self.maps = self.maps.to(images.device)
        self.tables = self.tables.to(images.device)

        for slot in range(2):
            actions = params['actions'][:, slot]
            kinds = self.kinds[actions]

            # all images with one kind of operation at once
            for kind in np.unique(kinds[kinds != '']):
                chosen = np.flatnonzero(kinds == kind)
                rows = torch.from_numpy(chosen).to(images.device)
                arguments = self.arguments[actions[chosen]]
                images[rows] = self._run(str(kind), images[rows], arguments)
        return images

    def _run(self, kind: str, images: torch.Tensor, arguments: np.ndarray) -> torch.Tensor:
        """Apply one kind of operation to images that all have it, uint8 [n,3,S,S]."""
        if kind in _BLENDS:
            return _BLENDS[kind](images, arguments)
        if kind in _WHOLE:
            return _WHOLE[kind](images)

        # what is left is a look-up: of pixels in a map, of levels in a table
        rows = torch.from_numpy(arguments.astype(np.int64)).to(images.device)
        flat = images.flatten(2)
        if kind == 'map':
            # pixel 0 of the map is outside the image
            outside = flat.new_full((*flat.shape[:2], 1), self.fill)
            sources = self.maps[rows][:, None].expand(-1, 3, -1)
            return torch.cat([outside, flat], 2).gather(2, sources).view_as(images)

        tables = self.tables[rows][:, None].expand(-1, 3, -1)
        return tables.gather(2, flat.long()).view_as(images)
