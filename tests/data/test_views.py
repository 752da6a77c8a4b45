"""Views against torchvision on single images, and the frequencies of their parameters."""
import numpy as np
import pytest
import torch
from torchvision import transforms as T
from torchvision.transforms import functional as F

from timm_longtail.data import create_view, list_views
from timm_longtail.data.views import ops
from timm_longtail.data.views.autoaugment import AutoAugment
from timm_longtail.data.views.steps import (
    ColorJitter,
    Cutout,
    Flip,
    GaussianBlur,
    Grayscale,
    PadCrop,
    ResizedCrop,
)
from timm_longtail.utils.errors import UserError

SIZE = 32
# on resident images
VIEWS = ['autoaugment', 'crop_flip', 'eval', 'flip', 'glmc', 'rrc', 'sim', 'sim_blur']


def make_images(count, seed=0):
    """Noise, smooth gradients, flat grey and saturated images in turn: ties, borders and degenerate ranges."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (count, 3, SIZE, SIZE))
    ramp = np.arange(SIZE) * 8
    smooth = (random.integers(0, 256, (count, 3, 1, 1)) + ramp[:, None] + 2 * ramp) // 4
    flat = np.broadcast_to(random.integers(0, 256, (count, 1, 1, 1)), noise.shape)
    hard = np.where(noise < 128, 0, 255)
    kind = (np.arange(count) % 4)[:, None, None, None]

    return torch.from_numpy(np.choose(kind, [noise, smooth % 256, flat, hard]).astype(np.uint8))


def uniforms(step, count, seed=0):
    return np.random.default_rng(seed).random((count, step.num_uniforms))


def assert_close(ours, theirs, levels=0, share=0.01):
    """Hold at most a share of the pixels to be off by at most some levels."""
    difference = (ours.int() - theirs.int()).abs()
    assert ours.dtype == torch.uint8 and difference.max() <= levels
    if levels:
        assert (difference > 0).float().mean() < share


def one_by_one(function, images, *columns):
    return torch.stack(
        [function(image, *row) for image, *row in zip(images, *columns, strict=True)]
    )


# ------------------------------------------------------------------------ operations

@pytest.mark.parametrize('ours, theirs, low, high, levels', [
    (ops.adjust_brightness, F.adjust_brightness, 0, 2, 0),
    (ops.adjust_contrast, F.adjust_contrast, 0, 2, 0),
    (ops.adjust_saturation, F.adjust_saturation, 0, 2, 0),
    (ops.adjust_sharpness, F.adjust_sharpness, 0, 2, 0),
    # a closed form instead of the six cases of HSV: single precision differs in the last digit
    # before truncation
    (ops.adjust_hue, F.adjust_hue, -0.5, 0.5, 1),
])
def test_colour_operations(ours, theirs, low, high, levels):
    images = make_images(80)
    factors = np.random.default_rng(1).uniform(low, high, len(images))
    factors[:12] = np.repeat([low, (low + high) / 2, high], 4)
    assert_close(ours(images, factors), one_by_one(theirs, images, factors.tolist()), levels)


def test_grayscale_operation():
    images = make_images(40)
    assert_close(ops.grayscale(images), F.rgb_to_grayscale(images, 3))


def test_an_image_does_not_depend_on_its_neighbours():
    images = make_images(9)
    factors = np.linspace(0.3, 1.7, 9)

    for function in (ops.adjust_brightness, ops.adjust_contrast, ops.adjust_saturation, ops.adjust_sharpness):
        alone = torch.cat([function(images[n:n + 1], factors[n:n + 1]) for n in range(9)])
        assert torch.equal(function(images, factors), alone)


# ------------------------------------------------------------------------ geometry

def test_pad_crop_and_flip():
    images, crop, flip = make_images(30), PadCrop(4), Flip()
    params = crop.sample(uniforms(crop, 30))
    padded = F.pad(images, [4])
    expected = one_by_one(
        lambda image, top, left: F.crop(image, top, left, SIZE, SIZE), padded, params['top'], params['left'])

    assert_close(crop.apply(images, params), expected)

    chosen = flip.sample(uniforms(flip, 30))

    assert 0 < chosen.sum() < 30

    expected = one_by_one(lambda image, yes: F.hflip(image) if yes else image, images, chosen)

    assert_close(flip.apply(images, chosen), expected)


def test_resized_crop():
    # torchvision sums in single precision; ours is exact before the rounding: one level apart at
    # most
    images, step = make_images(200), ResizedCrop(SIZE)
    params = step.sample(uniforms(step, 200))
    expected = one_by_one(
        lambda image, *box: F.resized_crop(image, *map(int, box), [SIZE, SIZE], antialias=True),
        images, *(params[key] for key in ('top', 'left', 'height', 'width')),
    )

    assert_close(step.apply(images, params), expected, levels=1)


@pytest.mark.parametrize('out_size', [8, 15, 32, 45])
def test_resize_weights_shrink_and_grow(out_size):
    images = make_images(16)
    box = np.array([[3, 5, 20, 27], [0, 0, 32, 32], [31, 0, 1, 32], [10, 10, 13, 2]]).repeat(4, 0).T
    rows = ops.resize_weights(box[0], box[2], SIZE, out_size)
    columns = ops.resize_weights(box[1], box[3], SIZE, out_size)
    expected = one_by_one(
        lambda image, *b: F.resized_crop(image, *map(int, b), [out_size, out_size], antialias=True), images, *box)

    # black-and-white images at these ratios fall half-way between two levels more often than others
    assert_close(ops.resample(images, rows, columns), expected, levels=1, share=0.02)


def test_a_whole_crop_is_the_image():
    images = make_images(8)
    weights = ops.resize_weights(np.zeros(8), np.full(8, SIZE), SIZE, SIZE)
    assert torch.equal(ops.resample(images, weights, weights), images)


def test_resized_crop_boxes():
    step = ResizedCrop(SIZE, (0.2, 1.))
    params = step.sample(uniforms(step, 20000))
    height, width = params['height'], params['width']

    assert height.min() >= 1 and height.max() <= SIZE and width.min() >= 1 and width.max() <= SIZE
    assert (params['top'] + height).max() == SIZE == (params['left'] + width).max()
    assert params['top'].min() == 0

    # torchvision's own draws: mean area and mean ratio of 4000 boxes, standard errors below 0.004
    torch.manual_seed(0)
    image = torch.zeros(3, SIZE, SIZE)
    theirs = np.array(
        [T.RandomResizedCrop.get_params(image, [0.2, 1.], [3 / 4, 4 / 3]) for _ in range(4000)]
    )

    for ours, other in ((height * width, theirs[:, 2] * theirs[:, 3]), (SIZE * height / width,) * 2):
        assert ours.mean() / SIZE ** 2 == pytest.approx(other.mean() / SIZE ** 2, abs=0.02)
    assert np.log(width / height).mean() == pytest.approx(0, abs=0.01)


def test_resized_crop_falls_back_to_the_whole_image():
    step = ResizedCrop(SIZE, (0.99, 1.))
    numbers = np.full((2, step.num_uniforms), 0.999)
    numbers[1, step.tries + 4] = 0.5  # the fifth try of the second image fits
    params = step.sample(numbers)

    assert (params['height'][0], params['width'][0]) == (SIZE, SIZE)
    assert (params['top'][0], params['left'][0]) == (0, 0)
    assert params['height'][1] == SIZE


# ------------------------------------------------------------------------ photometry

def test_color_jitter_follows_each_images_order():
    images, step = make_images(120), ColorJitter()
    params = step.sample(uniforms(step, 120))
    functions = [F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue]

    def reference(image, applied, order, factors):
        for kind in order if applied else []:
            image = functions[kind](image, float(factors[kind]))
        return image

    expected = one_by_one(reference, images, params['applied'], params['order'], params['factors'])
    # one level of the hue can grow by a later factor of at most 1.4 each
    difference = (step.apply(images, params).int() - expected.int()).abs()
    assert difference.max() <= 3 and (difference > 0).float().mean() < 0.005


def test_color_jitter_parameters():
    step = ColorJitter()
    params = step.sample(uniforms(step, 24000))

    assert params['applied'].mean() == pytest.approx(0.8, abs=0.01)
    assert (params['factors'] >= [0.6, 0.6, 0.6, -0.1]).all()
    assert (params['factors'] <= [1.4, 1.4, 1.4, 0.1]).all()
    assert params['factors'].mean(0) == pytest.approx([1, 1, 1, 0], abs=0.01)

    _, counts = np.unique(params['order'], axis=0, return_counts=True)
    # chi-square, 23 degrees, p = .001
    assert len(counts) == 24 and ((counts - 1000) ** 2 / 1000).sum() < 49.7


def test_gaussian_blur():
    images, step = make_images(60), GaussianBlur(SIZE, p=1.)
    params = step.sample(uniforms(step, 60))
    taps = 2 * step.radius + 1
    expected = one_by_one(
        lambda image, sigma: F.gaussian_blur(image, [taps, taps], [sigma, sigma]), images, params['sigma'].tolist())

    assert_close(step.apply(images, params), expected, levels=1)
    assert params['sigma'].min() >= 0.1 and params['sigma'].max() <= 2 and taps == 13


def test_cutout():
    images, step = make_images(64) | 1, Cutout(SIZE, 16)
    params = step.sample(uniforms(step, 64))
    expected = images.clone()
    for image, y, x in zip(expected, params['centre_y'], params['centre_x'], strict=True):
        image[:, max(y - 8, 0):min(y + 8, SIZE), max(x - 8, 0):min(x + 8, SIZE)] = 0

    assert_close(step.apply(images, params), expected)


def autoaugment_oracle(monkeypatch, image, policy, applied, signs):
    """Run torchvision's transform on one image with the parameters that it would draw."""
    drawn = int(policy), torch.where(torch.as_tensor(applied), -1., 2.), torch.as_tensor(signs)
    monkeypatch.setattr(T.AutoAugment, 'get_params', staticmethod(lambda transform_num: drawn))
    return T.AutoAugment(T.AutoAugmentPolicy.CIFAR10, fill=128)(image)


