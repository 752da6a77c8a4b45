"""One encoded image to RGB: formats, orientation, deep grey levels, and what cannot be decoded."""
import io
import os
import struct
import subprocess
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from timm_longtail.cli import pack
from timm_longtail.data import create_dataset
from timm_longtail.data.decoding import decode_rgb, image_extensions, read_size
from timm_longtail.data.images import FileImages, decode_images
from timm_longtail.utils.errors import UserError

from ..support.data_sets import draw, write_classes

pytestmark = pytest.mark.usefixtures('private_cache')

LEVELS = np.arange(256).reshape(16, 16)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(width: int = 20, height: int = 12) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(levels: np.ndarray, significant_bits: int | None = None, side: int | None = None) -> bytes:
    """Return a 16-bit PNG, grey [H,W] or RGB [H,W,3]; one that claims to have another side where it is given."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    height, width = levels.shape[:2] if side is None else (side, side)
    channels = levels[0, 0].size
    header = struct.pack('>IIBBBBB', width, height, 16, 0 if channels == 1 else 2, 0, 0, 0)
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in levels)
    stated = b'' if significant_bits is None else chunk(b'sBIT', bytes([significant_bits] * channels))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + stated + chunk(b'IDAT', zlib.compress(rows))
            + chunk(b'IEND', b''))


def tiff(levels: np.ndarray, bits: int = 16, sample_format: int = 1, white: int | None = None) -> bytes:
    """Return an uncompressed grey TIFF of `bits` a level; `white` is its MaxSampleValue."""
    if bits == 12:
        binary = ''.join(f'{level:012b}' for level in levels.flatten())
        data = int(binary, 2).to_bytes(len(binary) // 8, 'big')
    else:
        kind = {1: 'u', 2: 'i', 3: 'f'}[sample_format]
        data = levels.astype(f'<{kind}{bits // 8}').tobytes()

    height, width = levels.shape
    tags = {
        256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data),
        281: white, 339: sample_format,
    }
    entries = [struct.pack('<HHII', tag, 4, 1, value) for tag, value in tags.items() if value is not None]
    directory = struct.pack('<H', len(entries)) + b''.join(entries) + bytes(4)
    return b'II*\0' + struct.pack('<I', 8 + len(data)) + data + directory


def pgm(levels: np.ndarray, white: int) -> bytes:
    height, width = levels.shape
    return f'P5 {width} {height} {white}\n'.encode() + levels.astype('>u2').tobytes()


# ------------------------------------------------------------------------ deep grey levels

@pytest.mark.parametrize('data', [
    png(LEVELS * 257),
    png(LEVELS * 16 + 15, significant_bits=12),  # not scaled to 16 bits, as many writers leave it
    png(LEVELS * 257 // 16 * 16, significant_bits=12),  # scaled, as the standard has it
    png(LEVELS, significant_bits=8),
    tiff(LEVELS * 257),
    tiff(LEVELS * 16 + 15, bits=12),
    tiff(LEVELS * 16 + 15, white=4095),
    tiff(LEVELS, white=255),
    tiff(LEVELS * 128, sample_format=2),
    tiff(LEVELS * 0x01010101, bits=32),
    tiff(LEVELS * 0x00800000, bits=32, sample_format=2),
    tiff(LEVELS * 16, bits=32, white=4095),
    tiff(LEVELS * 257, bits=32, white=65535),
    pgm(LEVELS * 257, white=65535),
], ids=[
    'png', 'png of 12 bits', 'png of 12 bits scaled', 'png of 8 bits', 'tiff', 'tiff of 12 bits', 'tiff up to 4095',
    'tiff up to 255', 'signed tiff', 'tiff of 32 bits', 'signed tiff of 32 bits', 'tiff of 32 bits up to 4095',
    'tiff of 32 bits up to 65535', 'pgm',
])
def test_deep_greys_become_eight_bits(data):
    """Each file holds the levels 0 to 255 in the range that it states."""
    rgb = np.asarray(decode_rgb(data))
    assert rgb.dtype == np.uint8 and np.array_equal(rgb, np.repeat(LEVELS[..., None], 3, axis=2))


def test_a_pgm_is_scaled_by_its_maximum():
    rgb = np.asarray(decode_rgb(pgm(LEVELS * 4, white=1020)))[..., 0].astype(int)
    assert abs(rgb - LEVELS).max() <= 1 and (rgb.min(), rgb.max()) == (0, 255)


@pytest.mark.parametrize('data', [
    png(LEVELS, significant_bits=16), pgm(LEVELS, white=65535), png(np.zeros((4, 4))),
], ids=['png that states 16 bits', 'pgm', 'black'])
def test_an_image_may_be_dark(data):
    assert np.asarray(decode_rgb(data)).max() == 0


def test_a_white_level_below_eight_bits():
    mask = np.arange(16).reshape(4, 4) % 2
    assert np.array_equal(np.asarray(decode_rgb(tiff(mask, white=1)))[..., 0], mask * 255)


@pytest.mark.parametrize('data, words', [
    (png(LEVELS), 'its grey levels reach 255 of 65535 and the file does not say which is white'),
    (png(LEVELS * 16), 'its grey levels reach 4080 of 65535'),
    (tiff(LEVELS), 'its grey levels reach 255 of 65535'),
    (tiff(LEVELS, bits=32), 'its grey levels reach 255 of 4294967295'),
    (tiff(LEVELS * 257, bits=32, sample_format=2), 'its grey levels reach 65535 of 2147483647'),
    (tiff(LEVELS - 3, sample_format=2), 'its grey levels reach down to -3'),
    (tiff(LEVELS, white=100), 'its grey levels reach 255, and the file says that 127 is white'),
    (tiff(LEVELS / 255, bits=32, sample_format=3),
     'its pixels are floating-point numbers, of unknown range'),
    (png(np.repeat(LEVELS[..., None], 3, axis=2)), 'use less than a sixteenth of their 16 bits'),
])
def test_greys_of_unknown_range_are_refused(tmp_path, data, words):
    (tmp_path / 'deep.png').write_bytes(data)
    with pytest.raises(UserError, match=words) as error:
        FileImages(tmp_path, ['deep.png']).image(0)
    assert str(tmp_path / 'deep.png') in str(error.value) and '\n' not in str(error.value)


def test_deep_colours_keep_their_upper_bits():
    levels = np.repeat(LEVELS[..., None] * 257, 3, axis=2)
    assert np.array_equal(np.asarray(decode_rgb(png(levels)))[..., 1], LEVELS)


# ------------------------------------------------------------------------ orientation

def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp(orientation: int) -> bytes:
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'WEBP', 'TIFF', 'xmp'])
def test_an_image_is_turned_upright(kind, orientation):
    if kind == 'xmp':
        data = encoded(colours(), 'JPEG', xmp=xmp(orientation))
    else:
        data = encoded(colours(), kind, exif=oriented(orientation))

    # Pillow turns a TIFF when it is loaded
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert upright.size == ((20, 12) if orientation < 5 else (12, 20))
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(upright.convert('RGB')))
    assert read_size(data) == upright.size


def test_an_orientation_behind_the_pixels_of_a_png():
    data = encoded(colours(), 'PNG', exif=oriented(6))
    start = data.index(b'eXIf') - 4
    end = start + 12 + struct.unpack_from('>I', data, start)[0]
    moved = data[:start] + data[end:-12] + data[start:end] + data[-12:]

    assert np.array_equal(np.asarray(decode_rgb(moved)), np.asarray(decode_rgb(data)))


@pytest.mark.parametrize('exif', [b'Exif\0\0', b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\xff', b'\xff' * 40])
def test_damaged_metadata_leave_an_image_as_it_is(exif):
    data = encoded(colours(), 'JPEG', exif=exif)
    assert np.array_equal(np.asarray(decode_rgb(data)), np.asarray(Image.open(io.BytesIO(data))))
    assert read_size(data) == (20, 12)


def test_every_way_to_an_image_turns_it(tmp_path):
    for split in ('train', 'test'):
        write_classes(tmp_path / 'photos' / split, {'ant': 2, 'bee': 2})
    path = tmp_path / 'photos' / 'train' / 'ant' / '00.png'
    stored = Image.open(path)
    stored.save(path, exif=oriented(6))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert not np.array_equal(upright, np.asarray(stored))

    for kind in ('resident', 'worker'):
        pack.main(['--dataset', 'folder', '--data-dir', str(tmp_path / 'photos'), '--loader', kind,
                   '--packed', str(tmp_path / f'{kind}.safetensors')])
    places = [('folder', tmp_path / 'photos'), (f'hfds/{tmp_path}/photos', None)]
    places += [(f'packed:{tmp_path}/{kind}.safetensors', None) for kind in ('resident', 'worker')]
    for name, place in places:
        resident = create_dataset(name, 'train', place, loader='resident')
        files = create_dataset(name, 'train', place, loader='worker')
        assert np.array_equal(resident.images[0].permute(1, 2, 0), upright), name
        assert np.array_equal(files.decode(0), upright), name
        assert np.array_equal(resident.digests, files.digests), name


def test_a_damaged_tag_is_no_warning(recwarn):
    """A data set of a million photos from many cameras would print thousands of them."""
    data = bytearray(encoded(colours(16, 16), 'TIFF'))
    tags = int.from_bytes(data[4:8], 'little')
    num_tags = int.from_bytes(data[tags:tags + 2], 'little')

    # a tag behind the others: ImageDescription, of more bytes than the file has
    entry = (270).to_bytes(2, 'little') + (2).to_bytes(2, 'little') + (9999).to_bytes(4, 'little') * 2
    end = tags + 2 + 12 * num_tags
    moved = len(data)
    data += (num_tags + 1).to_bytes(2, 'little') + data[tags + 2:end] + entry + bytes(4)
    data[4:8] = moved.to_bytes(4, 'little')

    with pytest.warns(UserWarning, match='Skipping tag 270'):
        Image.open(io.BytesIO(data)).load()
    recwarn.clear()
    assert decode_rgb(bytes(data)).size == read_size(bytes(data)) == (16, 16)
    assert not recwarn.list


# ------------------------------------------------------------------------ formats

def test_what_comes_before_an_image_does_not_change_it(tmp_path):
    """Every format before and behind every other."""
    kinds = ('JPEG', 'MPO', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM', 'JPEG2000', 'ICO')
    names = []
    for number, kind in enumerate(kinds):
        image = draw(tmp_path / 'drawn.png', (16, 16), seed=number)
        options = {'MPO': {'save_all': True, 'append_images': [colours(16, 16)]}}.get(kind, {})
        (tmp_path / f'{number}.img').write_bytes(encoded(Image.open(image), kind, **options))
        names.append(f'{number}.img')

    alone = [torch.from_numpy(np.array(FileImages(tmp_path, [name]).image(0))).permute(2, 0, 1) for name in names]
    for shift in range(len(names)):
        order = np.roll(np.arange(len(names)), shift)
        pixels, kept = decode_images(FileImages(tmp_path, [names[number] for number in order]))
        assert len(kept) == len(names)
        assert torch.equal(pixels, torch.stack([alone[number] for number in order]))


def test_extensions_are_those_of_open_rasters():
    known = image_extensions()
    assert {'.jpg', '.jpeg', '.png', '.webp', '.tif', '.tiff', '.bmp', '.gif', '.ppm', '.pgm', '.mpo'} <= known
    assert not {'.eps', '.ps', '.wmf', '.emf', '.h5', '.mpg', '.pdf', '.heic'} & known


def test_no_program_is_started(tmp_path, monkeypatch):
    page = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n'
    (tmp_path / 'page.png').write_bytes(page)

    def start(*args, **options):
        raise AssertionError('a program was started')
    monkeypatch.setattr(subprocess, 'Popen', start)
    images = FileImages(tmp_path, ['page.png'])
    assert list(images.image_sizes()) == []
    with pytest.raises(UserError, match='page.png: it is a page description'):
        images.image(0)


# ------------------------------------------------------------------------ what is no image

def write_pipe(path):
    os.mkfifo(path)


def write_device(path):
    path.symlink_to('/dev/zero')


def write_link_to_itself(path):
    path.symlink_to(path)


def write_link_to_nothing(path):
    path.symlink_to(path.with_name('absent.png'))


def write_empty(path):
    path.touch()


def write_cut(path):
    path.write_bytes(encoded(colours(8, 8), 'PNG')[:-60])


def write_cut_jpeg(path):
    path.write_bytes(encoded(colours(8, 8), 'JPEG')[:-40])


def write_text(path):
    path.write_text('no image')


def write_heic(path):
    path.write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic')


def write_bomb(path):
    path.write_bytes(png(np.zeros((1, 1)), side=60000))


BAD = {
    write_pipe: 'is not a regular file',
    write_device: 'is not a regular file',
    write_link_to_itself: 'Too many levels of symbolic links',
    write_link_to_nothing: 'no image file at',
    write_empty: 'it is empty',
    write_cut: 'truncated',
    write_cut_jpeg: 'truncated',
    write_text: 'not an image, or cut short',
    write_heic: 'it is a HEIC image, which is not decoded: convert it to JPEG',
    write_bomb: 'decompression bomb',
}


@pytest.mark.parametrize('write', BAD)
@pytest.mark.parametrize('loader', ['resident', 'worker'])
def test_a_file_that_is_no_image_is_named(tmp_path, write, loader):
    write_classes(tmp_path / 'train', {'ant': 3, 'bee': 2})
    write_classes(tmp_path / 'test', {'ant': 1, 'bee': 1})
    write(tmp_path / 'train' / 'ant' / 'bad.png')

    with pytest.raises(UserError, match=BAD[write]) as error:
        dataset = create_dataset('folder', 'train', tmp_path, loader=loader)
        # the files of a worker are read in an epoch; their fingerprint is known before
        assert len(dataset.hash) == 12
        dataset.decode(3)
    assert str(tmp_path / 'train' / 'ant' / 'bad.png') in str(error.value)
    assert '\n' not in str(error.value)

    kept = create_dataset('folder', 'train', tmp_path, skip_bad_images=True)
    assert kept.resident and kept.bad_images == ['ant/bad.png'] and kept.class_counts == [3, 2]


def test_images_that_do_not_fit_into_memory(tmp_path):
    class Many(FileImages):
        def __len__(self):
            return 10 ** 9

    draw(tmp_path / 'a.png', (1000, 1000))
    with pytest.raises(UserError, match='1000000000 images of 1000x1000 pixels do not fit into memory'):
        decode_images(Many(tmp_path, ['a.png']))


def test_paths_may_be_absolute(tmp_path):
    (tmp_path / 'a.png').write_bytes(b'12345')
    images = FileImages('', [str(tmp_path / 'a.png')])
    assert images.files() == [str(tmp_path / 'a.png')]
    assert images.sizes().tolist() == [5]
