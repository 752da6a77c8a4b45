"""`validate.py`: exports, checkpoints, timm models; the tables it writes; what it refuses."""
import csv
import io
import json
import os
import shutil
import sys

import pytest
import timm
import torch
import yaml
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from timm_longtail.cli import retrain, train, validate
from timm_longtail.cli.entry import run_main
from timm_longtail.export.checksums import seal
from timm_longtail.retraining import testing, trained_model
from timm_longtail.retraining.source import load_source, open_data
from timm_longtail.retraining.trained_model import load_checkpoint, load_export
from timm_longtail.training.checkpoint import read_checkpoint
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST

from ..data.test_sources import write_classes
from ..support.exports import edit_provenance
from ..support.runs import TINY


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """The output folder of a short run with a moving average, which differs from the weights."""
    AcceleratorState._reset_state(reset_partial_state=False)
    output = tmp_path_factory.mktemp('run')
    train.main([*TINY, '--dataset', 'digits_lt', '--no-recipe', '--method', 'ce', '-b', '64', '--epochs', '1',
                '--model-ema', '--model-ema-decay', '0.5', '--output', str(output), '--experiment', 'run'])
    return output / 'run'


def printed_count(capsys, *options):
    capsys.readouterr()
    validate.main([str(option) for option in options])
    line = capsys.readouterr().out.strip().splitlines()[-1]
    assert line.endswith('images correct')
    return int(line.split()[0]), int(line.split()[2])


def expected(run):
    last = json.loads((run / 'metrics.json').read_text())['last']
    return sum(last['class_correct']), last['num_images']


@pytest.mark.parametrize('source', ['export', 'checkpoint-last.pth.tar', 'model_best.pth.tar'])
def test_the_counts_of_the_run(run, source, capsys):
    options = ['--checkpoint', run / source] if source != 'export' else ['--model', f'local-dir:{run / source}']
    assert printed_count(capsys, *options) == expected(run)
    assert printed_count(capsys, *options, '-b', '7', '--dataset', 'digits_lt') == expected(run)


def test_predictions_and_classes(run, tmp_path, capsys):
    correct, total = printed_count(
        capsys, '--model', f'local-dir:{run / "export"}', '--predictions', tmp_path / 'p.csv',
        '--per-class', tmp_path / 'c.csv')

    with open(tmp_path / 'p.csv') as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == total and len({row['image'] for row in rows}) == total
    assert sum(row['target'] == row['predicted'] for row in rows) == correct
    assert all(0.1 <= float(row['confidence']) <= 1 for row in rows)

    # stock timm predicts the same
    model = timm.create_model(f'local-dir:{run / "export"}', pretrained=True).eval()
    from timm_longtail.data import create_dataset
    test_set = create_dataset('digits_lt', 'test')
    images = (test_set.images[:9].float() / 255 - test_set.mean[0]) / test_set.std[0]
    with torch.no_grad():
        first = model(images).argmax(1)
    assert [int(row['predicted']) for row in rows[:9]] == first.tolist()

    with open(tmp_path / 'c.csv') as f:
        classes = list(csv.DictReader(f))
    per_class = json.loads((run / 'metrics.json').read_text())['last']['class_correct']
    assert [int(row['correct']) for row in classes] == per_class
    assert [row['group'] for row in classes][::9] == ['many', 'few']


def test_all_figures_in_one_file(run, tmp_path, capsys):
    options = ['--model', f'local-dir:{run / "export"}', '--metrics', tmp_path / 'metrics.json', '--known-prior']
    printed_count(capsys, *options)

    metrics, = json.loads((tmp_path / 'metrics.json').read_text()).values()
    last = json.loads((run / 'metrics.json').read_text())['last']
    known = metrics.pop('shifted_known_prior')
    assert metrics.keys() == last.keys() >= {'top5', 'macro_auroc', 'macro_ap', 'intervals', 'shifted', 'bin_total'}
    assert metrics['class_correct'] == last['class_correct'] and metrics['intervals'] == last['intervals']
    assert metrics['macro_auroc'] == pytest.approx(last['macro_auroc'], abs=1e-3)
    assert known.keys() == metrics['shifted'].keys() and all(0 <= value <= 100 for value in known.values())


