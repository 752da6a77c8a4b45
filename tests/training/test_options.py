"""Options are resolved once: what the device decides, how batches divide, and that nothing is assigned afterwards."""
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from timm_longtail.training.options import Options, micro_batch_size, plain, resolve_options
from timm_longtail.utils.errors import UserError


def parsed(**changes):
    """Return the options that are resolved, as they are parsed."""
    values = {'channels_last': None, 'batch_size': 32, 'global_batch_size': None, 'grad_accum_steps': 1}
    return Namespace(**{**values, **changes})


def on_device(device_type, num_processes=1):
    return SimpleNamespace(device=torch.device(device_type), num_processes=num_processes)


@pytest.mark.parametrize('asked, device_type, channels_last', [
    (None, 'cpu', True),
    (None, 'cuda', False),
    (False, 'cpu', False),
    (True, 'cuda', True),
])
def test_the_device_decides_the_memory_format_that_was_left_open(asked, device_type, channels_last):
    args = parsed(channels_last=asked)

    options = resolve_options(args, on_device(device_type))
    assert options.channels_last is channels_last
    assert vars(options) == {**vars(args), 'channels_last': channels_last}
    assert args.channels_last is asked


def test_options_are_frozen():
    options = resolve_options(parsed(), on_device('cpu'))
    with pytest.raises(AttributeError, match='options are frozen: batch_size'):
        options.batch_size = 1
    with pytest.raises(AttributeError, match='options are frozen: batch_size'):
        del options.batch_size
    assert options.batch_size == 32


def test_other_values_are_other_options():
    options = Options(lr=0.1, epochs=2)

    assert options.replace(lr=1.0) == Options(lr=1.0, epochs=2)
    assert options == Options(lr=0.1, epochs=2)
    with pytest.raises(AttributeError, match='there is no option learning_rate'):
        options.replace(learning_rate=1.0)


@pytest.mark.parametrize('changes, num_processes, size', [
    ({}, 4, 32),
    ({'grad_accum_steps': 2}, 1, 32),
    ({'batch_size': None, 'global_batch_size': 128}, 1, 128),
    ({'batch_size': None, 'global_batch_size': 128}, 4, 32),
    ({'batch_size': None, 'global_batch_size': 128, 'grad_accum_steps': 2}, 4, 16),
])
def test_size_of_a_micro_batch(changes, num_processes, size):
    assert micro_batch_size(parsed(**changes), num_processes) == size


def test_a_batch_that_cannot_be_cut_is_refused():
    args = parsed(batch_size=None, global_batch_size=10, grad_accum_steps=2)
    with pytest.raises(UserError, match='--global-batch-size 10 cannot be cut into 3 processes x 2 accumulated'):
        resolve_options(args, on_device('cpu', num_processes=3))


def test_paths_are_recorded_as_text():
    assert plain(Namespace(recipe=Path('a/b.yaml'), lr=0.1, tracker=[])) == {
        'recipe': 'a/b.yaml', 'lr': 0.1, 'tracker': []}
