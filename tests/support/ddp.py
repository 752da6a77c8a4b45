"""Run a function on several gloo processes, in a pool that lives as long as the test session."""
import atexit
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import forks

_pools: dict[int, '_Pool'] = {}


def _serve(rank: int, world_size: int, store: str, connection: Connection):
    """Body of one process: join the group, then answer tasks until the connection closes."""
    torch.set_num_threads(1)
    if sys.platform == 'linux':  # the host's name need not resolve
        os.environ.setdefault('GLOO_SOCKET_IFNAME', 'lo')
    dist.init_process_group(
        'gloo', init_method=f'file://{store}', rank=rank, world_size=world_size,
        timeout=timedelta(minutes=10))

    while True:
        try:
            paths, task = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            break

        # the module of a test may lie in a folder that pytest added after the start
        sys.path[:] = paths
        try:
            fn, args = pickle.loads(task)
            answer = pickle.dumps((True, fn(rank, *args)))
        except BaseException:
            answer = pickle.dumps((False, traceback.format_exc()))

        try:
            connection.send_bytes(answer)
        except OSError:  # nobody waits for it any more
            break


class _Pool:
    """Processes that wait for tasks, each at one end of a pipe."""

    def __init__(self, world_size: int):
        self.folder = tempfile.TemporaryDirectory()
        store = str(Path(self.folder.name, 'store'))
        self.connections: list[Connection] = []
        self.processes: list[forks.Process] = []

        for rank in range(world_size):
            ours, theirs = Pipe()
            with theirs:
                process = forks.Process(
                    '-m', 'tests.support.ddp', rank, world_size, store,
                    cwd=forks.ROOT, stdin=theirs, stdout=None)
            self.processes.append(process)
            self.connections.append(ours)

    def run(self, fn: Callable, args: tuple, timeout: float) -> list[Any]:
        """Send a task to all processes and wait for their results."""
        # bytes, so that tensors travel by value and not as handles to shared memory
        task = pickle.dumps((list(sys.path), pickle.dumps((fn, args))))
        for connection in self.connections:
            connection.send_bytes(task)

        deadline = time.monotonic() + timeout
        results: dict[int, Any] = {}
        while len(results) < len(self.connections):
            waiting = {c: r for r, c in enumerate(self.connections) if r not in results}
            ready = wait(waiting, max(0, deadline - time.monotonic()))
            if not ready:
                ranks = sorted(waiting.values())
                raise TimeoutError(f'{fn.__name__}: no answer from ranks {ranks} in {timeout:g} s')

            for connection in ready:
                rank = waiting[connection]
                try:
                    succeeded, result = pickle.loads(connection.recv_bytes())
                except (EOFError, OSError):
                    succeeded, result = False, 'the process died'
                if not succeeded:
                    raise RuntimeError(f'{fn.__name__} failed on rank {rank}:\n{result}')
                results[rank] = result

        return [results[rank] for rank in range(len(results))]

    def close(self, patience: float = 5):
        """End all processes, by force after some seconds."""
        for connection in self.connections:
            connection.close()

        for process in self.processes:
            try:
                process.wait(patience)
            except TimeoutError:
                process.kill()
                process.wait()

        self.folder.cleanup()


def run_distributed(
        fn: Callable,
        *args: Any,
        world_size: int = 2,
        timeout: float = 120,
) -> list[Any]:
    """Call `fn(rank, *args)` on every process of a gloo group, and return the results by rank.

    The group is initialised and stays for the next call; a call that fails ends its processes,
    since the others may be waiting in a collective, and the next call starts new ones. Each
    process has one thread. Whatever else a function leaves behind in its process (seeds,
    registries) stays there.

    Args:
        fn: Function of a module that the processes can import, not a lambda or a local function.
        *args: Arguments, the same on all processes; pickled.
        world_size: Number of processes.
        timeout: Seconds to wait for all results, the start of the processes included.

    Raises:
        RuntimeError: The function failed on one process; its traceback is in the message.
        TimeoutError: A process did not answer in time.
    """
    if world_size not in _pools:
        _pools[world_size] = _Pool(world_size)
        atexit.register(_close_pools)  # before the server of the processes is closed

    try:
        return _pools[world_size].run(fn, args, timeout)
    except BaseException:
        _pools.pop(world_size).close(patience=0.5)
        raise


def _close_pools():
    while _pools:
        _pools.popitem()[1].close()


if __name__ == '__main__':
    rank, world_size, store = sys.argv[1:]
    _serve(int(rank), int(world_size), store, Connection(os.dup(0)))
