"""Prototype conformity and complement entropy as a method: groups of classes, warm-up, centroids, phases."""
import re
import shlex

import pytest
import timm
import torch

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import long_tail_counts
from timm_longtail.losses import complement_entropy_loss, prototype_conformity_loss
from timm_longtail.losses.prototype_conformity import prototype_conformity_parts
from timm_longtail.methods import create_method
from timm_longtail.training.loop import fit
from timm_longtail.training.optim import create_optimizers
from timm_longtail.utils.errors import UserError

from ..support.ddp import run_distributed
from ..support.forks import ROOT
from ..support.runs import digits, make_run
from .test_methods import first_batches, saved_run
from .test_methods import test_resumes_to_the_same_bits as check_resume
from .test_parity import launched

COUNTS = [500, 100, 99, 5]  # two classes are head, two are tail


def make_method(**options):
    return create_method('pc_comp', timm.create_model('resnet20_cifar', num_classes=4), COUNTS, **options)


@pytest.mark.parametrize('group, members', [
    ('all', [1, 1, 1, 1]), ('head', [1, 1, 0, 0]), ('tail', [0, 0, 1, 1]), ('none', [0, 0, 0, 0]),
])
def test_groups_of_classes(group, members):
    method = make_method(pc=group, complement='none')
    assert method.pc_classes.tolist() == members and not method.complement_classes.any()
    assert (method.centroids is None) == (group == 'none') and method.phases == ('main',)
    method = make_method(pc='none', complement=group)
    assert method.complement_classes.tolist() == members and not method.pc_classes.any()
    assert method.phases == (('main',) if group == 'none' else ('main', 'complement'))
    assert make_method(complement=group, alternate=False).phases == ('main',)


@pytest.mark.parametrize('options, message', [
    (dict(pc='heads'), "unknown group of classes 'heads'; did you mean head"),
    (dict(complement='few'), "unknown group of classes 'few'"),
    (dict(pc_weight=0.0), 'pc_weight must be positive, got 0.0'),
    (dict(complement_weight_decay=-1.0), "'complement_weight_decay' of method 'pc_comp' must be at least 0"),
    (dict(repel_lr=-1.0), "'repel_lr' of method 'pc_comp' must be at least 0"),
    (dict(repel_lr=1e-4, repel_weight=0.0), 'repel_weight must be positive'),
    (dict(complement_weight=-1.0), "'complement_weight' of method 'pc_comp' must be at least 0"),
    (dict(warmup=10), r"'warmup' of method 'pc_comp' must be in \[0, 1\), got 10"),
    (dict(alternate=False, complement_weight_decay=1e-4), 'steps of complement entropy, and there are none'),
])
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        make_method(**options)


def test_an_empty_group_is_named(caplog):
    method = make_method(head=1000)
    assert method.centroids is None and method.complement_classes.all()
    assert 'no class is in the head, with head=1000' in caplog.text
    caplog.clear()
    make_method(pc='none', complement='none', head=1000)
    assert not caplog.records


def test_without_its_losses_it_is_cross_entropy_to_the_bit():
    _, plain = make_run('ce')
    _, run = make_run('pc_comp pc=none complement=none')
    fit(plain, 2)
    fit(run, 2)
    assert plain.method.state_dict().keys() == run.method.state_dict().keys()
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value), name


def test_optimizers():
    _, run = make_run('pc_comp head=7 warmup=0.0 centroid_lr=0.3', '--momentum', '0.8', '--weight-decay', '0.01')
    (main, centroids), (complement,) = (optimizer.param_groups for optimizer in run.optimizers)
    assert centroids['params'] == [run.method.centroids]
    assert (centroids['momentum'], centroids['weight_decay']) == (0, 0)
    assert centroids['lr'] == pytest.approx(0.3 / 0.01)  # on a loss that has the weight 0.01
    assert len(main['params']) == len(complement['params']) == len(list(run.method.model.parameters()))
    for group in (main, complement):
        assert (group['lr'], group['momentum']) == (0.05, 0.8)


@pytest.mark.parametrize('option, decay', [
    ('', 0), ('complement_weight_decay=None', 0.01), ('complement_weight_decay=0.001', 0.001),
])
def test_weights_decay_once_a_batch_unless_asked(option, decay):
    _, run = make_run(f'pc_comp head=7 warmup=0.0 {option}', '--weight-decay', '0.01')
    main, complement = (optimizer.param_groups[0] for optimizer in run.optimizers)
    assert (main['weight_decay'], complement['weight_decay']) == (0.01, decay)


