"""The short form of `make fuzz`: a few cases of each kind, and the instrument, which must see each way to go wrong."""
import os
from dataclasses import replace

import pytest

from timm_longtail.cli import COMMANDS
from tools.fuzz import damage
from tools.fuzz.__main__ import KINDS, deal, exercise, format_faults
from tools.fuzz.commands import Commands, Program
from tools.fuzz.files import FLIPPED, FORMATS, Files
from tools.fuzz.place import PICTURES
from tools.fuzz.trial import CHANGED, HANG, ONE_LINE, RAN, ROOT, TRACEBACK, WRONG_END, Workshop, judge

from ..support import forks

# every format once but for pictures, of which two; the complete exercise is `python -m tools.fuzz`
COUNTS = {'commands': 6, 'files': len(FORMATS) - len(PICTURES) + 2, 'flips': len(FLIPPED), 'kills': 1}
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
    'import time; time.sleep(0.5); x = bytearray(2 ** 33)': TRACEBACK,  # more than a case may take, once limits are set
    'import os; os.abort()': WRONG_END,
    'open("../place/fifo").read()': HANG,
    'import os, time\nif os.fork(): time.sleep(60)': HANG,
    'import time; print("epoch 1/9"); time.sleep(60)': HANG,
}
# training that is asked to stop, and says so with its status
LONG = '''import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print('epoch 1/9')
time.sleep(60)
'''
PROGRAMS[LONG] = RAN

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
    cases = [case for case in found if case[0] == kind]
    assert len(cases) == COUNTS[kind]
    faults = format_faults(cases, SEED)
    assert not faults, faults


@pytest.mark.parametrize('code, outcome', PROGRAMS.items())
def test_each_way_to_end_is_seen(code, outcome, workshop, monkeypatch):
    monkeypatch.setattr(workshop, 'limit', 2 if outcome == HANG or code == LONG else 60)
    with workshop.case('program') as folder:
        ended = workshop.run(['-c', code], folder)
    verdict = judge(ended, 'read: error: ')
    assert verdict.outcome == outcome, verdict.detail
    assert not folder.exists()


@pytest.mark.parametrize('noticed, outcome', [(True, CHANGED), (False, RAN)])
def test_other_content_is_seen_where_it_can_be_noticed(noticed, outcome, workshop, monkeypatch):
    def damage_queue(files, kind, place, draw):
        (place / FORMATS[kind].path).write_text('../place/recipe.yaml --seeds 7\n')
        return 'another seed', False

    monkeypatch.setattr(Files, '_damage', damage_queue)
    monkeypatch.setitem(FORMATS, 'queue', replace(FORMATS['queue'], noticed=noticed))
    assert Files(workshop)(list(FORMATS).index('queue')).outcome == outcome


@pytest.mark.parametrize('left, outcome', [('nothing', ONE_LINE), ('a folder', WRONG_END)])
def test_a_folder_that_a_refused_command_leaves_is_seen(left, outcome, workshop, tmp_path):
    script = tmp_path / 'refuse.py'
    make = 'import os; os.mkdir("output")\n' if left == 'a folder' else ''
    script.write_text(f'{make}import sys; print("refuse: error: why", file=sys.stderr); sys.exit(2)')
    program = Program(('-m', 'timm_longtail', str(script)), 'refuse: error: ', (), None, 1)
    assert Commands(workshop).run('left', program, []).outcome == outcome


def test_a_case_depends_on_the_seed_and_its_number_alone(workshop, monkeypatch):
    commands = Commands(workshop)
    options = [commands.draw(number) for number in range(50)]
    assert [commands.draw(number) for number in reversed(range(50))] == options[::-1]
    monkeypatch.setattr(workshop, 'seed', SEED + 1)
    assert [commands.draw(number) for number in range(50)] != options


def test_every_entry_point_gives_its_options_away(workshop):
    counts = {program.argv[-1]: len(program.actions) for program in Commands(workshop).programs}
    scripts = {f'{name}.py' for name in COMMANDS if (ROOT / f'{name}.py').is_file()}
    assert set(counts) == {*scripts, 'recipes/run.py', *(COMMANDS.keys() - {name[:-3] for name in scripts})}
    assert counts['benchmark.py'] > counts['train.py'] > 50 and min(counts.values()) >= 2


@pytest.mark.parametrize('kind', FORMATS)
def test_damage_changes_a_file(kind, workshop):
    """Of all kinds of damage: most change the bytes, as a run of zeros where zeros were does not."""
    good = (workshop.place / FORMATS[kind].path).read_bytes()
    alter = [FORMATS[kind].alter] * (FORMATS[kind].alter is not None)
    for change in [*damage.BYTES.values(), *alter]:
        damaged = [change(good, workshop.draw(change.__name__, number)) for number in range(4)]
        assert any(data != good for data in damaged), change.__name__
