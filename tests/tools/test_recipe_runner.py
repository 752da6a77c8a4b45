"""`recipes/run.py`: the order of the queue, what is passed over, what a time limit does."""
import importlib.util
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from timm_longtail.cli.entry import run_main
from timm_longtail.data import create_splits, packed_data, write_packed
from timm_longtail.training.checkpoint import read_checkpoint
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST
from tools import result_tables

from ..support import forks
from ..support.runs import TINY

ROOT = Path(__file__).parents[2]
DIGITS = 'recipes/bcl_resnet20.digits_lt_if20.yaml'  # as earlier rows name it

# what stands in for train.py: notes its options; where it is to last, it waits for SIGINT as train.py does
_TRAIN = '''
import json, pathlib, signal, sys, time
options = sys.argv[1:]
with open('called.jsonl', 'a') as f:
    f.write(json.dumps(options) + chr(10))
def stop(signum, frame):
    pathlib.Path('saved').write_text(signal.Signals(signum).name)
    sys.exit(128 + signum)
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, stop)
pathlib.Path('ready').touch()
if '--fail' in options:
    sys.exit(1)
if '--last' in options:
    time.sleep(60)
value = lambda name: options[options.index(name) + 1]
if '--experiment' in options:
    folder = value('--experiment')
else:  # what train.py calls it
    folder = value('-c') + '.s' + value('--seed')
    folder = folder.replace('resnet32_cifar.cifar', 'resnet32_cifar.ce.cifar')
(pathlib.Path(value('--output')) / folder / 'export').mkdir(parents=True, exist_ok=True)
'''


@pytest.fixture
def runner(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('run_recipes', ROOT / 'recipes' / 'run.py')
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look for their module
    monkeypatch.setattr(sys, 'path', list(sys.path))
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'train.py').write_text(_TRAIN)
    monkeypatch.setattr(module, 'TRAIN', tmp_path / 'train.py')
    parse = module.parse_train_args
    unknown = '--fail', '--last'
    monkeypatch.setattr(module, 'parse_train_args', lambda argv: parse([o for o in argv if o not in unknown]))
    return module


def write_queue(*lines):
    Path('queue.txt').write_text('\n'.join(lines))
    return ['--queue', 'queue.txt']


def called():
    path = Path('called.jsonl')
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def value(options, name):
    return options[options.index(name) + 1]


def runs():
    return [(value(options, '-c'), value(options, '--seed')) for options in called()]


def test_runs_lines_and_seeds_in_order_with_the_common_options_last(runner):
    queue = write_queue(
        '# most valuable first', '', 'resnet32_cifar.cifar100_lt_if100 --seeds 1 0 --lr 0.2',
        'resnet20_cifar.pc_comp.cifar100_lt_if100 --experiment pc_head --method-kwargs pc=head complement=none',
        'bcl_resnet32.cifar100_lt_if100 --imbalance-factor 50  # half as steep')
    runner.main([*queue, '--', '--mixed-precision', 'bf16'])
    assert runs() == [
        ('resnet32_cifar.cifar100_lt_if100', '1'), ('resnet32_cifar.cifar100_lt_if100', '0'),
        ('resnet20_cifar.pc_comp.cifar100_lt_if100', '0'), ('bcl_resnet32.cifar100_lt_if100', '0')]
    first = called()[0]
    assert first[2:8] == ['--seed', '1', '--lr', '0.2', '--mixed-precision', 'bf16']
    assert first[-6:] == ['--output', 'output', '--results', 'results', '--resume', 'auto']
    assert value(called()[2], '--output') == 'output/resnet20_cifar.pc_comp.cifar100_lt_if100.pc_head.s0'


