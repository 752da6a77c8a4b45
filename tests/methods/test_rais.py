"""RAIS: whom it flags, where it stops, what it leaves."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from timm_longtail.cli.flags import main as flags_main
from timm_longtail.data import create_dataset
from timm_longtail.methods import create_method
from timm_longtail.methods._flags import FLAG_FILE, read_flags, write_flags
from timm_longtail.methods.rais import RotationEvaluator, rotations
from timm_longtail.training.loop import fit
from timm_longtail.utils.errors import UserError

from ..support.ddp import run_distributed
from ..support.runs import digits, make_run
from .test_methods import saved_run
from .test_methods import test_resumes_to_the_same_bits as check_resume
from .test_parity import launched


def half_symmetric():
    """2,000 digits, some in a mirror, every second of them the mean of its four rotations; which those are."""
    dataset = create_dataset('digits_lt', 'train', imbalance_factor=1)
    rows = torch.arange(2000) % len(dataset)
    images = dataset.images[rows]
    images[len(dataset):] = images[len(dataset):].flip(3)
    dataset = replace(dataset, images=images, targets=dataset.targets[rows])
    symmetric = np.arange(len(dataset)) % 2 == 0
    # halves and quarters: a mean of integers is the same in every rotation
    images[symmetric] = rotations(images[symmetric].float()).unflatten(0, (4, -1)).mean(0).round().byte()
    assert torch.equal(images[symmetric], images[symmetric].rot90(1, (2, 3)))
    return replace(dataset, images=images, shot_counts=dataset.class_counts), symmetric


def test_it_flags_images_that_are_the_same_in_every_rotation(tmp_path):
    """Positive control: nine in ten of those made symmetric are found, and at most one in ten of the others."""
    dataset, symmetric = half_symmetric()
    options = '--img-size', '8', '--opt', 'adam', '--lr', '3e-3', '--batch-size', '64'
    _, run = make_run('rais first_epochs=4', '--epochs', '8', '--val-interval', '8', *options, dataset=dataset)
    history = fit(run, 8)
    run.method.finish(tmp_path, run.eval_model, run.train_batches)
    flags, *_ = read_flags(tmp_path / FLAG_FILE, dataset.digests)
    assert flags[symmetric].mean() >= 0.9
    assert flags[~symmetric].mean() <= 0.1
    assert 0.4 <= history[-1]['train_agnostic'] <= 0.6
    # three in four rotations of the symmetric half cannot be told, however long it trains
    assert history[-1]['eval_all'] <= 100 * (0.5 + 0.5 / 4) + 1


def test_what_it_leaves(tmp_path):
    _, run = make_run('rais', '--img-size', '8')
    found = run.method.finish(tmp_path, run.eval_model, run.train_batches)
    tensors = load_file(tmp_path / FLAG_FILE)
    assert np.array_equal(tensors['digest'], digits().digests)
    (x, *_), _, index = next(iter(run.train_batches()))
    probabilities = [run.method.model.eval()(x.rot90(turn, (2, 3))).softmax(1) for turn in range(4)]
    entropy = sum(-(p * p.log()).sum(1) for p in probabilities) / 4
    np.testing.assert_allclose(tensors['entropy'][index], entropy.detach(), rtol=1e-5)
    threshold = np.log(4) / 2 + 0.2
    assert np.array_equal(tensors['flag'], tensors['entropy'] > threshold)
    assert found['agnostic_share'] == tensors['flag'].mean()
    _, reader = make_run(f'pnda rotations=pnda flags={tmp_path / FLAG_FILE}', '--img-size', '8')
    reader.start_epoch(2)
    read = reader.method.finish(tmp_path, reader.eval_model, reader.train_batches)
    assert read == {'positive_share': found['agnostic_share'], 'flags': found['flags']}


class Sure(nn.Module):
    def forward(self, x):
        return 100 * torch.eye(4)[:1].expand(len(x), 4)


def test_it_asks_the_model_that_is_exported(tmp_path):
    _, run = make_run('rais', '--img-size', '8')
    assert run.method.finish(tmp_path, Sure(), run.train_batches)['agnostic_share'] == 0
    assert load_file(tmp_path / FLAG_FILE)['entropy'].max() < 1e-6


def test_flags_find_their_images(tmp_path):
    digests = digits().digests
    entropy = np.linspace(0, 1.38, len(digests))
    flags = write_flags(tmp_path / 'flags', digests, entropy, 0.9)
    assert np.array_equal(flags, entropy > 0.9) and 0 < flags.sum() < len(flags)
    order = np.random.default_rng(0).permutation(len(digests))[:20]  # part of the set, in another order
    found, entropies, threshold = read_flags(tmp_path / 'flags', digests[order])
    assert np.array_equal(found, flags[order]) and threshold == 0.9
    np.testing.assert_allclose(entropies, entropy[order], rtol=1e-6)
    other = digests[order].copy()
    other[:3] += 1
    with pytest.raises(UserError, match='is of other images: it lacks 3 of these 20'):
        read_flags(tmp_path / 'flags', other)
    with pytest.raises(UserError, match='no flag file at nowhere'):
        read_flags('nowhere', digests)
    (tmp_path / 'text').write_text('no flags')
    with pytest.raises(UserError, match='text is damaged or not a flag file'):
        read_flags(tmp_path / 'text', digests)


def flag_tensors():
    digests = digits().digests
    entropy = np.linspace(0, 1.38, len(digests), dtype=np.float32)
    return {'digest': digests, 'flag': entropy > 0.9, 'entropy': entropy}


@pytest.mark.parametrize('change, words', [
    ({'digest': None}, 'it has no digest'),
    ({'flag': None}, 'it has no flag'),
    ({'entropy': None}, 'it has no entropy'),
    ({'flag': np.zeros(64, np.float32)}, r'flag is float32 \[64\], expected bool \[N\]'),
    ({'flag': np.zeros((64, 1), bool)}, r'flag is bool \[64, 1\], expected bool \[N\]'),
    ({'digest': np.zeros((64, 31), np.uint8)}, r'digest is uint8 \[64, 31\], expected uint8 \[N, 32\]'),
    ({'digest': np.zeros((64, 32), np.int64)}, r'digest is int64 \[64, 32\]'),
    ({'entropy': np.zeros((), np.float32)}, r'entropy is float32 \[\], expected float32 \[N\]'),
    ({'entropy': np.zeros(63, np.float32)}, 'digest of 64 images, flag of 64 images, entropy of 63 images'),
    ({'entropy': np.full(64, np.nan, np.float32)}, 'an entropy or the threshold is not finite'),
    ({'flag': np.ones(64, bool)}, r'\d+ flags contradict their entropies'),
    ({'threshold': None}, 'its threshold is missing'),
    ({'threshold': 'high'}, 'its threshold is high'),
    ({'threshold': 'nan'}, 'an entropy or the threshold is not finite'),
])
def test_a_damaged_flag_file_is_one_line(change, words, tmp_path):
    tensors = {**flag_tensors(), **change}
    threshold = tensors.pop('threshold', '0.900000')
    metadata = None if threshold is None else {'threshold': threshold}
    save_file({name: value for name, value in tensors.items() if value is not None}, tmp_path / 'flags', metadata)
    with pytest.raises(UserError, match=f'flags is damaged or not a flag file of rais: {words}') as error:
        read_flags(tmp_path / 'flags', digits().digests)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('size', [0, 7, 8, 100, -1])
def test_a_flag_file_cut_short(size, tmp_path):
    write_flags(tmp_path / 'flags', digits().digests, flag_tensors()['entropy'], 0.9)
    content = (tmp_path / 'flags').read_bytes()
    (tmp_path / 'flags').write_bytes(content[:size])
    with pytest.raises(UserError, match='flags is damaged or not a flag file: ') as error:
        read_flags(tmp_path / 'flags', digits().digests)
    assert '\n' not in str(error.value)


def test_the_command_shows_what_the_file_says(tmp_path, capsys):
    dataset = create_dataset('digits_lt', 'train')
    entropy = np.where(dataset.targets == 3, 1.2, 0.1)
    write_flags(tmp_path / 'flags', dataset.digests, entropy, 0.9)
    flags_main([str(tmp_path / 'flags'), '--dataset', 'digits_lt', '--figure', str(tmp_path / 'rais.png')])
    first, most, _ = capsys.readouterr().out.splitlines()
    share = 100 * (dataset.targets == 3).mean()
    assert first.startswith(f'{share:.2f} % of {len(dataset)} images') and first.endswith('above 0.900 nats')
    assert most.startswith('most: 3 100.0 %, 0 0.0 %')
    assert (tmp_path / 'rais.png').stat().st_size > 10_000
    rest, _ = dataset.hold_out(0.2, 0)
    write_flags(tmp_path / 'rest', rest.digests, np.zeros(len(rest)), 0.9)
    flags_main([str(tmp_path / 'rest'), '--dataset', 'digits_lt', '--val-fraction', '0.2'])
    assert capsys.readouterr().out.startswith(f'0.00 % of {len(rest)} images')
    with pytest.raises(UserError, match='no folder'):
        flags_main([str(tmp_path / 'flags'), '--dataset', 'digits_lt', '--figure', str(tmp_path / 'no' / 'rais.png')])


CHECKED = 'rais first_epochs=1 most_accuracy=0.999'


class Right(nn.Module):
    """Logits [4B, 4] that are right for a share of 64 images, in each of their rotations."""

    def __init__(self, share):
        super().__init__()
        self.share = share

    def forward(self, x):
        right = torch.arange(4).repeat_interleave(len(x) // 4)
        answer = torch.where(torch.arange(len(x)) % 64 < 64 * self.share, right, (right + 1) % 4)
        return torch.eye(4)[answer]


def with_answers(run, share):
    """Let a run answer rightly for a share of the 64 images in evaluation mode, always in training."""
    model, always, some = run.method.model, Right(1), Right(share)
    run.method.features = lambda x: x
    run.method.logits = lambda x: (always if model.training else some)(x)


@pytest.mark.parametrize('share, stops', [(1, True), (58 / 64, True), (57 / 64, False), (0.5, False)])
def test_it_stops_where_the_images_are_known_by_heart(share, stops):
    """After step 1, by the accuracy in evaluation mode: .906 of 64 images is too much, .891 is not."""
    _, run = make_run('rais first_epochs=1', '--img-size', '8')
    with_answers(run, share)
    run.start_epoch(2)
    assert run.method.step_1_right.tolist() == [0, 0]  # it is not asked before
    run.epoch = 1
    if stops:
        with pytest.raises(UserError, match=rf'accuracy of {share:.3f} on the training images, not below most_acc'):
            run.start_epoch(2)
    else:
        run.start_epoch(2)
    assert run.method.step_1_right.tolist() == [256 * share, 256]
    assert run.method.model.training


def test_the_check_is_over_the_training_set_as_it_is():
    """Not flipped, and in evaluation mode: the accuracy that a loop over images and rotations finds."""
    _, run = make_run(CHECKED, '--img-size', '8')
    fit(run, 1)
    run.start_epoch(2)
    model = run.method.model.eval()
    right = 0
    with torch.no_grad():
        for (x, *_), _, _ in run.train_batches():
            for turn in range(4):
                right += int((model(x.rot90(turn, (2, 3))).argmax(1) == turn).sum())
    assert run.method.step_1_right.tolist() == [right, 256] and 0 < right < 256


def test_a_run_that_resumes_in_step_2_is_not_judged_by_its_later_weights():
    _, run = make_run('rais first_epochs=1', '--img-size', '8')
    run.epoch = 1
    with_answers(run, 0.5)
    run.start_epoch(2)
    with_answers(run, 1)
    run.start_epoch(2)
    assert run.method.step_1_right.tolist() == [128, 256]


def counted(rank: int):
    """What one of two processes finds after step 1."""
    with launched(rank):
        _, run = make_run(CHECKED, '--img-size', '8', '--batch-size', '8', '--validation-batch-size', '24')
        run.epoch = 1
        run.start_epoch(2)
        return run.method.step_1_right


@pytest.mark.ddp
def test_two_processes_count_each_image_once():
    """The batches, of 24, 24 and 16 images, are not equal."""
    _, run = make_run(CHECKED, '--img-size', '8')
    run.epoch = 1
    run.start_epoch(2)
    assert 0 < run.method.step_1_right[0] < run.method.step_1_right[1] == 256
    for found in run_distributed(counted):
        assert torch.equal(found, run.method.step_1_right)


@pytest.mark.parametrize('options', ['first_epochs=0', 'first_epochs=1 most_accuracy=1.0'])
def test_nothing_is_checked(options):
    _, run = make_run(f'rais {options}', '--img-size', '8')
    with_answers(run, 1)
    for run.epoch in range(2):
        run.start_epoch(2)
    assert run.method.step_1_right.tolist() == [0, 0]


@pytest.mark.parametrize('stop_at', [4, 6])  # at the end of step 1, and inside the first epoch of step 2
def test_resumes_around_the_check(stop_at, tmp_path):
    check_resume(saved_run(CHECKED, tmp_path), stop_at)


def test_the_weight_of_the_separation_grows_on_a_line():
    """As in the released code, the first epoch of step 2 has it too, and the last the whole."""
    _, run = make_run('rais first_epochs=2 separation_weight=0.3', '--img-size', '8')
    weights = []
    for run.epoch in range(5):
        run.start_epoch(5)
        weights.append(run.method.weight)
    assert weights == [None, None, pytest.approx(0.1), pytest.approx(0.2), pytest.approx(0.3)]


def test_the_evaluator_counts_rotations():
    def model(x):  # a mark in the first row, which the rotations move around the image
        corners = x[:, 0, [0, -1, -1, 0], [0, 0, -1, -1]]
        return 100 * corners
    images = torch.zeros(6, 3, 4, 4)
    images[:, 0, 0, 0] = 1
    evaluator = RotationEvaluator(64)
    evaluator.start(model, None)
    evaluator.update(model, images, torch.arange(6))
    metrics = evaluator.compute()
    assert (metrics['all'], metrics['num_images']) == (100.0, 24) and 'many' not in metrics
    images[0] = 0  # cannot be told: the first of equal scores is right once in four
    evaluator.start(model, None)
    evaluator.update(model, images, torch.arange(6))
    assert evaluator.compute()['all'] == pytest.approx(100 * 21 / 24)


def test_other_outputs_are_refused():
    with pytest.raises(UserError, match='the model has 10 outputs'):
        create_method('rais', make_run('ce')[1].method.model, [1] * 10)


def test_its_figure(tmp_path):
    matplotlib = pytest.importorskip('matplotlib')
    from timm_longtail.evaluation.plots.images import _tiles, plot_rotation_agnostic
    images = torch.stack([torch.full((3, 4, 4), 10 * i, dtype=torch.uint8) for i in range(7)])
    entropy = torch.tensor([0.1, 1.3, 0.5, 1.2, 0.95, 0.2, 0.85])
    figure = plot_rotation_agnostic(tmp_path / 'figure.png', images, entropy, columns=2, rows=1, title='RAIS')
    most, least, histogram = figure.axes
    shown = [[int(image.get_array()[0, left, 0]) for left in (0, 6)] for axis in (most, least) for image in axis.images]
    assert shown == [[10, 30], [0, 50]]  # of entropy 1.3 and 1.2, 0.1 and 0.2
    assert '42.86 % of 7 images' in histogram.get_title('left')
    assert sum(patch.get_height() for patch in histogram.patches) == 7
    assert histogram.lines[0].get_xdata()[0] == pytest.approx(0.893, abs=1e-3)
    assert (tmp_path / 'figure.png').stat().st_size > 5000 and matplotlib
    assert _tiles(images.numpy()[:3], 2).shape == (10, 10, 3)
    with pytest.raises(UserError, match='expected uint8'):
        plot_rotation_agnostic(tmp_path / 'figure.png', images.float(), entropy)
    with pytest.raises(UserError, match='entropy: expected numbers'):
        plot_rotation_agnostic(tmp_path / 'figure.png', images, entropy[:5])
