"""What every registered method must do; a new method is tested by being registered."""
import re
from collections.abc import Callable
from itertools import product

import pytest
import timm
import torch
from safetensors.torch import save_file

from timm_longtail.data import create_view
from timm_longtail.methods import check_options, create_method, default_options, list_methods, method_class
from timm_longtail.methods._frozen import FrozenBackbone
from timm_longtail.models import deployed_state_dict
from timm_longtail.models.tuning import frozen_names
from timm_longtail.training.checkpoint import method_state
from timm_longtail.training.loop import _train_phase, fit
from timm_longtail.training.outputs import _cost_columns
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST

from ..support.runs import LINEAR, SMALL, all_methods, assert_same_state, digits, make_run


def first_batches(run):
    for loader in run.loaders:
        loader.set_epoch(0)
    return [next(iter(loader)) for loader in run.loaders]


@pytest.mark.parametrize('name', all_methods())
def test_every_trainable_parameter_gets_a_gradient(name):
    _, run = make_run(name, *SMALL)
    reached = set()

    for epoch, phase in product((0, 1), run.method.phases):  # a schedule may leave a part out of one epoch
        run.epoch = epoch
        run.start_epoch(2)
        batches = first_batches(run)

        result = run.method(*batches, phase=phase)
        assert result['loss'].ndim == 0 and torch.isfinite(result['loss'])
        assert result['output'] is None or result['output'].shape[0] == 16

        run.method.zero_grad()
        result['loss'].backward()
        for parameter_name, parameter in run.method.named_parameters():
            if not parameter.requires_grad:
                continue
            # DDP needs a gradient in every phase, zero where the phase leaves the parameter out
            assert parameter.grad is not None, (phase, parameter_name)
            if parameter.grad.abs().sum() > 0:
                reached.add(parameter_name)

    assert reached == {n for n, p in run.method.named_parameters() if p.requires_grad}


def overfit(name, *options):
    size = '--img-size', '8'  # that of the digits; an epoch costs a third of one at 32
    _, run = make_run(name, '--epochs', '24', '--val-interval', '24', '--weight-decay', '0', *size, *options)
    for loader in run.loaders:  # the images themselves: augmentation is there to prevent this
        loader.views = (create_view('eval', 8),) * len(loader.views)
    return run, fit(run, 24)[-1]


@pytest.fixture(scope='session')
def representation(tmp_path_factory):
    """Weights of the tiny network that knows the 64 images: what a method that re-trains a classifier starts from."""
    path = tmp_path_factory.mktemp('representation') / 'model.safetensors'
    run, _ = overfit('ce', *LINEAR)
    save_file({k: v.contiguous() for k, v in run.method.model.state_dict().items()}, path)
    return path


# a method that stops where images are known by heart is allowed to here
LENIENT = {'rais': 'rais most_accuracy=1'}


@pytest.mark.parametrize('name', list_methods())
def test_overfits_64_images(name, request):
    retrains = issubclass(method_class(name), FrozenBackbone)
    weights = ['--initial-checkpoint', str(request.getfixturevalue('representation'))] if retrains else []
    run, last = overfit(LENIENT.get(name, name), *weights)
    part, at_least = run.method.overfit_check
    assert last[part] >= at_least


def saved_run(name, folder):
    """Return the name of a method, its run of two epochs of four steps, and the checkpoint after each step."""
    _, run = make_run(name, '--model-ema', '--save-steps', '1', *SMALL)
    run.output_dir = folder
    save, checkpoints = run.save, []

    def save_and_keep():
        save()
        checkpoints.append(torch.load(run.output_dir / LAST, weights_only=True))
    run.save = save_and_keep
    fit(run, 2)
    return name, run, checkpoints


@pytest.fixture(scope='module', params=all_methods())
def saved(request, tmp_path_factory):
    return saved_run(request.param, tmp_path_factory.mktemp('saved'))


