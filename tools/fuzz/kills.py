"""Stopped runs: a short run is stopped at random moments and resumed until it is done, to the same bits.

SIGKILL may come at any moment from the start of the program on; SIGTERM and SIGINT once it has said what it does, for
before that they meet a Python that is still importing. The moments are drawn from the seed; what the run does at that
moment depends on the machine.
"""
import shlex
import signal
import threading
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from .place import TINY
from .trial import CHANGED, RAN, ROOT, WRONG_END, Ended, Verdict, Workshop, judge, kill_group

_COMMON = [
    *TINY, '--dataset', 'digits_lt', '--no-recipe', '--img-size', '16', '--epochs', '3', '--log-interval', '1',
    '--output', 'out', '--experiment', 'run', '--resume', 'auto',
]
VARIANTS = (
    ('--method', 'bcl', '--batch-size', '64', '--save-steps', '2'),
    ('--method', 'ce', '--batch-size', '32', '--grad-accum-steps', '2', '--save-steps', '3', '--model-ema'),
    ('--method', 'balanced_softmax', '--batch-size', '128', '--save-steps', '1', '--val-fraction', '0.2'),
)
_SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_COMPARE = 'from tools.fuzz.kills import print_result; print_result()'


class Kills:
    """Cases of stopped runs.

    Args:
        workshop: Where trials are made.
    """
    name = 'kills'

    def __init__(self, workshop: Workshop):
        self.workshop = workshop
        self.lock = threading.Lock()
        self.uninterrupted = cache(self._uninterrupted)

    def __call__(self, number: int) -> Verdict:
        draw = self.workshop.draw(self.name, number)
        variant = VARIANTS[number % len(VARIANTS)]
        with self.lock:
            expected, seconds = self.uninterrupted(variant)

        argv, steps = [str(ROOT / 'train.py'), *_COMMON, *variant], []
        with self.workshop.case(f'{self.name}:{number}') as folder:
            for _ in range(draw.randint(1, 3)):
                signum, delay = draw.choice(_SIGNALS), draw.uniform(0, seconds)
                steps.append(f'{signum.name} after {delay:.2f} s')
                verdict = self._stop(argv, folder, signum, delay)
                if verdict.is_fault:
                    break
            else:
                verdict = self._resume(argv, folder, expected)

        verdict.how = f'python train.py {shlex.join(argv[1:])}: {", ".join(steps)}, then to the end'
        return verdict

    def _stop(self, argv: list[str], folder: Path, signum: signal.Signals, delay: float) -> Verdict:
        """Start the run, stop it after a while, and say whether it ended as a stopped run does."""
        process, first = self.workshop.start(argv, folder), ''
        if signum != signal.SIGKILL:
            guard = threading.Timer(self.workshop.limit, kill_group, [process])
            guard.start()
            first = process.stdout.readline()
            guard.cancel()

        timer = threading.Timer(delay, _send, [process, signum])
        timer.start()
        ended = self.workshop.finish(process)
        timer.cancel()

        verdict = judge(Ended(ended.status, first + ended.stdout, ended.stderr), 'train.py')
        if verdict.outcome != WRONG_END:
            return verdict
        # by the signal itself, or with the status of a shell and one line
        stopped = ended.status == 128 + signum and len(ended.stderr.strip().splitlines()) == 1
        return Verdict(RAN) if stopped or ended.status == -signum else verdict

    def _resume(self, argv: list[str], folder: Path, expected: list[str]) -> Verdict:
        """Run to the end, and compare with the uninterrupted run."""
        verdict = judge(self.workshop.run(argv, folder), 'train.py')
        if verdict.outcome != RAN:
            if not verdict.is_fault:
                verdict = Verdict(WRONG_END, 'train.py refuses to resume', verdict.words, detail=verdict.detail)
            return verdict

        found = self._result(folder)
        if found != expected:
            differing = sorted(set(found) ^ set(expected))
            names = sorted({line.split(' ')[0] for line in differing})
            return Verdict(CHANGED, f'a resumed run ends with another {", ".join(names)}', detail='\n'.join(differing))
        return verdict

    def _uninterrupted(self, variant: tuple[str, ...]) -> tuple[list[str], float]:
        """Return what a run ends with that nobody stops, and how long it takes."""
        with self.workshop.case(f'{self.name}:whole-{VARIANTS.index(variant)}') as folder:
            start = time.monotonic()
            verdict = judge(self.workshop.run([str(ROOT / 'train.py'), *_COMMON, *variant], folder), 'train.py')
            seconds = time.monotonic() - start
            if verdict.outcome != RAN:
                raise RuntimeError(f'the uninterrupted run failed: {verdict.detail}')
            return self._result(folder), seconds

    def _result(self, folder: Path) -> list[str]:
        ended = self.workshop.run(['-c', _COMPARE, 'out/run'], folder)
        if ended.status != 0:
            return [f'result cannot be read: {ended.stderr[-300:]}']
        return ended.stdout.splitlines()


def _send(process, signum: signal.Signals):
    with suppress(ProcessLookupError):  # it was faster
        process.send_signal(signum)


def print_result():
    """Print, in a process of its own, a line for each thing that two equal runs have in common."""
    import json
    import sys

    from timm_longtail.training.checkpoint import read_checkpoint

    from .reads import digest
    folder = Path(sys.argv[1])
    for path in sorted(folder.rglob('*')):
        print('file', path.relative_to(folder))
    state = read_checkpoint(folder / 'checkpoint-last.pth.tar')
    for name in ('epoch', 'step', 'state_dict', 'state_dict_ema', 'method_state', 'optimizer', 'optimizers'):
        print(name, digest(state.get(name)))
    print('weights', digest((folder / 'export' / 'model.safetensors').read_bytes()))
    metrics = json.loads((folder / 'metrics.json').read_text())
    for name in ('last', 'best', 'images_seen', 'found'):
        print(name, digest(metrics[name]))


