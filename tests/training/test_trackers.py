"""Trackers: what they hold of a run, that a resumed run goes on in them, that they are closed however it ends."""
import json
import sqlite3
import struct

import pytest
from accelerate.tracking import TensorBoardTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from timm_longtail.cli import train
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.training.loop import fit
from timm_longtail.training.trackers import RUN_ID, check_trackers, flatten, log_final, tracking
from timm_longtail.utils.errors import UserError

from ..support.runs import digits, make_run

TENSORBOARD = 'tensorboard/project'  # in the output folder
LAST = {'all': 50.0, 'few': None, 'class_accuracy': [1.0, 2.0], 'num_images': 64}


def run_into(folder, *options, num_epochs=2, state=None, finishes=True):
    """Train in `folder` as `train.py` does, from a state if given; return the run."""
    _, run = make_run('ce', '--epochs', '3', '--val-interval', '2', '--project', 'project', *options)
    folder.mkdir(exist_ok=True)
    run.output_dir = folder
    run.tree_hashes = ['aaaa']
    if state is not None:
        run.load_state_dict(state)

    with tracking(run, digits()):
        fit(run, num_epochs, train.end_epoch)
        if finishes:
            log_final(run, LAST)
    return run


def read_scalars(folder):
    """Return {tag: {step: value}} of a folder of event files; a step that is there twice fails."""
    events = EventAccumulator(str(folder), size_guidance={'scalars': 0}).Reload()
    found = {}
    for tag in events.Tags()['scalars']:
        steps = [event.step for event in events.Scalars(tag)]
        assert len(set(steps)) == len(steps), (tag, steps)
        found[tag] = {event.step: event.value for event in events.Scalars(tag)}
    return found


def expected_figures(run):
    """Return {name: {step: value}}, as a tracker must hold them after `run_into`."""
    found = {}
    for row in run.history:
        for name in row.keys() - {'epoch'}:
            if row[name] is not None:
                found.setdefault(name, {})[row['epoch']] = row[name]
    return {**found, 'last_all': {run.epoch: 50.0}, 'last_num_images': {run.epoch: 64}}


def assert_same_figures(found, run):
    expected = expected_figures(run)
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name] == pytest.approx(expected[name], rel=1e-6), name


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """A run of two epochs in TensorBoard, evaluated after the second."""
    folder = tmp_path_factory.mktemp('finished') / 'run'
    return folder, run_into(folder, '--tracker', 'tensorboard', '--method-kwargs', 'view=crop_flip')


def test_tensorboard_holds_the_rows(finished):
    folder, run = finished
    found = read_scalars(folder / TENSORBOARD)
    assert {'lr', 'train_loss', 'eval_all', 'eval_balanced', 'train_seconds'} <= found.keys()
    assert set(found['train_loss']) == {0, 1} and set(found['eval_all']) == {1}
    assert run.history[1]['eval_many'] is None and 'eval_many' not in found  # no class of 64 images is a many-shot one
    assert_same_figures(found, run)


def test_tensorboard_holds_the_hyper_parameters(finished):
    folder, _ = finished
    assert [path.parent for path in folder.rglob('*tfevents*')] == [folder / TENSORBOARD]  # one run, not one in another
    events = EventAccumulator(str(folder / TENSORBOARD)).Reload()
    content = events.SummaryMetadata('_hparams_/session_start_info').plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    found = {k: getattr(v, v.WhichOneof('kind')) for k, v in session.hparams.items()}
    assert found['lr'] == 0.05 and found['method'] == 'ce' and found['clip_grad'] == 'None'
    assert found['method_kwargs.view'] == 'crop_flip' and found['model_kwargs.layers'] == '(1, 1, 1)'
    assert found['decay_milestones'] == '[161, 181]'
    assert found['subset_hash'] == digits().hash and found['tree_hash'] == 'aaaa'
    assert found['num_classes'] == 10 and found['imbalance_factor'] == 20 and found['global_batch_size'] == 16
    assert found['real_imbalance_factor'] == digits().real_imbalance_factor


