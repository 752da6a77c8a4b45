"""One encoded image to 8-bit RGB, as a viewer shows it: open raster formats, turned upright, deep greys scaled.

Nothing here remembers an image: what comes out depends on the bytes that go in, and on nothing that
was decoded before.
"""
import io
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

__all__ = ['decode_rgb', 'image_extensions', 'read_size']

# Raster formats that Pillow decodes in this process, the usual ones first. EPS and WMF stay out,
# which other programs draw, and so does whatever Pillow recognises by trial alone; TGA, which has
# no signature, is tried last.
_FORMATS = (
    'PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'PPM', 'AVIF', 'JPEG2000', 'QOI', 'DIB', 'ICO', 'PCX', 'SGI', 'SUN',
    'DDS', 'TGA',
)

# EXIF orientation: what turns the stored pixels upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = {5, 6, 7, 8}
_ORIENTATION = 0x0112

# keys of `Image.info` below which Pillow finds an orientation
_ORIENTED_BY = ('exif', 'xmp', 'XML:com.adobe.xmp', 'Raw profile type exif')

# TIFF tags
_BITS_PER_SAMPLE = 258
_MAX_SAMPLE_VALUE = 281
_SAMPLE_FORMAT = 339
_UNSIGNED = 1  # a sample format

# brands of HEIC and HEIF, which Pillow does not decode
_HEIC = {b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'}

# levels that use less than a sixteenth of what they may are nearly black: 12 bits in 16
_SPARE_BITS = 4


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that this build of Pillow decodes, in the order in which they are tried."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@cache
def image_extensions() -> frozenset[str]:
    """Return the lower-case extensions of the formats that are decoded."""
    # an MPO, a JPEG of several pictures, has an extension but no entry in the list: it is opened as
    # a JPEG
    decoded = {*_formats(), 'MPO'}
    return frozenset(end for end, name in Image.registered_extensions().items() if name in decoded)


@contextmanager
def _without_warnings() -> Iterator[None]:
    # Pillow's, about fields that it cannot read: an image that it cannot decode is an error anyway
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@_without_warnings()
def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image as a viewer shows it.

    An EXIF orientation is applied. Grey levels of more than 8 bits are scaled by what the file says
    their range is: BitsPerSample, SampleFormat and MaxSampleValue of a TIFF, sBIT of a PNG, the
    maximum of a PGM, the precision of a JPEG 2000. Where nothing is said, the range is that of the
    16 or 32 bits they are stored in; an image that uses less than a sixteenth of it is refused,
    since it would become nearly black. Clipping, as Pillow and torchvision do, would be right for
    levels up to 255 and turn 12 bits white; taking the range from the largest level would give each
    image of a set another brightness.

    Args:
        data: The encoded image.

    Returns:
        A Pillow image in RGB.

    Raises:
        Exception: It cannot be decoded; Pillow's plugins have no error in common.
    """
    image = _open(data)
    image.load()

    if image.mode == 'F':
        raise ValueError('its pixels are floating-point numbers, of unknown range: store it with 8 or 16 bits')
    if image.mode.startswith('I'):
        rgb = _scale_greys(image, data).convert('RGB')
    elif image.mode == 'RGB':
        rgb = image
        _refuse_dark_colours(image, rgb, data)
    else:
        rgb = image.convert('RGB')
        _refuse_dark_colours(image, rgb, data)

    method = _UPRIGHT.get(_orientation(image))
    if method is None:
        return rgb
    return rgb.transpose(method)


@_without_warnings()
def read_size(data: bytes) -> tuple[int, int]:
    """Return (width, height) of an image as `decode_rgb` gives it, from its header alone.

    Raises:
        Exception: As for `decode_rgb`.
    """
    with _open(data) as image:
        width, height = image.size
        if _orientation(image) in _SWAPS_SIDES:
            return height, width
        return width, height


def _open(data: bytes) -> Image.Image:
    """Read the header of an image.

    Raises:
        ValueError: No format fits; says why.
    """
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except UnidentifiedImageError as error:
        raise ValueError(_why_unknown(data)) from error


def _why_unknown(data: bytes) -> str:
    """Return why no format fits: the name of a frequent one that is not decoded, or that it is none."""
    if not data:
        return 'it is empty'
    if data[4:8] == b'ftyp' and data[8:12] in _HEIC:
        return 'it is a HEIC image, which is not decoded: convert it to JPEG'
    if data.startswith((b'%!PS', b'%PDF')):
        return 'it is a page description (EPS, PDF), which is not decoded: convert it to PNG'
    return 'not an image, or cut short'


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied, 1 for none."""
    # Pillow turns a TIFF, and its size, by itself
    if image.format == 'TIFF' or not any(key in image.info for key in _ORIENTED_BY):
        return 1

    # damaged metadata do not make an image unreadable: a viewer shows it as it is stored
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:
        return 1


def _scale_greys(image: Image.Image, data: bytes) -> Image.Image:
    """Return integer grey levels of more than 8 bits as 8 bits."""
    levels = np.asarray(image).astype(np.int64)
    # Pillow reads unsigned 32 bits as signed ones
    if _stores_unsigned(image):
        levels &= 0xFFFFFFFF

    lowest, largest = int(levels.min()), int(levels.max())
    if lowest < 0:
        raise ValueError(f'its grey levels reach down to {lowest}: store it with levels from 0')

    # which level is white
    bits, stated = _grey_bits(image, data, largest)
    white = 2 ** bits - 1
    if largest > white:
        raise ValueError(f'its grey levels reach {largest}, and the file says that {white} is white')
    if not stated and 0 < largest < 2 ** (bits - _SPARE_BITS):
        raise ValueError(
            f'its grey levels reach {largest} of {white} and the file does not say which is white: store it with '
            '8 bits, or scale the levels')

    if bits >= 8:
        scaled = levels >> (bits - 8)
    else:
        scaled = levels * 255 // white
    return Image.fromarray(scaled.astype(np.uint8))


def _stores_unsigned(image: Image.Image) -> bool:
    """Whether an image is a TIFF of unsigned numbers, which is what a TIFF holds by default."""
    if not isinstance(image, TiffImageFile):
        return False
    sample_format = image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))
    return sample_format[0] == _UNSIGNED


