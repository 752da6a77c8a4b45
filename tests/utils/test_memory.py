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


def count(**environment: str) -> tuple[str, int]:
    """Return what a fresh process says: a forked one has another part of the heap."""
    path = Path(timm_longtail.__file__).parent / 'utils' / 'memory.py'
    unset = {name: value for name, value in os.environ.items() if not name.startswith(('MALLOC_', 'GLIBC_'))}
    ended = subprocess.run(
        [sys.executable, '-c', COUNT, path], env={**unset, **environment}, capture_output=True, text=True, check=True)
    changed, number = ended.stdout.split()
    return changed, int(number)


def test_a_freed_block_is_used_again():
    changed, number = count()
    assert changed == 'True'
    assert number < PAGES / 10


@pytest.mark.parametrize('name, value', [
    ('MALLOC_TRIM_THRESHOLD_', '131072'), ('GLIBC_TUNABLES', 'glibc.malloc.trim_threshold=131072'),
])
def test_the_environment_is_asked_first(name, value):
    assert count(**{name: value})[0] == 'False'
