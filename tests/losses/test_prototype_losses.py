"""Complement entropy, prototype conformity and ProCo: closed forms, edges, and the Bessel functions of the last.

What every loss is held to is in test_losses.py.
"""
import math
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from timm_longtail.losses import complement_entropy_loss, proco_loss, prototype_conformity_loss
from timm_longtail.losses.proco import log_bessel
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import make_sample
from ..support.reference import prototype


def value_and_gradients(loss, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    value = loss(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves]


# rows that count

LOSSES = {
    'complement': lambda sample, logits, features, mask: complement_entropy_loss(logits, sample.target, mask),
    'conformity': lambda sample, logits, features, mask: prototype_conformity_loss(
        features, sample.target, sample.prototypes.to(features.dtype), mask),
}
each_loss = pytest.mark.parametrize('loss', LOSSES.values(), ids=LOSSES)


@each_loss
def test_a_mask_leaves_the_divisor(loss):
    """The parts of two masks add up to the whole: each divides by the batch, not by its rows."""
    sample = make_sample()
    first, second, whole = (loss(sample, sample.logits, sample.embeddings, mask) for mask in (
        sample.mask, ~sample.mask, None))
    assert first != 0 and second != 0
    torch.testing.assert_close(first + second, whole)
    torch.testing.assert_close(loss(sample, sample.logits, sample.embeddings, sample.mask | True), whole)


@each_loss
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_no_row_counts(loss, dtype):
    sample = make_sample()
    logits, features = (t.to(dtype).requires_grad_() for t in (sample.logits, sample.embeddings))
    value = loss(sample, logits, features, torch.zeros(9, dtype=torch.bool))
    value.backward()
    (gradient,) = (leaf.grad for leaf in (logits, features) if leaf.grad is not None)
    assert value == 0 and gradient.shape[0] == 9 and not gradient.any()


@each_loss
@pytest.mark.parametrize('mask', [torch.ones(9), torch.ones(8).bool(), torch.ones(9, 1).bool()])
def test_bad_mask(loss, mask):
    sample = make_sample()
    with pytest.raises(UserError, match=r'expected a mask bool \[9\], got torch'):
        loss(sample, sample.logits, sample.embeddings, mask)


# complement entropy

@pytest.mark.parametrize('num_classes', [2, 3, 10, 100])
def test_equal_wrong_classes_are_the_minimum(num_classes):
    logits = torch.zeros(4, num_classes, dtype=torch.float64)
    logits[:, 1] = torch.tensor([-3., 0., 5., 40.])  # the right class, as it likes
    value, (gradient,) = value_and_gradients(
        lambda x: complement_entropy_loss(x, torch.ones(4, dtype=torch.int64)), logits)
    assert float(value) == pytest.approx(-math.log(num_classes - 1) / (num_classes - 1), abs=1e-12)
    assert gradient.abs().max() < 1e-15


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('certainty', [30., 1e4])
def test_a_certain_prediction_keeps_its_complement(dtype, certainty):
    """p_y is 1 in any precision, and p' is what it was."""
    logits = torch.tensor([[0., 1., 2., -1.]], dtype=dtype)
    target = torch.tensor([0])
    expected, (expected_gradient,) = value_and_gradients(lambda x: complement_entropy_loss(x, target), logits)
    logits[0, 0] = certainty
    value, (gradient,) = value_and_gradients(lambda x: complement_entropy_loss(x, target), logits)
    assert value == expected and torch.equal(gradient, expected_gradient)
    assert gradient[0, 0] == 0 and gradient[0, 2] > 0 > gradient[0, 3]


def test_one_wrong_class_takes_all():
    logits = torch.tensor([[0., 200., -200., 0.]])
    value, (gradient,) = value_and_gradients(lambda x: complement_entropy_loss(x, torch.tensor([0])), logits)
    assert value == 0 and gradient.isfinite().all()


@pytest.mark.parametrize('num_classes', [1, 2])
def test_no_complement_to_speak_of(num_classes):
    logits = torch.randn(3, num_classes, generator=torch.Generator().manual_seed(0))
    value, (gradient,) = value_and_gradients(
        lambda x: complement_entropy_loss(x, torch.zeros(3, dtype=torch.int64)), logits)
    assert value == 0 and not gradient.any()


def test_bad_logits():
    with pytest.raises(UserError, match=r'expected logits \[B, C\] and target \[B\], got \[3, 4\] and \[2\]'):
        complement_entropy_loss(torch.zeros(3, 4), torch.zeros(2).long())


# prototype conformity

OPTIONS = [dict(zip(('squared', 'centre_term'), values)) for values in product([False, True], repeat=2)]


@pytest.mark.parametrize('options', OPTIONS, ids=str)
@pytest.mark.parametrize('repel', [False, True])
def test_conformity_equals_the_loops(options, repel):
    sample = make_sample()

    def loss(function, features, centroids, others):
        return function(features, sample.target, centroids, sample.mask, **options,
                        repel_centroids=others if repel else None) + 0 * others.sum()
    tensors = sample.embeddings, sample.prototypes, sample.means
    value, gradients = value_and_gradients(lambda *t: loss(prototype_conformity_loss, *t), *tensors)
    expected, expected_gradients = value_and_gradients(
        lambda *t: loss(prototype.prototype_conformity_loss, *t), *tensors)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-12)
    assert bool(gradients[2].any()) == repel


