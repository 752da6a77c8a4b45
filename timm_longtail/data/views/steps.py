"""Steps of a view: each maps uniform numbers to parameters of every image, and applies them to a batch.

`sample` is NumPy on the CPU; `apply` is torch on the images' device, uint8 [n,3,S,S] to the same,
and leaves its input as it was. A step of geometry also has `place`, for one image file of any size.
The number of uniforms never depends on their values. n images, S side of the square image.
"""
import math
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import functional as F

from ...utils.errors import UserError
from . import ops

__all__ = [
    'CentreCrop',
    'ColorJitter',
    'CornerCrop',
    'Cutout',
    'Flip',
    'GaussianBlur',
    'GeometryStep',
    'Grayscale',
    'PLACES',
    'PadCrop',
    'ResizedCrop',
    'Step',
]


class Step(Protocol):
    """One operation of a view. `num_uniforms` numbers in [0, 1) decide its parameters for one image."""
    num_uniforms: int

    def sample(self, uniforms: np.ndarray) -> Any:
        """Map uniforms [n,num_uniforms] to parameters of n images, arrays on the CPU."""

    def apply(self, images: torch.Tensor, params: Any) -> torch.Tensor:
        """Return new images of uint8 [n,3,S,S]; the input is not changed."""


class GeometryStep(Step, Protocol):
    """A step that moves pixels.

    The first one of a view brings an image file to S x S, later ones keep that size. A step that
    works on image files only, whose `sample` and `apply` cannot be called, says `files_only =
    True`.
    """

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        """Return one RGB image as uniforms [num_uniforms] say; the input is not changed."""


def _resize_shorter_side(
        image: Image.Image,
        size: int,
        crop_pct: float = 7 / 8,
        interpolation: F.InterpolationMode = F.InterpolationMode.BILINEAR,
) -> Image.Image:
    """Resize so that a crop of `size` pixels is `crop_pct` of the shorter side, rounded down as in timm."""
    return F.resize(image, math.floor(size / crop_pct), interpolation)


class PadCrop:
    """Pad with zeros on all sides and cut the original size out at a uniform offset.

    An image file is not padded: its shorter side is resized to 8/7 S (256 for 224) and the crop's
    offset is uniform.

    Args:
        padding: Pixels on each side of resident images.
        size: S, of the crop from an image file.
    """
    num_uniforms = 2

    def __init__(self, padding: int = 4, size: int = 32):
        self.padding = padding
        self.size = size

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        top, left = (uniforms * (2 * self.padding + 1)).astype(np.int64).T
        return {'top': top, 'left': left}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        return ops.crop_windows(images, params['top'], params['left'], self.padding)

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        image = _resize_shorter_side(image, self.size)
        top = int(uniforms[0] * (image.height - self.size + 1))
        left = int(uniforms[1] * (image.width - self.size + 1))
        return image.crop((left, top, left + self.size, top + self.size))


class CentreCrop:
    """Resize the shorter side of an image file and cut out the centre: the evaluation transform of timm.

    Resident images have their final size and stay as they are.

    Args:
        size: S.
        crop_pct: S over the shorter side of the resized image: 0.875 is 256 pixels for 224.
        interpolation: `bilinear`, `bicubic` or another that torchvision names.
    """
    num_uniforms = 0

    def __init__(self, size: int, crop_pct: float = 0.875, interpolation: str = 'bilinear'):
        if not 0 < crop_pct <= 1:
            raise UserError(f'crop_pct lies in (0, 1], got {crop_pct}')
        self.size = size
        self.crop_pct = crop_pct
        self.interpolation = F.InterpolationMode(interpolation)

    def sample(self, uniforms: np.ndarray) -> None:
        return None

    def apply(self, images: torch.Tensor, params: None) -> torch.Tensor:
        return images

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        image = _resize_shorter_side(image, self.size, self.crop_pct, self.interpolation)
        return F.center_crop(image, self.size)


# where a crop of an ensemble lies, by its vertical and horizontal share of what is left of the image
_SHARES = {
    'top_left': (0., 0.),
    'top_right': (0., 1.),
    'bottom_left': (1., 0.),
    'bottom_right': (1., 1.),
    'centre': (0.5, 0.5),
}
PLACES = tuple(_SHARES)


