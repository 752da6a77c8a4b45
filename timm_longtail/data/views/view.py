"""Views of an image, by name: geometry (where pixels go), then photometry (what they become).

Resident images, a batch of S x S pixels, go through `sample` and `apply`. An image file of any size goes through
`place` in a worker, which is the geometry, then in a batch through `photometry_view`; both spend the same uniforms.

Uniforms are drawn for the whole global epoch and sliced, so the pixels of a position do not depend on chunks, processes
or the device. n images, S side of the square image.
"""
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from PIL import Image

from ...utils.errors import UserError
from ..calls import call_by_name
from .autoaugment import AutoAugment
from .randaugment import OnImage, RandAugment
from .steps import (
    CentreCrop,
    ColorJitter,
    Cutout,
    Flip,
    GaussianBlur,
    GeometryStep,
    Grayscale,
    PadCrop,
    ResizedCrop,
    Step,
)

__all__ = ['View', 'create_view', 'list_views', 'register_view']


class View:
    """Geometry (where pixels go), then photometry (what they become).

    Args:
        name: What it was created by.
        geometry: Steps that move pixels. For image files the first one makes them S x S.
        photometry: Steps that change them.
    """

    def __init__(self, name: str, geometry: Sequence[GeometryStep] = (), photometry: Sequence[Step] = ()):
        self.name = name
        self.geometry = tuple(geometry)
        self.photometry = tuple(photometry)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.geometry + self.photometry

    @property
    def num_place_uniforms(self) -> int:
        """How many of an image's uniforms, the first ones, decide the geometry."""
        return sum(step.num_uniforms for step in self.geometry)

    @property
    def num_uniforms(self) -> int:
        """Numbers in [0, 1) that decide the view of one image: those of the geometry, then of the photometry."""
        return sum(step.num_uniforms for step in self.steps)

    @property
    def photometry_view(self) -> 'View':
        """The view without its geometry: what is left to do after `place`, for a batch."""
        return View(self.name, (), self.photometry)

    @property
    def files_only(self) -> bool:
        """Whether a step has no form for resident images."""
        return any(getattr(step, 'files_only', False) for step in self.steps)

    def sample(self, uniforms: np.ndarray) -> list:
        """Map uniforms [n,num_uniforms] to the parameters of each step.

        Raises:
            UserError: A view of image files only.
        """
        if self.files_only:
            raise UserError(f'view {self.name} works on image files only; take another for resident images')
        return [step.sample(numbers) for step, numbers in _deal(self.steps, uniforms)]

    def apply(self, images: torch.Tensor, params: list) -> torch.Tensor:
        """Return the view of uint8 [n,3,S,S], uint8; the input is not changed."""
        for step, step_params in zip(self.steps, params, strict=True):
            images = step.apply(images, step_params)
        return images

    def place(self, image: Image.Image, uniforms: np.ndarray) -> np.ndarray:
        """Return the geometry of one image file.

        Args:
            image: RGB, of any size; it is not changed.
            uniforms: float64 [num_place_uniforms].

        Returns:
            uint8 [S,S,3], in memory of its own.
        """
        for step, numbers in _deal(self.geometry, uniforms):
            image = step.place(image, numbers)
        return np.array(image)


def _deal(steps: Sequence[Step], uniforms: np.ndarray) -> Iterator[tuple[Step, np.ndarray]]:
    """Yield each step with its share of the last axis of the uniforms."""
    first = 0
    for step in steps:
        yield step, uniforms[..., first:first + step.num_uniforms]
        first += step.num_uniforms


Steps = tuple[Sequence[GeometryStep], Sequence[Step]]

_REGISTRY: dict[str, Callable[..., Steps]] = {}


def register_view(build: Callable[..., Steps]) -> Callable[..., Steps]:
    """Register a function `(size, **arguments) -> (geometry, photometry)` under its own name."""
    _REGISTRY[build.__name__] = build
    return build


def list_views() -> list[str]:
    """Return the names of all views."""
    return sorted(_REGISTRY)


