"""The registered views: those that the papers and the evaluation use.

S side of the square image.
"""
from .autoaugment import AutoAugment
from .randaugment import OnImage, RandAugment
from .steps import (
    CentreCrop,
    ColorJitter,
    CornerCrop,
    Cutout,
    Flip,
    GaussianBlur,
    GeometryStep,
    Grayscale,
    PadCrop,
    ResizedCrop,
)
from .view import Steps, register_view


@register_view
def crop_flip(size: int, padding: int | None = None) -> Steps:
    """Pad, random crop, flip: the CIFAR recipe of ResNet (He et al., CVPR 2016).

    `padding` is in pixels on each side; None is an eighth of the image, 4 of 32. Image files: see
    `PadCrop`.
    """
    if padding is None:
        padding = size // 8
    return [PadCrop(padding, size), Flip()], []


@register_view
def autoaugment(
        size: int,
        padding: int | None = None,
        cutout: int | None = None,
        fill: int = 128,
) -> Steps:
    """Crop, flip, AutoAugment's CIFAR-10 policy, Cutout: the classification view of BCL on CIFAR.

    `padding` as in `crop_flip`; `cutout` is the side of the hole, None is half of the image, 16 of
    32.
    """
    if cutout is None:
        cutout = size // 2
    geometry, _ = crop_flip(size, padding)
    return geometry, [AutoAugment(size, fill), Cutout(size, cutout)]


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
    """Random resized crop and flip (Decoupling, Kang et al., ICLR 2020).

    `jitter` is the reach of brightness, contrast and saturation, of every image: 0.4 in the paper,
    except on iNaturalist. `scale` as in `sim`.
    """
    geometry: list[GeometryStep] = [ResizedCrop(size, (scale, 1.)), Flip()]
    if not jitter:
        return geometry, []
    return geometry, [ColorJitter(jitter, jitter, jitter, 0., p=1.)]


@register_view
def glmc(size: int, scale: float = 0.08) -> Steps:
    """GLMC's view on ImageNet-LT and iNaturalist (Du et al., CVPR 2023).

    `rrc(jitter=0.4)`, then grey with probability 0.2 and blur with probability 0.5. The released
    code flips last, which commutes with the rest.
    """
    geometry, photometry = rrc(size, scale, jitter=0.4)
    return geometry, [*photometry, Grayscale(), GaussianBlur(size)]


@register_view
def rand(size: int, n: int = 2, m: int = 10, mstd: float = 0.5, jitter: float = 0.4) -> Steps:
    """The classification view of BCL on ImageNet-LT (Zhu et al., CVPR 2022), for image files only.

    Random resized crop from 0.08 on, flip, `jitter` as in `rrc`, then timm's RandAugment; all of it
    in the worker, since RandAugment comes last and moves pixels too.
    """
    geometry, photometry = rrc(size, jitter=jitter)
    colours = [OnImage(step) for step in photometry]
    return [*geometry, *colours, RandAugment(n, m, mstd)], []


@register_view
def flip(size: int, crop_pct: float = 0.875) -> Steps:
    """Flip only; an image file is first cropped as in `eval`."""
    return [CentreCrop(size, crop_pct), Flip()], []


@register_view
def eval(size: int, crop_pct: float = 0.875, interpolation: str = 'bilinear') -> Steps:
    """The image as it is; of an image file the centre, `crop_pct` of its shorter side, as in timm."""
    return [CentreCrop(size, crop_pct, interpolation)], []


@register_view
def corner(size: int, place: str = 'centre', interpolation: str = 'bilinear') -> Steps:
    """One of five crops of an image file, whose shorter side becomes 31/28 of the crop: 248 for 224.

    `place` is `centre`, or a corner such as `top_left`. `--tta five_crop` averages all five (Shi et
    al., ICML 2024).
    """
    return [CornerCrop(size, place, interpolation)], []
