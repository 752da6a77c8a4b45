"""`--patience`: a run stops by its hold-out, and a resumed one at the same epoch."""
import copy

import pytest

from timm_longtail.config.train_options import parse_train_args
from timm_longtail.training import loop
from timm_longtail.training.loop import fit
from timm_longtail.utils.errors import UserError

from ..support.runs import assert_same_state, make_run

BALANCED = [50., 60., 55., 60., 59., 70., 80., 90.]
OPTIONS = ['--val-fraction', '0.2', '--epochs', '8', '--save-steps', '2']


@pytest.fixture
def scripted(monkeypatch):
    """Give each epoch a balanced accuracy on the hold-out."""
    def evaluate(run):
        return {'all': 0.0, 'balanced': BALANCED[run.epoch], 'class_correct': [1]}
    monkeypatch.setattr(loop, '_evaluate_epoch', evaluate)


@pytest.mark.parametrize('patience, options, last', [
    (1, [], 3),  # epoch 3 is worse than epoch 2
    (2, [], 4),  # epoch 4 is as good as epoch 2, and no better
    (3, [], 5),
    (4, [], 8),  # epoch 6 is better in time
    (None, [], 8),
    (2, ['--val-interval', '2'], 4),  # epochs 2 and 4 are evaluated
    (3, ['--val-interval', '2'], 8),
])
def test_stops_after_so_many_epochs(patience, options, last, scripted, capsys, monkeypatch):
    monkeypatch.setattr(loop, 'train_one_epoch', lambda run, progress: {'train_loss': 1.0})  # for speed
    words = [] if patience is None else ['--patience', str(patience)]
    _, run = make_run('ce', *OPTIONS, *words, *options)

    history = fit(run, 8)

    assert len(history) == run.epoch == last
    said = capsys.readouterr().out
    assert (f'stopped after epoch {last} of 8: no better epoch on the hold-out since epoch 2' in said) == (last < 8)


def test_a_resumed_run_stops_at_the_same_epoch(scripted):
    options = [*OPTIONS, '--patience', '2']
    _, run = make_run('ce', *options)
    states = []
    run.save = lambda: states.append(copy.deepcopy(run.state_dict()))
    fit(run, 8)

    inside = next(state for state in states if state['epoch'] == 3 and state['step'])
    for state in (inside, states[-1]):
        _, resumed = make_run('ce', *options)
        resumed.load_state_dict(copy.deepcopy(state))
        fit(resumed, 8)
        assert_same_state(resumed, run)
        assert resumed.epoch == 4


def test_is_refused_without_a_hold_out():
    with pytest.raises(UserError, match='--patience 3: a run stops by the accuracy on a hold-out.*add --val-fraction'):
        parse_train_args(['--no-recipe', '--patience', '3'])


def test_another_patience_is_another_run(scripted):
    _, run = make_run('ce', *OPTIONS, '--patience', '2')
    _, other = make_run('ce', *OPTIONS)
    with pytest.raises(UserError, match='patience 2 there, None here'):
        other.load_state_dict(run.state_dict())
