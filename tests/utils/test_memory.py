"""Memory that is freed is kept: a block of the same size costs no new pages."""
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import timm_longtail

pytestmark = [
    pytest.mark.script,
    pytest.mark.skipif(sys.platform != 'linux' or platform.libc_ver()[0] != 'glibc', reason='glibc'),
]

# page faults while 200 MB are taken, written and freed, once there is room for them
COUNT = '''
import resource, runpy, sys
import numpy as np

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

changed = runpy.run_path(sys.argv[1])['keep_freed_memory']()
for _ in range(3):
    np.ones(25_000_000)
before = faults()
for _ in range(3):
    np.ones(25_000_000)
print(changed, faults() - before)
'''
PAGES = 25_000_000 * 8 // 4096

GLIBC = tuple(map(int, platform.libc_ver()[1].split('.'))) if platform.libc_ver()[0] == 'glibc' else ()


def run(script: str, *arguments: object, **environment: str) -> str:
    """Return what a fresh process says: a forked one has another part of the heap."""
    path = Path(timm_longtail.__file__).parent / 'utils' / 'memory.py'
    unset = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    ended = subprocess.run(
        [sys.executable, '-c', script, path, *map(str, arguments)],
        env={**unset, **environment}, capture_output=True, text=True, check=True)
    return ended.stdout.strip()


def count(**environment: str) -> tuple[str, int]:
    """Return whether anything was changed, and the page faults."""
    changed, number = run(COUNT, **environment).split()
    return changed, int(number)


def test_a_freed_block_is_used_again():
    changed, number = count()
    if changed == 'False' and GLIBC < (2, 36):
        pytest.skip('this glibc maps every block above 32 MB')
    assert changed == 'True'
    assert number < PAGES / 10


@pytest.mark.parametrize('name, value', [
    ('MALLOC_TRIM_THRESHOLD_', '131072'), ('GLIBC_TUNABLES', 'glibc.malloc.trim_threshold=131072'),
])
def test_the_environment_is_asked_first(name, value):
    assert count(**{name: value})[0] == 'False'


# stands in for a C library whose answers are given, by parameter; notes what it was asked
REFUSE = '''
import ctypes, runpy, sys
from types import SimpleNamespace

asked = []
def mallopt(parameter, value):
    asked.append(parameter)
    return int(parameter != int(sys.argv[2]))

ctypes.CDLL = lambda name: SimpleNamespace(gnu_get_libc_version=None, mallopt=mallopt)
print(runpy.run_path(sys.argv[1])['keep_freed_memory'](), *asked)
'''


@pytest.mark.parametrize('refused, said', [
    (-3, 'False -3'),  # blocks are mapped as before, and nothing else is changed
    (-1, 'False -3 -1'),
    (0, 'True -3 -1'),
])
def test_a_refusal_leaves_the_rest_as_it_was(refused, said):
    assert run(REFUSE, refused) == said
