"""One run on several hosts: two of one process each, in network namespaces of their own where this machine lets us."""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.run import get_args_parser

from timm_longtail.cli.entry import run_main
from timm_longtail.utils.files import LAST

from ..support import forks
from ..support.ranks import CASES
from ..support.runs import TINY

ROOT = Path(__file__).parents[2]
SCRIPT = str(ROOT / 'distributed_train.sh')
SHORT = [*TINY, '--dataset', 'digits_lt', '--no-recipe', '--method', 'bcl', '--batch-size', '32', '--epochs', '2',
         '--save-steps', '2', '--log-interval', '1', '--img-size', '16']
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': '',
       'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}
pytestmark = [pytest.mark.script, pytest.mark.ddp]


def ip(words):
    return subprocess.run(['ip', *words.split()], capture_output=True).returncode == 0


@pytest.fixture(scope='module')
def hosts():
    """Two hosts: what a command on each begins with, and the address of the first."""
    names = [f'host{rank}-{os.getpid()}' for rank in range(2)]
    veths = [f'v{rank}-{os.getpid()}' for rank in range(2)]
    try:
        made = all(ip(f'netns add {name}') for name in names)
        made = made and ip(f'link add {veths[0]} netns {names[0]} type veth peer name {veths[1]} netns {names[1]}')
        for rank, (name, veth) in enumerate(zip(names, veths)):
            for words in (f'addr add 10.77.0.{rank + 1}/24 dev {veth}', f'link set {veth} up', 'link set lo up'):
                made = made and ip(f'-n {name} {words}')
        if made:
            yield [['ip', 'netns', 'exec', name] for name in names], '10.77.0.1'
        else:
            yield [[], []], '127.0.0.1'
    except FileNotFoundError:  # no iproute2
        yield [[], []], '127.0.0.1'
    else:
        for name in names:
            ip(f'netns del {name}')


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(hosts, folder, *options):
    """Start `distributed_train.sh` on both hosts, each in a working folder of its own."""
    prefixes, address = hosts
    several = {**ENV, 'NNODES': '2', 'MASTER_ADDR': address, 'MASTER_PORT': str(free_port())}
    processes = []
    for rank, prefix in enumerate(prefixes):
        cwd = folder / f'host{rank}'
        cwd.mkdir(exist_ok=True)
        processes.append(subprocess.Popen(
            [*prefix, SCRIPT, '1', *SHORT, *options], cwd=cwd, env={**several, 'NODE_RANK': str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    return processes


def trainer(launcher):
    """Return the id and the environment of the `train.py` that a launcher started."""
    pid = int(Path(f'/proc/{launcher.pid}/task/{launcher.pid}/children').read_text().split()[0])
    lines = Path(f'/proc/{pid}/environ').read_text().split('\0')
    return pid, dict(line.split('=', 1) for line in lines if line)


def fork_ranks(*argv, folders, environments=({}, {})):
    """Start two ranks without a launcher, each in a working folder of its own."""
    meet = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    return [
        forks.Process(*argv, cwd=folder, env={
            **ENV, 'RANK': str(rank), 'LOCAL_RANK': str(rank), 'LOCAL_WORLD_SIZE': '2', **environment, **meet})
        for rank, (folder, environment) in enumerate(zip(folders, environments))]


@pytest.fixture(scope='module')
def started(tmp_path_factory):
    """The ranks of each case of `tests/ranks.py`, which wait for one another most of the time; and their folder."""
    folder = tmp_path_factory.mktemp('ranks')
    outcomes = {}
    for name in CASES:
        outcomes[name] = fork_ranks('-m', 'tests.support.ranks', name, folder, *SHORT, folders=(ROOT, ROOT))
    return outcomes, folder


@pytest.fixture(scope='module')
def ended(started):
    """Exit status of rank 0 and what both wrote to stderr in each case; their folder; the status of both ranks."""
    cases, folder = started
    told, statuses = {}, {}
    for name, (first, second) in cases.items():
        _, error = first.communicate()
        if name == 'stall':
            second.kill()
        told[name] = [first.returncode, error + second.communicate()[1]]
        statuses[name] = [first.returncode, second.returncode]
    return told, folder, statuses


def our_lines(error):
    return [line for line in error.splitlines() if line.startswith('train.py: error: ')]


def test_a_host_dies_and_the_run_goes_on_to_the_weights_of_one_host(hosts, started, tmp_path):
    # `started`: they wait meanwhile
    main, other = start(hosts, tmp_path, '--experiment', 'run')
    try:
        for line in main.stdout:
            if line.startswith('epoch') and 'step 4' in line:
                break
        environments = [{**trainer(launcher)[1], 'TORCHELASTIC_USE_AGENT_STORE': 'False'} for launcher in (main, other)]
        os.kill(trainer(other)[0], signal.SIGKILL)
        died = time.monotonic()
        _, error = main.communicate(timeout=60)
        other.communicate(timeout=60)
    finally:
        main.kill(), other.kill()
    assert time.monotonic() - died < 30
    assert main.returncode > 0 and other.returncode > 0
    kept = Path('output', 'run', LAST)
    line, = our_lines(error)
    assert 'another process of this run has died or lost its connection (' in line
    assert line.endswith(f'; the last good state is in {kept}: continue with the same command and --resume auto')
    assert f'{ROOT}/timm_longtail' not in error  # no traceback of ours
    assert torch.load(tmp_path / 'host0' / kept, weights_only=True)['step'] > 0

    # as started by the same launchers
    folders = tmp_path / 'host0', tmp_path / 'host1'
    again = fork_ranks(ROOT / 'train.py', *SHORT, '--experiment', 'run', '--resume', 'auto', folders=folders,
                       environments=environments)
    outputs = [process.communicate() for process in again]
    assert f'resumed: {kept}, epoch 1, step' in outputs[0][0], outputs
    assert '2 processes x' in outputs[0][0] and outputs[0][0].count('| last epoch') == 1
    assert not [line for line in outputs[1][0].splitlines() if not line.startswith('[Gloo]')]  # torch's own, of old
    assert not (tmp_path / 'host1' / 'output').exists()

    (tmp_path / 'host').mkdir()
    one = fork_ranks(ROOT / 'train.py', *SHORT, '--experiment', 'run', folders=(tmp_path / 'host',) * 2)
    errors = [process.communicate()[1] for process in one]
    assert not any(process.returncode for process in one), errors
    first, second = (torch.load(folder / kept, weights_only=True) for folder in (tmp_path / 'host0', tmp_path / 'host'))
    for part in ('state_dict', 'method_state'):
        assert first[part].keys() == second[part].keys()
        assert not [k for k, v in first[part].items() if not torch.equal(v, second[part][k])]
    assert 'NNODES=2 ./distributed_train.sh 1' in (tmp_path / 'host0/output/run/metrics.json').read_text()


def test_ranks_of_other_options_and_data_are_told(ended):
    (status, error), folder = ended[0]['disagree'], ended[1]
    assert status == 2
    line, = our_lines(error)
    assert 'rank 1 is started for another run than rank 0: --data-seed 1 there, 0 on rank 0' in line
    assert '--lr 0.2 there, 0.1 on rank 0' in line and 'training images' in line
    assert not (folder / 'disagree').exists()


def test_a_rank_that_stalls(ended):
    (status, error), folder = ended[0]['stall'], ended[1]
    assert status == 1
    line, = our_lines(error)
    assert 'another process of this run did not answer within --dist-timeout (' in line
    assert line.endswith(f'{folder / "stall" / LAST}: continue with the same command and --resume auto')
    assert 'Traceback' not in error
    assert torch.load(folder / 'stall' / LAST, weights_only=True)['epoch'] == 1


@pytest.mark.parametrize('case, survivor', [('killed', 0), ('killed_main', 1), ('killed_at_the_end', 1)])
def test_a_rank_that_is_killed(case, survivor, ended):
    folder, error = ended[1], ended[0][case][1]
    line, = our_lines(error)
    assert 'another process of this run has died or lost its connection (' in line
    assert 'Traceback' not in error
    kept = folder / case / LAST
    assert line.endswith(f'{kept}: continue with the same command and --resume auto')
    assert torch.load(kept, weights_only=True)['epoch'] >= 1
    statuses = ended[2][case]
    assert statuses[survivor] == 1 and statuses[1 - survivor] == -signal.SIGKILL


def test_the_main_process_may_work_alone_for_long(ended):
    assert ended[0]['long_finish'] == [0, '']


def test_a_rank_that_never_comes(ended):
    status, error = ended[0]['missing']
    assert status == 1
    assert 'did not answer within --dist-timeout (' in our_lines(error)[0] and 'Traceback' not in error


@pytest.mark.parametrize('error, words', [
    (dist.DistBackendError('NCCL error in: x.cpp:1, remote process exited or there was a network error. More'),
     'has died or lost its connection (NCCL error in: x.cpp:1, remote process exited or there was a network error)'),
    (dist.DistStoreError('wait timeout after 1800000ms'), 'within --dist-timeout (wait timeout after 1800000ms)'),
    (RuntimeError('Application timeout caused pair closure'), 'within --dist-timeout (Application timeout'),
    (dist.DistNetworkError('failed to recv, got 0 bytes'), 'lost its connection (failed to recv, got 0 bytes)'),
    (RuntimeError("store->get('0') got error: Connection reset by peer"), 'has died or lost its connection'),
    (RuntimeError('[a/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1'), 'lost its connection'),
    (ConnectionResetError(104, 'Connection reset by peer'), 'lost its connection (Connection reset by peer)'),
    (RuntimeError('The size of tensor a (3) must match'), None),
])
def test_errors_of_collectives_are_told_from_others(error, words, capsys, monkeypatch):
    def fail():
        raise error
    with pytest.raises(type(error)):
        run_main(fail)  # no other process, no excuse
    monkeypatch.setenv('WORLD_SIZE', '2')
    if words is None:
        with pytest.raises(type(error)):
            run_main(fail)
    else:
        with pytest.raises(SystemExit) as stop:
            run_main(fail)
        assert stop.value.code == 1 and words in capsys.readouterr().err


def test_several_processes_of_one_host(tmp_path):
    """The launcher is started with as many processes as named, and the options as they are."""
    (tmp_path / 'python').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'python').chmod(0o755)
    options = [*SHORT, '--experiment', 'of several words']
    env = {**ENV, 'PATH': f'{tmp_path}:{os.environ["PATH"]}'}
    started = subprocess.run([SCRIPT, '2', *options], env=env, capture_output=True, text=True, check=True)

    module, launcher, *words = started.stdout.splitlines()
    assert (module, launcher) == ('-m', 'torch.distributed.run')
    args = get_args_parser().parse_args(words)
    assert (args.standalone, args.nproc_per_node) == (True, '2')
    assert (args.training_script, args.training_script_args) == (str(ROOT / 'train.py'), options)


@pytest.mark.parametrize('variables, words', [
    (dict(NNODES='2'), 'NNODES=2 needs MASTER_ADDR'),
    (dict(NNODES='2', MASTER_ADDR='10.0.0.1'), 'NODE_RANK'),
    (dict(NNODES='2', MASTER_ADDR='10.0.0.1', NODE_RANK='2'), 'from 0 to 1'),
    (dict(NNODES='1:4'), 'NNODES is the number of hosts'),
])
def test_hosts_that_are_not_named(variables, words):
    result = subprocess.run([SCRIPT, '1', '--epochs', '1'], env={**ENV, **variables}, capture_output=True, text=True)
    assert result.returncode == 2 and words in result.stderr and len(result.stderr.splitlines()) == 1


def test_what_one_rank_alone_finds_wrong_is_said(ended):
    status, error = ended[0]['alone']
    assert status == 1 and 'Traceback' not in error
    assert our_lines(error) == ['train.py: error: cannot read the image of a.png']  # and not that it was lost
