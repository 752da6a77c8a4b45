"""`train.py` as a user runs it: a process of its own, its messages, its exit status, its files.

The first run is started as a user does, the others are forked (`tests/forks.py`).
"""
import copy
import csv
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from accelerate.state import PartialState

from timm_longtail.data.loaders.sharding import ShardedBatches
from timm_longtail.training.checkpoint import write_checkpoint
from timm_longtail.training.loop import fit
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST, PREVIOUS

from ..data.test_sources import write_classes
from ..support import forks
from ..support.runs import TINY, assert_same_state, ended, make_run, refused

ROOT = Path(__file__).parents[2]
TRAIN = ROOT / 'train.py'
pytestmark = pytest.mark.script
SHORT = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--method', 'bcl', '--batch-size', '64', '--epochs', '2',
         '--img-size', '16']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'ACCELERATE_USE_CPU': 'true', 'CUDA_VISIBLE_DEVICES': ''}

# the script that follows, run by a program that has prepared the process for it
AS_MAIN = 'import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name="__main__")'


def fork(*args):
    return forks.run(TRAIN, *args, env=ENV)


def weights(folder):
    return torch.load(folder / LAST, weights_only=True)


def assert_same_weights(one, other):
    for part in ('state_dict', 'method_state'):
        assert one[part].keys() == other[part].keys()
        assert not [k for k in one[part] if not torch.equal(one[part][k], other[part][k])]


# a process of 1.5 GB that starts the command that follows
LARGE = 'import subprocess, sys; large = b"1" * 1_500_000_000; sys.exit(subprocess.run(sys.argv[1:]).returncode)'


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """An uninterrupted run, started by a large process: its output folder and what it printed."""
    output = tmp_path_factory.mktemp('finished')
    command = [sys.executable, TRAIN, *SHORT, '--save-steps', '2', '--output', output, '--experiment', 'run']
    result = forks.run('-c', LARGE, *command, env=ENV)
    assert result.returncode == 0, result.stderr
    return output / 'run', result.stdout


