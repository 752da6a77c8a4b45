"""GLMC and GLMC with its contrast, against the loops and at their boundaries."""
import copy
import itertools
import math

import numpy as np
import pytest
import timm
import torch
from torch import nn

from timm_longtail.losses import mixing_ratio_contrastive_loss
from timm_longtail.methods import create_method
from timm_longtail.methods.glmc import draw_box
from timm_longtail.models import attach_branches
from timm_longtail.utils.errors import UserError

from ..support.ddp import run_distributed
from ..support.reference import mixing
from .test_parity import loss_and_gradients

COUNTS = [60, 25, 9, 4]
BATCH = 5
CLOSE = {'rtol': 1e-6, 'atol': 1e-8}
TARGET1, TARGET2 = torch.tensor([0, 0, 1, 3, 0]), torch.tensor([0, 1, 1, 0, 3])  # class 2 is in neither


class Draws:
    """A generator whose numbers are given: the share, then row and column of the box's centre, step by step."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def beta(self, a, b):
        return self.numbers.pop(0)

    def integers(self, size):
        value = self.numbers.pop(0)
        assert 0 <= value < size
        return value


def make_method(name='glmc', **kwargs):
    torch.manual_seed(0)
    model = timm.create_model('glmc_resnet20', layers=(1, 1, 1), channels=(4, 6, 8), num_classes=len(COUNTS))
    return create_method(name, model, COUNTS, **{'out_features': 6, **kwargs}).double()


def make_batches(side=(8, 12)):
    generator = torch.Generator().manual_seed(1)
    views = [torch.randn(BATCH, 3, *side, generator=generator, dtype=torch.float64) for _ in range(4)]
    index = torch.arange(BATCH)
    return (tuple(views[:2]), TARGET1, index), (tuple(views[2:]), TARGET2, index)


def begin(method, epoch, num_epochs, *draws):
    # float32 in training: here in the precision of the loops
    weight = torch.tensor(COUNTS, dtype=torch.float64) ** -1.2
    weight = (weight / weight.mean()).to(method.class_weight)
    torch.testing.assert_close(method.class_weight, weight, rtol=1e-6, atol=0)
    method.class_weight = weight
    method.start_epoch(epoch, num_epochs, Draws(*draws), None)
    return method


def loop_parts(method, first, second, lam, centre):
    """Mix by the loops, and run the network on one mixture after the other."""
    (x1, x2), (y1, y2) = first[0], second[0]
    cut, area = mixing.cutmix(x2, y2, lam, centre, method.even_box)
    features = [method.features(x) for x in (mixing.mixup(x1, y1, lam), cut)]
    projections = [method.model.branches['projector'](f) for f in features]
    return features, projections, area


def loop_loss(method, lam, centre, epoch, num_epochs):
    first, second = make_batches()
    features, projections, area = loop_parts(method, first, second, lam, centre)
    branches = method.model.branches
    return mixing.glmc_loss(
        [branches['classifier'](f) for f in features], [method.model.fc(f) for f in features], projections,
        [branches['predictor'](z) for z in projections], first[1], second[1],
        (lam, 1 - area if method.area_correction else lam), COUNTS, epoch, num_epochs,
        reweight_power=1.2, consistency_weight=method.consistency_weight)


def gradients(method, loss):
    parameters = dict(method.named_parameters())
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(parameters.items(), found)}


# the whole loss

@pytest.mark.parametrize('lam', [0.0, 0.37, 1.0])
@pytest.mark.parametrize('epoch', [0, 3, 9])
@pytest.mark.parametrize('options, centre', [
    ({}, (3, 5)), ({'area_correction': True}, (7, 0)), ({'even_box': False}, (4, 6)),
])
def test_equals_the_loops(lam, epoch, options, centre):
    method = begin(make_method(**options), epoch, 10, lam, *centre).train()
    result = method(*make_batches())
    expected = loop_loss(method, lam, centre, epoch, 10)
    torch.testing.assert_close(result['loss'], expected, **CLOSE)
    torch.testing.assert_close(gradients(method, result['loss']), gradients(method, expected), **CLOSE)
    assert result['output'] is None


def test_the_weights_of_the_two_classifiers_over_the_epochs():
    """At t = 0 only the plain one trains, at t = T - 1 nearly only the re-balanced one, which predicts."""
    for epoch, alpha in ((0, 1.0), (5, 0.75), (9, 0.19)):
        method = begin(make_method(), epoch, 10, 0.4, 3, 3).train()
        assert method.balance == pytest.approx(alpha)
        result = method(*make_batches())
        torch.testing.assert_close(
            result['loss'], alpha * result['balanced_loss'] + (1 - alpha) * result['rebalanced_loss']
            + 4 * result['consistency_loss'])
        norms = {n: g.norm().item() for n, g in gradients(method, result['loss']).items()}
        assert (norms['model.fc.weight'] > 0) == (epoch > 0)
        assert norms['model.branches.classifier.weight'] > 0
    assert method.model.eval()(make_batches()[0][0][0]).shape == (BATCH, len(COUNTS))
    torch.testing.assert_close(
        method.model(make_batches()[0][0][0]), method.logits(method.features(make_batches()[0][0][0])))


def test_a_class_absent_from_the_batch_is_pushed_down():
    method = begin(make_method(), 9, 10, 0.4, 3, 3).train()
    found = gradients(method, method(*make_batches())['loss'])
    assert 2 not in [*TARGET1, *TARGET2]
    assert found['model.fc.bias'][2] > 0 and found['model.branches.classifier.bias'][2] > 0


@pytest.mark.parametrize('q', [0.0, 1.0, 1.2])
def test_labels_are_weighted_by_class(q):
    weight = make_method(reweight_power=q).class_weight
    assert weight.mean().item() == pytest.approx(1)
    torch.testing.assert_close(weight / weight[0], (60 / torch.tensor(COUNTS).double()) ** q, rtol=1e-5, atol=0)
    assert 'class_weight' not in make_method().state_dict()  # of the data, not of the run


def test_each_mixture_has_its_batch_statistics_unless_joint():
    apart, joint = (begin(make_method(joint_forward=j), 3, 10, 0.4, 3, 3, 0.4, 3, 3) for j in (False, True))
    values = [method.train()(*make_batches())['loss'] for method in (apart, joint)]
    assert abs(values[0] - values[1]) > 1e-3
    assert [m.model.bn1.num_batches_tracked.item() for m in (apart, joint)] == [2, 1]
    joint.load_state_dict(apart.state_dict())
    values = [method.eval()(*make_batches())['loss'] for method in (apart, joint)]
    torch.testing.assert_close(*values)  # without them there is no difference


# mixing

@pytest.mark.parametrize('lam, centre, area', [
    (1.0, (0, 0), 0),  # nothing of the second image
    (0.0, (4, 6), 1), (0.0, (0, 0), 1 / 4),  # all of it, and what the border leaves of all of it
    (0.75, (4, 6), 1 / 4), (0.75, (0, 11), 1 / 4 / 2 * 4 / 6), (0.75, (7, 11), 3 * 4 / 96), (0.3, (2, 9), None),
    (0.5, (4, 6), None), (0.99, (0, 0), None), (0.6, (7, 11), None),  # sides of 6 and 9, 1 and 2, 6 and 8
])
def test_mixtures_equal_the_loops(lam, centre, area):
    first, second = make_batches()
    before = [x.clone() for x in (*first[0], *second[0])]
    for correct, even in itertools.product((False, True), repeat=2):
        method = begin(make_method(area_correction=correct, even_box=even), 0, 1, lam, *centre)
        mixture = method.mix(first, second)
        cut, share = mixing.cutmix(first[0][1], second[0][1], lam, centre, even)
        torch.testing.assert_close(mixture.mixup, mixing.mixup(first[0][0], second[0][0], lam))
        torch.testing.assert_close(mixture.cutmix, cut, rtol=0, atol=0)
        assert area is None or share == pytest.approx(area)
        kept = 1 - share if correct else lam
        for label, part in ((mixture.mixup_target, lam), (mixture.cutmix_target, kept)):
            for i in range(BATCH):
                expected = torch.zeros(len(COUNTS), dtype=torch.float64)
                expected[TARGET1[i]] += part
                expected[TARGET2[i]] += 1 - part
                torch.testing.assert_close(label[i], expected)
    assert all(torch.equal(a, b) for a, b in zip(before, (*first[0], *second[0])))  # a view may be of one memory


def test_boxes_by_hand():
    """A share of .5 asks for 7.07 of 10 and 8.49 of 12 pixels, so for 8 and 9; the released code takes 8 and 8."""
    published = draw_box(0.5, 10, 12, Draws(5, 6), even=True)
    assert published == (slice(1, 9), slice(2, 10))
    assert draw_box(0.5, 10, 12, Draws(5, 6)) == (slice(1, 9), slice(2, 11))
    assert draw_box(0.5, 10, 12, Draws(9, 0), even=True) == (slice(5, 10), slice(0, 4))
    assert draw_box(0.999, 10, 12, Draws(5, 6)) == (slice(5, 6), slice(6, 7))
    rows, columns = draw_box(0.999, 10, 12, Draws(5, 6), even=True)  # a side of one pixel becomes none
    assert rows.start == rows.stop and columns.start == columns.stop


def test_boxes_of_the_released_code_are_smaller():
    """Of 32 pixels, over uniform shares and centres: .321 of the area against .331, and two in five differ."""
    shares = (np.arange(200) + 0.5) / 200
    areas, differing = {True: 0.0, False: 0.0}, 0.0
    for lam in shares:
        spans = {even: [draw_box(lam, 32, 32, Draws(place, place), even)[0] for place in range(32)]
                 for even in areas}
        for even, found in spans.items():  # rows and columns are drawn apart: the mean of a product
            areas[even] += (np.mean([span.stop - span.start for span in found]) / 32) ** 2 / len(shares)
        same = np.mean([a == b for a, b in zip(*spans.values())])
        differing += (1 - same ** 2) / len(shares)
    assert areas[True] == pytest.approx(0.321, abs=0.001) and areas[False] == pytest.approx(0.331, abs=0.001)
    assert differing == pytest.approx(0.42, abs=0.01)


def test_boxes():
    rng = np.random.default_rng(0)
    inside = np.zeros((16, 24))
    for _ in range(2000):
        lam = rng.beta(1, 1)
        state = rng.bit_generator.state
        rows, columns = draw_box(lam, 16, 24, rng)
        assert 0 <= rows.start <= rows.stop <= 16 and 0 <= columns.start <= columns.stop <= 24
        assert rows.stop - rows.start <= math.ceil(math.sqrt(1 - lam) * 16)
        inside[rows, columns] += 1
        replay = np.random.default_rng()
        replay.bit_generator.state = state
        centre = int(replay.integers(16)), int(replay.integers(24))  # two numbers, whatever the share
        assert replay.bit_generator.state == rng.bit_generator.state
        if lam < 0.9:
            assert rows.start <= centre[0] < rows.stop and columns.start <= centre[1] < columns.stop
    assert inside[8, 12] > 1.3 * inside[0, 0]  # what lies outside is cut off, not moved inside


def test_one_ratio_for_both_mixtures_and_a_new_one_each_step():
    method = make_method(mix_alpha=0.5)
    method.start_epoch(0, 2, np.random.default_rng(3), None)
    shares = [method.mix(*make_batches()).lam for _ in range(400)]
    assert len(set(shares)) == 400
    rng = np.random.default_rng(3)
    for share in shares[:5]:
        assert share == float(rng.beta(0.5, 0.5))
        rng.integers(8), rng.integers(12)
    assert np.mean([min(s, 1 - s) < 0.05 for s in shares]) > 0.2  # Beta(.5, .5): far from the uniform 0.1


# sampling

@pytest.mark.parametrize('k', [0.0, 0.2, 1.0])
def test_the_second_stream_draws_an_image_by_the_size_of_its_class(k):
    targets = np.repeat(np.arange(4), COUNTS)
    uniform, sampler = make_method(resample_power=k).samplers(targets)
    weights = np.array([COUNTS[t] ** -k for t in targets])  # of each image
    expected = [weights[targets == c].sum() / weights.sum() for c in range(4)]
    assert uniform is None and len(sampler) == len(targets)
    np.testing.assert_allclose(sampler.class_probabilities, expected)
    if k == 1:
        np.testing.assert_allclose(expected, 0.25)
    drawn = []
    for epoch in range(40):
        sampler.set_epoch(epoch)
        drawn += sampler.order().tolist()
    frequencies = np.bincount(targets[drawn], minlength=4) / len(drawn)
    np.testing.assert_allclose(frequencies, expected, atol=0.03)
    if k == 0:
        assert len(set(sampler.order().tolist())) < len(targets)  # with replacement: some come twice


# the contrast

CONTRASTS = {
    'default': {}, 'cool': {'temperature': 0.1, 'contrastive_weight': 0.5}, 'cross only': {'cross_only': True},
    'other class': {'negatives': 'other_class'}, 'predictor': {'head': 'predictor'}, 'features': {'head': 'features'},
}


@pytest.mark.parametrize('options', CONTRASTS.values(), ids=CONTRASTS)
@pytest.mark.parametrize('lam', [0.0, 0.37, 1.0])
@pytest.mark.parametrize('epoch', [0, 9])
def test_the_contrast_equals_the_loops(options, lam, epoch):
    method = begin(make_method('glmc_clr', **options), epoch, 10, lam, 2, 9).train()
    first, second = make_batches()
    result = method(first, second)
    features, _projections, _ = loop_parts(method, first, second, lam, (2, 9))
    rows = [*features, *(method.features(batch[0][0]) for batch in (first, second))]
    if options.get('head') != 'features':
        rows = [method.model.branches['projector'](f) for f in rows]
    if options.get('head') == 'predictor':
        rows = [method.model.branches['predictor'](z) for z in rows]
    z_mixup, z_cutmix, z1, z2 = rows
    targets = (TARGET1, TARGET2) if options.get('negatives') else ()
    contrast = mixing.mixing_ratio_contrastive_loss(
        z1, z2, z_mixup, z_cutmix, lam, options.get('temperature', 0.5), *targets,
        cross_only=options.get('cross_only', False))
    expected = loop_loss(method, lam, (2, 9), epoch, 10) + options.get('contrastive_weight', 1.0) * contrast
    torch.testing.assert_close(result['contrastive_loss'], contrast, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(result['loss'], expected, **CLOSE)
    torch.testing.assert_close(gradients(method, result['loss']), gradients(method, expected), **CLOSE)


def test_the_contrast_reaches_the_clean_images():
    """No stop-gradient; the clean images are the first views, of either stream."""
    method = begin(make_method('glmc_clr'), 0, 10, 0.4, 3, 3, 0.4, 3, 3)
    (first, target1, index), (second, target2, _) = make_batches()
    leaves = [x.requires_grad_() for x in (first[0], second[0])]
    features = [method.features(x) for x in (*make_batches()[0][0], *leaves)]
    projections = [method.model.branches['projector'](f) for f in features]
    loss = method.contrast(0.4, features, projections, target1, target2)
    assert all(g.any() for g in torch.autograd.grad(loss, leaves))
    z_mixup, z_cutmix, z1, z2 = projections
    torch.testing.assert_close(loss, mixing_ratio_contrastive_loss(z1, z2, z_mixup, z_cutmix, 0.4, 0.5))
    output = method.eval()((first, target1, index), (second, target2, index))['output']
    torch.testing.assert_close(output, method.logits(method.features(first[0])).detach())
    assert not output.requires_grad


def test_without_its_weight_the_loss_is_glmcs_and_the_running_statistics_are_not():
    values, methods = [], []
    for name, options in (('glmc', {}), ('glmc_clr', {'contrastive_weight': 0.0})):
        method = begin(make_method(name, **options), 4, 10, 0.4, 3, 3).train()
        values.append(method(*make_batches())['loss'])
        methods.append(method)
    torch.testing.assert_close(*values, rtol=1e-12, atol=0)
    # the clean images follow the mixtures
    glmc, clr = methods
    for stream in make_batches():
        glmc.features(stream[0][0])
    torch.testing.assert_close(dict(glmc.model.named_buffers()), dict(clr.model.named_buffers()))


@pytest.mark.ddp
def test_two_processes_leave_out_the_negatives_of_one():
    options = '--method-kwargs', 'negatives=other_class', 'head=predictor'
    loss, gradients = loss_and_gradients(0, 'glmc_clr', 1, *options)
    assert not math.isclose(float(loss), float(loss_and_gradients(0, 'glmc_clr', 1)[0]), rel_tol=1e-3)
    for other_loss, other_gradients in run_distributed(loss_and_gradients, 'glmc_clr', 2, *options):
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-10)
        torch.testing.assert_close(other_gradients, gradients, rtol=1e-8, atol=1e-10)


# options

@pytest.mark.parametrize('name, options, message', [
    ('glmc', {'views': 'crop_flip'}, "'views' of method 'glmc' must be 2 names"),
    ('glmc', {'views': ['crop_flip']}, "'views' of method 'glmc' must be 2 names"),
    ('glmc', {'mix_alpha': 0.0}, 'mix_alpha must be positive'),
    ('glmc_clr', {'temperature': 0.0}, "'temperature' of method 'glmc_clr' must be above 0"),
    ('glmc_clr', {'head': 'fc'}, "head is projector, predictor or features, got 'fc'"),
    ('glmc_clr', {'negatives': 'same'}, "negatives are all or other_class, got 'same'"),
    ('glmc_clr', {'k': 1.0}, "no option 'k'; it takes contrastive_weight, .*resample_power"),
    ('glmc', {'temperature': 1.0}, "method 'glmc' has no option 'temperature'"),
])
def test_refused(name, options, message):
    with pytest.raises(UserError, match=message):
        make_method(name, **options)


def test_branches_of_another_method_are_refused():
    model = timm.create_model('bcl_resnet20', num_classes=4, branches=True)
    with pytest.raises(UserError, match=r'branches already \(projector, prototype\)'):
        create_method('glmc', model, COUNTS)


def test_its_own_branches_are_taken_and_any_backbone_will_do():
    model = attach_branches(timm.create_model('glmc_resnet20', num_classes=4), 'glmc')
    branches = copy.copy(model.branches)
    assert create_method('glmc', model, COUNTS).model.branches['projector'] is branches['projector']
    model = timm.create_model('convnext_atto', num_classes=4, depths=(1, 1, 1, 1), dims=(4, 4, 8, 8))
    method = begin(create_method('glmc_clr', model, COUNTS, out_features=6), 1, 2, 0.4, 20, 20)
    batches = [((x[0].float(), x[1].float()), t, i) for x, t, i in make_batches(side=(32, 32))]
    method(*batches)['loss'].backward()
    assert all(p.grad is not None for p in method.parameters())
    assert isinstance(model.branches['classifier'], nn.Linear)


def test_both_classifiers_start_alike():
    torch.manual_seed(0)
    model = timm.create_model('glmc_resnet32_w64', num_classes=100, branches=True)
    assert model.branches['classifier'].weight.std().item() == pytest.approx(model.fc.weight.std().item(), rel=0.03)


def test_the_start_line_counts_what_an_anchor_is_compared_with():
    assert [make_method('glmc_clr', cross_only=c).contrastive_views for c in (False, True)] == [2, 1]
