"""Steps that run on one image file in the worker: timm's RandAugment, and what has to come before it.

Cubuk et al., RandAugment: Practical Automated Data Augmentation with a Reduced Search Space, CVPR
Workshops 2020, https://arxiv.org/abs/1909.13719. Magnitudes are Gaussian in timm's form, so there
is no table of them to batch by.
"""
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform

from ...utils.errors import UserError
from .steps import Step

__all__ = ['OnImage', 'RandAugment']


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy, and put their states back afterwards."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


class OnImage:
    """Run a step of photometry among the geometry, on one image at a time.

    Args:
        step: Step of photometry.
    """

    def __init__(self, step: Step):
        self.step = step
        self.num_uniforms = step.num_uniforms
        self.sample = step.sample
        self.apply = step.apply

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        # a batch of one
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        pixels = self.apply(pixels, self.sample(uniforms[None]))
        return Image.fromarray(pixels[0].permute(1, 2, 0).numpy())


class RandAugment:
    """timm's `rand-n{n}-m{m}-mstd{mstd}` on one image file.

    It draws from the global generators of Python and numpy; they are seeded with the one uniform
    while it runs, so the pixels depend on that number alone. Shifts are relative, at most 0.45 of
    the side.

    Args:
        n: Number of operations an image, each with probability 0.5.
        m: Mean magnitude, 0 to 10.
        mstd: Standard deviation of the magnitude.
        fill: Level of each channel outside the moved image; the default is ImageNet's mean.

    Raises:
        UserError: A number outside its range.
    """
    num_uniforms = 1
    files_only = True

    def __init__(
            self,
            n: int = 2,
            m: int = 10,
            mstd: float = 0.5,
            fill: tuple[int, int, int] = (124, 116, 104),
    ):
        if n < 1 or not 0 <= m <= 10 or mstd < 0:
            raise UserError(
                f'RandAugment takes n >= 1, m in [0, 10] and mstd >= 0; got {n}, {m} and {mstd}')
        self.transform = rand_augment_transform(f'rand-n{n}-m{m}-mstd{mstd}', {'img_mean': fill})

    def sample(self, uniforms: np.ndarray) -> Any:
        raise NotImplementedError('timm has RandAugment for Pillow images only')

    def apply(self, images: torch.Tensor, params: Any) -> torch.Tensor:
        raise NotImplementedError('timm has RandAugment for Pillow images only')

    def place(self, image: Image.Image, uniforms: np.ndarray) -> Image.Image:
        with _seeded(int(uniforms[0] * 2 ** 32)):
            return self.transform(image)