def test_a_known_prior_needs_that_of_the_model(run, tmp_path):
    shutil.copytree(run / 'export', tmp_path / 'export')
    edit_provenance(tmp_path / 'export', method='glmc')
    options = ['--model', f'local-dir:{tmp_path / "export"}', '--dataset', 'digits_lt']
    with pytest.raises(UserError, match='is not known; name it by --model-prior'):
        validate.main([*options, '--known-prior'])
    with pytest.raises(UserError, match='--model-prior is for --known-prior'):
        validate.main([*options, '--model-prior', 'train'])


def test_several_models_in_one_table(run, tmp_path, capsys):
    """A checkpoint, the same run's export, and figures of both."""
    other = tmp_path / 'other'
    shutil.copytree(run / 'export', other / 'export')
    validate.main(['--model', f'local-dir:{run / "export"}', f'local-dir:{other / "export"}', '--figures',
                   str(tmp_path / 'figures')])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split('|')[1].strip() for line in lines[2:4]] == ['run', 'other']
    assert lines[2].split('|')[2:] == lines[3].split('|')[2:]
    counts = [line for line in lines if line.endswith('images correct')]
    assert counts[0].removeprefix('run: ') == counts[1].removeprefix('other: ')
    assert {path.name for path in (tmp_path / 'figures').iterdir()} == {'class_accuracy.png', 'confusion.png'}


def test_models_of_other_data_are_not_compared(run, tmp_path):
    shutil.copytree(run / 'export', tmp_path / 'export')
    config = json.loads((tmp_path / 'export' / 'config.json').read_text())
    config['timm_longtail']['shot_counts'][0] += 1
    (tmp_path / 'export' / 'config.json').write_text(json.dumps(config))
    seal(tmp_path / 'export')
    with pytest.raises(UserError, match='one test set'):
        validate.main(['--model', f'local-dir:{run / "export"}', f'local-dir:{tmp_path / "export"}'])


def test_a_timm_model_takes_its_groups_from_the_training_split(capsys, monkeypatch):
    """Stock timm with weights from a file: the groups are those of the data set that is named."""
    monkeypatch.setattr(
        trained_model, 'create_timm_model', lambda name, pretrained: timm.create_model(name, num_classes=10))
    capsys.readouterr()
    validate.main(['--model', 'resnet20_cifar', '--pretrained', '--dataset', 'digits_lt'])
    table = capsys.readouterr().out.splitlines()
    assert 'n/a' not in table[2] and '355 images' in table[-1]


@pytest.mark.parametrize('options, message', [
    ([], 'say what to evaluate'),
    (['--model', 'resnet18'], 'resnet18 has no weights: add --pretrained'),
    (['--model', 'resnet81', '--pretrained'], "unknown model 'resnet81'"),
    (['--model', 'local-dir:/nowhere'], '/nowhere is not an exported model: no config.json in it'),
    (['--model', 'hf-hub:no such name'], 'cannot load hf-hub:no such name'),
    (['--checkpoint', '/nowhere.pth.tar'], 'no checkpoint at /nowhere.pth.tar'),
    (['--model', 'local-dir:RUN/export', '--dataset', 'digit_lt'], "unknown data set 'digit_lt'"),
    (['--checkpoint', 'RUN/model_best.pth.tar', '--model', 'resnet32_cifar'], 'is of resnet20_cifar, not of'),
    (['--checkpoint', 'RUN/args.yaml'], 'is truncated or is not a checkpoint'),
    (['--model', 'local-dir:RUN/export', '-b', '0'], '--batch-size must be at least 1'),
    (['--model', 'local-dir:RUN/export', '--predictions', '/nowhere/p.csv'], 'cannot write /nowhere/p.csv'),
    (['--checkpoint', 'RUN', 'RUN', '--predictions', 'RUN/p.csv'], 'RUN/p.csv is for one model'),
    (['--checkpoint', 'RUN', 'RUN'], 'a model is named twice'),
    (['--model', 'local-dir:RUN/export', '--tta', 'five_crop'],
     '--tta five_crop is for image files, and digits_lt is decoded in memory: add --loader worker'),
])
def test_bad_input(run, options, message):
    with pytest.raises(UserError, match='.*') as error:
        validate.main([option.replace('RUN', str(run)) for option in options])
    assert message.replace('RUN', str(run)) in str(error.value) and '\n' not in str(error.value)