def test_says_what_it_does_and_leaves_what_it_promises(finished):
    folder, printed = finished
    for word in ('recipe: none', 'data: digits_lt', 'subset:', 'contrast: 128 samples', 'batch: 64 images global',
                 'steps an epoch', 'parameters', 'mixed precision no', '| last epoch'):
        assert word in printed, word
    names = {p.name for p in folder.iterdir()}
    assert names == {'args.yaml', 'summary.csv', 'metrics.json', 'class_counts.json', 'per_class.csv', 'export',
                     'predictions.csv', 'report.html',
                     LAST, PREVIOUS, 'model_best.pth.tar'}
    assert {p.name for p in (folder / 'export').iterdir()} == {'config.json', 'model.safetensors', 'README.md'}
    with open(folder / 'summary.csv') as f:
        assert [row['epoch'] for row in csv.DictReader(f)] == ['0', '1']
    metrics = json.loads((folder / 'metrics.json').read_text())
    assert metrics['last']['few'] is None or 0 <= metrics['last']['few'] <= 100
    assert metrics['images_seen'] == metrics['global_batch_size'] * 2 * (sum(metrics['class_counts']) // 64)
    with open(folder / 'per_class.csv') as f:
        rows = list(csv.DictReader(f))
    assert [int(row['correct']) for row in rows] == metrics['last']['class_correct']


def test_peak_memory_is_of_this_process_alone(finished):
    """A process that was started by a large one has not been large itself."""
    metrics = json.loads((finished[0] / 'metrics.json').read_text())
    assert 0.1 < metrics['peak_rss_gb'] < 1.3


def test_validate_prints_the_same_counts(finished):
    folder, _ = finished
    result = forks.run(ROOT / 'validate.py', '--model', f'local-dir:{folder / "export"}', env=ENV, server=forks.stock())
    assert result.returncode == 0, result.stderr
    last = json.loads((folder / 'metrics.json').read_text())['last']
    assert f'{sum(last["class_correct"])} of {last["num_images"]} images correct' in result.stdout


def test_export_is_the_last_epoch(finished):
    folder, _ = finished
    import timm_longtail  # noqa: F401  registers the models
    model = timm.create_model(f'local-dir:{folder / "export"}', pretrained=True)
    last = weights(folder)['state_dict']
    assert all(torch.equal(v, last[k]) for k, v in model.state_dict().items())


def test_same_seed_same_bits_other_seed_others(finished, tmp_path):
    both = [forks.Process(TRAIN, *SHORT, '--save-steps', '2', '--seed', seed, '--output', tmp_path, '--experiment',
                          seed, env=ENV) for seed in (0, 1)]
    for process in both:
        process.communicate()
    assert_same_weights(weights(finished[0]), weights(tmp_path / '0'))
    with pytest.raises(AssertionError):
        assert_same_weights(weights(finished[0]), weights(tmp_path / '1'))


def test_kill_9_and_resume_to_the_same_bits(finished, tmp_path):
    """Killed at up to five random moments of the training, resumed each time, the run ends at the same weights."""
    args = [*SHORT, '--save-steps', '1', '--log-interval', '1', '--output', tmp_path, '--experiment', 'run']
    chosen = random.Random(0)
    num_killed = 0
    for _ in range(5):
        process = forks.Process(TRAIN, *args, '--resume', 'auto', env=ENV)
        steps_left = chosen.randint(1, 2)  # five times at most this: the run must not be over before
        for line in process.stdout:
            steps_left -= line.startswith('epoch')
            if not steps_left:
                break
        time.sleep(chosen.random() * 0.05)
        process.kill()
        process.communicate()
        if process.returncode == 0:  # on a busy machine the run may be over first
            break
        assert process.returncode == -signal.SIGKILL
        num_killed += 1

    assert num_killed > 0
    result = fork(*args, '--resume', 'auto')
    assert result.returncode == 0, result.stderr
    assert 'resumed:' in result.stdout
    assert_same_weights(weights(finished[0]), weights(tmp_path / 'run'))


def test_ctrl_c_saves_and_exits_130(finished, tmp_path):
    args = [*SHORT, '--save-steps', '2', '--log-interval', '1', '--output', tmp_path, '--experiment', 'run']
    process = forks.Process(TRAIN, *args, env=ENV)
    for line in process.stdout:
        if line.startswith('epoch'):
            process.send_signal(signal.SIGINT)
            break
    _, error = process.communicate()
    assert process.returncode == 130
    assert error.strip() == 'stopped by SIGINT; continue with the same command and --resume auto'
    assert weights(tmp_path / 'run')['step'] > 0
    assert fork(*args, '--resume', 'auto').returncode == 0
    assert_same_weights(weights(finished[0]), weights(tmp_path / 'run'))


def test_a_signal_to_the_whole_group_leaves_the_workers_to_their_master(tmp_path):
    for split, count in (('train', 40), ('test', 2)):
        write_classes(tmp_path / split, {'ant': count, 'bee': count}, size=(40, 30))
    options = ['--model', 'resnet20_cifar', '--method', 'ce', '--dataset', 'folder', '--data-dir', str(tmp_path),
               '--img-size', '32', '-j', '2', '-b', '8', '--epochs', '500', '--log-interval', '1',
               '--output', str(tmp_path / 'out'), '--experiment', 'run']
    process = forks.Process(TRAIN, *options, env=ENV)  # in a session, and so a group, of its own
    for line in process.stdout:
        if line.startswith('epoch 2'):
            os.killpg(process.pid, signal.SIGTERM)
            break
    _, error = process.communicate()
    assert process.returncode == 128 + 15
    assert error.strip() == 'stopped by SIGTERM; continue with the same command and --resume auto'
    assert weights(tmp_path / 'out' / 'run')['epoch'] >= 1


def test_nobody_reads_what_is_printed(finished, tmp_path):
    args = [*SHORT, '--save-steps', '2', '--log-interval', '1', '--output', tmp_path, '--experiment', 'run']
    process = forks.Process(TRAIN, *args, env=ENV)
    assert process.stdout.readline().startswith('recipe:')  # head -1
    process.stdout.close()
    status = process.wait()
    process._error.seek(0)
    assert (status, process._error.read()) == (0, '')
    assert_same_weights(weights(finished[0]), weights(tmp_path / 'run'))
    assert (tmp_path / 'run' / 'export' / 'config.json').is_file()


def test_a_terminal_that_is_closed_saves_unless_nohup_ignores_it(tmp_path):
    args = [*SHORT, '--epochs', '500', '--log-interval', '1', '--output', tmp_path, '--experiment']
    nohup = f'import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); {AS_MAIN}'
    closed = forks.Process(TRAIN, *args, 'closed', env=ENV)
    ignored = forks.Process('-c', nohup, TRAIN, *args, 'ignored', cwd=ROOT, env=ENV)
    for process in (closed, ignored):
        for line in process.stdout:
            if line.startswith('epoch'):
                process.send_signal(signal.SIGHUP)
                break
    _, error = closed.communicate()
    assert closed.returncode == 128 + signal.SIGHUP
    assert error.strip() == 'stopped by SIGHUP; continue with the same command and --resume auto'
    assert weights(tmp_path / 'closed')['epoch'] + weights(tmp_path / 'closed')['step'] > 0

    assert ignored.stdout.readline().startswith('epoch')  # it goes on
    ignored.send_signal(signal.SIGTERM)
    ignored.communicate()
    assert ignored.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize('place, signum', [
    ('timm_longtail.cli.train.create_datasets', signal.SIGINT),
    ('timm_longtail.training.build.create_method', signal.SIGTERM),
    ('timm_longtail.training.outputs.evaluate', signal.SIGINT),
    ('timm_longtail.training.outputs.export_model', signal.SIGHUP),
    ('timm_longtail.training.outputs.format_table', signal.SIGTERM),
])
def test_a_signal_outside_the_training_stops_at_once(place, signum, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(place, lambda *args, **kwargs: os.kill(os.getpid(), signum))
    options = [*SHORT, '--method', 'ce', '--batch-size', '256', '--epochs', '1', '--output', tmp_path / 'new']
    status, line, _ = ended(capsys, monkeypatch, *options, '--experiment', 'run')
    assert status == 128 + signum
    kept = tmp_path / 'new' / 'run' / LAST
    if kept.exists():
        assert line == (f'stopped by {signum.name}; the last good state is in {kept}: '
                        'continue with the same command and --resume auto')
        assert place in ('timm_longtail.training.outputs.evaluate', 'timm_longtail.training.outputs.format_table')
    else:
        assert line == f'stopped by {signum.name}'
        assert not (tmp_path / 'new').exists()


def test_outputs_that_are_not_finite_stop_the_run_and_are_not_saved(tmp_path):
    _, run = make_run('ce', '--model-ema')
    run.output_dir = tmp_path
    fit(run, 1)
    run.ema.module.bn1.running_var.fill_(-1e6)  # finite, and its root is not
    with pytest.raises(UserError) as error:
        fit(run, 2)
    assert str(error.value) == (
        'epoch 2: the outputs of the model are not finite, NaN or infinity, on 64 of 64 images, the first is image 1 '
        f'of the evaluation; the last good state is in {tmp_path / LAST}')
    assert weights(tmp_path)['epoch'] == 1 and len(run.history) == 1


def set_rate(run, lr):
    """Train at a rate that the command line refuses."""
    for scheduler in run.optimisation.schedulers:
        scheduler.base_values = [lr] * len(scheduler.base_values)


@pytest.mark.parametrize('options, spoil, words', [
    ([], lambda run: run.method.model.bn1.running_mean.fill_(torch.nan),
     'model.bn1.running_mean is not finite after step 1 of epoch 1, at a learning rate of 0.05'),
    (['--model-ema'], lambda run: run.ema.module.conv1.weight.data.fill_(torch.inf),
     'conv1.weight (moving average) is not finite after step 1 of epoch 1, at a learning rate of 0.05'),
    ([], lambda run: set_rate(run, 1e30),
     'the loss is not finite: NaN or infinite in step 2 of epoch 1, at a learning rate of 1e+30'),
    ([], lambda run: set_rate(run, 1e308),
     'step 1 of epoch 1: the optimizer cannot update the weights with lr 1e+308, '),
])
def test_what_is_not_finite_is_named_and_not_saved(options, spoil, words, tmp_path):
    _, run = make_run('ce', *options, '--log-interval', '1', '--save-steps', '1', '--sched', 'constant')
    run.output_dir = tmp_path
    spoil(run)
    with pytest.raises(UserError) as error:
        fit(run, 1)
    assert words in str(error.value) and '\n' not in str(error.value)
    for path in tmp_path.glob('*.tar'):
        state = torch.load(path, weights_only=True)['state_dict']
        assert all(value.isfinite().all() for value in state.values())


def test_an_evaluation_without_images_has_no_figures_and_ends_nothing(tmp_path):
    _, run = make_run('ce')
    run.output_dir, run.data.eval_loader.batches = tmp_path, ShardedBatches(0, 16, training=False)
    history = fit(run, 2)
    assert [row['eval_all'] for row in history] == [None, None] and history[1]['eval_num_images'] == 0
    assert run.best is history[0]


@pytest.mark.parametrize('options', [
    ['--sched-on-updates', '--warmup-epochs', '1'], ['--sched-on-updates', '--sched', 'cosine'], ['--sched', 'cosine'],
])
@pytest.mark.parametrize('steps', [1, 3])
def test_a_run_resumed_inside_an_epoch_has_the_same_rates(options, steps):
    def start():
        return make_run('ce', '--log-interval', '1', *options)[1]
    whole, first, second = start(), start(), start()
    fit(whole, 2)

    fit(first, 1)
    states = []
    first.options = first.options.replace(save_steps=steps)
    first.save = lambda: states.append(copy.deepcopy(first.state_dict()))
    fit(first, 2)
    assert states[0]['step'] == steps
    second.load_state_dict(states[0])
    fit(second, 2)
    assert [row['lr'] for row in second.history] == [row['lr'] for row in whole.history]
    assert_same_state(second, whole)


def test_truncated_checkpoint_falls_back(finished, tmp_path):
    args = [*SHORT, '--output', tmp_path, '--experiment', 'run']
    assert fork(*args).returncode == 0
    last = tmp_path / 'run' / LAST
    last.write_bytes(last.read_bytes()[:-1000])
    result = fork(*args, '--resume', 'auto')
    assert result.returncode == 0
    assert 'is truncated or is not a checkpoint; falling back to the previous' in result.stdout
    assert_same_weights(weights(finished[0]), weights(tmp_path / 'run'))


# what a launcher starts in place of the command: its rank notes what it was given
NOTE = """
import json, os, sys
from pathlib import Path
noted = Path(sys.argv[1], os.environ['RANK'] + '.json')
noted.write_text(json.dumps({'argv': sys.argv[2:], 'env': dict(os.environ)}))
"""
LAUNCHERS = {
    'accelerate launch': [
        '-m', 'accelerate.commands.accelerate_cli', 'launch', '--multi_gpu', '--num_processes', '2',
        '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no', '--main_process_port', '0'],
    'torchrun': [
        '-m', 'torch.distributed.run', '--standalone', '--local-addr', 'localhost', '--nproc-per-node', '2'],
}


def launched(launcher, folder, *command):
    """Fork two ranks with the words and the environment that a launcher gives to each."""
    script = folder / 'note.py'
    script.write_text(NOTE)
    result = forks.run(*LAUNCHERS[launcher], script, folder, *command, env=ENV, cwd=ROOT)
    assert result.returncode == 0, result.stderr

    # the launcher is gone, and its store: the main process opens one at that place
    noted = [json.loads((folder / f'{rank}.json').read_text()) for rank in range(2)]
    ranks = [
        forks.Process(*rank['argv'], cwd=ROOT, env={**rank['env'], 'TORCHELASTIC_USE_AGENT_STORE': 'False'})
        for rank in noted]
    outputs = [process.communicate() for process in ranks]
    assert not any(process.returncode for process in ranks), outputs
    return ''.join(out for out, _ in outputs)


@pytest.mark.ddp
@pytest.mark.parametrize('launcher', LAUNCHERS)
def test_two_processes(launcher, tmp_path):
    """Two processes halve the batch of each, see the same images and end at the same figures on every rank."""
    printed = launched(
        launcher, tmp_path, '-m', 'timm_longtail', 'train', *SHORT, '--output', tmp_path, '--epochs', '1',
        '--batch-size', '32', '--experiment', 'two')
    assert 'batch: 64 images global = 2 processes x 1 accumulated x 32' in printed
    assert printed.count('| last epoch') == 1
    metrics = json.loads((tmp_path / 'two' / 'metrics.json').read_text())
    assert metrics['num_processes'] == 2
    assert metrics['command'].startswith('torchrun --standalone --nproc-per-node 2 -m timm_longtail train --model')
    with open(tmp_path / 'two' / 'summary.csv') as f:
        row = next(csv.DictReader(f))
    # sharded evaluation of the epoch = evaluation of the export by one process
    assert float(row['eval_all']) == pytest.approx(metrics['last']['all'], abs=0.3)
    assert int(row['eval_num_images']) == metrics['last']['num_images']


def test_processes_that_accelerate_does_not_see(tmp_path, capsys, monkeypatch):
    PartialState()  # of one process, as where a launcher starts several that Accelerate knows nothing of
    monkeypatch.setenv('WORLD_SIZE', '2')
    line = refused(capsys, monkeypatch, *SHORT, '--output', tmp_path / 'output')
    assert '2 processes were launched, Accelerate sees 1: set ACCELERATE_USE_CPU=true' in line
    assert not (tmp_path / 'output').exists()


def test_bad_input_from_a_shell(tmp_path):
    result = fork('--model', 'bcl_resnet23', '--output', tmp_path / 'output')
    assert result.returncode == 2
    assert result.stderr.startswith("train.py: error: unknown model 'bcl_resnet23'; did you mean bcl_resnet32")
    assert not (tmp_path / 'output').exists()


def test_nan_loss_names_the_step_and_keeps_the_last_good_state(tmp_path):
    # the rate grows to 1e9 in the second epoch, and with this decay the weights overflow within a few steps
    result = fork(*SHORT, '--method', 'ce', '--output', tmp_path, '--experiment', 'run',
                  '--sched', 'constant', '--warmup-epochs', '1', '--warmup-lr', '0',
                  '--lr', '1e9', '--weight-decay', '1e9')
    assert result.returncode == 2
    assert 'the loss is not finite: NaN or infinite in step' in result.stderr and 'of epoch 2' in result.stderr
    assert result.stderr.strip().endswith(LAST)
    kept = weights(tmp_path / 'run')
    assert (kept['epoch'], kept['step']) == (1, 0)
    assert all(value.isfinite().all() for value in kept['state_dict'].values())


def test_checkpoint_of_another_architecture(finished, tmp_path, capsys, monkeypatch):
    before = {path: path.read_bytes() for path in finished[0].iterdir() if path.is_file()}
    line = refused(capsys, monkeypatch, *SHORT, '--model-kwargs', 'layers=(2,1,1)', 'channels=(8,16,32)',
                   '--output', tmp_path / 'o', '--resume', finished[0])
    assert 'is of another architecture' in line and 'keys differ, such as' in line
    assert before == {path: path.read_bytes() for path in finished[0].iterdir() if path.is_file()}


def test_resume_with_another_option(finished, capsys, monkeypatch):
    line = refused(capsys, monkeypatch, *SHORT, '--resume', finished[0], '--lr', '0.2')
    assert 'is of another run: lr 0.1 there, 0.2 here' in line


def test_pickle_offered_as_weights(tmp_path, capsys, monkeypatch):
    import pickle
    path = tmp_path / 'weights.pth'
    path.write_bytes(pickle.dumps({'state_dict': Path('.')}))
    line = refused(capsys, monkeypatch, *SHORT, '--output', tmp_path / 'o', '--initial-checkpoint', path)
    assert 'refused: it is a pickle' in line
    assert not (tmp_path / 'o').exists()


def test_starts_from_a_checkpoint(finished, tmp_path):
    weights_file = tmp_path / 'w.pth'
    state = torch.load(finished[0] / LAST, weights_only=True)
    write_checkpoint({'state_dict': state['state_dict']}, weights_file)
    result = fork(*SHORT, '--output', tmp_path, '--epochs', '1', '--initial-checkpoint', weights_file)
    assert result.returncode == 0, result.stderr
