"""Views of image files against torchvision and timm on PIL images; resident images as they were before."""
import hashlib
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from timm.data import create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms as T
from torchvision.transforms import functional as F

from timm_longtail.data import create_dataset, create_loader, create_view, list_views
from timm_longtail.data.views import ops
from timm_longtail.data.views.randaugment import OnImage, RandAugment
from timm_longtail.data.views.steps import (
    CentreCrop,
    ColorJitter,
    Flip,
    GaussianBlur,
    PadCrop,
    ResizedCrop,
)
from timm_longtail.utils.errors import UserError

SIZE = 64
# width, height
SIZES = [(100, 80), (80, 100), (333, 250), (64, 64), (40, 30), (300, 37), (37, 300)]


def make_image(size, seed=0):
    """Waves and noise: every pixel differs from its neighbours."""
    width, height = size
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / max(size)
    waves = 128 + 90 * np.sin(7 * x + 5 * y + np.arange(3)) + generator.normal(0, 20, (height, width, 3))
    return Image.fromarray(waves.clip(0, 255).astype(np.uint8))


def draw(step, count, seed=0):
    return np.random.default_rng(seed).random((count, step.num_uniforms))


def equal(ours, theirs):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype and (ours == theirs).all()


def as_batch(*pixels):
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------ resident images

@pytest.mark.parametrize('name, digest', [
    ('autoaugment', '0ab267de4e9d8771'),
    ('autoaugment(fill=0)', '6c27b2a2a3bdae80'),
    ('crop_flip', '64261bc76ebc0c95'),
    ('eval', 'b6c4614565e89b4c'),
    ('flip', '01c3f3433eef73b0'),
    ('sim', '34707d994830deb1'),
    ('sim(scale=0.08)', '3307577ba5be3ff0'),
    ('sim_blur', 'e1ef508809e4edd3'),
])
def test_resident_views_have_not_changed(name, digest):
    # of the code before image files had views
    images = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)
    )
    images[::2] = images[::2] // 4 + 48 + 2 * torch.arange(32, dtype=torch.uint8)
    view = create_view(name, 32)
    pixels = view.apply(images, view.sample(draw(view, 64, seed=1)))

    assert hashlib.sha256(pixels.numpy().tobytes()).hexdigest()[:16] == digest


def test_padding_and_hole_grow_with_the_image():
    for size, padding, hole in ((32, 4, 16), (64, 8, 32), (224, 28, 112)):
        view = create_view('autoaugment', size)
        assert (view.geometry[0].padding, view.photometry[1].length) == (padding, hole)
        assert create_view('crop_flip', size).geometry[0].padding == padding

    view = create_view('autoaugment(padding=0, cutout=0)', SIZE)
    assert (view.geometry[0].padding, view.photometry[1].length) == (0, 0)


@pytest.mark.parametrize('step', [GaussianBlur(48, p=1.), ResizedCrop(48), ColorJitter(p=1.)])
def test_parts_of_a_batch_do_not_change_it(step, monkeypatch):
    images = as_batch(*(np.asarray(make_image((48, 48), seed)) for seed in range(5)))
    params = step.sample(draw(step, 5))
    whole = step.apply(images, params)
    # two images
    monkeypatch.setattr(ops, '_PART_BYTES', 2 * 8 * 28 * 48 ** 2)
    monkeypatch.setattr(ops, '_PART_PIXELS', 2 * 48 ** 2)

    assert torch.equal(step.apply(images, params), whole) and whole.shape == images.shape


def test_a_batch_of_224_is_resampled_a_few_at_a_time():
    parts = []

    def weights(part):
        parts.append(part)
        eye = torch.eye(224, dtype=torch.float64)[None].expand(len(range(24)[part]), -1, -1)
        return eye, eye
    images = torch.randint(0, 256, (24, 3, 224, 224), dtype=torch.uint8)
    assert torch.equal(ops.resample_in_parts(images, weights, 224), images)
    assert [(part.start, part.stop) for part in parts] == [(0, 11), (11, 22), (22, 33)]


# ------------------------------------------------------------------------ random resized crop