@pytest.mark.parametrize('squared, expected', [(False, -2 * math.sqrt(2)), (True, -4)])
def test_features_at_their_centroids(squared, expected):
    """Of the unit vectors of the axes, any two are sqrt(2) apart."""
    target = torch.tensor([0, 2, 2, 1])
    value = prototype_conformity_loss(torch.eye(3)[target], target, torch.eye(3), squared=squared)
    assert float(value) == pytest.approx(expected)
    value = prototype_conformity_loss(torch.eye(3)[target], target, torch.eye(3), squared=squared, centre_term=False)
    assert float(value) == pytest.approx(expected / 2)


@pytest.mark.parametrize('squared, power', [(False, 1), (True, 2)])
def test_scale_and_place(squared, power):
    """Scaled with its inputs, so wherever it is negative it is unbounded; the same everywhere."""
    sample = make_sample()

    def loss(scale, shift):
        return prototype_conformity_loss(
            scale * sample.embeddings + shift, sample.target, scale * sample.prototypes + shift, squared=squared)
    torch.testing.assert_close(loss(100, 0), 100 ** power * loss(1, 0))
    torch.testing.assert_close(loss(1, 3), loss(1, 0))
    assert loss(1, 0) < 0


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('squared', [False, True])
def test_equal_points_have_no_direction(dtype, squared):
    """A feature on its own centroid, on another's, and centroids on each other."""
    centroids = torch.tensor([[1., 2.], [3., 4.], [3., 4.]], dtype=dtype)
    features = torch.tensor([[1., 2.], [3., 4.], [3., 4.]], dtype=dtype)
    target = torch.tensor([0, 1, 0])
    value, gradients = value_and_gradients(
        lambda f, w: prototype_conformity_loss(f, target, w, squared=squared), features, centroids)
    assert value.isfinite() and all(gradient.isfinite().all() for gradient in gradients)
    value, gradients = value_and_gradients(
        lambda f, w: prototype_conformity_loss(f, target, w, squared=squared), 0 * features, 0 * centroids)
    assert value == 0 and not any(gradient.any() for gradient in gradients)


def test_close_points_are_not_rounded_away():
    """By ||a||^2 - 2ab + ||b||^2 in float32 these distances would be 0, or 3 % off."""
    offset = 1e-3 * torch.tensor([[1., 0.], [0., 1.]])
    value = prototype_conformity_loss(
        torch.full((1, 2), 30.), torch.tensor([0]), 30 + offset, centre_term=False)
    assert abs(float(value)) < 1e-6
    value = prototype_conformity_loss(
        torch.full((1, 2), 30.), torch.tensor([0]), 30 + offset * torch.tensor([[1.], [2.]]), centre_term=False)
    assert float(value) == pytest.approx(-1e-3, rel=5e-3)


def test_one_class_only_attracts():
    features = torch.tensor([[3., 4.], [0., 0.]])
    value = prototype_conformity_loss(features, torch.zeros(2).long(), torch.zeros(1, 2))
    assert float(value) == 2.5


def test_classes_outside_the_mask_repel():
    sample = make_sample()
    _, (gradient,) = value_and_gradients(
        lambda w: prototype_conformity_loss(sample.embeddings, sample.target, w, sample.target == sample.target[0]),
        sample.prototypes)
    assert (gradient.norm(dim=1) > 1e-3).all()


@pytest.mark.parametrize('features, target, centroids, others', [
    ((9, 5), (8,), (4, 5), None), ((9,), (9,), (4, 5), None), ((9, 5), (9,), (4, 6), None),
    ((9, 5), (9,), (4,), None), ((9, 5), (9,), (4, 5), (3, 5)),
])
def test_bad_shapes(features, target, centroids, others):
    with pytest.raises(UserError, match=r'expected features \[B, D\], target \[B\] and centroids \[C, D\], got'):
        prototype_conformity_loss(
            torch.zeros(features), torch.zeros(target).long(), torch.zeros(centroids),
            repel_centroids=None if others is None else torch.zeros(others))


# ProCo

ORDERS = -0.5, 0, 0.5, 1, 7, 29.5, 31, 63, 511
POINTS = 0., 1e-3, 0.1, 1., 10., 40., 63., 100., 1000., 1e5


@pytest.mark.parametrize('order', ORDERS)
def test_bessel_functions_and_their_ratio(order):
    mp = pytest.importorskip('mpmath')
    square = torch.tensor(POINTS, dtype=torch.float64).square().requires_grad_()
    value = log_bessel(order, square)
    value.sum().backward()

    def exact(order, x):
        order = mp.mpf(order)
        if x == 0:
            return -order * mp.log(2) - mp.loggamma(order + 1)
        return mp.log(mp.besseli(order, mp.mpf(x))) - order * mp.log(x)
    with mp.workdps(40):
        expected = [exact(order, x) for x in POINTS]
        slope = [float(mp.exp(exact(order + 1, x) - e) / 2) for x, e in zip(POINTS, expected)]
    torch.testing.assert_close(
        value.detach(), torch.tensor([float(e) for e in expected], dtype=torch.float64), rtol=2e-12, atol=2e-12)
    torch.testing.assert_close(square.grad, torch.tensor(slope, dtype=torch.float64), rtol=1e-10, atol=0)


