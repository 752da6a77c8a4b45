"""What is forked behaves as a fresh process: the same program is started both ways, and tells of itself."""
import json
import signal
import subprocess
import sys

import pytest

from . import forks

PROGRAM = '''
import atexit, json, os, random, signal, sys, threading
atexit.register(lambda: print('at exit'))
main = sys.modules['__main__']
print(json.dumps({
    'argv': sys.argv, 'path': sys.path[0], 'cwd': os.getcwd(), 'name': __name__, 'main': main.__dict__ is globals(),
    'file': globals().get('__file__'), 'mine': os.environ.get('MINE'), 'home': 'HOME' in os.environ,
    'stdin': sys.stdin.read(), 'tty': [os.isatty(n) for n in range(3)], 'open': sorted(os.listdir('/proc/self/fd')),
    'threads': [threading.active_count(), len(os.listdir('/proc/self/task'))],
    'signals': [str(signal.getsignal(n)).split(' at ')[0] for n in sorted(signal.valid_signals())],
    'alone': os.getsid(0) == os.getpgid(0) == os.getpid(), 'ignored': open('/proc/self/status').read().split('Sig')[4],
}))
print(random.random())
print('to stderr', file=sys.stderr)
threading.Thread(target=lambda: (threading.Event().wait(0.1), print('thread'))).start()
'''
ENDS = {
    '': 0, 'sys.exit(3)': 3, 'sys.exit("why")': 1, '1 / 0': 1, 'os._exit(5)': 5, 'raise KeyboardInterrupt': -2,
    'sys.stdout.flush(); os.kill(os.getpid(), 9)': -9,
}
pytestmark = [
    pytest.mark.script, pytest.mark.skipif(sys.platform != 'linux', reason='the program that tells reads /proc')]


def both(*argv, cwd):
    """Return two processes that have ended: a fresh one and a forked one."""
    env = {'MINE': 'x', 'PATH': '/bin'}
    (cwd / 'in').write_text('some words')
    with open(cwd / 'in') as file:
        fresh = subprocess.run(
            [sys.executable, '-u', *argv], stdin=file, capture_output=True, text=True, cwd=cwd, env=env,
            start_new_session=True)

    with open(cwd / 'in') as file:
        return fresh, forks.run(*argv, stdin=file, cwd=cwd, env=env, server=forks.stock())


@pytest.mark.parametrize('end', ENDS)
def test_a_fork_tells_of_itself_what_a_fresh_process_tells(end, tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'script.py').write_text(f'{PROGRAM}\n{end}\n')
    fresh, forked = both('folder/script.py', '--option', 'a b', cwd=tmp_path)
    assert forked.returncode == fresh.returncode == ENDS[end]

    ours, theirs = (done.stdout.splitlines() for done in (forked, fresh))
    assert json.loads(ours.pop(0)) == json.loads(theirs.pop(0))
    assert ours.pop(0) != theirs.pop(0)  # a random number
    assert ours == theirs

    ours, theirs = (done.stderr.splitlines() for done in (forked, fresh))
    assert ours[0] == theirs[0] == 'to stderr' and ours[-1] == theirs[-1]


@pytest.mark.parametrize('argv', [('-c', f'{PROGRAM}\nsys.exit(3)', 'a'), ('-m', 'script', 'a')])
def test_code_and_modules(argv, tmp_path):
    (tmp_path / 'script.py').write_text(f'{PROGRAM}\nsys.exit(3)')
    fresh, forked = both(*argv, cwd=tmp_path)
    assert json.loads(forked.stdout.splitlines()[0]) == json.loads(fresh.stdout.splitlines()[0])
    assert forked.returncode == fresh.returncode == 3


def test_several_at_once():
    processes = [
        forks.Process('-c', 'import sys\nfor line in sys.stdin: print(line[::-1])', stdin=forks.PIPE,
                      server=forks.stock()) for _ in range(3)]
    for i, process in enumerate(processes):
        print(f'abc{i}', file=process.stdin, flush=True)
    processes[1].kill()
    assert processes[1].wait() == -signal.SIGKILL

    processes[0].send_signal(signal.SIGTERM)
    assert processes[0].wait() == -signal.SIGTERM
    assert processes[2].communicate() == ('\n2cba\n', '')
    assert processes[2].returncode == 0
    with pytest.raises(TimeoutError):
        process = forks.Process('-c', 'import time; time.sleep(60)', server=forks.stock())
        process.wait(timeout=0.05)

    process.kill()
    assert process.wait(timeout=20) == -signal.SIGKILL


def test_what_each_server_has_loaded():
    names = ('torch', 'timm', 'timm_longtail', 'timm_longtail.cli.train')
    code = f'import sys; print(*(name in sys.modules for name in {names}))'
    for server, loaded in (
            (forks.bare(), 'True False False False'), (forks.stock(), 'True True False False'),
            (forks.ours(), 'True True True True')):
        assert forks.run('-c', code, server=server).stdout.strip() == loaded
