"""What one of two ranks without a launcher does.

    RANK=… python -m tests.support.ranks CASE FOLDER [options of train.py]
"""
import os
import signal
import sys
import time

from timm_longtail.cli import train
from timm_longtail.cli.entry import run_main
from timm_longtail.training.accelerator import create_accelerator, wait_for_main
from timm_longtail.utils.errors import UserError


def disagree(rank, folder, options):
    """Two ranks with other options and other images."""
    if rank:
        options = [*options, '--lr', '0.2', '--data-seed', '1']
    train.main([*options, '--output', f'{folder}/disagree'])


def _stop_after_an_epoch(run, num_epochs, end_epoch, fit=train.fit):
    fit(run, 1)
    os.kill(os.getpid(), signal.SIGSTOP)


def _die_after_an_epoch(run, num_epochs, end_epoch, fit=train.fit):
    fit(run, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def stall(rank, folder, options):
    """The last rank stops after its first epoch, like a host that swaps or a disk that hangs."""
    if rank:
        train.fit = _stop_after_an_epoch
    train.main([*options, '--output', folder, '--experiment', 'stall', '--dist-timeout', '0.2'])


def killed(rank, folder, options):
    """The last rank is killed after its first epoch, while the main process waits for it in a collective."""
    if rank:
        train.fit = _die_after_an_epoch
    train.main([*options, '--output', folder, '--experiment', 'killed'])


def killed_main(rank, folder, options):
    """The main process is killed after its first epoch, and the store goes with it."""
    if rank == 0:
        train.fit = _die_after_an_epoch
    train.main([*options, '--output', folder, '--experiment', 'killed_main'])


def killed_at_the_end(rank, folder, options):
    """The main process is killed while it works alone, and the other waits for it in the store."""
    if rank == 0:
        train.finish = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
    train.main([*options, '--output', folder, '--experiment', 'killed_at_the_end'])


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
    def fit(run, num_epochs, end_epoch):
        if rank:
            raise UserError('cannot read the image of a.png')
        run.accelerator.wait_for_everyone()

    train.fit = fit
    train.main([*options, '--output', folder, '--experiment', 'alone'])


_CASES = (
    disagree, stall, killed, killed_main, killed_at_the_end, long_finish, missing, alone,
)
CASES = {case.__name__: case for case in _CASES}


def main(case, folder, *options):
    sys.argv = ['train.py']
    run_main(lambda: CASES[case](int(os.environ['RANK']), folder, options))


if __name__ == '__main__':
    main(*sys.argv[1:])