# ------------------------------------------------------------------------------------------------ folders of images

DIGITS = [str(digit) for digit in range(10)]


def write_export(run, folder, **trained):
    """Copy the export of the run, as one that was trained on a folder of images."""
    names = trained.pop('class_names', DIGITS)
    shutil.copytree(run / 'export', folder)
    config = json.loads((folder / 'config.json').read_text())
    config['label_names'] = names
    config['timm_longtail'] |= {'dataset': 'folder', 'dataset_name': 'photos', 'imbalance_factor': 1., **trained}
    (folder / 'config.json').write_text(json.dumps(config))
    seal(folder)
    return f'local-dir:{folder}'


@pytest.mark.parametrize('name, counts, number, words', [
    ('new', [9] * 10, 50, 'all of its 50 images are the test split'),
    ('photos', [9] * 10, 10, '20 % of the images of each class'),  # the name of the training data
    ('copy', [4] * 10, 10, '20 % of the images of each class'),  # the counts of the training data
])
def test_a_flat_folder_is_evaluated_whole_unless_it_was_trained_on(run, tmp_path, capsys, name, counts, number, words):
    root = write_classes(tmp_path / name, dict.fromkeys(DIGITS, 5), size=(32, 32))
    model = write_export(run, tmp_path / 'export', shot_counts=counts)
    validate.main(['--model', model, '--dataset', 'folder', '--data-dir', str(root)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f'note: {root} has no train and test folders') and words in lines[0]
    assert lines[-1].endswith(f' of {number} images correct')


def test_a_test_folder_alone(run, tmp_path, capsys):
    """Classes are found by name; a name that is not UTF-8 goes through every output."""
    name = os.fsdecode(b'\xe9t\xe9')
    root = write_classes(tmp_path / 'data' / 'test', {'7': 2, name: 3}, size=(32, 32)).parent
    model = write_export(run, tmp_path / 'export', class_names=[name, *DIGITS[1:]])
    validate.main(['--model', model, '--dataset', 'folder', '--data-dir', str(root), '--predictions',
                   str(tmp_path / 'p.csv'), '--figures', str(tmp_path / 'figures')])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'note: 8 of 10 classes have no test image' and ' of 5 images correct' in lines[-2]
    with open(tmp_path / 'p.csv', encoding='utf-8') as f:
        rows = list(csv.DictReader(f))
    assert [(row['target'], row['target_name']) for row in rows] == [('0', '\\udce9t\\udce9')] * 3 + [('7', '7')] * 2


def test_a_name_that_no_terminal_shows_is_printed(monkeypatch):
    """Standard output is strict UTF-8 by itself."""
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(buffer, encoding='utf-8'))
    run_main(lambda: print(os.fsdecode(b'\xe9')))
    sys.stdout.flush()
    assert buffer.getvalue() == b'\\udce9\n'


@pytest.mark.parametrize('layout', ['train and test', 'flat'])
def test_classes_of_other_names(run, tmp_path, layout):
    for place in (tmp_path / 'train', tmp_path / 'test') if layout == 'train and test' else (tmp_path,):
        write_classes(place, dict.fromkeys((*DIGITS[:9], 'ten'), 1))
    with pytest.raises(UserError, match="has a class 'ten' that the model has not"):
        validate.main(['--model', f'local-dir:{run / "export"}', '--dataset', 'folder', '--data-dir', str(tmp_path)])