def test_a_variant_has_a_name_and_a_folder_of_its_own(runner):
    runner.main(write_queue('resnet32_cifar.ce-sqrt.cifar100_lt_if100', 'resnet32_cifar.cifar100_lt_if100'))
    variant, plain = called()
    assert value(variant, '--experiment') == 'sqrt' and '--experiment' not in plain
    assert value(variant, '--output') == 'output/resnet32_cifar.ce.cifar100_lt_if100.sqrt.s0'
    assert value(plain, '--output') == 'output'


def test_what_has_its_row_is_passed_over(runner):
    row = json.loads((result_tables.RESULTS / 'digits_lt_if20.bcl_resnet20.bcl.e12.s0.json').read_text())
    assert row['recipe'] == DIGITS
    Path('results').mkdir()
    Path('results/row.json').write_text(json.dumps(row))
    runner.main([DIGITS, '--seeds', '0', '1'])
    assert runs() == [('bcl_resnet20.digits_lt_if20', '1')]
    runner.main([DIGITS, '--', '--imbalance-factor', '10'])
    runner.main([DIGITS, '--', '--epochs', '24'])
    runner.main([DIGITS, '--', '--method-kwargs', 'temperature=0.2'])
    runner.main([DIGITS, '--', '--data-seed', '1'])
    runner.main([DIGITS, '--', '--val-fraction', '0.1'])
    assert len(runs()) == 6


def test_a_damaged_row_is_named_before_anything_runs(runner):
    Path('results').mkdir()
    Path('results/row.json').write_text('{"dataset":')
    with pytest.raises(UserError, match=r'results/row\.json is damaged or not a row of results'):
        runner.main([DIGITS])
    assert runs() == []


def test_the_time_limit_stops_a_run_and_those_behind_it(runner, capfd):
    queue = write_queue('resnet32_cifar.cifar100_lt_if100 --last', 'bcl_resnet32.cifar100_lt_if100')
    runner.main([*queue, '--minutes', '0.03'])
    assert runs() == [('resnet32_cifar.cifar100_lt_if100', '0')]
    assert 'stopped, the next start goes on with it' in capfd.readouterr().out