def create_view(name: str, img_size: int) -> View:
    """Build a view from its name, with arguments like a call if need be: `sim`, `sim(scale=0.08)`.

    Args:
        name: One of `list_views()`, or that with keyword arguments in brackets.
        img_size: S, side of the image in pixels.

    Raises:
        UserError: An unknown view or argument, or a text that is not a name or a call.
    """
    return View(name, *call_by_name('view', name, _REGISTRY, img_size))


@register_view
def crop_flip(size: int, padding: int | None = None) -> Steps:
    """Pad, random crop, flip: the CIFAR recipe of ResNet (He et al., CVPR 2016).

    `padding` is in pixels on each side; None is an eighth of the image, 4 of 32. Image files: see `PadCrop`.
    """
    return [PadCrop(size // 8 if padding is None else padding, size), Flip()], []


@register_view
def autoaugment(size: int, padding: int | None = None, cutout: int | None = None, fill: int = 128) -> Steps:
    """Crop, flip, AutoAugment's CIFAR-10 policy, Cutout: the classification view of BCL and its relatives on CIFAR.

    `padding` as in `crop_flip`; `cutout` is the side of the hole, None is half of the image, 16 of 32.
    """
    geometry, _ = crop_flip(size, padding)
    return geometry, [AutoAugment(size, fill), Cutout(size, size // 2 if cutout is None else cutout)]


@register_view
def sim(size: int, scale: float = 0.2) -> Steps:
    """SimCLR's view without blur: the contrastive view of BCL. `scale` is the smallest area of a crop.

    BCL takes 0.2 on CIFAR, 0.08 on ImageNet-LT and iNaturalist.
    """
    return [ResizedCrop(size, (scale, 1.)), Flip()], [ColorJitter(), Grayscale()]


@register_view
def sim_blur(size: int, scale: float = 0.2) -> Steps:
    """SimCLR's view with blur (Chen et al., ICML 2020): as `sim`, then a Gaussian blur with probability 0.5."""
    geometry, photometry = sim(size, scale)
    return geometry, [*photometry, GaussianBlur(size)]


@register_view
def rrc(size: int, scale: float = 0.08, jitter: float = 0.) -> Steps:
    """Random resized crop and flip: Decoupling (Kang et al., ICLR 2020), with `jitter=0.4` except on iNaturalist.

    `jitter` is the reach of brightness, contrast and saturation, of every image. `scale` as in `sim`.
    """
    return [ResizedCrop(size, (scale, 1.)), Flip()], [ColorJitter(jitter, jitter, jitter, 0., p=1.)] if jitter else []


@register_view
def glmc(size: int, scale: float = 0.08) -> Steps:
    """GLMC's view on ImageNet-LT and iNaturalist (Du et al., CVPR 2023): `rrc(jitter=0.4)`, then grey 0.2, blur 0.5.

    The released code flips last, which commutes with the rest.
    """
    geometry, photometry = rrc(size, scale, jitter=0.4)
    return geometry, [*photometry, Grayscale(), GaussianBlur(size)]


@register_view
def rand(size: int, n: int = 2, m: int = 10, mstd: float = 0.5, jitter: float = 0.4) -> Steps:
    """The classification view of BCL on ImageNet-LT (Zhu et al., CVPR 2022), for image files only.

    Random resized crop from 0.08 on, flip, `jitter` as in `rrc`, then timm's RandAugment; all of it in the worker,
    since RandAugment comes last and moves pixels too.
    """
    geometry, photometry = rrc(size, jitter=jitter)
    return [*geometry, *map(OnImage, photometry), RandAugment(n, m, mstd)], []


@register_view
def flip(size: int, crop_pct: float = 0.875) -> Steps:
    """Flip only; an image file is first cropped as in `eval`."""
    return [CentreCrop(size, crop_pct), Flip()], []


@register_view
def eval(size: int, crop_pct: float = 0.875, interpolation: str = 'bilinear') -> Steps:
    """The image as it is; the centre of an image file, `crop_pct` of its shorter side, as timm evaluates."""
    return [CentreCrop(size, crop_pct, interpolation)], []
