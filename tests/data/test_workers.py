"""The loader of image files: the same pixels whatever the workers and processes, bad images, exact starts."""
import io

import numpy as np
import pytest
import torch
from PIL import Image

from timm_longtail.data import LongTailDataset, UniformSampler, create_loader, create_view
from timm_longtail.data.images import FileImages
from timm_longtail.utils import rng
from timm_longtail.utils.errors import UserError

from .test_loaders import assert_equal, join_processes

VIEWS = ('rand', 'sim_blur(scale=0.3)', 'autoaugment')
SIZES = [(40, 30), (33, 50), (64, 64), (20, 90)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    random = np.random.default_rng(0)
    for number in range(30):
        pixels = random.integers(0, 256, (*SIZES[number % 4][::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'{number:02d}.png')

    return root


def photos(folder, count=30):
    names = [f'{n:02d}.png' for n in range(count)]
    return LongTailDataset(
        name='photos',
        split='train',
        images=None,
        encoded=FileImages(folder, names),
        targets=np.arange(count) % 3,
        class_names=list('abc'),
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        indices=np.arange(count),
        source_names=names,
    )


def read(dataset, views=VIEWS, epoch=0, start=0, batch_size=4, img_size=24, **options):
    loader = create_loader(dataset, views, batch_size=batch_size, img_size=img_size, **options)
    loader.set_epoch(epoch, start)
    return list(loader)


@pytest.fixture(scope='module')
def whole(folder):
    return read(photos(folder), epoch=2, batch_size=6)


def test_a_batch(folder, whole):
    dataset = photos(folder)
    assert len(whole) == 5
    for views, target, index in whole:
        assert [view.shape for view in views] == [(6, 3, 24, 24)] * 3
        assert views[0].dtype == torch.float32
        assert np.array_equal(target, dataset.targets[index]) and index.dtype == torch.int64

    seen = torch.cat([index for *_, index in whole]).tolist()
    assert sorted(seen) == list(range(30)) and seen != sorted(seen)


def test_workers_change_no_pixel(folder, whole):
    dataset = photos(folder)
    loader = create_loader(dataset, VIEWS, batch_size=6, img_size=24, num_workers=2)
    first = list(loader)
    loader.set_epoch(2)

    assert_equal(list(loader), whole)  # a second epoch

    loader.set_epoch(0)
    # an epoch that is left in the middle
    half = [batch for batch, _ in zip(loader, range(2), strict=False)]

    assert_equal(half, first[:2])

    loader.set_epoch(2, 3)

    assert_equal(list(loader), whole[3:])


def test_processes_change_no_pixel(folder, whole):
    parts = []
    for rank in range(2):
        parts.append(read(photos(folder), epoch=2, batch_size=3, rank=rank, world_size=2))

    assert_equal(whole, join_processes(parts))


def test_pixels_come_from_the_uniforms_of_the_global_epoch(folder):
    dataset = photos(folder)
    batches = read(
        dataset, ('flip', 'sim'), epoch=2, seed=5, stream=1, mean=(0, 0, 0), std=(1, 1, 1)
    )
    view = create_view('sim', 24)
    placed = view.num_place_uniforms
    uniforms = rng.generator(5, 2, 1, 'view1').random((30, view.num_uniforms))
    order = UniformSampler(30, seed=5, stream=1)
    order.set_epoch(2)
    pixels = np.stack([view.place(dataset.decode(index), uniforms[row, :placed])
                       for row, index in enumerate(order.order())])
    pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    pixels = view.photometry_view.apply(pixels, view.photometry_view.sample(uniforms[:, placed:]))

    torch.testing.assert_close(torch.cat([views[1] for views, *_ in batches]), pixels[:28] / 255)


def test_global_generators_are_left_alone(folder):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    read(photos(folder), num_workers=1)
    read(photos(folder))
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])


@pytest.mark.parametrize('world_size', [1, 3])
def test_evaluation_sees_every_image_once_in_order(folder, world_size):
    parts = [read(photos(folder), ('eval',), training=False, rank=rank, world_size=world_size)
             for rank in range(world_size)]
    assert [i for part in parts for *_, index in part for i in index.tolist()] == list(range(30))


# ------------------------------------------------------------------------ bad images

@pytest.fixture
def damaged(folder, tmp_path):
    """A copy of the folder in which three images of class 1 cannot be read, for three reasons."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / '04.png').write_bytes(b'no image')
    whole = (tmp_path / '07.png').read_bytes()
    (tmp_path / '07.png').write_bytes(whole[:len(whole) // 2])
    (tmp_path / '10.png').unlink()

    return tmp_path


@pytest.mark.parametrize('num_workers', [0, 1])
def test_an_unreadable_image_is_named(damaged, num_workers):
    with pytest.raises(UserError, match=r'(04|07|10)\.png: .*; --skip-bad-images') as error:
        read(photos(damaged), num_workers=num_workers)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('num_workers', [0, 2])
def test_skipped_images_are_replaced_in_training(damaged, folder, num_workers, caplog):
    loader = create_loader(
        photos(damaged), ('crop_flip',), batch_size=6, img_size=24, skip_bad_images=True, num_workers=num_workers)
    batches = list(loader)

    assert all(len(index) == 6 for *_, index in batches)
    assert sorted(name[-6:] for name in loader.bad_images) == ['04.png', '07.png', '10.png']
    assert sum('; skipped' in record.message for record in caplog.records) == 3

    seen, intact = (torch.cat([index for *_, index in part]) for part in (
        batches, read(photos(folder), ('crop_flip',), batch_size=6)))
    changed = (seen != intact).nonzero().flatten()

    assert sorted(intact[changed].tolist()) == [4, 7, 10] and not {4, 7, 10} & set(seen.tolist())
    assert (seen[changed] % 3 == 1).all()  # of the same class


def test_skipped_images_are_left_out_of_evaluation(damaged):
    batches = read(photos(damaged), ('eval',), training=False, skip_bad_images=True, batch_size=1)
    assert [int(index) for *_, index in batches] == [n for n in range(30) if n not in (4, 7, 10)]


def test_a_class_that_cannot_be_read_at_all(tmp_path):
    buffer = io.BytesIO()
    Image.new('RGB', (30, 30)).save(buffer, 'PNG')
    for number in range(6):
        (tmp_path / f'{number:02d}.png').write_bytes(b'' if number % 3 == 2 else buffer.getvalue())

    with pytest.raises(UserError, match='no image of the class of .*0[25].png can be read'):
        read(photos(tmp_path, 6), ('crop_flip',), batch_size=1, skip_bad_images=True)


# ------------------------------------------------------------------------ sizes

def test_files_need_a_size_and_resident_images_may_have_another(folder):
    with pytest.raises(UserError, match='say the size'):
        read(photos(folder), img_size=None)

    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(8, 3, 16, 16)
    resident = LongTailDataset(
        name='ramp', split='train', images=pixels, targets=np.arange(8) % 2, class_names=['a', 'b'], mean=(0, 0, 0),
        std=(1, 1, 1), indices=np.arange(8), source_names=[str(n) for n in range(8)])
    (view,), *_ = read(resident, ('eval',), img_size=32)[0]
    small = pixels[:4].float() / 255
    expected = torch.nn.functional.interpolate(
        small, (32, 32), mode='bilinear', align_corners=False
    )

    torch.testing.assert_close(view, expected)

    (view,), *_ = read(resident, ('eval',), img_size=8)[0]

    torch.testing.assert_close(view.mean(), small.mean(), atol=2e-3, rtol=0)
