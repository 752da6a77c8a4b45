"""Methods made of one classification loss: what their options make of it, mixup and Remix, resuming."""
import itertools

import pytest
import timm
import torch
import torch.nn.functional as F

from timm_longtail.losses import logit_adjusted_cross_entropy
from timm_longtail.methods import Batch, Method, create_method
from timm_longtail.methods._mixup import remix_share, swap_neighbours
from timm_longtail.models.heads import set_head
from timm_longtail.training.loop import fit
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST

from ..support.reference import margins
from ..support.runs import assert_same_state, make_run

COUNTS = [500, 60, 20, 3]


def forward(name: str, *options: str) -> tuple[Method, Batch, dict]:
    """Return the method on the tiny network, its first batch and the result of its forward; nothing is random."""
    _, run = make_run(name, '--method-kwargs', *options)
    run.method.double()
    run.start_epoch(2)
    run.method.eval()

    (x, *views), target, index = next(iter(run.loaders[0]))
    batch = tuple(view.double() for view in (x, *views)), target, index
    return run.method, batch, run.method(batch)


@pytest.mark.parametrize('head', ['linear', 'cosine'])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_logits_are_exact_under_mixed_precision(head, dtype):
    torch.manual_seed(0)
    model = set_head(timm.create_model('resnet20_cifar', num_classes=len(COUNTS)), head)
    method = create_method('ce', model, COUNTS)
    features = torch.randn(64, 64).to(dtype)

    with torch.autocast('cpu', dtype):
        logits = method.logits(features)
    assert torch.equal(logits, model.get_classifier()(features.float()))


