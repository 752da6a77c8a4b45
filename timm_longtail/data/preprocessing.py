"""How an image is processed before a model sees it, as timm's configuration of the model says."""
from dataclasses import dataclass
from typing import Any

from timm.data import resolve_data_config
from torchvision.transforms import InterpolationMode

from ..utils.errors import UserError, one_line
from .views.steps import PLACES

__all__ = ['Preprocessing', 'check_preprocessing', 'read_preprocessing']

_INTERPOLATIONS = {mode.value for mode in InterpolationMode}


@dataclass(frozen=True)
class Preprocessing:
    """How an image is processed before the model sees it.

    Attributes:
        img_size: S, side of the model's input.
        mean: Mean of each channel, for pixels in [0, 1].
        std: Standard deviation of each channel, for pixels in [0, 1].
        crop_pct: Share of the shorter side that evaluation looks at; images in memory are looked at
            whole.
        interpolation: How evaluation resizes files; training is bilinear, and so are images in
            memory.
    """
    img_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = 'bilinear'

    @property
    def eval_view(self) -> str:
        """Name of the view that is evaluated."""
        return f'eval(crop_pct={self.crop_pct:g}, interpolation={self.interpolation!r})'

    def test_views(self, tta: str | None = None) -> tuple[str, ...]:
        """Return the names of the views whose logits are averaged in an evaluation.

        Args:
            tta: `five_crop` for the corners and the centre of an image file; None for one view.
        """
        if tta is None:
            return (self.eval_view,)
        return tuple(f'corner(place={place!r}, interpolation={self.interpolation!r})' for place in PLACES)


def read_preprocessing(cfg: dict[str, Any], source: str) -> Preprocessing:
    """Return what timm's configuration of a model says of its images.

    Args:
        cfg: `pretrained_cfg` of the model.
        source: Model or file that it is of, for the message.

    Raises:
        UserError: It describes no input that is possible.
    """
    try:
        config = resolve_data_config({}, pretrained_cfg=cfg)
        return check_preprocessing(Preprocessing(
            img_size=config['input_size'][-1],
            mean=tuple(config['mean']),
            std=tuple(config['std']),
            crop_pct=config['crop_pct'],
            interpolation=config['interpolation'],
        ))
    except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as e:
        raise UserError(f'{source} does not describe the images of its model: {one_line(e)}') from e


def check_preprocessing(preprocessing: Preprocessing) -> Preprocessing:
    """Return an input that is possible, or raise a `ValueError`: a file may hold anything."""
    if type(preprocessing.img_size) is not int or preprocessing.img_size < 1:
        raise ValueError(f'img_size {preprocessing.img_size!r}')

    for name in ('mean', 'std'):
        values = getattr(preprocessing, name)
        is_triple = isinstance(values, (list, tuple)) and len(values) == 3
        if not is_triple or not all(isinstance(value, (int, float)) for value in values):
            raise ValueError(f'{name} {values!r}, expected three numbers')
    if min(preprocessing.std) <= 0:
        raise ValueError(f'std {preprocessing.std!r}, expected numbers above 0')

    if not isinstance(preprocessing.crop_pct, (int, float)) or not 0 < preprocessing.crop_pct <= 1:
        raise ValueError(f'crop_pct {preprocessing.crop_pct!r}, expected a share in (0, 1]')
    if preprocessing.interpolation not in _INTERPOLATIONS:
        raise ValueError(f'interpolation {preprocessing.interpolation!r}')
    return preprocessing