@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('scale', [(0.08, 1.), (0.9, 1.)])
def test_boxes_are_those_of_torchvision_for_the_same_draws(size, scale, monkeypatch):
    step, image = ResizedCrop(SIZE, scale), make_image(size)
    numbers = draw(step, 200)
    ours = step.boxes(numbers, image.height, image.width)
    ours = np.stack([ours[key] for key in ('top', 'left', 'height', 'width')], 1)
    # torchvision draws area and ratio in turn, then the two offsets of the box that fits
    tries, offsets = [], []
    monkeypatch.setattr(
        torch.Tensor, 'uniform_', lambda _, low, high: torch.as_tensor(low + (high - low) * tries.pop(0)))
    monkeypatch.setattr(
        torch, 'randint', lambda low, high, size: torch.tensor(int(high * offsets.pop(0)))
    )
    theirs = []
    for row in numbers:
        tries[:], offsets[:] = row[:20].reshape(2, 10).T.ravel(), row[20:]
        theirs.append(T.RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]))

    assert (ours == np.array(theirs)).all()


@pytest.mark.parametrize('size, fallbacks', [((320, 240), 0), ((300, 37), 0.5), ((37, 300), 0.5)])
def test_boxes_are_distributed_as_torchvisions(size, fallbacks):
    step, image = ResizedCrop(SIZE, (0.08, 1.)), Image.new('RGB', size)
    top, left, height, width = step.boxes(draw(step, 4000), image.height, image.width).values()
    torch.manual_seed(0)
    theirs = np.array([T.RandomResizedCrop.get_params(image, [0.08, 1.], [3 / 4, 4 / 3]) for _ in range(4000)]).T

    stats = pytest.importorskip('scipy.stats')  # two seconds
    for ours, other in zip((top, left, height, width, width / height), (*theirs, theirs[3] / theirs[2]), strict=True):
        assert stats.ks_2samp(ours, other).pvalue > 0.001

    central = {(300, 37): (37, 49), (37, 300): (49, 37)}.get(size)

    if fallbacks:
        assert ((height == central[0]) & (width == central[1])).mean() > fallbacks


def test_the_fallback_is_the_largest_central_box():
    step = ResizedCrop(SIZE, (0.99, 1.))
    numbers = np.full((1, step.num_uniforms), 0.999)
    for height, width, box in ((41, 300, (0, 122, 41, 55)), (300, 41, (122, 0, 55, 41)), (90, 100, (0, 0, 90, 100))):
        assert tuple(int(v[0]) for v in step.boxes(numbers, height, width).values()) == box


@pytest.mark.parametrize('size', SIZES)
def test_a_resized_crop_has_torchvisions_pixels(size):
    step, image = ResizedCrop(SIZE, (0.08, 1.)), make_image(size)
    for numbers in draw(step, 10):
        box = [int(v[0]) for v in step.boxes(numbers[None], image.height, image.width).values()]
        assert equal(step.place(image, numbers), F.resized_crop(image, *box, [SIZE, SIZE]))


# ------------------------------------------------------------------------ the other geometry

@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('crop_pct, resized', [(0.875, 73), (0.9, 71), (1., 64), (0.96, 66)])
def test_eval_is_the_transform_of_timm_and_torchvision(size, crop_pct, resized):
    image, view = make_image(size), create_view(f'eval(crop_pct={crop_pct})', SIZE)
    ours = view.place(image, np.empty(0))
    timms = create_transform(
        (3, SIZE, SIZE), is_training=False, interpolation='bilinear', crop_pct=crop_pct, normalize=False)

    assert equal(ours, timms(image).permute(1, 2, 0))
    assert equal(ours, T.Compose([T.Resize(resized), T.CenterCrop(SIZE)])(image))


def test_flip_and_eval_see_the_same_crop():
    image, view = make_image((100, 80)), create_view('flip', SIZE)
    centre = create_view('eval', SIZE).place(image, np.empty(0))

    assert equal(view.place(image, np.array([0.9])), centre)
    assert equal(view.place(image, np.array([0.1])), centre[:, ::-1])
    assert equal(Flip(0.3).place(image, np.array([0.299])), F.hflip(image))


@pytest.mark.parametrize('size', SIZES)
def test_crop_flip_takes_a_window_of_the_resized_image(size):
    step, image = PadCrop(8, SIZE), make_image(size)
    resized = T.Resize(73)(image)
    places = set()
    for numbers in draw(step, 100):
        top, left = int(numbers[0] * (resized.height - SIZE + 1)), int(numbers[1] * (resized.width - SIZE + 1))
        assert equal(step.place(image, numbers), F.crop(resized, top, left, SIZE, SIZE))
        places.add((top, left))

    assert len(places) > 50

    bottom, right = resized.height - SIZE, resized.width - SIZE

    assert equal(step.place(image, np.full(2, 1 - 2 ** -53)), F.crop(resized, bottom, right, SIZE, SIZE))