class CornerCrop:
    """Resize the shorter side of an image file to 31/28 of a crop, and cut the crop out at a corner or the centre.

    Args:
        size: S.
        place: One of `PLACES`.
        interpolation: `bilinear`, `bicubic` or another that torchvision names.
    """
    num_uniforms = 0
    files_only = True

    def __init__(self, size: int, place: str = 'centre', interpolation: str = 'bilinear'):
        if place not in _SHARES:
            raise UserError(f'place is one of {", ".join(PLACES)}, got {place!r}')
        self.size = size
        self.shares = _SHARES[place]
        self.interpolation = F.InterpolationMode(interpolation)

    def sample(self, uniforms: np.ndarray) -> Any:
        raise NotImplementedError('images in memory have their final size, and no corners to choose from')

    def apply(self, images: torch.Tensor, params: Any) -> torch.Tensor:
        raise NotImplementedError('images in memory have their final size, and no corners to choose from')

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        image = F.resize(image, self.size * 31 // 28, self.interpolation)
        vertical, horizontal = self.shares
        top = round(vertical * (image.height - self.size))
        left = round(horizontal * (image.width - self.size))
        return image.crop((left, top, left + self.size, top + self.size))


class Flip:
    """Mirror left and right.

    Args:
        p: Probability that an image is mirrored.
    """
    num_uniforms = 1

    def __init__(self, p: float = 0.5):
        self.p = p

    def sample(self, uniforms: np.ndarray) -> np.ndarray:
        return uniforms[:, 0] < self.p

    def apply(self, images: torch.Tensor, params: np.ndarray) -> torch.Tensor:
        return ops.flip_where(images, params)

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        if self.sample(uniforms[None])[0]:
            return F.hflip(image)
        return image


class ResizedCrop:
    """Cut a box of random area and aspect ratio and resize it to S x S, bilinear with antialiasing.

    As torchvision: ten tries of (area, ratio), the first box that fits; else the largest central
    box whose ratio is in the range, which is all of a square image. All ten are always drawn, so
    that the count of uniforms is fixed.

    Args:
        size: S.
        scale: Range of the area of the box over that of the image.
        ratio: Range of the width of the box over its height, uniform in the logarithm.
    """
    tries = 10
    num_uniforms = 2 * tries + 2

    def __init__(
            self,
            size: int,
            scale: tuple[float, float] = (0.2, 1.),
            ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ):
        if not 0 < scale[0] <= scale[1] <= 1:
            raise UserError(f'the area of a crop lies in (0, 1], got {scale[0]} to {scale[1]}')
        self.size = size
        self.scale = scale
        self.ratio = ratio
        self.log_ratio = np.log(ratio)

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        return self.boxes(uniforms, self.size, self.size)

    def boxes(self, uniforms: np.ndarray, height: int, width: int) -> dict[str, np.ndarray]:
        """Map uniforms to boxes in images of one size.

        The uniforms of an image are ten areas, ten ratios, and the two coordinates of the box.

        Args:
            uniforms: Numbers in [0, 1), float64 [n,num_uniforms].
            height: Height of the images in pixels.
            width: Width of the images in pixels.

        Returns:
            `top`, `left`, `height` and `width` of each box in pixels, int64 [n].
        """
        # sides of the boxes of all ten tries, [n,10]
        smallest, largest = self.scale
        area = height * width * (smallest + (largest - smallest) * uniforms[:, :self.tries])
        narrowest, widest = self.log_ratio
        log_ratio = narrowest + (widest - narrowest) * uniforms[:, self.tries:2 * self.tries]
        ratio = np.exp(log_ratio)
        tried_widths = np.rint(np.sqrt(area * ratio))
        tried_heights = np.rint(np.sqrt(area / ratio))

        # the first box of each image that fits into it
        fits_width = (tried_widths > 0) & (tried_widths <= width)
        fits_height = (tried_heights > 0) & (tried_heights <= height)
        fits = fits_width & fits_height
        is_found = fits.any(1)
        first = np.arange(len(fits)), fits.argmax(1)

        # where none does, the largest box in the middle whose ratio is in the range
        central_height = min(height, round(width / self.ratio[0]))
        central_width = min(width, round(height * self.ratio[1]))
        heights = np.where(is_found, tried_heights[first], central_height).astype(np.int64)
        widths = np.where(is_found, tried_widths[first], central_width).astype(np.int64)

        # uniform over all positions inside the image
        free_rows = height - heights
        free_columns = width - widths
        drawn_top = (uniforms[:, -2] * (free_rows + 1)).astype(np.int64)
        drawn_left = (uniforms[:, -1] * (free_columns + 1)).astype(np.int64)
        top = np.where(is_found, drawn_top, free_rows // 2)
        left = np.where(is_found, drawn_left, free_columns // 2)
        return {'top': top, 'left': left, 'height': heights, 'width': widths}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        def weights(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            rows = ops.resize_weights(
                params['top'][part], params['height'][part], images.shape[2], self.size, images.device)
            columns = ops.resize_weights(
                params['left'][part], params['width'][part], images.shape[3], self.size, images.device)
            return rows, columns

        return ops.resample_in_parts(images, weights, self.size)

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        boxes = self.boxes(uniforms[None], image.height, image.width)
        top, left = int(boxes['top'][0]), int(boxes['left'][0])
        height, width = int(boxes['height'][0]), int(boxes['width'][0])

        # cropped first: with `resize(box=)` the filter would reach beyond the box
        box = image.crop((left, top, left + width, top + height))
        return box.resize((self.size, self.size), Image.Resampling.BILINEAR)


class ColorJitter:
    """Brightness, contrast, saturation and hue, in an order of its own for each image, all or none.

    Args:
        brightness: Reach x of the factor, which is uniform in [1 - x, 1 + x].
        contrast: Reach of the factor, as of `brightness`.
        saturation: Reach of the factor, as of `brightness`.
        hue: Reach x of the shift, uniform in [-x, x], in turns of the colour circle.
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
        factors = self.centre + self.reach * (2 * uniforms[:, 1:5] - 1)
        smallest = [0., 0., 0., -0.5]
        return {
            'applied': uniforms[:, 0] < self.p,
            'factors': np.maximum(factors, smallest),
            'order': uniforms[:, 5:9].argsort(1, kind='stable'),  # all 24 orders are equally likely
        }

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        images = images.clone()

        # in each turn every image has one of the four operations
        for turn in range(4):
            for kind, function in enumerate(self.functions):
                chosen = np.flatnonzero(params['applied'] & (params['order'][:, turn] == kind))
                if not self.reach[kind]:
                    continue
                for part in ops.parts(chosen, images):
                    rows = torch.from_numpy(part).to(images.device)
                    images[rows] = function(images[rows], params['factors'][part, kind])
        return images


class Grayscale:
    """Replace the colours by the grey level.

    Args:
        p: Probability that an image becomes grey.
    """
    num_uniforms = 1

    def __init__(self, p: float = 0.2):
        self.p = p

    def sample(self, uniforms: np.ndarray) -> np.ndarray:
        return np.flatnonzero(uniforms[:, 0] < self.p)

    def apply(self, images: torch.Tensor, params: np.ndarray) -> torch.Tensor:
        images = images.clone()
        rows = torch.from_numpy(params).to(images.device)
        images[rows] = ops.grayscale(images[rows])
        return images


class GaussianBlur:
    """Blur with a standard deviation uniform in `sigma`, in pixels; taps reach three times the largest.

    A Gaussian with the border mirrored, as torchvision's. PIL's `GaussianBlur(radius)`, which code
    bases for ImageNet use, takes the same number as its standard deviation, but sums three box
    filters and repeats the border. The range is the same for any size: 0.1 to 2 is meant for 224
    pixels (SimCLR, MoCo v2).

    Args:
        size: S.
        sigma: Range of the standard deviation in pixels.
        p: Probability that an image is blurred.
    """
    num_uniforms = 2

    def __init__(self, size: int, sigma: tuple[float, float] = (0.1, 2.), p: float = 0.5):
        self.sigma = sigma
        self.p = p
        self.radius = min(int(3 * sigma[1] + 0.5), size - 1)

    def sample(self, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        rows = np.flatnonzero(uniforms[:, 0] < self.p)
        smallest, largest = self.sigma
        return {'rows': rows, 'sigma': smallest + (largest - smallest) * uniforms[rows, 1]}

    def apply(self, images: torch.Tensor, params: dict[str, np.ndarray]) -> torch.Tensor:
        def weights(part: slice) -> tuple[torch.Tensor, torch.Tensor]:
            sigmas = params['sigma'][part]
            rows = ops.blur_weights(sigmas, images.shape[2], self.radius, images.device)
            columns = ops.blur_weights(sigmas, images.shape[3], self.radius, images.device)
            return rows, columns

        images = images.clone()
        rows = torch.from_numpy(params['rows']).to(images.device)
        images[rows] = ops.resample_in_parts(images[rows], weights, images.shape[-1])
        return images


class Cutout:
    """Set a square to zero (DeVries and Taylor, 2017, https://arxiv.org/abs/1708.04552).

    The centre is uniform over the image's pixels and the square is clipped at the border; zero is
    black, before the normalisation.

    Args:
        size: S.
        length: Side of the square in pixels.
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