def test_a_resumed_run_goes_on_in_tensorboard(tmp_path):
    """An epoch and the last figures, logged after the checkpoint that is taken up, are replaced."""
    first = run_into(tmp_path, '--tracker', 'tensorboard', num_epochs=1, finishes=False)
    state = first.state_dict()
    run_into(tmp_path, '--tracker', 'tensorboard', state=state)
    second = run_into(tmp_path, '--tracker', 'tensorboard', state=state, num_epochs=3)
    assert {path.parent for path in tmp_path.rglob('*tfevents*')} == {tmp_path / TENSORBOARD}
    found = read_scalars(tmp_path / TENSORBOARD)
    assert set(found['train_loss']) == {0, 1, 2} and set(found['last_all']) == {3}
    assert_same_figures(found, second)


def test_the_id_of_a_run_is_that_of_its_folder(finished, tmp_path):
    folder, _ = finished
    ids = []
    for _ in range(2):
        run_into(tmp_path, '--tracker', 'tensorboard', num_epochs=0, finishes=False)
        ids.append((tmp_path / RUN_ID).read_text())
    assert ids[0] == ids[1] != (folder / RUN_ID).read_text()


@pytest.mark.parametrize('error', [UserError, KeyboardInterrupt])
def test_trackers_are_closed_when_a_run_breaks(error, tmp_path, monkeypatch):
    closed = []
    finish = TensorBoardTracker.finish
    monkeypatch.setattr(TensorBoardTracker, 'finish', lambda self: closed.append(finish(self)))
    _, run = make_run('ce', '--tracker', 'tensorboard')
    run.output_dir = tmp_path
    with pytest.raises(error), tracking(run, digits()):
        assert len(run.accelerator.trackers) == 1
        raise error
    assert len(closed) == 1 and run.accelerator.trackers == []


@pytest.mark.parametrize('fault', [BrokenPipeError('Broken pipe'), OSError('No space left\non device'), KeyError('x')])
def test_a_tracker_that_fails_does_not_end_the_run(fault, tmp_path, monkeypatch, caplog):
    logged = []

    def log(self, values, step=None, **kwargs):
        logged.append(step)
        raise fault

    def finish(self):
        raise fault
    monkeypatch.setattr(TensorBoardTracker, 'log', log)
    monkeypatch.setattr(TensorBoardTracker, 'finish', finish)
    run = run_into(tmp_path, '--tracker', 'tensorboard')
    assert len(run.history) == 2 and run.epoch == 2
    assert logged == [0]  # no more is given to it
    line, = caplog.messages
    assert line == f'--tracker tensorboard: {" ".join(str(fault).split())}; the run goes on without it'


def test_a_tracker_that_cannot_be_closed_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def finish(self):
        raise OSError('No space left on device')
    monkeypatch.setattr(TensorBoardTracker, 'finish', finish)
    assert run_into(tmp_path, '--tracker', 'tensorboard').epoch == 2
    assert caplog.messages == ['--tracker tensorboard: No space left on device; the run goes on without it']


def test_a_tracker_that_does_not_start_leaves_nothing(tmp_path, monkeypatch):
    def refuse(self, values):
        raise RuntimeError('not logged in')
    monkeypatch.setattr(TensorBoardTracker, 'store_init_configuration', refuse)
    monkeypatch.setattr('timm_longtail.training.trackers._TensorBoard.store_init_configuration', refuse)
    with pytest.raises(UserError, match='^--tracker tensorboard: not logged in$'):
        run_into(tmp_path / 'run', '--tracker', 'tensorboard')
    assert not (tmp_path / 'run' / RUN_ID).exists()


def test_without_a_tracker_nothing_is_written(tmp_path):
    run_into(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name in (RUN_ID, 'tensorboard', 'wandb')]


def test_flatten():
    values = {'a': {'b': {'c': 1}, 'd': None}, 'e': [1, 'x'], 'f': True, 'g': 'word', 'h': 0.5, 'i': {}, 'j': None}
    assert flatten(values) == {
        'a.b.c': 1, 'a.d': 'None', 'e': "[1, 'x']", 'f': True, 'g': 'word', 'h': 0.5, 'j': 'None'}


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'no_such_tracker').mkdir()  # as `wandb/`, which former runs leave, looks like a package
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^--tracker no_such_tracker: .* pip install 'timm_longtail\[trackers\]'$"):
        check_trackers(['tensorboard', 'no_such_tracker'])