def test_every_operation_of_autoaugment(monkeypatch):
    step = AutoAugment(SIZE)
    grid = [(p, a, b, s, t) for p in range(25) for a in (0, 1) for b in (0, 1) for s in (0, 1) for t in (0, 1)]
    images = make_images(len(grid), seed=4)
    numbers = np.empty((len(grid), 5))
    for row, (policy, first, second, *signs) in enumerate(grid):
        numbers[row] = [(policy + 0.5) / 25, 0 if first else 0.9999, 0 if second else 0.9999, *np.array(signs) * 0.5]
    params = step.sample(numbers)

    assert params['policy'].tolist() == [row[0] for row in grid]

    wanted = step.probabilities[params['policy']] > numbers[:, 1:3]
    expected = torch.stack([
        autoaugment_oracle(monkeypatch, image, policy, applied, signs)
        for image, policy, applied, signs in zip(images, params['policy'], wanted, numbers[:, 3:5] >= 0.5, strict=True)
    ])

    assert_close(step.apply(images, params), expected)
    assert (expected != images).flatten(1).any(1).sum() > len(grid) / 2


def test_autoaugment_frequencies():
    step = AutoAugment(SIZE)
    params = step.sample(uniforms(step, 50000))
    counts = np.bincount(params['policy'], minlength=25)

    # chi-square, 24 degrees, p = .001
    assert len(counts) == 25 and ((counts - 2000) ** 2 / 2000).sum() < 51.2
    for policy, operations in enumerate(step.policies):
        for slot, (_, probability, _) in enumerate(operations):
            rate = (params['actions'][params['policy'] == policy, slot] > 0).mean()
            assert rate == pytest.approx(probability, abs=0.045)

    rotations = params['actions'][params['policy'] == 1, 0]
    left, right = np.unique(rotations[rotations > 0], return_counts=True)[1]

    assert left / (left + right) == pytest.approx(0.5, abs=0.05)


