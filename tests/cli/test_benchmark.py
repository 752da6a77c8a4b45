"""`benchmark.py`: what it reports, the reference pipeline it compares with, what it refuses; `benchmarks/gpu.sh`."""
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.distributed.run import get_args_parser
from torch.utils.data import DataLoader

from benchmarks import growth, memory
from benchmarks.peers import Peers, PeersDataset, create_transform
from timm_longtail.cli import benchmark
from timm_longtail.cli.entry import run_main
from timm_longtail.data import create_loader
from timm_longtail.training import timing as benchmarking
from timm_longtail.training.timing import Clock, Timing, time_steps
from timm_longtail.utils.errors import UserError

from ..support import forks
from ..support.runs import TINY, digits, make_run

ROOT = Path(__file__).parents[2]
SHORT = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--batch-size', '16', '--blocks', '1', '--warmup', '1']
CPU = torch.device('cpu')


def measured(capsys, *options):
    """Return the one JSON line that `benchmark.py` writes on stdout, run in this process."""
    AcceleratorState._reset_state(reset_partial_state=False)
    capsys.readouterr()
    benchmark.main([*SHORT, *map(str, options)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    return json.loads(lines[0])


def test_compare(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 1)
    path = tmp_path / 'rows.jsonl'
    row = measured(capsys, '--method', 'bcl', '--steps', 3, '--compare', '--output', path)
    assert json.loads(path.read_text()) == row

    # what was measured
    assert (row['method'], row['batch_size'], len(row['views']), row['steps']) == ('bcl', 16, 3, 3)
    assert row['dtype'] == 'float32' and row['loader'] == 'resident' and row['device_type'] == 'cpu'
    assert row['threads'] == torch.get_num_threads() and row['torch'] == torch.__version__

    # figures
    assert row['images_per_s'] * row['step_ms_mean'] == pytest.approx(16e3)
    assert row['views_per_s'] == pytest.approx(3 * row['images_per_s'])
    assert 0 < row['step_ms_p50'] <= row['step_ms_p95']
    assert row['speedup'] == pytest.approx(row['images_per_s'] / row['peers_images_per_s'])
    for share in ('data_share', 'peers_data_share', 'flops_share'):
        assert 0 < row[share] < 1
    assert row['peak_rss_gb'] > 0.1 and row['peak_device_gb'] is None
    assert row['peers_workers'] in (0, 1, 2)


def test_whole_epochs(capsys):
    row = measured(capsys, '--method', 'ce', '--batch-size', 128, '--epochs', 2, '--val-interval', 2)
    assert 0 <= row['last_all'] <= 100 and row['epochs'] == 2
    assert row['run_seconds'] > 2 * 128 / row['images_per_s']
    assert row['views_per_s'] == row['images_per_s'] and 0 < row['data_share'] < 1


def test_bf16_is_reported_as_used(capsys, monkeypatch):
    monkeypatch.setattr('timm_longtail.training.accelerator.cpu_has_bf16', lambda: False)
    row = measured(capsys, '--method', 'ce', '--steps', 1, '--mixed-precision', 'bf16')
    assert row['dtype'] == 'float32'


@pytest.mark.parametrize('options, words', [
    (['--steps', '0'], '--steps must be in [1, 1000000], got 0'),
    (['--warmup', '-1'], '--warmup must be at least 0'),
    (['--epochs', '2', '--compare'], '--epochs times whole epochs'),
    (['--step', '3'], "unknown option '--step'; did you mean --steps"),
    (['--batch_size', '3'], "unknown option '--batch_size'; did you mean --batch-size"),
    (['--output', '/nowhere/rows.jsonl'], '--output /nowhere/rows.jsonl: no such folder'),
    (['--model', 'resnet20_cifat'], "unknown model 'resnet20_cifat'"),
    (['--compare', '--steps', '1', '--warmup', '0', '--grad-accum-steps', '2'], '--compare takes one process'),
    (['--epochs', '1', '--batch-size', '300'], 'an epoch has one step only'),
])
def test_what_is_refused_is_one_line(capsys, monkeypatch, options, words):
    monkeypatch.setattr(sys, 'argv', ['benchmark.py'])
    AcceleratorState._reset_state(reset_partial_state=False)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: benchmark.main([*SHORT, *options]))
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith('benchmark.py: error: ')]
    assert stop.value.code == 2 and len(errors) == 1 and words in errors[0]
    assert 'Traceback' not in printed.err


def test_steps_are_those_of_the_engine():
    """What is timed moves the run on as training does, over several epochs, and leaves its length as it was."""
    _, run = make_run('ce')
    lengths = len(run.loaders[0]), run.steps_per_epoch
    seen = []
    run.method.register_forward_hook(lambda *_: seen.append(run.epoch))
    timing = time_steps(run, 6)
    assert seen == [0] * 4 + [1] * 2 and len(timing.step_ms) == 6
    assert (len(run.loaders[0]), run.steps_per_epoch) == lengths and run.step == 0
    assert 0 < timing.data_ms < sum(timing.step_ms)
    assert len(time_steps(run, 2, lead=1).step_ms) == 2 and len(seen) == 9


