"""Processes of one run without a launcher: `python -m tests.ranks CASE [options of train.py]`.

They are forked after the imports, so that a group starts in a moment, and end as a rank of `train.py` does.
"""
import os
import signal
import socket
import sys
import time
from functools import partial

import train
from timm_longtail.entry import run_main
from timm_longtail.machine import create_accelerator, wait_for_main


def agree(rank, options):
    """Two ranks with other options and other images."""
    train.main([*options, *(['--lr', '0.2', '--data-seed', '1'] if rank else [])])


def stall(rank, options):
    """The last rank stops after its first epoch, like a host that swaps or a disk that hangs."""
    if rank:
        train.fit = lambda run, num_epochs, fit=train.fit: fit(run, 1) and os.kill(os.getpid(), signal.SIGSTOP)
    train.main([*options, '--dist-timeout', '0.15'])


def long_finish(rank, options):
    """The main process works alone for longer than the others would wait in a collective."""
    accelerator = create_accelerator(dist_timeout=0.05)
    if accelerator.is_main_process:
        time.sleep(5)
    wait_for_main(accelerator)


def missing_rank(rank, options):
    """The last rank never comes."""
    if rank == 0:
        create_accelerator(dist_timeout=0.02)


def main(case, *options):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    sys.argv = ['train.py']
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', LOCAL_WORLD_SIZE='2',
                              MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
            run_main(partial(globals()[case], rank, options))
            sys.exit(0)
        children.append(child)
    status = os.waitpid(children[0], 0)[1]
    os.kill(children[1], signal.SIGKILL)  # if it still is there
    os.waitpid(children[1], 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == '__main__':
    main(*sys.argv[1:])