def test_224_is_cropped_from_256():
    image = make_image((300, 280))
    crop = PadCrop(28, 224).place(image, np.zeros(2))
    assert equal(crop, F.crop(T.Resize(256)(image), 0, 0, 224, 224))
    assert equal(CentreCrop(224).place(image, np.empty(0)), F.center_crop(T.Resize(256)(image), 224))


# ------------------------------------------------------------------------ whole views

@pytest.mark.parametrize('name', list_views())
@pytest.mark.parametrize('size', [(100, 80), (30, 41)])
def test_every_view_of_an_image_file(name, size):
    view, image = create_view(name, SIZE), make_image(size)
    rest = view.photometry_view

    assert view.num_uniforms == view.num_place_uniforms + rest.num_uniforms
    assert rest.num_place_uniforms == 0

    numbers, before = draw(view, 6), np.array(image)
    placed = [view.place(image, row[:view.num_place_uniforms]) for row in numbers]

    assert all(p.shape == (SIZE, SIZE, 3) and p.dtype == np.uint8 and p.flags.writeable for p in placed)
    assert equal(image, before)

    batch = rest.apply(as_batch(*placed), rest.sample(numbers[:, view.num_place_uniforms:]))

    assert batch.shape == (6, 3, SIZE, SIZE) and batch.dtype == torch.uint8
    assert len(batch.flatten(1).unique(dim=0)) == {'corner': 1, 'eval': 1, 'flip': 2}.get(name, 6)
    assert equal(pickle.loads(pickle.dumps(view)).place(image, numbers[0, :view.num_place_uniforms]), placed[0])


@pytest.mark.parametrize('name', ['sim', 'sim_blur', 'rrc', 'glmc', 'flip', 'eval'])
def test_both_ways_spend_the_same_uniforms(name):
    # on images of the final size both ways are the same view; PIL rounds once more between the axes
    view = create_view(f'{name}(crop_pct=1)' if name in ('flip', 'eval') else name, SIZE)
    images, numbers = [make_image((SIZE, SIZE), seed) for seed in range(12)], draw(view, 12)
    placed = as_batch(
        *(view.place(i, u[:view.num_place_uniforms]) for i, u in zip(images, numbers, strict=True)),
    )
    rest = view.photometry_view
    ours = rest.apply(placed, rest.sample(numbers[:, view.num_place_uniforms:]))
    resident = view.apply(as_batch(*map(np.asarray, images)), view.sample(numbers))

    assert (ours.int() - resident.int()).abs().float().mean() < 0.5


def test_a_view_takes_no_number_from_elsewhere():
    image = make_image((100, 80))

    for name in list_views():
        view = create_view(name, SIZE)
        for numbers in draw(view, 4)[:, :view.num_place_uniforms]:
            results = []
            for seed in (0, 1):
                random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
                random.gauss(0, 1), np.random.normal()  # both keep a second normal number back
                before = random.getstate(), np.random.get_state(), torch.get_rng_state()
                results.append(view.place(image, numbers))
                after = random.getstate(), np.random.get_state(), torch.get_rng_state()
                assert repr(before[:2]) == repr(after[:2]) and torch.equal(before[2], after[2])
                assert (before[1][1] == after[1][1]).all()
            assert equal(*results)


# ------------------------------------------------------------------------ RandAugment

def test_rand_is_timms_randaugment_after_the_jitter():
    image, view = make_image((100, 80)), create_view('rand', SIZE)
    transform = rand_augment_transform(  # as BCL sets it; timm's shifts are relative and leave `translate_const` out
        'rand-n2-m10-mstd0.5', dict(translate_const=int(SIZE * 0.45), img_mean=(124, 116, 104)))
    changed = 0
    for numbers in draw(view, 40):
        crop, jitter = ResizedCrop(SIZE, (0.08, 1.)), ColorJitter(0.4, 0.4, 0.4, 0., p=1.)
        parts = np.split(numbers, np.cumsum([crop.num_uniforms, 1, jitter.num_uniforms]))
        pixels = as_batch(np.asarray(Flip().place(crop.place(image, parts[0]), parts[1])))
        pixels = jitter.apply(pixels, jitter.sample(parts[2][None]))[0].permute(1, 2, 0).numpy()
        seed = int(parts[3][0] * 2 ** 32)
        random.seed(seed), np.random.seed(seed)
        expected = transform(Image.fromarray(pixels))
        assert equal(view.place(image, numbers), expected)
        changed += not equal(pixels, expected)

    assert 20 < changed < 40  # two operations, each with probability 0.5


