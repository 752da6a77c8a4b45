"""The short form of `make fuzz`: a few cases of each kind, and the instrument, which must see each way to go wrong."""
import os

import pytest

from tools.fuzz import damage
from tools.fuzz.__main__ import KINDS, deal, exercise
from tools.fuzz.commands import Commands
from tools.fuzz.files import FORMATS
from tools.fuzz.trial import HANG, ONE_LINE, RAN, TRACEBACK, WRONG_END, Workshop, judge

from . import forks

# every format once; the complete exercise is `python -m tools.fuzz`
COUNTS = {'commands': 8, 'files': len(FORMATS), 'flips': 3, 'kills': 1}
SEED = 0

# a program, as `-c` takes it, and what is to be said of it
PROGRAMS = {
    'pass': RAN,
    'import sys; sys.exit("read: error: why")': WRONG_END,  # status 1
    'import sys; print("read: error: why", file=sys.stderr); sys.exit(2)': ONE_LINE,
    'import sys; print("read: error: why\\nand more", file=sys.stderr); sys.exit(2)': WRONG_END,
    'import sys; print("why", file=sys.stderr); sys.exit(2)': WRONG_END,
    'import sys; sys.exit(2)': WRONG_END,
    '1 / 0': TRACEBACK,
    'import threading; t = threading.Thread(target=lambda: 1 / 0); t.start(); t.join()': TRACEBACK,  # status 0
    'x = bytearray(2 ** 33)': TRACEBACK,  # more than a case may take
    'import os; os.abort()': WRONG_END,
    'open("../place/fifo").read()': HANG,
    'import os, time\nif os.fork(): time.sleep(60)': HANG,
}

pytestmark = [
    pytest.mark.script, pytest.mark.skipif(os.name != 'posix', reason='cases are forked'),
]


@pytest.fixture(scope='module')
def workshop(tmp_path_factory):
    workshop = Workshop(tmp_path_factory.mktemp('fuzz') / 'work', SEED, limit=60, origin=forks.bare())
    yield workshop
    workshop.close()


@pytest.fixture(scope='module')
def found(workshop):
    return list(exercise(workshop, deal(COUNTS)))


@pytest.mark.parametrize('kind', KINDS)
def test_no_traceback_hang_or_silent_change(kind, found):
    verdicts = {number: verdict for name, number, verdict in found if name == kind}
    assert len(verdicts) == COUNTS[kind]
    faults = {
        f'{kind}:{number}': (verdict.outcome, verdict.what, verdict.words, verdict.how)
        for number, verdict in verdicts.items() if verdict.is_fault}
    assert not faults


@pytest.mark.parametrize('code, outcome', PROGRAMS.items())
def test_each_way_to_end_is_seen(code, outcome, workshop, monkeypatch):
    monkeypatch.setattr(workshop, 'limit', 2 if outcome == HANG else 60)
    with workshop.case('program') as folder:
        ended = workshop.run(['-c', code], folder)
    verdict = judge(ended, 'read: error: ')
    assert verdict.outcome == outcome, verdict.detail
    assert not folder.exists()


def test_a_case_depends_on_the_seed_and_its_number_alone(workshop, monkeypatch):
    commands = Commands(workshop)
    options = [commands.draw(number) for number in range(50)]
    assert [commands.draw(number) for number in reversed(range(50))] == options[::-1]
    monkeypatch.setattr(workshop, 'seed', SEED + 1)
    assert [commands.draw(number) for number in range(50)] != options


def test_every_entry_point_gives_its_options_away(workshop):
    counts = {program.argv[-1]: len(program.actions) for program in Commands(workshop).programs}
    assert set(counts) == {
        'train.py', 'validate.py', 'retrain.py', 'benchmark.py', 'recipes/run.py', 'pack', 'push', 'flags'}
    assert counts['benchmark.py'] > counts['train.py'] > 50 and min(counts.values()) > 5


@pytest.mark.parametrize('kind', FORMATS)
def test_damage_changes_a_file(kind, workshop):
    """Of all kinds of damage: most change the bytes, as a run of zeros where zeros were does not."""
    good = (workshop.place / FORMATS[kind].path).read_bytes()
    alter = [FORMATS[kind].alter] * (FORMATS[kind].alter is not None)
    for change in [*damage.BYTES.values(), *alter]:
        damaged = [change(good, workshop.draw(change.__name__, number)) for number in range(4)]
        assert any(data != good for data in damaged), change.__name__