@pytest.mark.parametrize('start, weighted', [('0', True), ('1', False)])
def test_ldam_drw_compares_cosines(start, weighted):
    method, ((x,), target, _), result = forward('ldam_drw', f'reweight_start={start}', 'max_margin=0.3')
    head = method.model.get_classifier()
    assert head.scale == 16
    cosines = F.normalize(method.features(x)) @ F.normalize(head.weight).T
    weight = torch.tensor(margins.class_balanced_weights(method.class_counts, 0.9999)) if weighted else None
    expected = margins.ldam_loss(cosines, target, method.class_counts, 0.3, 16.0, weight)
    torch.testing.assert_close(result['loss'], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(result['output'], method.model(x))  # what is deployed


def test_ldam_drw_refuses_a_linear_classifier():
    model = timm.create_model('resnet20_cifar', num_classes=4)
    with pytest.raises(UserError, match='ldam_drw needs a cosine classifier, ResNetCifar has Linear; --model-kwargs'):
        create_method('ldam_drw', model, COUNTS)


@pytest.mark.parametrize('name, options', [
    ('focal', ['gamma=0']), ('class_balanced', ['reweight_start=1']), ('balanced_softmax', ['tau=0']),
    ('ldam_drw', ['reweight_start=1', 'max_margin=0']),
    ('sup_con', ['tau=0', 'ce_weight=1', 'contrastive_weight=0', 'views=("eval","sim","sim")']),
])
def test_options_that_leave_cross_entropy(name, options):
    _, (_, target, _), result = forward(name, *options)
    torch.testing.assert_close(result['loss'], F.cross_entropy(result['output'], target))


def test_class_balanced_focal_loss():
    method, (_, target, _), result = forward('class_balanced', 'gamma=1', 'beta=0.9')
    weight = margins.class_balanced_weights(method.class_counts, 0.9)
    assert max(weight) > 1.01 * min(weight)
    torch.testing.assert_close(
        result['loss'], margins.focal_loss(result['output'], target, 1.0, weight), rtol=1e-6, atol=0)


@pytest.mark.parametrize('start, weighted', [('0', True), ('1', False)])
def test_class_balanced_focal_loss_of_ldams_code(start, weighted):
    options = 'gamma=1', 'beta=0.9', 'inner_weights=True', f'reweight_start={start}'
    method, (_, target, _), result = forward('class_balanced', *options)
    weight = margins.class_balanced_weights(method.class_counts, 0.9) if weighted else None
    expected = margins.focal_loss(result['output'], target, 1.0, weight, inner_weight=True)
    torch.testing.assert_close(result['loss'], expected, rtol=1e-6, atol=0)


def test_balanced_softmax_is_logit_adjustment():
    method, (_, target, _), result = forward('balanced_softmax')
    torch.testing.assert_close(
        result['loss'], logit_adjusted_cross_entropy(result['output'], target, method.class_counts))


def test_sup_con_trains_a_projector_alone():
    method, _, _ = forward('sup_con', 'hidden_features=12', 'out_features=6')
    assert {name.split('.')[2] for name, _ in method.named_parameters() if 'branches' in name} == {'projector'}
    assert [p.shape for p in method.model.branches.parameters() if p.ndim == 2] == [(12, 32), (6, 12)]
    model = timm.create_model('bcl_resnet20', num_classes=4, branches=True)
    with pytest.raises(UserError, match=r'has branches already \(projector, prototype\)'):
        create_method('sup_con', model, COUNTS)


# mixup and Remix

@pytest.mark.parametrize('num_rows, order', [(4, [1, 0, 3, 2]), (5, [1, 0, 3, 2, 4]), (1, [0])])
def test_neighbours_swap(num_rows, order):
    x = torch.arange(2 * num_rows).reshape(num_rows, 2)
    assert torch.equal(swap_neighbours(x), x[order])


def test_pairs_do_not_know_the_number_of_processes():
    x = torch.randn(24, 3)
    for world_size in (1, 2, 3, 4, 6):
        assert torch.equal(torch.cat([swap_neighbours(part) for part in x.chunk(world_size)]), swap_neighbours(x))


@pytest.mark.parametrize('kappa, tau', [(3.0, 0.5), (1.0, 0.5), (2.0, 0.8), (3.0, 0.0), (3.0, 1.0)])
def test_remix_equals_the_cases_of_the_paper(kappa, tau):
    counts, other = zip(*itertools.product([1.0, 2.0, 3.0, 6.0, 100.0], repeat=2))
    for lam in (0.0, 0.1, 0.4, 0.5, 0.6, 0.9, 1.0):
        share = remix_share(lam, torch.tensor(counts), torch.tensor(other), kappa, tau)
        assert share.tolist() == [
            pytest.approx(margins.remix_share(lam, n, m, kappa, tau)) for n, m in zip(counts, other)]


@pytest.mark.parametrize('options', [['mixup_alpha=0.7'], ['mixup_alpha=1', 'remix_tau=0.5', 'remix_kappa=1.1']])
def test_ce_of_mixed_images(options):
    method, ((x,), target, _), first = forward('ce', *options)
    state = method.rng.bit_generator.state
    second = method(((x,), target, None))
    assert second['loss'] != first['loss']  # a lambda of its own each step
    method.rng.bit_generator.state = state
    lam = method.rng.beta(method.mixup_alpha, method.mixup_alpha)
    order = [i ^ 1 for i in range(len(x))]
    log_probs = method.logits(method.features(lam * x + (1 - lam) * x[order])).log_softmax(1)
    losses = []
    for i, j in enumerate(order):
        count, other_count = (float(method.class_counts[target[k]]) for k in (i, j))
        share = margins.remix_share(lam, count, other_count, *method.remix)
        losses.append(-share * log_probs[i, target[i]] - (1 - share) * log_probs[i, target[j]])
    torch.testing.assert_close(second['loss'], sum(losses) / len(losses), rtol=1e-6, atol=0)


@pytest.mark.parametrize('options, message', [
    (dict(mixup_alpha=-1.0), "'mixup_alpha' of method 'ce' must be at least 0, got -1.0"),
    (dict(remix_tau=0.5), 'remix_tau=0.5 is of mixed images: mixup_alpha must be positive'),
    (dict(mixup_alpha=1.0, remix_kappa=5.0), 'remix_kappa=5.0 has no effect: remix_tau must be positive'),
    (dict(mixup_alpha=1.0, remix_tau=0.5, remix_kappa=0.5), "'remix_kappa' of method 'ce' must be at least 1, got 0.5"),
])
def test_mixing_that_cannot_be(options, message):
    with pytest.raises(UserError, match=message):
        create_method('ce', timm.create_model('resnet20_cifar', num_classes=4), COUNTS, **options)


@pytest.mark.parametrize('name, options', [
    ('ldam_drw', ['reweight_start=0.5', 'beta=0.9']), ('ce', ['mixup_alpha=1', 'remix_tau=0.5', 'remix_kappa=1.1']),
])
def test_options_resume_to_the_same_bits(name, options, tmp_path):
    """Inside the second epoch, which is re-weighted, and whose next lambda is not the epoch's first."""
    options = ['--save-steps', '1', '--method-kwargs', *options]
    _, whole = make_run(name, *options)
    fit(whole, 2)
    _, broken = make_run(name, *options)
    broken.output_dir, save = tmp_path, broken.save

    def save_and_die():
        save()
        if (broken.epoch, broken.step) == (1, 2):
            raise SystemError('killed')
    broken.save = save_and_die
    with pytest.raises(SystemError):
        fit(broken, 2)
    _, resumed = make_run(name, *options)
    resumed.load_state_dict(torch.load(tmp_path / LAST, weights_only=True))
    assert (resumed.epoch, resumed.step) == (1, 2)
    fit(resumed, 2)
    assert_same_state(whole, resumed)
