"""How entry points end in one process: streams, signals, and what is not the same on every system."""
import io
import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from timm_longtail.cli.entry import run_main
from timm_longtail.training import provenance
from timm_longtail.training.accelerator import usable_cores
from timm_longtail.utils.signals import Interrupted, Stopped, on_stop_signal, stop_signals
from timm_longtail.utils.streams import lasting_streams

from ..support import forks


class BrokenStream(io.StringIO):
    """A stream that the disk or the reader refuses."""

    def __init__(self, error: OSError, refuses: str):
        super().__init__()
        self.error, self.refuses = error, refuses

    def write(self, text):
        if self.refuses == 'write':
            raise self.error
        return super().write(text)

    def flush(self):
        if self.refuses == 'flush':
            raise self.error


@pytest.mark.parametrize('refuses', ['write', 'flush'])
@pytest.mark.parametrize('error', [BrokenPipeError(), OSError(5, 'Input/output error'), OSError(28, 'No space left')])
def test_a_stream_that_is_refused_raises_nothing(error, refuses, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', BrokenStream(error, refuses))
    with lasting_streams():
        print('first', flush=True)
        print('second')


def test_a_pipe_without_a_reader_becomes_silent(monkeypatch):
    reader, writer = os.pipe()
    stream = open(writer, 'w')
    monkeypatch.setattr(sys, 'stdout', stream)
    with lasting_streams():
        print('read', flush=True)
        assert os.read(reader, 9) == b'read\n'
        os.close(reader)
        print('not read', flush=True)
        print('buffered')
    stream.close()  # and what was buffered raises nothing behind the block, as at the end of a program


def test_a_stream_that_was_never_open(monkeypatch):
    monkeypatch.setattr(sys, 'stdout', None)
    with lasting_streams():
        print('nobody reads it', flush=True)
        sys.stdout.flush()
    assert sys.stdout is None


@pytest.mark.parametrize('name, printed', [
    (os.fsdecode(b'caf\xe9'), b'caf\\udce9'), ('Käfer', b'K\\xe4fer'), ('ant', b'ant'),
])
def test_names_are_printed_under_any_locale(name, printed, monkeypatch):
    content = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(content, encoding='ascii'))  # as under LC_ALL=C
    with lasting_streams():
        print(name)
    assert content.getvalue() == printed + b'\n'


def test_a_pipe_in_the_place_of_a_file(tmp_path, monkeypatch):
    reader, writer = os.pipe()
    stream = open(tmp_path / 'file', 'w', encoding='ascii')
    os.dup2(writer, stream.fileno())
    monkeypatch.setattr(sys, 'stdout', stream)
    with lasting_streams():
        print('Käfer')
    assert os.read(reader, 99) == b'K\\xe4fer\n'
    stream.close(), os.close(writer), os.close(reader)


def test_streams_stay_what_they_are(capsys):
    before = sys.stdout, sys.stderr
    with lasting_streams():
        assert sys.stdout.isatty() is False
    assert (sys.stdout, sys.stderr) == before


def end(main, capsys):
    """Run an entry point; returns its exit status and what it said."""
    with pytest.raises(SystemExit) as stop:
        run_main(main)
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize('signum', stop_signals())
def test_a_signal_is_one_line_and_a_status(signum, capsys):
    before = [signal.getsignal(other) for other in stop_signals()]
    assert end(lambda: os.kill(os.getpid(), signum), capsys) == (128 + signum, f'stopped by {signum.name}\n')
    assert [signal.getsignal(other) for other in stop_signals()] == before


def test_ctrl_c_while_the_interpreter_ends():
    """The work is done: whatever the exit functions of libraries are at, nothing is traced."""
    program = (
        'import atexit, os, signal\n'
        'from timm_longtail.cli.entry import run_main\n'
        'atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n'
        'run_main(lambda: print("done"))\n'
    )
    process = forks.Process('-c', program)
    assert process.communicate() == ('done\n', '') and process.returncode == -signal.SIGINT


@pytest.mark.parametrize('error, expected', [
    (KeyboardInterrupt(), (130, 'stopped by SIGINT\n')),
    (Stopped(signal.SIGTERM), (143, 'stopped by SIGTERM\n')),
    (Interrupted(signal.SIGHUP), (129, 'stopped by SIGHUP; continue with the same command and --resume auto\n')),
])
def test_what_a_signal_became(error, expected, capsys):
    def fail():
        raise error
    assert end(fail, capsys) == expected


def test_the_loss_of_a_process_is_said_although_the_launcher_stops_this_one(capsys, monkeypatch):
    """The launcher sends SIGTERM to the survivors, while one of them still cleans up behind the error."""
    monkeypatch.setenv('WORLD_SIZE', '2')

    def main():
        try:
            raise dist.DistStoreError('Broken pipe')
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
    status, line = end(main, capsys)
    assert status == 1 and 'another process of this run has died or lost its connection (Broken pipe)' in line
    assert len(line.splitlines()) == 1


def test_hangups_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with on_stop_signal(lambda *_: pytest.fail('a signal was handled')):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_signals_alone():
    entered = []

    def enter():
        with on_stop_signal(lambda *_: None):
            entered.append(signal.getsignal(signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [before]


def test_cores_where_the_system_does_not_say_which(monkeypatch):
    monkeypatch.setattr(os, 'cpu_count', lambda: 7)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: {2, 3}, raising=False)
    assert usable_cores() == 2
    monkeypatch.delattr(os, 'sched_getaffinity')  # as on macOS
    assert usable_cores() == 7


@pytest.mark.parametrize('status', [None, 'Name:\tpython\n'])
def test_memory_where_the_system_does_not_say_it_in_proc(status, monkeypatch):
    def read_text(path):
        if status is None:
            raise FileNotFoundError(path)
        return status
    monkeypatch.setattr(Path, 'read_text', read_text)
    assert 1e7 < provenance._peak_rss() < 1e12


def test_a_name_that_the_locale_cannot_print_does_not_end_the_run(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii', write_through=True))
    run_main(lambda: print('café'))
    assert raw.getvalue() == rb'caf\xe9' + b'\n'