def test_a_shortened_epoch_computes_no_views_beyond_it(monkeypatch):
    _, run = make_run('ce')
    computed = []
    view = run.loaders[0].views[0]
    apply = view.apply
    monkeypatch.setattr(view, 'apply', lambda images, params: computed.append(len(images)) or apply(images, params))
    time_steps(run, 2)
    assert sum(computed) == 2 * 16


def test_the_clock(monkeypatch):
    now = iter([0., 1., 4., 4.5, 6., 8., 10., 10.])  # begin, ready; begin, ready; begin, ready; stop
    monkeypatch.setattr(benchmarking.time, 'perf_counter', lambda: next(now))
    clock = Clock(CPU)
    clock.start()
    for _ in range(3):
        clock.begin()
        clock.ready()
    clock.stop()
    timing = clock.timing()
    assert timing.step_ms == [4000., 2000., 4000.] and timing.data_share == pytest.approx(3.5 / 10)
    assert clock.timing(lead=1).data_ms == pytest.approx(2500)
    assert benchmarking.block_rate([timing, Timing([1e3])], 8) == pytest.approx((2.4 + 8) / 2)


def test_flops():
    _, run = make_run('ce')
    convolutions = [m for m in run.method.model.modules() if isinstance(m, nn.Conv2d)]
    counted = []
    for conv in convolutions:
        conv.register_forward_hook(lambda m, _, y: counted.append(2 * y.numel() * m.weight[0].numel()))
    with torch.no_grad():
        run.method.model(next(iter(run.loaders[0]))[0][0])
    forward = sum(counted)  # the classifier is small
    # the images want no gradient
    assert benchmarking.training_flops(run) == pytest.approx(3 * forward - counted[0], rel=0.01)
    assert benchmarking.matrix_product_flops(CPU, torch.float32) > 1e8


def test_flops_of_an_encoder_without_gradient():
    counted = []
    for method in 'ce', 'moco queue_size=64 hidden_features=8 out_features=8':
        _, run = make_run(method)
        run.start_epoch(1)
        counted.append(benchmarking.training_flops(run))
    assert counted[1] == pytest.approx(counted[0] * 4 / 3, rel=0.02)  # a query forward and backward, a key forward


