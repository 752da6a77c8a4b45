"""The state of a run: all that it writes comes back, timm reads it, and a checkpoint of another run is refused."""
from pathlib import Path

import pytest
import timm
import torch

from timm_longtail.training import checkpoint
from timm_longtail.training.checkpoint import read_checkpoint
from timm_longtail.training.loop import fit
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import BEST, LAST, PREVIOUS

from ..support.plain_values import assert_same
from ..support.runs import digits, make_run

OPTIONS = ['--model-ema', '--clip-grad', '5', '--save-steps', '2', '--method-kwargs', 'momentum=0.8']


def finished_run(folder):
    """Return a run of two epochs in `folder`, with all the files it leaves, and the state of a save inside an epoch."""
    _, run = make_run('toy', *OPTIONS)
    run.output_dir = folder
    states, save = [], run.save

    def save_and_keep():
        save()
        states.append(read_checkpoint(folder / LAST))
        assert_same({**run.state_dict(), 'seconds': 0.0}, {**states[-1], 'seconds': 0.0})  # a clock
    run.save = save_and_keep
    fit(run, 2)
    return run, states


def test_all_that_a_run_writes_comes_back_with_weights_only(tmp_path):
    run, states = finished_run(tmp_path)
    assert [(s['epoch'], s['step']) for s in states] == [(0, 2), (1, 0), (1, 2), (2, 0)]
    assert {'torch_rng', 'method_rng', 'sums', 'state_dict_ema', 'method_state'} <= states[0].keys()
    assert not {'torch_rng', 'method_rng', 'sums'} & states[-1].keys()
    assert {LAST, PREVIOUS, BEST} == {path.name for path in tmp_path.iterdir()}
    assert read_checkpoint(tmp_path / PREVIOUS)['epoch'] == 1
    best = read_checkpoint(tmp_path / BEST)
    assert best['metric'] == max(row[f'eval_{run.headline}'] for row in run.history)
    assert best['epoch'] - 1 == best['best']['epoch']


def test_timm_loads_the_file(tmp_path):
    run, _ = finished_run(tmp_path)
    args = run.options
    for use_ema, trained in ((False, run.method.model), (True, run.ema.module)):
        model = timm.create_model(args.model, num_classes=run.method.model.num_classes, **args.model_kwargs)
        result = timm.models.load_checkpoint(model, str(tmp_path / LAST), use_ema=use_ema)
        assert not result.missing_keys and not result.unexpected_keys
        assert all(torch.equal(value, trained.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope='module')
def saved():
    """The state of a run of one epoch, with the default options of its method."""
    _, run = make_run('ce')
    fit(run, 1)
    return run.state_dict()


@pytest.mark.parametrize('options, words', [
    (['--img-size', '16'], 'img_size 32 there, 16 here'),
    (['--mean', '0', '0', '0'], 'mean .* there'),
    (['--method-kwargs', 'mixup_alpha=1'], r'method_kwargs mixup_alpha 0.0 there, 1 here \('),
])
def test_a_run_of_other_options_is_not_resumed(options, words, saved):
    _, other = make_run('ce', *options)
    with pytest.raises(UserError, match=f'of another run: {words}'):
        other.load_state_dict(saved)


def test_a_run_is_resumed_on_the_same_images_in_the_same_order(saved):
    turned = digits().subset(range(63, -1, -1))
    turned.shot_counts = list(turned.class_counts)
    assert turned.hash == digits().hash

    _, other = make_run('ce', dataset=turned)
    with pytest.raises(UserError, match='of another run: order .* there'):
        other.load_state_dict(saved)


def test_a_resumed_run_records_the_options_that_it_began_with(saved):
    _, resumed = make_run('ce', '--method-kwargs', 'mixup_alpha=0', 'view=crop_flip')  # the defaults, spelled out
    resumed.load_state_dict(saved)

    assert resumed.options.method_kwargs == saved['args']['method_kwargs'] == {}
    assert resumed.state_dict()['args'] == saved['args']


# ------------------------------------------------------------------------------------------------ damaged fields

@pytest.fixture(scope='module')
def saved_states(tmp_path_factory):
    """Return the states of a run after an epoch and inside one, as they are saved."""
    _, states = finished_run(tmp_path_factory.mktemp('run'))
    return {'after an epoch': states[1], 'inside an epoch': states[2]}


WRONG_VALUES = [None, 'word', 3, -1, True, [], {}, [3], {'a': 3}]


@pytest.mark.parametrize('place', ['after an epoch', 'inside an epoch'])
def test_damaged_fields_are_one_line(place, saved_states, monkeypatch):
    """Each field missing, or of another kind: refused when it is read or taken up, or of no importance."""
    whole = saved_states[place]
    damages = [{k: v for k, v in whole.items() if k != name} for name in whole]
    damages += [{**whole, name: value} for name in whole for value in WRONG_VALUES]
    _, run = make_run('toy', *OPTIONS)

    refused = set()
    for damaged in damages:
        monkeypatch.setattr(checkpoint, '_read', lambda path, content=damaged: content)
        try:
            run.load_state_dict(read_checkpoint(Path(LAST)))
            run.start_epoch(2)
        except UserError as e:
            assert '\n' not in str(e)
            refused |= {name for name in whole if name not in damaged or damaged[name] is not whole[name]}

    needed = {
        'epoch', 'step', 'arch', 'state_dict', 'method_state', 'optimizer', 'optimizers', 'args', 'about', 'protocol',
        'tree_hashes', 'seconds', 'history', 'best', 'state_dict_ema'}
    if place == 'inside an epoch':
        needed |= {'torch_rng', 'method_rng', 'sums'}
    assert needed <= refused
