"""Pixel operations on a batch of uint8 images with parameters of their own for each image, on any device.

Every function takes uint8 [n,3,H,W] and returns a new uint8 [n,3,h,w]; torchvision's functional
operations on single images are the reference. Sums are either integers or exact in float64, and
everything else works pixel by pixel, so an image's result depends neither on the images beside it
nor on the device. n images, S side of a square.
"""
from collections.abc import Callable, Iterator

import numpy as np
import torch
from einops import rearrange

__all__ = [
    'adjust_brightness',
    'adjust_contrast',
    'adjust_hue',
    'adjust_saturation',
    'adjust_sharpness',
    'blur_weights',
    'crop_windows',
    'erase_boxes',
    'flip_where',
    'grayscale',
    'parts',
    'resample',
    'resample_in_parts',
    'resize_weights',
]

# weights are rounded to 22 binary digits: a pixel (8) weighed twice (2 x 22) fits the 53 of a
# float64, so the sums in `resample` are exact in any order of summation
_WEIGHT_SCALE = 2.0 ** 22

# of images in double precision and their weights at any one time: 585 images of 32 pixels, 11 of
# 224
_PART_BYTES = 128 * 2 ** 20

# of pixels at any one time on a CPU, so that what is computed of them in float32 stays in its cache:
# 2 images of 224 pixels, 128 of 32
_PART_PIXELS = 2 ** 17


def parts(rows: np.ndarray, images: torch.Tensor) -> Iterator[np.ndarray]:
    """Yield some rows of a batch a few at a time on a CPU, all at once on another device.

    Args:
        rows: Numbers of images, [m].
        images: Batch that they are of, [n,3,H,W].
    """
    step = max(1, len(rows))
    if images.device.type == 'cpu':
        step = max(1, _PART_PIXELS // (images.shape[2] * images.shape[3]))
    for first in range(0, len(rows), step):
        yield rows[first:first + step]


def _column(values, images: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return one number an image as [n,1,1,1] on the images' device."""
    return torch.as_tensor(values).to(images.device, dtype).view(-1, 1, 1, 1)


def _blend(images: torch.Tensor, others: torch.Tensor, factors) -> torch.Tensor:
    """Mix `factor * image + (1 - factor) * other`, clipped and truncated, as torchvision does."""
    factors = torch.as_tensor(factors, dtype=torch.float64)
    mixed = images * _column(factors, images) + others * _column(1 - factors, images)
    return mixed.clamp_(0, 255).to(torch.uint8)


def _luma(images: torch.Tensor) -> torch.Tensor:
    """Return the grey level [n,1,H,W], uint8, truncated (ITU-R 601 weights to four digits)."""
    red, green, blue = images.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).to(torch.uint8).unsqueeze(1)


def grayscale(images: torch.Tensor) -> torch.Tensor:
    """Return the grey level in all three channels."""
    return _luma(images).expand(-1, 3, -1, -1).contiguous()


def adjust_brightness(images: torch.Tensor, factors) -> torch.Tensor:
    """Scale pixels by `factors` [n]."""
    return (images * _column(factors, images)).clamp_(0, 255).to(torch.uint8)


def adjust_contrast(images: torch.Tensor, factors) -> torch.Tensor:
    """Move pixels away from the mean grey level of their image: 0 is flat, 1 the image."""
    grey = _luma(images)
    mean = grey.sum((1, 2, 3), dtype=torch.int64).double() / grey[0].numel()
    return _blend(images, _column(mean, images), factors)


def adjust_saturation(images: torch.Tensor, factors) -> torch.Tensor:
    """Move pixels away from their grey level: 0 is grey, 1 the image."""
    return _blend(images, _luma(images), factors)


def adjust_sharpness(images: torch.Tensor, factors) -> torch.Tensor:
    """Move pixels away from their 3x3 smoothed value (centre 5, neighbours 1, over 13); the border stays."""
    pixels = images.to(torch.int32)
    rows = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
    smooth = images.clone()
    # 13 is odd, so a sum is never half-way between two levels: integer rounding equals
    # torchvision's
    smooth[:, :, 1:-1, 1:-1] = ((total + 6) // 13).to(torch.uint8)
    return _blend(images, smooth, factors)


def adjust_hue(images: torch.Tensor, shifts) -> torch.Tensor:
    """Turn the hue by `shifts` [n], in turns of the colour circle (-0.5 to 0.5).

    A closed form of RGB -> HSV -> RGB: with hexagonal hue h in [0,6), value v and chroma c, the
    channels are `v - c * clamp(min(k, 4 - k), 0, 1)` for k = (n + h) mod 6 and n = 5, 3, 1.
    """
    pixels = images.float() / 255
    red, green, blue = pixels.unbind(1)
    value = pixels.amax(1)
    chroma = value - pixels.amin(1)

    # hue, by the largest channel; a grey pixel has none
    scale = torch.where(chroma == 0, 1, chroma)
    below_blue = torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale)
    hue = torch.where(value == red, (green - blue) / scale, below_blue)
    hue = torch.remainder(hue + 6 * _column(shifts, images)[:, 0], 6)

    # back to channels, with the formula above
    offsets = torch.tensor([5., 3., 1.], device=images.device).view(3, 1, 1)
    k = torch.remainder(hue.unsqueeze(1) + offsets, 6)
    pixels = value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp_(0, 1)

    # torchvision's float -> uint8 rule: 256 equal bins
    return (pixels * (256 - 1e-3)).to(torch.uint8)


def flip_where(images: torch.Tensor, chosen) -> torch.Tensor:
    """Mirror left and right the images where `chosen` [n] is true."""
    return torch.where(_column(chosen, images, torch.bool), images.flip(-1), images)


def crop_windows(images: torch.Tensor, top, left, padding: int) -> torch.Tensor:
    """Pad with zeros on all sides, then cut windows of the original size.

    Args:
        images: Images, uint8 [n,3,H,W].
        top: First row of each window in padded pixels, [n].
        left: First column of each window in padded pixels, [n].
        padding: Pixels of zeros on each side.
    """
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, [padding] * 4)

    # a view of all windows, of which one is taken for each image
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    top = torch.as_tensor(top, device=images.device)
    left = torch.as_tensor(left, device=images.device)
    return windows[torch.arange(count, device=images.device), :, top, left]