def _grey_bits(image: Image.Image, data: bytes, largest: int) -> tuple[int, bool]:
    """Return how many bits the range of the grey levels has, and whether the file says so.

    Args:
        image: Decoded image of an integer mode.
        data: The encoded image.
        largest: Largest level.
    """
    if image.format == 'PNG':
        bits = _png_significant_bits(data)
        if bits is None:
            return 16, False
        # the standard has the encoder scale the levels to all 16 bits; many do not
        return (16 if largest >= 2 ** bits else bits), True

    if isinstance(image, TiffImageFile):
        bits = image.tag_v2[_BITS_PER_SAMPLE][0]
        whole = bits if _stores_unsigned(image) else bits - 1  # one bit is the sign
        white = image.tag_v2.get(_MAX_SAMPLE_VALUE)
        if white is None:
            return whole, bits not in (16, 32)

        # Many writers put the largest level of the very image there. Its bits are those of the
        # whole set, where a division by it would give each image its own brightness.
        if isinstance(white, tuple):
            white = max(white)
        return min(int(white).bit_length(), whole) or whole, True

    # Pillow scales a PGM by its maximum, and JPEG 2000 by its precision, to 16 bits
    return 16, True


def _png_significant_bits(data: bytes) -> int | None:
    """Return the bits of a PNG's first channel that are significant, by its sBIT chunk; None without one."""
    start = 8  # behind the signature
    while start + 8 <= len(data):
        # a chunk is length, kind, content and a checksum
        length, kind = struct.unpack_from('>I4s', data, start)
        if kind == b'sBIT' and length > 0:
            bits = data[start + 8]
            return bits if 1 <= bits <= 16 else None
        if kind in (b'IDAT', b'IEND'):
            return None  # sBIT stands before the pixels
        start += 12 + length
    return None


def _refuse_dark_colours(image: Image.Image, rgb: Image.Image, data: bytes):
    """Refuse colours of 16 bits that Pillow, which keeps the upper 8, has made nearly black."""
    deep = False
    if image.format == 'PNG':
        # the depth is the byte behind both sides in the header; sBIT of 16 says that all of it is
        # meant
        deep = data[24] == 16 and _png_significant_bits(data) != 16
    elif isinstance(image, TiffImageFile):
        deep = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))) == 16
    if not deep:
        return

    brightest = np.asarray(rgb).max()
    if brightest < 2 ** (8 - _SPARE_BITS):
        raise ValueError(
            'its levels use less than a sixteenth of their 16 bits: store it with 8 bits, or scale them')