@pytest.mark.parametrize('stop_at', [3, 4, 6])  # inside an epoch, at its end, inside the next
def test_resumes_to_the_same_bits(saved, stop_at):
    name, whole, checkpoints = saved
    _, resumed = make_run(name, '--model-ema', '--save-steps', '1', *SMALL)
    resumed.load_state_dict(checkpoints[stop_at - 1])
    assert (resumed.epoch, resumed.step) == divmod(stop_at, 4)
    fit(resumed, 2)
    assert_same_state(whole, resumed)
    for key, value in whole.ema.module.state_dict().items():
        if not key.startswith('branches.'):
            assert torch.equal(value, resumed.ema.module.state_dict()[key]), key


@pytest.mark.parametrize('name', all_methods())
def test_the_deployed_state_dict_stays_plain(name):
    args, run = make_run(name)
    plain = timm.create_model(args.model, num_classes=run.method.model.num_classes, **args.model_kwargs)

    state = method_state(run.method)
    frozen = frozen_names(run.method.model)
    assert state['state_dict'].keys() == plain.state_dict().keys() - frozen
    assert issubclass(method_class(name.split()[0]), FrozenBackbone) == bool(frozen) if name != 'toy' else not frozen
    assert not {k.removeprefix('model.') for k in state['method_state']} & plain.state_dict().keys()

    plain.load_state_dict(deployed_state_dict(run.method.model))
    x = torch.randn(2, 3, 32, 32)
    plain.to(memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
    assert torch.equal(plain.eval()(x), run.method.model.eval()(x))


@pytest.mark.parametrize('name', list_methods())
def test_views_and_cached_features(name):
    _, run = make_run(name)
    features = torch.randn(4, run.method.model.head_hidden_size)
    assert run.method.features(features) is features
    assert run.method.features(torch.randn(2, 3, 32, 32)).shape == (2, run.method.model.head_hidden_size)


def counted(
        function: Callable[[torch.Tensor], torch.Tensor],
        seen: list[int],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that also adds the length of each batch to a list."""
    def counting(x: torch.Tensor) -> torch.Tensor:
        seen.append(len(x))
        return function(x)

    return counting


@pytest.mark.parametrize('name', all_methods())
def test_a_step_runs_the_images_that_its_method_says(name):
    _, run = make_run(name, '--batch-size', '8')
    run.start_epoch(1)
    seen = []
    for module in run.method.modules():  # a key encoder, too
        if hasattr(module, 'forward_features'):
            module.forward_features = counted(module.forward_features, seen)

    run.method(*first_batches(run), phase='main')
    per_image = run.method.forwards_per_image
    if per_image is None:
        per_image = len(run.method.views)
    assert sum(seen) == 8 * len(run.loaders) * per_image


def test_compiling_keeps_the_state_dict_keys():
    _, run = make_run('bcl')
    keys = list(run.method.state_dict())
    run.method.compile_features(backend='eager')
    assert list(run.method.state_dict()) == keys
    assert run.method.features(torch.randn(2, 3, 32, 32)).shape == (2, 32)


def test_no_gradient_waits_for_the_step_of_another_phase():
    """Each phase steps on its own gradient: the centres move to their features by the rule of plain SGD."""
    _, run = make_run('toy', '--batch-size', '64', '--epochs', '1')
    run.start_epoch(1)
    batches = first_batches(run)

    for phase, optimizer in zip(run.method.phases, run.optimizers):
        before = run.method.centres.detach().clone()
        rng_state = run.method.rng.bit_generator.state
        expected = torch.autograd.grad(run.method(*batches, phase=phase)['loss'], run.method.centres)[0]
        run.method.rng.bit_generator.state = rng_state
        _train_phase(run, phase, optimizer, [batches])
        if phase == 'centres':
            torch.testing.assert_close(run.method.centres, before - 0.5 * expected)


def test_an_idle_phase_does_nothing():
    """No forward, so no batch statistics; no step, so no weight decay. Its next epoch begins where its last ended."""
    _, run = make_run('toy', '--log-interval', '1')
    run.method.start_epoch = lambda epoch, *_, start=run.method.start_epoch: [
        start(epoch, *_), setattr(run.method, 'idle_phases', ('centres',) if epoch == 0 else ())]
    called = []
    run.task.register_forward_pre_hook(lambda _, args, kwargs: called.append(kwargs['phase']), with_kwargs=True)

    history = fit(run, 1)
    assert called == ['main'] * 4 and run.method.steps.tolist() == [4, 0]
    assert not run.method.centres.any() and not run.optimizers[1].state_dict()['state']
    assert 'train_centres_loss' not in history[0]

    history = fit(run, 2)
    assert called == ['main'] * 4 + ['main', 'centres'] * 4 and run.method.centres.any()
    assert 'train_centres_loss' in history[1] and 'train_centres_loss' not in history[0]
    assert _cost_columns(run)['forward_passes'] == 3 * 64 * len(run.loaders)


def test_toy_calls_every_hook(tmp_path):
    _, run = make_run('toy')
    run.output_dir = tmp_path
    history = fit(run, 2)
    run.method.finish(tmp_path, run.eval_model, run.train_batches)
    assert run.method.steps.tolist() == [8, 8]
    assert run.method.seen == 64
    assert run.method.average.abs().sum() > 0
    assert run.method.centres.abs().sum() > 0
    assert run.method.weight == 0.75
    assert history[-1]['eval_num_train'] == 64 and run.best['eval_balanced'] is not None
    assert {'train_loss', 'train_spread', 'train_centres_loss', 'train_accuracy'} <= history[-1].keys()
    assert run.optimizers[1].param_groups[0]['weight_decay'] == 0.0
    assert (tmp_path / 'toy.json').exists()


def test_unknown_names_and_options():
    model = timm.create_model('resnet20_cifar')
    with pytest.raises(UserError, match="unknown method 'bcll'; did you mean bcl"):
        create_method('bcll', model, [1] * 100)
    with pytest.raises(UserError, match="no option 'temp'; did you mean temperature\\? it takes .*temperature"):
        create_method('bcl', model, [1] * 100, temp=0.1)


NUMBERS = [(name, key) for name in list_methods() for key in default_options(method_class(name))
           if key.endswith(('_weight', '_power', 'temperature', '_features'))]


@pytest.mark.parametrize('name, key', NUMBERS)
def test_options_have_a_range(name, key):
    weight = key.endswith(('_weight', '_power'))
    with pytest.raises(UserError, match=f'{key!r} of method {name!r} must be (at least 0|in|above 0)'):
        check_options(name, {key: -1 if weight else 0})
    check_options(name, {key: 0 if weight else 1})
    if not key.endswith('_features'):
        with pytest.raises(UserError, match='must be .*, got inf'):
            check_options(name, {key: float('inf')})


@pytest.mark.parametrize('name, option, words', [
    ('bcl', {'out_features': 64.0}, 'a whole number, in [1, 65536], got 64.0'),
    ('bcl', {'hidden_features': '512'}, "a whole number, in [1, 65536], got '512'"),
    ('moco', {'out_features': True}, 'a whole number, in [1, 65536], got True'),
    ('bcl', {'temperature': 'warm'}, "a number, above 0, got 'warm'"),
    ('max_norm', {'radius': 'big'}, "a number, above 0, got 'big'"),
    ('glmc', {'joint_forward': 1}, 'True or False, got 1'),
    ('glmc_clr', {'head': 3}, 'a name, got 3'),
])
def test_options_are_of_a_kind(name, option, words):
    with pytest.raises(UserError, match=f'^option .* of method {name!r} must be {re.escape(words)}$'):
        check_options(name, option)


def test_options_of_all_kinds_are_taken():
    check_options('bcl', {'out_features': None, 'temperature': 1, 'tau': 0.5, 'views': ['sim', 'sim', 'sim']})
    for name in list_methods():
        check_options(name, default_options(method_class(name)))


@pytest.mark.parametrize('counts', [[5, 3, 2], torch.tensor([5, 3, 2]), torch.tensor([5.0, 3.0, 2.0])])
def test_class_counts_of_any_kind(counts):
    model = timm.create_model('resnet20_cifar', num_classes=3)
    method = create_method('ce', model, counts)
    assert method.class_counts.tolist() == [5.0, 3.0, 2.0]
    assert len(digits(64).class_counts) == 10