def test_a_recipe_names_one_tracker_or_several(tmp_path):
    recipe = tmp_path / 'recipe.yaml'
    for text, names in (('wandb', ['wandb']), ('[trackio, tensorboard]', ['trackio', 'tensorboard'])):
        recipe.write_text(f'tracker: {text}\n')
        assert parse_train_args(['-c', str(recipe)]).tracker == names
    recipe.write_text('tracker: [trackio, mlflow]\n')
    with pytest.raises(UserError, match="tracker must be one of tensorboard, wandb, trackio, got 'mlflow'"):
        parse_train_args(['-c', str(recipe)])


@pytest.fixture
def wandb():
    """The package, which is not among those for tests; it reads its environment variables once in a process."""
    wandb = pytest.importorskip('wandb.sdk')
    wandb.teardown()
    yield wandb
    wandb.teardown()


def read_wandb_file(path):
    """Return the records of a `.wandb` file: LevelDB's log format, after a header of its own."""
    data, at, records = path.read_bytes(), 7, []
    assert data[:4] == b':W&B'
    while at < len(data):
        if (left := 2 ** 15 - at % 2 ** 15) < 7:  # no header fits into the rest of a block
            at += left
            continue
        _, length, kind = struct.unpack_from('<IHB', data, at)
        chunk = data[at + 7:at + 7 + length]
        at += 7 + length
        if kind in (1, 2):  # whole, or the first of several chunks
            records.append(chunk)
        else:
            records[-1] += chunk
    return records


def test_wandb_offline(tmp_path, monkeypatch, wandb):
    from wandb.proto.wandb_internal_pb2 import Record
    monkeypatch.setenv('WANDB_MODE', 'offline')
    folder = tmp_path / 'run'
    first = run_into(folder, '--tracker', 'wandb', num_epochs=1, finishes=False)
    second = run_into(folder, '--tracker', 'wandb', num_epochs=2, state=first.state_dict())
    wandb.teardown()  # its process may write the last rows after the run is finished
    figures, config, ids = {}, {}, set()
    for path in sorted(folder.glob('wandb/offline-run-*/*.wandb')):
        for record in map(Record.FromString, read_wandb_file(path)):
            if record.WhichOneof('record_type') == 'run':
                ids.add((record.run.run_id, record.run.display_name, record.run.project))
                config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
            config.update({item.key: json.loads(item.value_json) for item in record.config.update})
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for name, value in values.items():
                if not name.startswith('_'):
                    figures.setdefault(name, {})[values['_step']] = value
    assert ids == {((folder / RUN_ID).read_text().strip(), 'run', 'project')}
    assert config['subset_hash'] == digits().hash and config['model_kwargs.layers'] == '(1, 1, 1)'
    assert_same_figures(figures, second)


def test_wandb_that_is_not_logged_in(tmp_path, monkeypatch, wandb):
    for name in ('WANDB_MODE', 'WANDB_API_KEY'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))  # without ~/.netrc
    monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match='^--tracker wandb: No API key configured'):
        run_into(tmp_path / 'run', '--tracker', 'wandb')


def test_trackio(tmp_path, monkeypatch):
    """Needs the package, which is not among those for tests."""
    monkeypatch.setenv('TRACKIO_DIR', str(tmp_path / 'trackio'))
    pytest.importorskip('trackio')
    folder = tmp_path / 'run'
    first = run_into(folder, '--tracker', 'trackio', num_epochs=1, finishes=False)
    second = run_into(folder, '--tracker', 'trackio', num_epochs=2, state=first.state_dict())
    connection = sqlite3.connect(tmp_path / 'trackio' / 'project.db')
    connection.row_factory = sqlite3.Row
    figures = {}
    for row in connection.execute('SELECT * FROM metrics'):
        assert row['run_name'] == f'run.{(folder / RUN_ID).read_text().strip()}'
        for name, value in json.loads(row['metrics']).items():
            assert row['step'] not in figures.setdefault(name, {})
            figures[name][row['step']] = value
    configs = [json.loads(row['config']) for row in connection.execute('SELECT * FROM configs')]
    connection.close()
    assert len(configs) == 1 and configs[0]['subset_hash'] == digits().hash
    assert_same_figures(figures, second)