def test_autoaugment_fill():
    image = torch.full((1, 3, SIZE, SIZE), 200, dtype=torch.uint8)
    numbers = np.array([[21.5 / 25, 0, 0, 0.9, 0.9]])  # TranslateY twice
    grey, black = (
        step.apply(image, step.sample(numbers)) for step in (AutoAugment(SIZE), AutoAugment(SIZE, fill=0)))

    assert set(grey.unique().tolist()) == {128, 200} and set(black.unique().tolist()) == {0, 200}


# ------------------------------------------------------------------------ frequencies

def test_rates_and_offsets():
    count = 40000

    assert Flip().sample(uniforms(Flip(), count)).mean() == pytest.approx(0.5, abs=0.01)
    assert len(Grayscale().sample(uniforms(Grayscale(), count))) / count == pytest.approx(0.2, abs=0.008)

    blur = GaussianBlur(SIZE)

    assert len(blur.sample(uniforms(blur, count))['rows']) / count == pytest.approx(0.5, abs=0.01)

    crop = PadCrop(4).sample(uniforms(PadCrop(4), count))
    cells = np.bincount(crop['top'] * 9 + crop['left'], minlength=81)

    # 80 degrees, p = .001
    assert len(cells) == 81 and ((cells - count / 81) ** 2 / (count / 81)).sum() < 124.9

    hole = Cutout(SIZE).sample(uniforms(Cutout(SIZE), count))

    for centres in hole.values():
        cells = np.bincount(centres, minlength=SIZE)
        assert len(cells) == SIZE
        assert ((cells - count / SIZE) ** 2 / (count / SIZE)).sum() < 61.1  # 31, p = .001


