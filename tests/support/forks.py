"""Processes without the seconds that imports take: a server with the modules loaded forks them.

    run('train.py', '--epochs', '1')
    as subprocess.run([sys.executable, '-u', 'train.py', '--epochs', '1'], …)

    Process('-m', 'tests.support.ranks', 'stall')
    as subprocess.Popen(…)

What is forked has arguments, environment, working folder, streams, session, signals and exit
status of its own, one thread, and runs what was registered with `atexit`. It differs from a fresh
process in what is in `sys.modules`, and in that a library has read those variables that it reads
when it is imported (`OMP_NUM_THREADS`, `HF_HOME`). And it does not take its modules apart at the
end, which would copy the memory of the server. So a test of the start of an entry point starts a
real one, and a test of imports forks the server that has timm and nothing of ours.
"""
import atexit
import gc
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from functools import cache, cached_property
from importlib import import_module
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
PIPE, DEVNULL = subprocess.PIPE, subprocess.DEVNULL
ENV = {
    **os.environ,
    'OMP_NUM_THREADS': '1',
    'CUDA_VISIBLE_DEVICES': '',
    # pyarrow, which scikit-learn brings, would start a thread
    'JE_ARROW_MALLOC_CONF': 'background_thread:false',
}


class Server:
    """A process that has imported modules, and forks.

    Args:
        *modules: Names of the modules to import.
        env: Environment of the server.
        origin: Server to fork this one from, which has imported a part of them; None for a fresh
            one.
    """

    def __init__(self, *modules: str, env=None, origin: 'Server | None' = None):
        self.env = env or ENV
        self.channel, theirs = socket.socketpair()
        command = ['-m', 'tests.support.forks', *modules]
        place = dict(env=self.env, cwd=ROOT, stdin=theirs)

        self.process: Process | subprocess.Popen
        if origin:
            self.process = Process(*command, **place, stdout=None, server=origin)
        else:
            self.process = subprocess.Popen(
                [sys.executable, '-u', *command], **place, start_new_session=True)
        theirs.close()
        atexit.register(self.close)

    def close(self):
        """End the server; what it has forked goes on."""
        if self.channel.fileno() >= 0:
            self.channel.shutdown(socket.SHUT_RDWR)
            self.channel.close()
            self.process.wait()


@cache
def bare() -> Server:
    """Return the server that has torch and torchvision."""
    return Server('torch', 'torchvision.models.feature_extraction')


@cache
def stock() -> Server:
    """Return the server that has timm too, and nothing of ours."""
    return Server('timm', origin=bare())


@cache
def ours() -> Server:
    """Return the server that has all of ours."""
    commands = 'timm_longtail.cli.train', 'timm_longtail.cli.validate'
    return Server(*commands, 'accelerate', 'sklearn.datasets', origin=stock())


class Process:
    """A forked process: the part of `subprocess.Popen` that the tests use.

    Args:
        *argv: Words behind `python`: a script, `-c CODE` or `-m MODULE`, and its arguments.
        env: Environment of the process; this one's by default.
        cwd: Working folder of the process; this one's by default.
        stdin: File, `PIPE` or `DEVNULL`.
        stdout: `PIPE`, or None for the streams of this process. What goes to stderr is kept for
            `communicate`.
        server: Server that forks it; `ours()` by default.
    """

    def __init__(
            self,
            *argv,
            env=None,
            cwd=None,
            stdin=DEVNULL,
            stdout=PIPE,
            server: Server | None = None,
    ):
        self.args = [*map(str, argv)]
        self.returncode = self.stdin = self.stdout = None
        self._error = None
        if stdout == PIPE:
            self._error = tempfile.TemporaryFile('w+')

        # its three streams, and those of our descriptors that only it needs
        files, theirs = [0, 1, 2], []
        if stdin == PIPE:
            files[0], number = os.pipe()
            theirs.append(files[0])
            self.stdin = open(number, 'w')
        elif stdin == DEVNULL:
            theirs.append(os.open(os.devnull, os.O_RDONLY))
            files[0] = theirs[-1]
        else:
            files[0] = stdin.fileno()

        if stdout == PIPE:
            number, files[1] = os.pipe()
            theirs.append(files[1])
            self.stdout = open(number, errors='replace')
            files[2] = self._error.fileno()

        self._reply, reply = Pipe()
        with reply:
            socket.send_fds((server or ours()).channel, [b'.'], [*files, reply.fileno()])
        for number in theirs:
            os.close(number)

        self._reply.send({
            'argv': self.args,
            'cwd': str(cwd or os.getcwd()),
            'env': dict(env or os.environ),
        })

    @cached_property
    def pid(self) -> int:
        return self._reply.recv()  # the server may not have begun to listen yet

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; returns the exit status."""
        if self.returncode is None and self.pid:
            if not self._reply.poll(timeout):
                raise TimeoutError(f'{self.args}: goes on after {timeout:g} s')
            self.returncode = self._reply.recv()
            self._reply.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Return what is left to read of stdout, and stderr."""
        if self.stdin:
            self.stdin.close()

        out = self.stdout.read()
        self.wait(timeout)
        self.stdout.close()

        with self._error as file:
            file.seek(0)
            return out, file.read()

    def send_signal(self, number: int):
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