def erase_boxes(images: torch.Tensor, centre_y, centre_x, side: int) -> torch.Tensor:
    """Set to zero a square of `side` pixels around each centre [n], clipped at the border."""
    def inside(centres, size: int) -> torch.Tensor:
        start = torch.as_tensor(centres, device=images.device)[:, None] - side // 2
        pixels = torch.arange(size, device=images.device)
        return (pixels >= start) & (pixels < start + side)

    rows = inside(centre_y, images.shape[2])
    columns = inside(centre_x, images.shape[3])
    erased = rows[:, :, None] & columns[:, None, :]
    return images.masked_fill(erased[:, None], 0)


def resize_weights(start, length, size: int, out_size: int, device=None) -> torch.Tensor:
    """Return the matrices that crop and resize one axis with the triangle filter, antialiased.

    Output pixel i has its centre at `(i + 0.5) * length / out_size` of the crop; its filter reaches
    one output pixel, at least one input pixel, and is normalised over the crop's pixels.

    Args:
        start: First input pixel of each crop [n].
        length: Number of input pixels of each crop [n].
        size: Number of input pixels of the axis.
        out_size: Number of output pixels.
        device: Device on which the matrices are built.

    Returns:
        Weights, float64 [n,out_size,size].
    """
    start = torch.as_tensor(start).to(device, torch.float64)[:, None, None]
    length = torch.as_tensor(length).to(device, torch.float64)[:, None, None]
    scale = length / out_size

    # centres of the output pixels and numbers of the input pixels, both counted from the crop's
    # start
    centre = (torch.arange(out_size, dtype=torch.float64, device=device)[:, None] + 0.5) * scale
    pixel = torch.arange(size, dtype=torch.float64, device=device) - start

    # triangles, zero outside the crop
    weights = (1 - (pixel + 0.5 - centre).abs() / scale.clamp(min=1)).clamp_(min=0)
    weights = weights * ((pixel >= 0) & (pixel < length))
    return weights / weights.sum(-1, keepdim=True)


def blur_weights(sigmas, size: int, radius: int, device=None) -> torch.Tensor:
    """Return the matrices that blur one axis by a Gaussian of `2 * radius + 1` taps, the border reflected.

    Args:
        sigmas: Standard deviations in pixels [n].
        size: Number of pixels of the axis, more than `radius`.
        radius: Number of taps on each side.
        device: Device of the matrices; they are built on the CPU.

    Returns:
        Weights, float64 [n,size,size].
    """
    # the taps of each Gaussian, [n,taps]
    taps = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (taps / np.asarray(sigmas, np.float64)[:, None]) ** 2)
    kernel /= kernel.sum(1, keepdims=True)

    # the input pixel of each tap, reflected at both ends, [size,taps]
    source = np.abs(np.arange(size)[:, None] + taps)
    source = np.where(source >= size, 2 * (size - 1) - source, source)

    # in memory of torch: blocks of this size from NumPy stay with the process when freed
    weights = torch.zeros(len(kernel), size, size, dtype=torch.float64)
    filled = weights.numpy()
    for tap in range(len(taps)):
        filled[:, np.arange(size), source[:, tap]] += kernel[:, tap, None]
    return weights.to(device)


def resample(images: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Apply one weight matrix to each axis of each image, rounding to the nearest level.

    Args:
        images: Images, uint8 [n,3,H,W].
        rows: Vertical weights, float64 [n,h,H].
        columns: Horizontal weights, float64 [n,w,W].

    Returns:
        New images, uint8 [n,3,h,w].
    """
    rows = (rows * _WEIGHT_SCALE).round_()
    columns = (columns * _WEIGHT_SCALE).round_()

    # columns first, then rows
    channels = images.shape[1]
    flat = rearrange(images.double(), 'n c h w -> n (c h) w')
    wide = torch.bmm(flat, columns.transpose(1, 2))
    tall = rearrange(wide, 'n (c h) w -> n h (c w)', c=channels)
    pixels = rearrange(torch.bmm(rows, tall), 'n h (c w) -> n c h w', c=channels)
    return (pixels * _WEIGHT_SCALE ** -2).round_().clamp_(0, 255).to(torch.uint8)


def resample_in_parts(
        images: torch.Tensor,
        weights: Callable[[slice], tuple[torch.Tensor, torch.Tensor]],
        out_size: int,
) -> torch.Tensor:
    """Do the work of `resample` for a part of the batch at a time.

    Weights and sums are in double precision, which takes memory.

    Args:
        images: Images, uint8 [n,3,H,W].
        weights: Function that builds the vertical [m,h,H] and the horizontal [m,w,W] weights of a
            part of the batch.
        out_size: Larger one of h and w.

    Returns:
        New images, uint8 [n,3,h,w].
    """
    # numbers an image: six copies of three channels, five of two matrices
    numbers = 28 * max(out_size, *images.shape[2:]) ** 2
    step = max(1, _PART_BYTES // (8 * numbers))

    # an empty batch is one empty part
    parts = []
    for first in range(0, max(1, len(images)), step):
        part = slice(first, first + step)
        rows, columns = weights(part)
        parts.append(resample(images[part], rows, columns))
    return torch.cat(parts)