def test_a_model_of_other_classes(run, tmp_path, monkeypatch):
    """A model that names no class is compared by their number."""
    for split in ('train', 'test'):
        write_classes(tmp_path / split, {'cat': 3, 'dog': 2, 'owl': 1})
    monkeypatch.setattr(
        trained_model, 'create_timm_model', lambda name, pretrained: timm.create_model(name, num_classes=10))
    with pytest.raises(UserError, match='has 3 classes, the model 10'):
        validate.main(['--model', 'resnet20_cifar', '--pretrained', '--dataset', 'folder', '--data-dir', str(tmp_path)])


@pytest.mark.parametrize('name', ['conv1.weight', 'bn1.running_var'])
def test_weights_that_are_not_finite(name, run, tmp_path):
    """In one line that names them: what is evaluated, and what is retrained."""
    state = read_checkpoint(run / LAST)
    state['state_dict_ema'][name].select(0, 0).fill_(torch.nan)
    torch.save(state, tmp_path / LAST)
    for main in (validate.main, retrain.main):
        source = ['--checkpoint'] if main is validate.main else ['--output', str(tmp_path / 'output')]
        with pytest.raises(UserError) as error:
            main([*source, str(tmp_path / LAST)])
        assert f'{name} holds NaN or infinity' in str(error.value) and '\n' not in str(error.value)
    assert not (tmp_path / 'output').exists()


# ------------------------------------------------------------------------------------------------ damage

WRONG_VALUES = [None, 'word', -1, True, [], ['a'], {'a': 3}]


def one_line_or_nothing(call, *args):
    """Call; a refusal must be one line, any other exception is a failure. Returns the line, or ''."""
    try:
        call(*args)
    except UserError as e:
        assert '\n' not in str(e)
        return str(e)
    return ''


@pytest.fixture
def quick_data(monkeypatch):
    """Read a data set once for all damages that name the same one."""
    original, known = testing.create_dataset, {}

    def create_dataset(*args, **kwargs):
        key = repr((args, kwargs))
        if key not in known:
            known[key] = original(*args, **kwargs)
        return known[key]
    monkeypatch.setattr(testing, 'create_dataset', create_dataset)


def load_and_open(source):
    """Load a model and the data that it says it was trained on, as `validate.py` does."""
    trained = load_export(source) if source.startswith('local-dir:') else load_checkpoint(source)
    testing.load_evaluation_data(validate.create_parser().parse_args(['--model', 'x']), trained)


def damages(whole, names=None):
    """Yield each field of a dictionary, or some, and it with this field missing or of another kind."""
    for name in names or whole:
        yield name, {key: value for key, value in whole.items() if key != name}
        for value in WRONG_VALUES:
            yield name, {**whole, name: value}


@pytest.fixture
def export(run, tmp_path):
    """A copy of the export, to be damaged; without checksums, which would see it whatever it is."""
    folder = shutil.copytree(run / 'export', tmp_path / 'copy')
    config = json.loads((folder / 'config.json').read_text())
    del config['config_sha256'], config['timm_longtail']['weights']
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize('part', ['', 'timm_longtail', 'pretrained_cfg', 'model_args'])
def test_every_field_of_an_export_damaged(part, export, quick_data):
    path = export / 'config.json'
    whole = json.loads(path.read_text())
    refused = set()
    for name, damaged in damages(whole[part] if part else whole):
        path.write_text(json.dumps({**whole, part: damaged} if part else damaged))
        if one_line_or_nothing(load_and_open, f'local-dir:{export}'):
            refused.add(name)
    needed = {
        '': {'architecture', 'model_args', 'label_names', 'timm_longtail'},
        'timm_longtail': {'dataset', 'class_counts', 'shot_counts', 'val_fraction', 'imbalance_factor', 'seed'},
        'pretrained_cfg': {'mean', 'std', 'input_size', 'crop_pct', 'interpolation'},
        'model_args': {'num_classes', 'layers', 'channels'},
    }
    assert needed[part] <= refused


@pytest.mark.parametrize('text', [b'', b'{', b'[]', b'3', b'null', b'{}', b'\xff\xfe', b'{"architecture": "resnet0"}'])
def test_an_export_whose_config_is_something_else(text, export):
    (export / 'config.json').write_bytes(text)
    assert str(export) in one_line_or_nothing(load_and_open, f'local-dir:{export}')


