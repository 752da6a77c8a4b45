"""Steps of a view: each maps uniform numbers to parameters of every image, and applies them to a batch.

`sample` is NumPy on the CPU; `apply` is torch on the images' device, uint8 [n,3,S,S] to the same, and leaves its input
as it was. The number of uniforms never depends on their values. n images, S side of the square image.
"""
from typing import Any, Protocol

import numpy as np
import torch

from ..errors import UserError
from . import ops

__all__ = ['ColorJitter', 'Cutout', 'Flip', 'GaussianBlur', 'Grayscale', 'PadCrop', 'ResizedCrop', 'Step']


class Step(Protocol):
    """One operation of a view. `num_uniforms` numbers in [0, 1) decide its parameters for one image."""
    num_uniforms: int

    def sample(self, uniforms: np.ndarray) -> Any:
        """Map uniforms [n,num_uniforms] to parameters of n images, arrays on the CPU."""

    def apply(self, images: torch.Tensor, params: Any) -> torch.Tensor:
        """Return new images of uint8 [n,3,S,S]; the input is not changed."""


class PadCrop:
    """Pad with zeros on all sides and cut the original size out at a uniform offset."""
    num_uniforms = 2

    def __init__(self, padding: int = 4):
        self.padding = padding

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        top, left = (uniforms * (2 * self.padding + 1)).astype(np.int64).T
        return {'top': top, 'left': left}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        return ops.crop_windows(images, params['top'], params['left'], self.padding)


class Flip:
    """Mirror left and right."""
    num_uniforms = 1

    def __init__(self, p: float = 0.5):
        self.p = p

    def sample(self, uniforms: np.ndarray) -> np.ndarray:
        return uniforms[:, 0] < self.p

    def apply(self, images: torch.Tensor, params: np.ndarray) -> torch.Tensor:
        return ops.flip_where(images, params)


class ResizedCrop:
    """Cut a box of random area and aspect ratio and resize it to S x S, bilinear with antialiasing.

    As torchvision: ten tries of (area, ratio), the first box that fits; else the largest central box, which is all of
    a square image. All ten are always drawn, so that the count of uniforms is fixed.

    Args:
        size: S.
        scale: Range of the box's area over the image's.
        ratio: Range of width over height, uniform in the logarithm.
    """
    tries = 10
    num_uniforms = 2 * tries + 2

    def __init__(self, size: int, scale: tuple[float, float] = (0.2, 1.), ratio: tuple[float, float] = (3 / 4, 4 / 3)):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f'the area of a crop lies in (0, 1], got {scale[0]} to {scale[1]}')
        self.size = size
        self.scale = scale
        self.log_ratio = np.log(ratio)

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        area, ratio = uniforms[:, :self.tries], uniforms[:, self.tries:2 * self.tries]
        area = self.size ** 2 * (self.scale[0] + (self.scale[1] - self.scale[0]) * area)
        ratio = np.exp(self.log_ratio[0] + (self.log_ratio[1] - self.log_ratio[0]) * ratio)
        width, height = np.rint(np.sqrt(area * ratio)), np.rint(np.sqrt(area / ratio))
        fits = (width > 0) & (width <= self.size) & (height > 0) & (height <= self.size)
        first = np.arange(len(fits)), fits.argmax(1)
        width, height = (
            np.where(fits.any(1), length[first], self.size).astype(np.int64) for length in (width, height))
        top = (uniforms[:, -2] * (self.size - height + 1)).astype(np.int64)
        left = (uniforms[:, -1] * (self.size - width + 1)).astype(np.int64)
        return {'top': top, 'left': left, 'height': height, 'width': width}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        rows = ops.resize_weights(params['top'], params['height'], images.shape[2], self.size, images.device)
        columns = ops.resize_weights(params['left'], params['width'], images.shape[3], self.size, images.device)
        return ops.resample(images, rows, columns)


class ColorJitter:
    """Brightness, contrast, saturation and hue, in an order of its own for each image, all or none.

    Args:
        brightness, contrast, saturation: Factors are uniform in [1 - x, 1 + x].
        hue: Shift is uniform in [-x, x], in turns of the colour circle.
        p: Probability that an image is jittered.
    """
    num_uniforms = 9
    functions = (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_hue)

    def __init__(
            self,
            brightness: float = 0.4,
            contrast: float = 0.4,
            saturation: float = 0.4,
            hue: float = 0.1,
            p: float = 0.8,
    ):
        self.centre = np.array([1., 1., 1., 0.])
        self.reach = np.array([brightness, contrast, saturation, hue])
        self.p = p

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        return {
            'applied': uniforms[:, 0] < self.p,
            'factors': np.maximum(self.centre + self.reach * (2 * uniforms[:, 1:5] - 1), [0., 0., 0., -0.5]),
            'order': uniforms[:, 5:9].argsort(1, kind='stable'),  # all 24 orders are equally likely
        }

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        images = images.clone()
        for turn in range(4):
            for kind, function in enumerate(self.functions):
                chosen = np.flatnonzero(params['applied'] & (params['order'][:, turn] == kind))
                if len(chosen) and self.reach[kind]:
                    rows = torch.from_numpy(chosen).to(images.device)
                    images[rows] = function(images[rows], params['factors'][chosen, kind])
        return images


class Grayscale:
    """Replace the colours by the grey level."""
    num_uniforms = 1

    def __init__(self, p: float = 0.2):
        self.p = p

    def sample(self, uniforms: np.ndarray) -> np.ndarray:
        return np.flatnonzero(uniforms[:, 0] < self.p)

    def apply(self, images: torch.Tensor, params: np.ndarray) -> torch.Tensor:
        images, rows = images.clone(), torch.from_numpy(params).to(images.device)
        images[rows] = ops.grayscale(images[rows])
        return images


class GaussianBlur:
    """Blur with a standard deviation uniform in `sigma`, in pixels; taps reach three times the largest."""
    num_uniforms = 2

    def __init__(self, size: int, sigma: tuple[float, float] = (0.1, 2.), p: float = 0.5):
        self.sigma = sigma
        self.p = p
        self.radius = min(int(3 * sigma[1] + 0.5), size - 1)

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.flatnonzero(uniforms[:, 0] < self.p)
        return {'rows': rows, 'sigma': self.sigma[0] + (self.sigma[1] - self.sigma[0]) * uniforms[rows, 1]}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        images, rows = images.clone(), torch.from_numpy(params['rows']).to(images.device)
        vertical, horizontal = (
            ops.blur_weights(params['sigma'], size, self.radius, images.device) for size in images.shape[2:])
        images[rows] = ops.resample(images[rows], vertical, horizontal)
        return images


class Cutout:
    """Set a square to zero (DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552).

    The centre is uniform over the image's pixels and the square is clipped at the border; zero is black, before the
    normalisation.
    """
    num_uniforms = 2

    def __init__(self, size: int, length: int = 16):
        self.size = size
        self.length = length

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        centre_y, centre_x = (uniforms * self.size).astype(np.int64).T
        return {'centre_y': centre_y, 'centre_x': centre_x}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        return ops.erase_boxes(images, params['centre_y'], params['centre_x'], self.length)
