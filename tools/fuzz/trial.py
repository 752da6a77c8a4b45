"""One trial: a program in a folder of its own, and a verdict on how it ended.

Programs are forked from a server that has the modules loaded (`tests/forks.py`): a case costs tenths of a second.
"""
import os
import random
import re
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import forks

from . import place

ROOT = Path(__file__).resolve().parent.parent.parent

# verdicts
ONE_LINE = 'one line'
RAN = 'ran'
TRACEBACK = 'traceback'
HANG = 'hang'
CHANGED = 'changed silently'
WRONG_END = 'wrong end'
FAULTS = (TRACEBACK, HANG, CHANGED, WRONG_END)

# programs whose stdout is read by programs
_LOGS_TO_STDERR = ('benchmark.py', 'timm-longtail predict')

# what a case may take, in bytes: of memory beyond what the server has, of a file
MEMORY = 3 * 2 ** 30
FILE_SIZE = 2 ** 30

_MODULES = (
    *(f'timm_longtail.cli.{name}' for name in (
        'benchmark', 'compare', 'flags', 'pack', 'predict', 'push', 'recipes', 'report', 'retrain', 'train',
        'validate')),
    'accelerate', 'datasets', 'matplotlib.pyplot', 'sklearn.datasets', 'tools.fuzz.place', 'tools.fuzz.reads',
)


@dataclass
class Ended:
    """How a program ended.

    Attributes:
        status: Exit status, below 0 for a signal; None where the time limit ended it.
        stdout, stderr: What it wrote.
    """
    status: int | None
    stdout: str
    stderr: str


@dataclass
class Verdict:
    """What is said of a case.

    Attributes:
        outcome: One of the verdicts above.
        what: What went wrong, in a line that cases of one fault share.
        words: What the program itself said of it.
        how: Command or steps that show it.
        detail: Output to look at when a case is run alone.
    """
    outcome: str
    what: str = ''
    words: str = ''
    how: str = ''
    detail: str = field(default='', repr=False)

    @property
    def is_fault(self) -> bool:
        return self.outcome in FAULTS


class Workshop:
    """The place where trials are made: the server, the good files, and a folder for each case.

    Args:
        folder: Empty folder for all of it.
        seed: Seed of all cases.
        limit: Seconds after which a program hangs.
        origin: Server to fork ours from, which has imported torch and nothing that reads `HF_HUB_OFFLINE`.
    """

    def __init__(self, folder: Path, seed: int, limit: float, origin: forks.Server | None = None):
        self.folder = folder
        self.seed = seed
        self.limit = limit
        self.memory = resource.RLIM_INFINITY
        self.place = folder / 'place'
        self.place.mkdir(parents=True)

        # libraries read these when they are imported; the address is one where nobody answers
        offline = {
            'HF_HUB_OFFLINE': '1', 'HF_ENDPOINT': 'http://127.0.0.1:9', 'HF_HOME': str(folder / 'cache'),
            'ACCELERATE_USE_CPU': 'true',
        }
        self.env = {**forks.ENV, **offline}
        self.env.pop('TIMM_LONGTAIL_DATA', None)
        self.server = forks.Server(*_MODULES, env=self.env, origin=origin)
        place.prepare(self)
        self.memory = _address_space(self.server.process.pid) + MEMORY

    def close(self):
        self.server.close()

    def draw(self, kind: str, number: int) -> random.Random:
        """Return the generator of one case."""
        return random.Random(f'{self.seed} {kind} {number}')

    @contextmanager
    def case(self, name: str) -> Iterator[Path]:
        """Give a case its folder: `here` to work in, empty, and `place`, a copy of the good files; removed again."""
        folder = self.folder / 'cases' / name.replace(':', '-')
        shutil.rmtree(folder, ignore_errors=True)
        for part in ('here', 'home', 'tmp'):
            (folder / part).mkdir(parents=True)
        place.copy(self.place, folder / 'place')
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def start(self, argv: list[str], folder: Path) -> forks.Process:
        """Start what follows `python`, in `here` of a case's folder, with limits on memory and file size."""
        env = {**self.env, 'HOME': str(folder / 'home'), 'TMPDIR': str(folder / 'tmp')}
        process = forks.Process(*argv, env=env, cwd=folder / 'here', server=self.server)
        with suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_AS, (self.memory, self.memory))
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
        return process

    def finish(self, process: forks.Process) -> Ended:
        """Wait for a program; past the time limit it is asked to stop, then killed with all that it has started."""
        asked, late = threading.Event(), threading.Event()

        def ask():
            asked.set()
            process.send_signal(signal.SIGTERM)

        def stop():
            late.set()
            kill_group(process)

        timers = threading.Timer(self.limit, ask), threading.Timer(1.5 * self.limit, stop)
        for timer in timers:
            timer.start()
        out, error = process.communicate()
        for timer in timers:
            timer.cancel()
        kill_group(process)  # a worker that outlived it

        # training that was merely long saves its state when it is asked to stop
        if asked.is_set():
            saved = process.returncode == 128 + signal.SIGTERM and 'epoch ' in out
            return Ended(0 if saved and not late.is_set() else None, out, error)
        return Ended(process.returncode, out, error)

    def run(self, argv: list[str], folder: Path) -> Ended:
        return self.finish(self.start(argv, folder))