def run(*argv, **options) -> subprocess.CompletedProcess:
    """Run to the end; returns exit status and what was written."""
    process = Process(*argv, **options)
    out, error = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def _serve(channel: socket.socket) -> dict:
    """Fork for each request, and end where no more comes.

    Returns the request in what is to become the process.
    """
    while True:
        message, files, *_ = socket.recv_fds(channel, 1, 4)
        if not message:
            time.sleep(0.1)  # the last of the middle ones is about to end

        # the seconds of children that are not waited for count as the server's
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if not message:
            sys.exit()

        if os.fork() == 0:
            break
        for number in files:
            os.close(number)

    # the middle one has no use but to be the parent, who learns the exit status
    *streams, number = files
    with Connection(number) as reply:
        request = reply.recv()
        process = os.fork()
        if process:
            for number in streams:
                os.close(number)
            with suppress(OSError):  # nobody may listen any more
                reply.send(process)
                reply.send(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
            os._exit(0)

    channel.detach()
    os.setsid()
    for number, file in enumerate(streams):
        os.dup2(file, number)
        os.close(file)
    return request


def _become(argv: list[str], cwd: str, env: dict[str, str]):
    """Go on as `python *argv`."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if 'numpy' in sys.modules:
        sys.modules['numpy'].random.seed()  # as the generator of `random` is, by itself

    if argv[0] == '-m':
        sys.argv, sys.path[0] = argv[1:], cwd
        runpy.run_module(argv[1], run_name='__main__', alter_sys=True)
        return

    main = sys.modules['__main__'] = ModuleType('__main__')
    if argv[0] == '-c':
        sys.argv, sys.path[0] = ['-c', *argv[2:]], ''
        code = compile(argv[1], '<string>', 'exec')
    else:
        main.__file__ = os.path.abspath(argv[0])
        sys.argv, sys.path[0] = argv, os.path.dirname(main.__file__)
        code = compile(Path(main.__file__).read_text(), main.__file__, 'exec')
    exec(code, main.__dict__)


def _status(error: BaseException) -> int:
    """Report what ends the program as the interpreter does.

    Returns the exit status, less than 0 for a signal.
    """
    if isinstance(error, SystemExit):
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1

    # as the interpreter keeps them, and with them the frames
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, error.__traceback__
    sys.excepthook(type(error), error, error.__traceback__)
    return -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


def main(modules: list[str]):
    """Body of a server, and of each process that it forks."""
    for name in modules:
        import_module(name)

    if sys.platform == 'linux':
        tasks = Path('/proc/self/task').iterdir()
        threads = [Path(task, 'comm').read_text().strip() for task in tasks]
        assert len(threads) == 1, f'a fork would lose the threads {threads[1:]}'
    gc.freeze()  # a collection need not copy all pages of the server

    status = 0
    try:
        _become(**_serve(socket.socket(fileno=0)))
    except BaseException as e:
        status = _status(e)  # and no frame is kept beyond here, nor what lives in it

    # end as the interpreter does, but for taking the modules apart
    threading._shutdown()  # waits for the threads that are no daemons
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()

    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == '__main__':
    main(sys.argv[1:])