# ------------------------------------------------------------------------ views by name

def test_the_views_are_listed():
    assert list_views() == sorted([*VIEWS, 'corner', 'rand'])


@pytest.mark.parametrize('name', VIEWS)
def test_views_leave_their_input_and_handle_batches_alike(name):
    view, images = create_view(name, SIZE), make_images(70)
    numbers = uniforms(view, 70)
    kept = images.clone()
    whole = view.apply(images, view.sample(numbers))

    assert whole.shape == images.shape and whole.dtype == torch.uint8 and torch.equal(images, kept)

    parts = [slice(0, 1), slice(1, 34), slice(34, 70)]
    pieces = torch.cat([view.apply(images[part], view.sample(numbers[part])) for part in parts])

    assert torch.equal(whole, pieces)
    assert torch.equal(whole, images) == (name == 'eval')


def test_views_compose_geometry_then_photometry():
    kinds = {name: [type(step).__name__ for step in create_view(name, SIZE).steps] for name in VIEWS}
    assert kinds['autoaugment'] == ['PadCrop', 'Flip', 'AutoAugment', 'Cutout']
    assert kinds['sim'] == ['ResizedCrop', 'Flip', 'ColorJitter', 'Grayscale']
    assert kinds['sim_blur'] == [*kinds['sim'], 'GaussianBlur']
    assert [type(step).__name__ for step in create_view('sim', SIZE).geometry] == ['ResizedCrop', 'Flip']


def test_arguments_of_a_view():
    assert create_view('sim(scale=0.08)', SIZE).geometry[0].scale == (0.08, 1.)
    assert create_view('sim', SIZE).geometry[0].scale == (0.2, 1.)
    assert create_view(' autoaugment(cutout=8, padding=2) ', SIZE).photometry[1].length == 8


@pytest.mark.parametrize('name, message', [
    ('crop_flop', 'unknown view.*crop_flip'),
    ('sim(size=3)', "takes scale; got 'size'"),
    ('sim(0.08)', 'cannot read'),
    ('eval(x=1)', 'takes crop_pct, interpolation; got'),
    ('sim(scale=2)', r'scale must be in \(0, 1\], got 2'),
    ('sim(scale="a")', 'view .sim'),
    ('sim(', 'cannot read'),
    ('sim(scale=open("x"))', 'cannot read'),
    ('sim(**{})', 'cannot read'),
    ('', 'cannot read'),
])
def test_bad_views(name, message):
    with pytest.raises(UserError, match=message) as error:
        create_view(name, SIZE)
    assert '\n' not in str(error.value)


@pytest.mark.gpu
@pytest.mark.parametrize('name', VIEWS)
def test_the_device_makes_no_difference(name):
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    view, images = create_view(name, SIZE), make_images(2000)
    params = view.sample(uniforms(view, 2000))

    assert torch.equal(view.apply(images.cuda(), params).cpu(), view.apply(images, params))
