"""Views of an image, by name: geometry (where pixels go), then photometry (what they become).

Uniforms are drawn for the whole global epoch and sliced, so the pixels of a position do not depend on chunks, processes
or the device. n images, S side of the square image.
"""
import ast
import inspect
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import UserError, unknown_name
from .autoaugment import AutoAugment
from .steps import ColorJitter, Cutout, Flip, GaussianBlur, Grayscale, PadCrop, ResizedCrop, Step

__all__ = ['View', 'create_view', 'list_views', 'register_view']


class View:
    """Geometry (where pixels go), then photometry (what they become).

    Args:
        name: What it was created by.
        geometry: Steps that move pixels.
        photometry: Steps that change them.
    """

    def __init__(self, name: str, geometry: Sequence[Step] = (), photometry: Sequence[Step] = ()):
        self.name = name
        self.geometry = tuple(geometry)
        self.photometry = tuple(photometry)

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.geometry + self.photometry

    @property
    def num_uniforms(self) -> int:
        """Numbers in [0, 1) that decide the view of one image."""
        return sum(step.num_uniforms for step in self.steps)

    def sample(self, uniforms: np.ndarray) -> list:
        """Map uniforms [n,num_uniforms] to the parameters of each step."""
        ends = np.cumsum([step.num_uniforms for step in self.steps])
        return [
            step.sample(uniforms[:, end - step.num_uniforms:end])
            for step, end in zip(self.steps, ends, strict=True)
        ]

    def apply(self, images: torch.Tensor, params: list) -> torch.Tensor:
        """Return the view of uint8 [n,3,S,S], uint8; the input is not changed."""
        for step, step_params in zip(self.steps, params, strict=True):
            images = step.apply(images, step_params)
        return images


Steps = tuple[Sequence[Step], Sequence[Step]]

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
    function, arguments = _parse(name)
    if function not in _REGISTRY:
        raise unknown_name('view', function, _REGISTRY)
    build = _REGISTRY[function]
    known = list(inspect.signature(build).parameters)[1:]
    for argument in arguments:
        if argument not in known:
            raise UserError(f'view {function} takes {", ".join(known) or "no arguments"}; got {argument!r}')
    try:
        return View(name, *build(img_size, **arguments))
    except (TypeError, ValueError) as error:
        raise UserError(f'view {name!r}: {error}') from error


def _parse(name: str) -> tuple[str, dict]:
    """Split `sim(scale=0.08)` into its name and its arguments."""
    try:
        tree = ast.parse(name.strip(), mode='eval').body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            if all(word.arg for word in tree.keywords):  # `**` has no name
                return tree.func.id, {word.arg: ast.literal_eval(word.value) for word in tree.keywords}
    except (SyntaxError, ValueError):
        pass
    raise UserError(f'cannot read the view {name!r}; write a name or name(argument=value), e.g. sim(scale=0.08)')


@register_view
def crop_flip(size: int, padding: int = 4) -> Steps:
    """Pad, random crop, flip: the CIFAR recipe of ResNet (He et al., CVPR 2016)."""
    return [PadCrop(padding), Flip()], []


@register_view
def autoaugment(size: int, padding: int = 4, cutout: int = 16, fill: int = 128) -> Steps:
    """Crop, flip, AutoAugment's CIFAR-10 policy, Cutout: the classification view of BCL and its relatives on CIFAR."""
    return [PadCrop(padding), Flip()], [AutoAugment(size, fill), Cutout(size, cutout)]


@register_view
def sim(size: int, scale: float = 0.2) -> Steps:
    """SimCLR's view without blur: the contrastive view of BCL. `scale` is the smallest area of a crop."""
    return [ResizedCrop(size, (scale, 1.)), Flip()], [ColorJitter(), Grayscale()]


@register_view
def sim_blur(size: int, scale: float = 0.2) -> Steps:
    """SimCLR's view with blur (Chen et al., ICML 2020): as `sim`, then a Gaussian blur with probability 0.5."""
    geometry, photometry = sim(size, scale)
    return geometry, [*photometry, GaussianBlur(size)]


@register_view
def flip(size: int) -> Steps:
    """Flip only."""
    return [Flip()], []


@register_view
def eval(size: int) -> Steps:
    """The image as it is."""
    return [], []