@pytest.mark.parametrize('signum', [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_goes_on_to_the_run_which_saves(signum, runner, monkeypatch, capfd):
    def send():
        while not Path('ready').exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signum)
    monkeypatch.setattr(sys, 'argv', ['recipes/run.py'])
    queue = write_queue('resnet32_cifar.cifar100_lt_if100 --last', 'bcl_resnet32.cifar100_lt_if100')
    thread = threading.Thread(target=send)
    thread.start()
    with pytest.raises(SystemExit) as end:
        run_main(lambda: runner.main(queue))
    thread.join()
    assert end.value.code == 128 + signum
    assert Path('saved').read_text() == signum.name
    assert len(runs()) == 1  # and none behind it
    printed = capfd.readouterr()
    assert printed.err.strip() == f'stopped by {signum.name}'
    assert 'stopped, the next start goes on with it' in printed.out


@pytest.mark.parametrize('ending, status', [
    ('sys.exit(3)', 3), ('os.kill(os.getpid(), signal.SIGTERM)', 143), ('os.kill(os.getpid(), signal.SIGKILL)', 137),
])
def test_the_status_of_a_run(ending, status, runner, tmp_path):
    (tmp_path / 'train.py').write_text(f'import os, signal, sys; {ending}')
    assert runner.train([], None) == status


def test_a_run_that_fails_does_not_stop_the_others(runner):
    queue = write_queue('resnet32_cifar.cifar100_lt_if100 --fail', 'bcl_resnet32.cifar100_lt_if100')
    with pytest.raises(UserError, match=r'did not end well: resnet32_cifar\.ce\.cifar100_lt_if100\.s0$'):
        runner.main(queue)
    assert len(called()) == 2


def test_stage_2_starts_from_stage_1_of_its_seed(runner, capsys):
    stage_1, stage_2 = 'resnet32_cifar.cifar100_lt_if100', 'resnet32_cifar.crt.cifar100_lt_if100'
    runner.main(write_queue(f'{stage_2} --after {stage_1}'))
    assert called() == [] and 'it starts from output/resnet32_cifar.ce.cifar' in capsys.readouterr().out
    runner.main(write_queue(f'{stage_1} --seeds 3', f'{stage_2} --seeds 3 --after {stage_1}'))
    export = 'output/resnet32_cifar.ce.cifar100_lt_if100.s3/export'
    assert value(called()[1], '--initial-checkpoint') == export


def test_stage_2_starts_from_a_variant_of_stage_1(runner):
    stage_1, stage_2 = 'resnet32_cifar.cifar100_lt_if100', 'resnet32_cifar.crt.cifar100_lt_if100'
    runner.main(write_queue(f'{stage_1} --experiment short --epochs 10', f'{stage_2} --after {stage_1}:short'))
    export = 'output/resnet32_cifar.ce.cifar100_lt_if100.short.s0/short/export'
    assert value(called()[1], '--initial-checkpoint') == export


def test_packed_files_serve_the_recipes_of_their_data(runner, tmp_path, capsys):
    path = tmp_path / 'digits.safetensors'
    write_packed(path, *create_splits('digits_lt'), {})
    assert packed_data(path) == ('digits_lt', 20)
    runner.main([*write_queue('bcl_resnet32.cifar100_lt_if100', DIGITS), '--packed', str(path)])
    (options,) = called()
    assert value(options, '--dataset') == f'packed:{path}'
    assert 'no packed file holds cifar100_lt with factor 100' in capsys.readouterr().out


@pytest.mark.script
def test_a_real_run_saves_when_the_runner_is_stopped(tmp_path):
    command = [ROOT / 'recipes' / 'run.py', DIGITS, '--output', tmp_path, '--', *TINY, '--img-size', '16',
               '-b', '256', '--log-interval', '1', '--epochs', '500', '--experiment', 'run']
    process = forks.Process(*command, cwd=tmp_path, env=forks.ENV)
    for line in process.stdout:
        if line.startswith('epoch 2'):
            process.send_signal(signal.SIGTERM)
            break
    out, error = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert error.splitlines() == [
        'stopped by SIGTERM; continue with the same command and --resume auto', 'stopped by SIGTERM']
    assert 'stopped, the next start goes on with it' in out
    assert read_checkpoint(next(tmp_path.rglob(LAST)))['epoch'] >= 1


def test_the_queue_of_the_project_can_be_parsed(runner):
    items = list(runner.read_queue(ROOT / 'recipes' / 'queue.txt'))
    assert len({item.name for item in items}) == len(items) > 20  # a folder and a row each
    before = set()
    for item in items:
        assert item.after is None or item.after.name in before, item.name
        before.add(item.name)


@pytest.mark.parametrize('line, message', [
    ('no_such', "unknown recipe 'no_such'"),
    ('no/such.yaml', 'no recipe at no/such.yaml'),
    ('--seeds 0', 'required: recipe'),
])
def test_a_bad_line(runner, line, message):
    with pytest.raises(UserError, match=message):
        runner.main(write_queue(line))


@pytest.mark.parametrize('line, words', [
    ('"resnet20', 'queue.txt, line 2: No closing quotation'),
    ('resnet20_cifar.cifar100_lt_if100 --seeds -1', 'queue.txt, line 2: --seeds must be in [0, 4294967295], got -1'),
    ('resnet20_cifar.cifar100_lt_if100 --seeds x', "queue.txt, line 2: --seeds must be a whole number"),
    ('nowhere', "queue.txt, line 2: unknown recipe 'nowhere'"),
    (b'\xe9', 'queue.txt is not a queue: it is not UTF-8'),
])
def test_a_line_of_the_queue_that_cannot_be_is_named(line, words, runner, tmp_path):
    path = tmp_path / 'queue.txt'
    path.write_bytes(b'# runs\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(UserError) as error:
        list(runner.read_queue(path))
    assert words in str(error.value) and '\n' not in str(error.value)