def coloured(num_images=64):
    """Digits in colours, so that steps on colour change something."""
    small = digits(num_images)
    tint = torch.rand(num_images, 3, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.3 + 0.7
    tint *= torch.tensor([1., 0.6, 0.4]).view(3, 1, 1)
    images = (small.images * tint).to(torch.uint8)
    return replace(small, images=images, mean=(0.2, 0.2, 0.2), std=(0.25, 0.25, 0.25))


VIEWS = [
    'crop_flip', 'crop_flip(padding=12)', 'autoaugment', 'autoaugment(cutout=4,fill=0)', 'sim', 'sim_blur(scale=0.6)',
    'rrc(jitter=0.4)', 'glmc(scale=0.6)', 'eval', 'flip',
]


def test_memory_table(capsys):
    memory.main([*TINY, '--method', 'ce', '--no-recipe'])
    _, _, *rows = capsys.readouterr().out.splitlines()
    held, most = zip(*((int(cells[2]), int(cells[3])) for cells in (row.split('|') for row in rows)))
    assert rows[0].startswith('| import torch |') and rows[-1].startswith('| 5 steps |')
    # the kernel counts pages by processor: what is held now may exceed the peak by some of them
    assert 100 < held[0] <= held[-1] <= 1.01 * most[-1] and list(most) == sorted(most)


def test_axes_are_those_of_the_documented_command():
    _, _, words = growth.__doc__.partition('--axis ')
    assert {'batch', 'classes'} == set(words.splitlines()[0].split()) <= growth.AXES.keys()


def fork_benchmark(command, *, cwd, env, **_):
    """As `subprocess.run` of the launcher, with two ranks that are forked."""
    start = command.index('benchmark.py')
    args = get_args_parser().parse_args(command[3:])
    assert (args.standalone, args.nproc_per_node) == (True, '2')

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = str(probe.getsockname()[1])
    meet = {'WORLD_SIZE': '2', 'LOCAL_WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': port}
    ranks = [
        forks.Process(*command[start:], cwd=cwd, env={**env, **meet, 'RANK': str(rank), 'LOCAL_RANK': str(rank)})
        for rank in range(2)]
    errors = [rank.communicate()[1] for rank in ranks]
    assert not any(rank.returncode for rank in ranks), errors


@pytest.mark.ddp
def test_growth_table(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(growth.subprocess, 'run', fork_benchmark)
    points = [growth.Point('two', batch_size=4, images=40, classes=10, processes=2)]
    monkeypatch.setattr(growth, 'AXES', {'processes': points})
    monkeypatch.setattr(growth, 'STEPS', ('--steps', '2', '--blocks', '1', '--warmup', '1'))
    growth.main(['--axis', 'processes', '--output', str(tmp_path / 'lines.jsonl')])
    row = json.loads((tmp_path / 'lines.jsonl').read_text())
    assert (row['point'], row['processes'], row['batch_size'], row['dataset']) == ('two', 2, 8, 'ramps')
    assert f'| two | {row["images_per_s"]:.0f} | {row["step_ms_p50"]:.0f} |' in capsys.readouterr().out


@pytest.mark.parametrize('view', VIEWS)
def test_peers_views_look_like_ours(view):
    dataset, epochs = coloured(), 8
    loader = create_loader(dataset, [view], batch_size=64)
    ours = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        ours += [views[0] for views, *_ in loader]
    torch.manual_seed(0)
    peers = PeersDataset(dataset, [create_transform(view, 32, 32, dataset.mean, dataset.std)])
    theirs = [views[0] for _ in range(epochs) for views, *_ in DataLoader(peers, 64)]
    ours, theirs = torch.cat(ours), torch.cat(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    # few images in 512 are inverted or solarised, which moves the figures of the policy more
    assert looks(ours) == pytest.approx(looks(theirs), abs=0.12 if 'autoaugment' in view else 0.05)


def looks(views):
    """Return figures of normalised views [n,3,S,S]; 0.05 is three levels of 255."""
    border = torch.cat([views[:, :, :4].flatten(), views[..., :4].flatten()])
    channels = views.mean((2, 3))
    return {
        'mean': views.mean().item(), 'std': views.std().item(), 'border': border.mean().item(),
        'colour': views.std(1).mean().item(),
        'contrast of an image': views.mean(1).flatten(1).std(1).mean().item(),
        'spread of images': channels.mean(1).std().item(), 'spread of highlights': views.amax((1, 2, 3)).std().item(),
        'spread of colours': (channels - channels.mean(1, keepdim=True)).std(0).mean().item(),
        'edges': views.diff(dim=-1).abs().mean().item(),
    }


def test_peers_resize_as_asked():
    transform = create_transform('sim', 32, 48, (0.5,) * 3, (0.5,) * 3)
    (view,), target, position = PeersDataset(coloured(), [transform])[5]
    assert view.shape == (3, 48, 48) and (target, position) == (int(coloured().targets[5]), 5)
    with pytest.raises(UserError, match="unknown view of the peers 'simm'"):
        create_transform('simm', 32, 32, (0.5,) * 3, (0.5,) * 3)


def test_peers_train():
    args, run = make_run('bcl')
    peers = Peers(args, run, digits())
    before = {name: p.clone() for name, p in peers.method.named_parameters()}
    timing = peers.time_steps(2, lead=1)
    assert len(timing.step_ms) == 2 and 0 < timing.data_share < 1
    assert all(not torch.equal(before[name], p) for name, p in peers.method.named_parameters() if p.requires_grad)
    assert peers.method is not run.method and {p.dtype for p in peers.method.parameters()} == {torch.float32}


def gpu_script(tmp_path, **variables):
    done = subprocess.run(
        ['bash', 'benchmarks/gpu.sh', '', str(tmp_path / 'out')], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, 'TINY': '1', 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **variables})
    steps = tmp_path / 'out' / 'steps.txt'
    return done, steps.read_text() if steps.exists() else ''


@pytest.mark.script
def test_the_gpu_script(tmp_path):
    done, steps = gpu_script(tmp_path, ONLY='run_bcl nothing*')
    assert done.returncode == 0, done.stderr
    assert 'run_bcl: done' in steps and 'wide' not in steps
    row = json.loads((tmp_path / 'out' / 'results.jsonl').read_text())
    assert row['epochs'] == 2 and row['last_all'] is not None


@pytest.mark.script
def test_the_gpu_script_leaves_files_of_others_alone(tmp_path):
    mine = tmp_path / 'out' / 'files' / 'mine.txt'
    mine.parent.mkdir(parents=True)
    mine.write_text('')

    gpu_script(tmp_path, PYTHON='false', ONLY='compare_files')

    assert mine.exists()


@pytest.mark.script
def test_the_gpu_script_wants_a_packed_file(tmp_path):
    done, steps = gpu_script(tmp_path, TINY='')
    assert (done.returncode, steps) == (2, '')
    assert 'usage: ' in done.stderr and 'PACKED_FILE' in done.stderr
    assert not (tmp_path / 'out').exists()


@pytest.mark.script
def test_a_step_of_the_gpu_script_that_fails_does_not_stop_the_others(tmp_path):
    done, steps = gpu_script(tmp_path, PYTHON='false')
    assert done.returncode == 1
    for name in ('compare_bcl', 'run_bcl', 'compare_wide', 'photo_bf16', 'run_wide', 'compare_files'):
        assert f'{name}: status 1' in steps
    assert 'run_bcl: skipped' in gpu_script(tmp_path, PYTHON='false', BUDGET='1')[1]