def test_each_set_of_centroids_moves_by_its_own_rate():
    """One step of SGD from the class means: towards the features, and away from those of other classes."""
    options = 'squared=True centre_term=False centroid_lr=0.3 repel_lr=0.02 pc_weight=0.5 repel_weight=0.1'
    _, run = make_run(f'pc_comp pc=all complement=none warmup=0.0 {options}')
    run.start_epoch(2)
    method, (batch,) = run.method, first_batches(run)
    before = method.centroids.detach().clone()
    assert torch.equal(method.repel_centroids.detach(), before)
    with torch.no_grad():
        features, target = method.features(batch[0][0]), batch[1]

    moved, repelled = before.clone(), before.clone()
    num_classes = len(before)
    for feature, label in zip(features, target.tolist()):
        moved[label] -= 0.3 * 2 * (before[label] - feature) / len(features)
        for c in set(range(num_classes)) - {label}:
            repelled[c] += 0.02 * 2 * (before[c] - feature) / (num_classes - 1) / len(features)

    method(batch)['loss'].backward()
    run.optimizers[0].step()
    torch.testing.assert_close(method.centroids.detach(), moved, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.repel_centroids.detach(), repelled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('opt', ['adamw', 'rmsprop', 'lamb'])
def test_centroids_move_by_sgd_or_not_at_all(opt):
    with pytest.raises(UserError, match=f'--opt {opt}: pc_comp moves some parameters by SGD'):
        make_run('pc_comp head=7 warmup=0.0', '--opt', opt)
    make_run('pc_comp head=7 pc=none', '--opt', opt)


def test_a_part_is_logged_in_one_scale():
    _, run = make_run('pc_comp head=7 pc=none complement=all complement_weight=3.0 warmup=0.0 alternate=False')
    run.start_epoch(1)
    batch, = first_batches(run)
    assert run.method(batch)['complement_loss'] == run.method(batch, phase='complement')['loss'] != 0


def rates_of_groups(method, *options):
    """Return the learning rates of each epoch: the model's and those of the centroids."""
    _, run = make_run(method, *options)
    rates = []
    for run.epoch in range(2):
        run.start_epoch(2)
        rates.append([group['lr'] for group in run.optimizers[0].param_groups])
    return rates


DROP = '--sched', 'multistep', '--decay-milestones', '2', '--decay-rate', '0.1'
WARM_UP = '--sched', 'cosine', '--warmup-epochs', '1', '--warmup-lr', '0.005'


def test_the_rate_of_the_centroids_follows_the_schedule():
    rates = rates_of_groups('pc_comp head=7 warmup=0.0', *DROP)
    assert rates == [[pytest.approx(0.05), pytest.approx(50)], [pytest.approx(0.005), pytest.approx(5)]]


@pytest.mark.parametrize('schedule', [DROP, WARM_UP, ('--sched', 'constant')])
def test_or_it_stays_where_it_is(schedule):
    options = 'constant_centroid_lr=True repel_lr=0.002 repel_weight=0.1'
    rates = rates_of_groups(f'pc_comp head=7 warmup=0.0 {options}', *schedule)
    plain = rates_of_groups('ce', *schedule)
    for (model, centroids, repelling), (expected,) in zip(rates, plain, strict=True):
        assert model == expected  # the schedule of the weights is that of any method
        assert (centroids, repelling) == (pytest.approx(0.5 / 0.01), pytest.approx(0.002 / 0.01 / 0.1))


def test_losses_are_those_of_their_groups():
    _, run = make_run('pc_comp head=7 pc_weight=0.2 repel_weight=1.0 complement_weight=3.0 warmup=0.0')
    run.start_epoch(2)
    method, (batch,) = run.method.eval(), first_batches(run)
    (x,), target, _ = batch
    features = method.features(x)
    output = method.logits(features)
    is_head = torch.tensor(digits().class_counts)[target] >= 7
    assert is_head.any() and not is_head.all()
    conformity = prototype_conformity_loss(features, target, method.centroids, is_head)
    entropy = complement_entropy_loss(output, target, ~is_head)
    cross_entropy = torch.nn.functional.cross_entropy(output, target)

    torch.testing.assert_close(method(batch)['loss'], cross_entropy + 0.2 * conformity)
    torch.testing.assert_close(method(batch, phase='complement')['loss'], 3 * entropy)
    method.repel_weight = 0.25
    attraction, repulsion = prototype_conformity_parts(features, target, method.centroids, is_head)
    torch.testing.assert_close(method(batch)['loss'], cross_entropy + 0.2 * (attraction - 0.25 * repulsion))
    method.repel_weight = 1.0
    method.joint = True  # what alternate=False makes of it
    torch.testing.assert_close(method(batch)['loss'], cross_entropy + 0.2 * conformity + 3 * entropy)


@pytest.mark.parametrize('squared', [False, True])
@pytest.mark.parametrize('centre_term', [False, True])
@pytest.mark.parametrize('apart', [False, True])
def test_forms_of_prototype_conformity(squared, centre_term, apart):
    options = f'squared={squared} centre_term={centre_term} ' + ('repel_lr=0.1' if apart else '')
    _, run = make_run(f'pc_comp head=7 complement=none warmup=0.0 pc_weight=0.2 repel_weight=0.5 {options}')
    run.start_epoch(2)
    method, (batch,) = run.method.eval(), first_batches(run)
    (x,), target, _ = batch
    assert (method.repel_centroids is not None) == apart
    if apart:
        method.repel_centroids.data += torch.randn_like(method.repel_centroids)

    features = method.features(x)
    is_head = torch.tensor(digits().class_counts)[target] >= 7
    conformity = prototype_conformity_loss(
        features, target, method.centroids, is_head, squared, centre_term, method.repel_centroids, 0.5)
    cross_entropy = torch.nn.functional.cross_entropy(method.logits(features), target)
    torch.testing.assert_close(method(batch)['loss'], cross_entropy + 0.2 * conformity)


def class_means(method, dataset):
    """Mean feature of each class, image by image, in the order of the data set."""
    loader = make_run('ce', dataset=dataset)[1].train_batches
    method.eval()
    with torch.no_grad():
        features = {int(i): f for (x,), _, index in loader() for i, f in zip(index, method.features(x))}
    method.train()
    return torch.stack([
        torch.stack([features[i] for i, t in enumerate(dataset.targets) if t == c]).mean(0)
        for c in range(dataset.num_classes)])


def test_a_warm_up_of_cross_entropy_then_centroids_at_class_means():
    options = '--weight-decay', '0.1'  # which a phase of loss 0 would apply as well
    _, plain = make_run('ce', *options)
    _, run = make_run('pc_comp head=7 warmup=0.5', *options)
    fit(plain, 1)
    run.start_epoch(2)  # as `fit(run, 1)` in a run of two epochs
    run.method.start_epoch = lambda *_: None
    fit(run, 1)
    assert not run.method.centroids.any()
    for name, value in plain.method.state_dict().items():
        assert torch.equal(run.method.state_dict()[name], value), name

    del run.method.start_epoch
    expected = class_means(run.method, digits())
    training, run.epoch, run.step = run.method.training, 1, 0
    run.start_epoch(2)
    torch.testing.assert_close(run.method.centroids.detach(), expected)
    assert not run.method.warming_up and run.method.idle_phases == () and run.method.training == training
    assert all(torch.equal(run.method.state_dict()[name], value) for name, value in plain.method.state_dict().items())
    fit(run, 2)
    after = run.method.centroids.detach().clone()
    assert 0 < (after - expected).abs().max() < 1
    run.epoch, run.step = 3, 0
    run.start_epoch(4)  # a later epoch leaves them where they are
    assert torch.equal(run.method.centroids, after)


@pytest.mark.parametrize('epochs, first', [(300, 10), (200, 7), (15, 1), (2, 1), (1, 0)])
def test_the_warm_up_is_a_share_of_the_run(epochs, first):
    method = make_method(pc='none')
    begun = []
    for epoch in range(epochs):
        method.start_epoch(epoch, epochs, None, None)
        begun.append(not method.warming_up)
        assert method.idle_phases == (('complement',) if method.warming_up else ())
    assert begun == [False] * first + [True] * (epochs - first)


@pytest.mark.parametrize('options', ['', ' squared=True centre_term=False repel_lr=0.001 constant_centroid_lr=True'])
@pytest.mark.parametrize('stop_at', [4, 6])  # at the end of the warm-up, and inside the epoch that sets the centroids
def test_resumes_around_the_centroids(stop_at, options, tmp_path):
    check_resume(saved_run('pc_comp head=7 warmup=0.5' + options, tmp_path), stop_at)


def commands_of_the_docs():
    """Return what is typed after `train.py` in the page on this method."""
    text = (ROOT / 'docs' / 'results' / 'pc-comp.md').read_text().replace('\\\n', ' ')
    return re.findall(r'^python train\.py (.+)$', text, re.MULTILINE)


@pytest.mark.parametrize('typed', commands_of_the_docs())
def test_commands_of_the_docs_are_understood(typed, monkeypatch):
    monkeypatch.chdir(ROOT)
    args = parse_train_args(shlex.split(typed))
    model = timm.create_model(args.model, device='meta', num_classes=100, **args.model_kwargs)
    method = create_method(args.method, model, long_tail_counts(500, 100, 100), **args.method_kwargs)
    create_optimizers(args, method, 10)


def centroids_of(rank: int):
    """Begin an epoch on a rank whose batch statistics are its own, as they are between two evaluations."""
    with launched(rank):
        _, run = make_run('pc_comp head=7 warmup=0.0', '--batch-size', '8', '--validation-batch-size', '8')
        run.start_epoch(2)
        first = run.method.centroids.detach().clone()
        run.method.model.bn1.running_mean += 0.1 * rank
        run.start_epoch(2)
        return first, run.method.centroids.detach()


@pytest.mark.ddp
def test_two_processes_hold_the_same_centroids():
    (first, second), (other_first, other_second) = run_distributed(centroids_of)
    _, run = make_run('pc_comp head=7 warmup=0.0')
    torch.testing.assert_close(first, class_means(run.method, digits()))
    assert torch.equal(first, other_first) and torch.equal(second, other_second) and not torch.equal(first, second)