def test_bessel_functions_are_those_of_scipy():
    special = pytest.importorskip('scipy.special')
    x = torch.linspace(0.5, 200, 50, dtype=torch.float64)
    for order in (0, 1.5, 15, 63):
        expected = torch.from_numpy(special.ive(order, x.numpy())).log() + x - order * x.log()
        torch.testing.assert_close(log_bessel(order, x.square()), expected, rtol=1e-12, atol=1e-11)


def test_on_the_sphere_in_three_dimensions():
    """There I_{1/2}(x) / sqrt(x) is sinh(x) / x up to a constant: M = (sinh k' / k') / (sinh k / k)."""
    sample = make_sample()
    z, means = sample.embeddings[:, :3], sample.means[:, :3]
    length = means.norm(dim=1, keepdim=True)
    kappa = length * (3 - length ** 2) / (1 - length ** 2)
    shifted = (kappa * means / length + z[:, None] / 0.3).norm(dim=2)
    weighted = sample.class_counts * (shifted.sinh() / shifted) / (kappa.sinh() / kappa).T
    expected = F.nll_loss((weighted / weighted.sum(1, keepdim=True)).log(), sample.target)
    torch.testing.assert_close(proco_loss(z, sample.target, means, sample.class_counts, 0.3), expected)


def test_the_moment_is_an_expectation():
    """M of vMF samples of the sphere in three dimensions, which can be drawn by inversion."""
    generator = torch.Generator().manual_seed(0)
    kappa, temperature = 4.0, 0.5
    uniform, angle = torch.rand(2, 400_000, generator=generator, dtype=torch.float64)
    along = 1 + (uniform + (1 - uniform) * math.exp(-2 * kappa)).log() / kappa  # the cosine with the mean direction
    across = (1 - along ** 2).sqrt()
    x = torch.stack([across * (2 * math.pi * angle).cos(), across * (2 * math.pi * angle).sin(), along], dim=1)
    length = (x.mean(0)).norm()
    assert float(length * (3 - length ** 2) / (1 - length ** 2)) == pytest.approx(kappa, rel=0.05)  # Banerjee et al.

    z = F.normalize(torch.tensor([[1., 2., 2.]], dtype=torch.float64))
    # of two classes, one uniform: its moment is sinh(1 / t) t
    counts = torch.tensor([3., 1.])
    moment = torch.stack([(x @ z[0] / temperature).exp().mean(), torch.tensor(2.0).sinh().double() / 2])
    expected = -(counts * moment / (counts * moment).sum()).log()[0]
    means = torch.stack([torch.tensor([0, 0, 1 / math.tanh(kappa) - 1 / kappa]), torch.zeros(3)]).double()
    value = proco_loss(z, torch.tensor([0]), means, counts, temperature)
    assert float(value) == pytest.approx(float(expected), abs=0.01)


def test_classes_that_were_never_seen_leave_the_prior():
    sample = make_sample()
    prior = sample.class_counts / sample.class_counts.sum()
    value, (gradient,) = value_and_gradients(
        lambda z: proco_loss(z, sample.target, 0 * sample.means, sample.class_counts, 0.1), sample.embeddings)
    torch.testing.assert_close(value, -prior.log()[sample.target].mean().double())
    assert gradient.abs().max() < 1e-14


def test_classes_of_one_point_are_a_softmax_over_prototypes():
    """The length of their mean is 1, or rounded past it: the cap is the concentration, and the moment e^(mu.z / t)."""
    sample = make_sample('wide')
    expected = F.cross_entropy(
        sample.embeddings @ sample.prototypes.T / 0.2 + sample.class_counts.log(), sample.target)
    for length in (1.0, 1 + 1e-7):
        value = proco_loss(
            sample.embeddings, sample.target, length * sample.prototypes, sample.class_counts, 0.2,
            max_concentration=1e8)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('width', [1, 2, 3, 128, 1024])
def test_any_width(width):
    generator = torch.Generator().manual_seed(0)
    z, means = F.normalize(torch.randn(6, width, generator=generator)), torch.randn(3, width, generator=generator)
    means = F.normalize(means) * torch.tensor([[0.], [0.9], [1.]])
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    value, gradients = value_and_gradients(
        lambda z, means: proco_loss(z, target, means, [5, 3, 1], 0.05), z, means)
    expected = proco_loss(z.double(), target, means.double(), [5, 3, 1], 0.05)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize('shape', [(4, 3), (5,)])
def test_bad_means(shape):
    sample = make_sample()
    with pytest.raises(UserError, match=r'expected means \[C, 5\], got'):
        proco_loss(sample.embeddings, sample.target, torch.zeros(shape), sample.class_counts, 0.1)