@pytest.mark.parametrize('change, words', [
    ({'fc.weight': None}, 'fc.weight'),
    ({'more': torch.zeros(3)}, 'more'),
    ({'fc.weight': torch.zeros(7, 32)}, 'fc.weight'),  # timm would draw a new classifier
    ({'conv1.weight': torch.zeros(8, 3, 5, 5)}, 'conv1.weight'),
])
def test_an_export_whose_weights_are_others(change, words, export):
    path = export / 'model.safetensors'
    tensors = {**load_file(path), **change}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)
    assert words in one_line_or_nothing(load_and_open, f'local-dir:{export}')


@pytest.mark.parametrize('size', [0, 7, 200, -1])
def test_an_export_whose_weights_are_cut_short(size, export):
    path = export / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:size])
    assert str(export) in one_line_or_nothing(load_and_open, f'local-dir:{export}')


@pytest.mark.parametrize('part', ['', 'about', 'args', 'protocol'])
def test_every_field_of_a_checkpoint_damaged(part, run, monkeypatch, quick_data):
    whole = read_checkpoint(run / 'checkpoint-last.pth.tar')
    read = {'args': ('dataset', 'data_dir', 'method', 'val_fraction', 'input_key', 'seed'), 'protocol': ('dataset',)}
    refused = set()
    for name, damaged in damages(whole[part] if part else whole, read.get(part)):
        state = {**whole, part: damaged} if part else damaged
        monkeypatch.setattr('timm_longtail.training.checkpoint._read', lambda path, state=state: state)
        if one_line_or_nothing(load_and_open, str(run / 'checkpoint-last.pth.tar')):
            refused.add(name)
    needed = {
        '': {'arch', 'state_dict', 'about', 'args', 'protocol'},
        'about': {'model_args', 'preprocessing', 'class_names', 'shot_counts'},
        'args': set(read['args']),
        'protocol': {'dataset'},
    }
    assert needed[part] <= refused


def open_run(folder):
    args = retrain.parse_args([str(folder)])
    open_data(args, load_source(args), None)


def test_every_option_of_a_run_damaged(run, export):
    """`args.yaml` says where the data was; an export is a source without it."""
    folder = export.parent
    export.rename(folder / 'export')
    whole = yaml.safe_load((run / 'args.yaml').read_text())
    refused = set()
    names = 'dataset', 'data_dir', 'input_key', 'val_fraction'
    for name, damaged in damages(whole, names):
        (folder / 'args.yaml').write_text(yaml.safe_dump(damaged))
        if one_line_or_nothing(open_run, folder):
            refused.add(name)
    assert refused == set(names)
    for text in (b'- lr', b'lr: [', b'\xff\xfe\x00', b'lr: !!python/object/apply:os.getcwd []', b'\x00'):
        (folder / 'args.yaml').write_bytes(text)
        assert str(folder / 'args.yaml') in one_line_or_nothing(open_run, folder), text
    (folder / 'args.yaml').unlink()
    assert not one_line_or_nothing(open_run, folder)


def test_an_export_whose_weights_are_no_numbers(export):
    path = export / 'model.safetensors'
    tensors = load_file(path)
    tensors['fc.weight'][0, 0] = float('nan')
    save_file(tensors, path)
    line = one_line_or_nothing(load_source, retrain.parse_args([f'local-dir:{export}']))
    assert 'fc.weight holds NaN or infinity' in line


def test_a_checkpoint_of_another_program(tmp_path):
    model = timm.create_model('resnet18', num_classes=3)
    torch.save({'epoch': 3, 'arch': 'resnet18', 'state_dict': model.state_dict(), 'optimizer': {}}, tmp_path / 'w.pth')
    assert "such as timm's train.py" in one_line_or_nothing(load_and_open, str(tmp_path / 'w.pth'))


@pytest.mark.parametrize('option', ['--split', '--val-split', '--test-split'])
def test_the_split_has_the_names_that_timm_has(option):
    parser = validate.create_parser()

    assert parser.parse_args([]).test_split is None
    assert parser.parse_args([option, 'val']).test_split == 'val'