def _address_space(pid: int) -> int:
    """Return what a process maps, in bytes."""
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[0])
    return pages * resource.getpagesize()


def kill_group(process: forks.Process):
    """End a program and what it started; each is the head of a process group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def judge(ended: Ended, program: str) -> Verdict:
    """Say whether a program ended as it should: status 0, or 2 with one line that begins with its name.

    Args:
        ended: How it ended.
        program: Its name.
    """
    detail = f'status {ended.status}\n{ended.stdout[-3000:]}\n{ended.stderr[-6000:]}'
    if ended.status is None:
        return Verdict(HANG, f'{program} goes on beyond the time limit', detail=detail)

    for text in (ended.stderr, ended.stdout):
        if 'Traceback' in text:
            return Verdict(TRACEBACK, *where_raised(text), detail=detail)

    if ended.status == 0:
        return Verdict(RAN, detail=detail)

    # without the folder of the case
    lines = re.sub(r'/\S*/cases/[^/\s]+', '..', ended.stderr).strip().splitlines()
    if program.startswith(_LOGS_TO_STDERR):
        lines = lines[-1:]  # what it said on the way
    words = lines[0][:200] if lines else ''
    if ended.status != 2:
        return Verdict(WRONG_END, f'{program} status {ended.status}', words, detail=detail)
    if len(lines) != 1:
        return Verdict(WRONG_END, f'{program} {"no line" if not lines else "several lines"}', words, detail=detail)
    if not lines[0].startswith(program):
        return Verdict(WRONG_END, f'{program} the line does not begin so', words, detail=detail)
    return Verdict(ONE_LINE, words=words, detail=detail)


def where_raised(text: str) -> tuple[str, str]:
    """Return what a traceback comes down to: the last frame in this repository with the error, and its first words."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', text)
    ours = [frame for frame in frames if is_ours(frame[0])]
    path, line, function = (ours or frames or [('?', 0, '?')])[-1]
    name = Path(path).relative_to(ROOT) if Path(path).is_relative_to(ROOT) else Path(path).name

    # the error stands in the last line that begins like one
    errors = re.findall(r'^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Warning|Exit)\w*)\b:? ?(.*)$', text, re.MULTILINE)
    error, words = errors[-1] if errors else ('?', text.strip().splitlines()[-1])
    return f'{name}:{line} {function}: {error}', words[:200]


def is_ours(path: str) -> bool:
    """Whether a frame is of this package or its entry points, and not of the harness."""
    if not Path(path).is_relative_to(ROOT):
        return False
    top = Path(path).relative_to(ROOT).parts[0]
    return top not in ('tests', 'tools', '.venv')


def listing(*folders: Path, but: tuple[str, ...] = ()) -> dict[str, tuple]:
    """Return what lies below some folders: each path with its kind, size and time of change.

    Args:
        *folders: Where to look; links are not followed.
        but: Names of files and folders to leave out.
    """
    found = {}
    for folder in folders:
        for path, names, files in os.walk(folder):
            names[:] = [name for name in names if name not in but]
            for name in [*names, *files]:
                if name in but:
                    continue
                place = os.path.join(path, name)
                stat = os.lstat(place)
                is_folder = os.path.isdir(place)
                found[place] = (is_folder, None if is_folder else (stat.st_size, stat.st_mtime_ns))
    return found
