"""Views of an image, by name: geometry (where pixels go), then photometry (what they become).

Resident images, a batch of S x S pixels, go through `sample` and `apply`. An image file of any size
goes through `place` in a worker, which is the geometry, then in a batch through `photometry_view`;
both spend the same uniforms.

Uniforms are drawn for the whole global epoch and sliced, so the pixels of a position do not depend
on chunks, processes or the device. n images, S side of the square image.
"""
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from ...utils.calls import call_by_name
from ...utils.errors import UserError
from .steps import GeometryStep, Step

__all__ = ['Steps', 'View', 'create_view', 'list_views', 'register_view']


AnyStep = TypeVar('AnyStep', bound=Step)


class View:
    """Geometry (where pixels go), then photometry (what they become).

    Args:
        name: Text that the view was created from.
        geometry: Steps that move pixels. The first one brings an image file to S x S.
        photometry: Steps that change the levels of pixels.
    """

    def __init__(
            self,
            name: str,
            geometry: Sequence[GeometryStep] = (),
            photometry: Sequence[Step] = (),
    ):
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
        """How many numbers in [0, 1) decide the view of one image: geometry first, then photometry."""
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
            uniforms: Numbers in [0, 1), float64 [num_place_uniforms].

        Returns:
            Pixels, uint8 [S,S,3], in memory of their own.
        """
        for step, numbers in _deal(self.geometry, uniforms):
            image = step.place(image, numbers)
        return np.array(image)


def _deal(steps: Sequence[AnyStep], uniforms: np.ndarray) -> Iterator[tuple[AnyStep, np.ndarray]]:
    """Yield each step with its share of the last axis of the uniforms."""
    first = 0
    for step in steps:
        yield step, uniforms[..., first:first + step.num_uniforms]
        first += step.num_uniforms


# what builds a view returns: its geometry and its photometry
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
        name: One of `list_views()`, perhaps followed by keyword arguments in brackets.
        img_size: S, side of the image in pixels.

    Raises:
        UserError: An unknown view or argument, or a text that is not a name or a call.
    """
    geometry, photometry = call_by_name('view', name, _REGISTRY, img_size)
    return View(name, geometry, photometry)