def test_the_states_come_back_after_an_error():
    random.seed(3), np.random.seed(3)
    before = random.getstate(), repr(np.random.get_state())

    with pytest.raises(AttributeError):
        RandAugment().place(None, np.array([0.15]))
    assert before == (random.getstate(), repr(np.random.get_state()))


def test_rand_is_refused_on_resident_images():
    with pytest.raises(UserError, match='view rand works on image files only, and digits_lt is decoded in memory'):
        create_loader(create_dataset('digits_lt', 'train'), ['rand'], batch_size=8)

    view = create_view('rand', SIZE)
    with pytest.raises(UserError, match='view rand works on image files only; take another for resident images'):
        view.sample(np.zeros((1, view.num_uniforms)))
    assert [name for name in list_views() if create_view(name, SIZE).files_only] == ['corner', 'rand']


# ------------------------------------------------------------------------ ImageNet views

def test_what_the_imagenet_views_are_made_of():
    kinds = {name: [type(step).__name__ for step in create_view(name, SIZE).steps]
             for name in ('rrc', 'rrc(jitter=0.4)', 'glmc', 'rand', 'rand(jitter=0)', 'flip', 'eval')}

    assert kinds['rrc'] == ['ResizedCrop', 'Flip']
    assert kinds['rrc(jitter=0.4)'] == ['ResizedCrop', 'Flip', 'ColorJitter']
    assert kinds['glmc'] == ['ResizedCrop', 'Flip', 'ColorJitter', 'Grayscale', 'GaussianBlur']
    assert kinds['rand'] == ['ResizedCrop', 'Flip', 'OnImage', 'RandAugment']
    assert kinds['rand(jitter=0)'] == ['ResizedCrop', 'Flip', 'RandAugment']
    assert kinds['flip'] == ['CentreCrop', 'Flip'] and kinds['eval'] == ['CentreCrop']

    glmc, rand = create_view('glmc', SIZE), create_view('rand(n=3, m=7)', SIZE)
    jitters = glmc.photometry[0], rand.geometry[2].step, create_view('rrc(jitter=0.4)', SIZE).photometry[0]

    assert all(jitter.p == 1 and jitter.reach.tolist() == [0.4, 0.4, 0.4, 0.] for jitter in jitters)
    assert (glmc.photometry[1].p, glmc.photometry[2].p, glmc.photometry[2].sigma) == (0.2, 0.5, (0.1, 2.))
    assert all(view.geometry[0].scale == (0.08, 1.) for view in (glmc, rand, create_view('rrc', SIZE)))

    transform = rand.geometry[-1].transform

    assert (transform.num_layers, transform.ops[0].magnitude, transform.ops[0].magnitude_std) == (3, 7, 0.5)


def test_a_step_on_one_image_is_the_step_on_a_batch():
    image, step = make_image((SIZE, SIZE)), ColorJitter()
    numbers = draw(step, 5)
    placed = [np.asarray(OnImage(step).place(image, row)) for row in numbers]
    batch = as_batch(*[np.asarray(image)] * 5)

    assert torch.equal(as_batch(*placed), step.apply(batch, step.sample(numbers)))


def test_sigma_of_the_blur_is_pils_radius():
    image = make_image((SIZE, SIZE))
    theirs = np.asarray(image.filter(ImageFilter.GaussianBlur(1.5)), int)

    def distance(sigma):
        weights = ops.blur_weights([sigma], SIZE, 6)
        ours = ops.resample(as_batch(np.asarray(image)), weights, weights)[0].permute(1, 2, 0).numpy()
        return np.abs(ours - theirs)[8:-8, 8:-8].mean()
    assert distance(1.5) < 1 and distance(1.5) < min(distance(1.2), distance(1.8)) / 2


@pytest.mark.parametrize('name, message', [
    ('eval(crop_pct=0)', r'crop_pct must be in \(0, 1\], got 0'),
    ('flip(crop_pct=1.5)', r'crop_pct must be in \(0, 1\], got 1.5'),
    ('rand(n=0)', 'n .*1'),
    ('rand(m=11)', r'm .*in \[0, 10\]'),
    ('rand(mstd=-1)', 'mstd must be .*0'),
    ('rand(n="a")', 'view .rand'),
    ('rrc(scale=0)', r'scale must be in \(0, 1\], got 0'),
    ('glmc(x=1)', "takes scale; got 'x'"),
])
def test_bad_arguments(name, message):
    with pytest.raises(UserError, match=message) as error:
        create_view(name, SIZE)
    assert '\n' not in str(error.value)
