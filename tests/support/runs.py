"""Small runs for the tests: a tiny network on a few digits, built by the same code as `train.py`."""
import sys
from functools import cache

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from timm_longtail import methods
from timm_longtail.cli import train
from timm_longtail.cli.entry import run_main
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import create_dataset
from timm_longtail.methods._registry import _METHODS
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import build_run
from timm_longtail.training.options import resolve_options

from .toy_method import Toy

TINY = ['--model', 'resnet20_cifar', '--model-kwargs', 'layers=(1,1,1)', 'channels=(8,16,32)', 'cosine_scale=16.0']
SMALL = ['--img-size', '16']  # digits have 8 x 8 pixels: half the cost
LINEAR = [*TINY[2:5], 'cosine_scale=None']


@cache
def digits(num_images: int = 64):
    """Return the first images of `digits_lt`, class after class in turn, so that every class is there."""
    dataset = create_dataset('digits_lt', 'train')
    order = np.argsort([np.sum(dataset.targets[:i] == t) for i, t in enumerate(dataset.targets)], kind='stable')
    small = dataset.subset(order[:num_images])
    small.shot_counts = list(small.class_counts)
    return small


# what the defaults leave out on the digits, none of whose classes is a head class of 100 images
VARIANTS = [
    'pc_comp head=7 warmup=0.0', 'pc_comp pc=all complement=all alternate=False warmup=0.0',
    'pnda rotations=pda', 'moco queue_size=40', 'rais first_epochs=0', 'bcl views=("autoaugment","sim")']


def all_methods() -> list[str]:
    """Return the registered methods, those with options of their own, and the toy."""
    return [*methods.list_methods(), *VARIANTS, 'toy']


def make_run(method: str, *options: str, dataset=None):
    """Return a run on the tiny network: `build_run` as `train.py` calls it.

    Args:
        method: Registered name, or `toy`; its options may follow, after spaces.
        *options: Further options of `train.py`.
        dataset: Images to train and evaluate on; 64 digits by default.
    """
    AcceleratorState._reset_state(reset_partial_state=False)
    _METHODS['toy'] = Toy

    method, *method_options = method.split()
    method_options = ['--method-kwargs', *method_options] if method_options else []
    linear = LINEAR if methods.method_class(method).linear_classifier else []

    try:
        args = parse_train_args(
            [*TINY, *linear, '--no-recipe', '--method', method, '--batch-size', '16', '--lr', '0.05', '--epochs', '2',
             *method_options, *options])
        dataset = dataset or digits()
        accelerator = create_accelerator(args.mixed_precision)
        options = resolve_options(args, accelerator)
        return options, build_run(options, accelerator, dataset, dataset)
    finally:
        del _METHODS['toy']


def assert_same_state(first, second):
    """Fail unless two runs stand at the same bits: weights, buffers, optimizers, figures."""
    a, b = first.method.state_dict(), second.method.state_dict()
    assert a.keys() == b.keys()
    differing = [name for name in a if not torch.equal(a[name], b[name])]
    assert not differing

    for one, other in zip(first.optimizers, second.optimizers):
        one, other = one.state_dict()['state'], other.state_dict()['state']
        assert one.keys() == other.keys()
        for key in one:
            for name, value in one[key].items():
                same = torch.equal(value, other[key][name]) if torch.is_tensor(value) else value == other[key][name]
                assert same, (key, name)

    def figures(run):
        return [{k: v for k, v in row.items() if 'seconds' not in k} for row in run.history]

    for row, other in zip(figures(first), figures(second), strict=True):
        differing = {k: (v, other.get(k)) for k, v in row.items() if v != other.get(k)}
        assert not differing, differing


def ended(capsys, monkeypatch, *args):
    """Run `train.py` in this process; it must end in one line. Returns the exit status, the line, and what it printed.
    """
    monkeypatch.setattr(sys, 'argv', ['train.py'])
    AcceleratorState._reset_state(reset_partial_state=False)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: train.main([str(arg) for arg in args]))

    printed = capsys.readouterr()
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1, lines
    return stop.value.code, lines[0], printed.out


def refused_and_printed(capsys, monkeypatch, *args):
    """Run `train.py` in this process; it must end in one line and status 2. Returns the line and what it printed."""
    status, line, printed = ended(capsys, monkeypatch, *args)
    assert status == 2 and line.startswith('train.py: error: '), line
    return line, printed


def refused(capsys, monkeypatch, *args):
    """As `refused_and_printed`; returns the line alone."""
    return refused_and_printed(capsys, monkeypatch, *args)[0]
