"""Runs of two processes without a launcher: `python -m tests.ranks FOLDER [options of train.py]`.

All cases are forked after the imports, so that they start in a moment, go side by side, and end as ranks of `train.py`
do. Prints JSON: of each case the exit status of rank 0 and what both ranks wrote to stderr.
"""
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import train
from timm_longtail.entry import run_main
from timm_longtail.errors import UserError
from timm_longtail.machine import create_accelerator, wait_for_main


def disagree(rank, folder, options):
    """Two ranks with other options and other images."""
    train.main([*options, '--output', f'{folder}/disagree', *(['--lr', '0.2', '--data-seed', '1'] if rank else [])])


def stall(rank, folder, options):
    """The last rank stops after its first epoch, like a host that swaps or a disk that hangs."""
    if rank:
        train.fit = lambda run, num_epochs, fit=train.fit: fit(run, 1) and os.kill(os.getpid(), signal.SIGSTOP)
    train.main([*options, '--output', folder, '--experiment', 'stall', '--dist-timeout', '0.2'])


def long_finish(rank, folder, options):
    """The main process works alone for longer than the others would wait in a collective."""
    accelerator = create_accelerator(dist_timeout=0.1)
    if accelerator.is_main_process:
        time.sleep(9)
    wait_for_main(accelerator)


def missing(rank, folder, options):
    """The last rank never comes."""
    if rank == 0:
        create_accelerator(dist_timeout=0.02)


def alone(rank, folder, options):
    """The last rank cannot read an image."""
    def fit(run, num_epochs):
        if rank:
            raise UserError('cannot read the image of a.png')
        run.accelerator.wait_for_everyone()
    train.fit = fit
    train.main([*options, '--output', folder, '--experiment', 'alone'])


CASES = disagree, stall, long_finish, missing, alone


def fork_rank(case, rank, port, folder, options):
    child = os.fork()
    if child:
        return child
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                      MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    for descriptor, name in ((1, 'out'), (2, 'err')):
        os.dup2(os.open(f'{folder}/{case.__name__}.{name}', os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    run_main(lambda: case(rank, folder, options))
    sys.exit(0)


def main(folder, *options):
    sys.argv = ['train.py']
    ranks = {}
    for case in CASES:
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        ranks[case.__name__] = [fork_rank(case, rank, port, folder, options) for rank in range(2)]
    ended = {}
    for name, (first, second) in ranks.items():
        status = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
        if name == 'stall':
            os.kill(second, signal.SIGKILL)
        os.waitpid(second, 0)
        ended[name] = [status, Path(folder, f'{name}.err').read_text()]
    print(json.dumps(ended))


if __name__ == '__main__':
    main(*sys.argv[1:])
