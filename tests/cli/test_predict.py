"""`predict`: its answers are those of `validate`; formats, priors, thresholds, images that cannot be read."""
import csv
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import timm_longtail
from timm_longtail.cli import predict, validate
from timm_longtail.data.image_paths import find_images
from timm_longtail.export.folder import export_model
from timm_longtail.utils.errors import UserError

from ..support.data_sets import draw, write_classes
from ..support.exports import edit_provenance

COUNTS = [30, 10, 2]
NAMES = ['ant, "red"', 'bee\nqueen', 'cow']  # what a CSV must quote


def export(folder: Path, names: list[str] = NAMES, seed: int = 0, **provenance) -> Path:
    """Write a tiny model with random weights that answers with every class."""
    torch.manual_seed(seed)
    model = timm.create_model('resnet20_cifar', num_classes=3, layers=(1, 1, 1), channels=(4, 8, 8))
    spread_answers(model.eval())
    provenance = {'method': 'ce', 'class_counts': COUNTS, 'shot_counts': COUNTS, **provenance}
    export_model(
        model, folder, provenance, mean=(0.5,) * 3, std=(0.25,) * 3, input_size=(3, 16, 16), class_names=names,
        crop_pct=0.8, interpolation='bicubic')
    return folder


@torch.no_grad()
def spread_answers(model):
    """Scale and shift the classifier so that noise gets every class, with probabilities away from 0 and 1."""
    noise = 4 * torch.rand(64, 3, 8, 8) - 2  # of mean 0.5 and deviation 0.25 in [0, 1]
    noise = torch.nn.functional.interpolate(noise, 16, mode='bilinear')
    head = model.get_classifier()
    logits = model(noise)
    head.weight.div_(logits.std(dim=0)[:, None])
    head.bias.copy_((head.bias - logits.mean(dim=0)) / logits.std(dim=0))


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp('model') / 'export')


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    """Images of several sizes, at several depths."""
    folder = tmp_path_factory.mktemp('photos')
    for number in range(6):
        draw(folder / f'{number}.png', (20 + number, 24), seed=number)
    draw(folder / 'more' / 'deep.jpg', (40, 30), seed=9)
    (folder / 'notes.txt').write_text('no image')
    return folder


def run(capsys, *options) -> tuple[str, str]:
    """Run the command in this process; returns stdout and stderr."""
    capsys.readouterr()
    predict.main([str(option) for option in options])
    printed = capsys.readouterr()
    return printed.out, printed.err


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline='')))


# ------------------------------------------------------------------------------- as `validate` does

@pytest.mark.parametrize('resident, size, options', [
    (True, (8, 8), ()), (True, (20, 26), ()), (False, (8, 8), ()), (False, (40, 26), ('--tta', 'five_crop')),
])
def test_the_answers_are_those_of_validate(resident, size, options, tmp_path, capsys):
    folder = export(tmp_path / 'export', ['ant', 'bee', 'cow'], seed=1, resident=resident)
    write_classes(tmp_path / 'data' / 'test', {'ant': 9, 'bee': 7, 'cow': 8}, size=size)

    validate.main([
        '--model', f'local-dir:{folder}', '--dataset', 'folder', '--data-dir', str(tmp_path / 'data'), '-j', '0',
        '--predictions', str(tmp_path / 'validated.csv'), *options])
    num_correct = int(capsys.readouterr().out.splitlines()[-1].split()[0])
    predict.main([str(folder), str(tmp_path / 'data'), '-o', str(tmp_path / 'predicted.csv'), '-b', '5', *options])

    validated = read_csv((tmp_path / 'validated.csv').read_text())
    predicted = read_csv((tmp_path / 'predicted.csv').read_text())
    assert len({row['predicted'] for row in validated}) > 1
    root = f'{tmp_path / "data" / "test"}/'
    expected = {row['image']: (row['predicted_name'], row['confidence']) for row in validated}
    found = {row['file'].removeprefix(root): (row['class'], row['probability']) for row in predicted}
    assert {name: label for name, (label, _) in found.items()} == {name: label for name, (label, _) in expected.items()}
    for name, (_, probability) in found.items():
        assert float(probability) == pytest.approx(float(expected[name][1]), abs=2e-6)
    assert sum(name.startswith(f'{label}/') for name, (label, _) in found.items()) == num_correct


def test_a_thousand_images_of_which_twenty_are_broken(model, tmp_path, capsys):
    kinds = (b'', b'no image at all', draw(tmp_path / 'whole.png', (12, 10)).read_bytes()[:60])
    whole = (tmp_path / 'whole.png').read_bytes()
    broken = {f'{number:03d}.png' for number in range(7, 1000, 50)}
    assert len(broken) == 20
    (tmp_path / 'images').mkdir()
    for number in range(1000):
        name = f'{number:03d}.png'
        content = kinds[number % 3] if name in broken else whole
        (tmp_path / 'images' / name).write_bytes(content)

    out, err = run(capsys, model, tmp_path / 'images', '-j', 2)

    rows = read_csv(out)
    assert [Path(row['file']).name for row in rows] == [f'{number:03d}.png' for number in range(1000)]
    assert {Path(row['file']).name for row in rows if row['error']} == broken
    assert all((row['class'] == '') == (row['error'] != '') for row in rows)
    assert all(str(tmp_path / 'images' / name) in err for name in broken)
    assert '20 could not be read' in err.splitlines()[-1]


def test_small_images_of_one_size_of_which_one_is_broken(tmp_path, capsys):
    folder = export(tmp_path / 'export', resident=True)
    for number in range(3):
        draw(tmp_path / 'images' / f'{number}.png', (8, 8), seed=number)
    (tmp_path / 'images' / '1.png').write_bytes(b'')

    out, _ = run(capsys, folder, tmp_path / 'images')

    rows = read_csv(out)
    assert [bool(row['error']) for row in rows] == [False, True, False]
    alone, _ = run(capsys, folder, tmp_path / 'images' / '2.png')
    assert float(read_csv(alone)[0]['probability']) == pytest.approx(float(rows[2]['probability']), abs=2e-6)


def test_the_answer_for_an_image_does_not_depend_on_the_others(model, photos, tmp_path, capsys):
    small = draw(tmp_path / 'small.png', (8, 8))
    alone = read_csv(run(capsys, model, small)[0])[0]
    among = read_csv(run(capsys, model, photos, small)[0])[-1]
    assert float(alone['probability']) == pytest.approx(float(among['probability']), abs=1e-5)


# ------------------------------------------------------------------------------------ what is named

def test_images_folders_and_lists(model, photos, tmp_path, capsys, monkeypatch):
    listed = tmp_path / 'list.txt'
    listed.write_text(f'{photos}/3.png\n\n{photos}/nowhere.png\n')
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(f'{photos}/4.png\n'.encode())))

    out, err = run(capsys, model, photos / '5.png', photos, listed, '-')

    files = [Path(row['file']).name for row in read_csv(out)]
    in_folder = ['0.png', '1.png', '2.png', '3.png', '4.png', '5.png', 'deep.jpg']
    assert files == ['5.png', *in_folder, '3.png', 'nowhere.png', '4.png']
    assert '1 could not be read' in err and 'left out: 1 file that is no image by name' in err


def test_names_on_stdin_need_not_be_utf_8(monkeypatch):
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'caf\xe9.png\nb.png\n')))
    assert find_images(['-']).images == [os.fsdecode(b'caf\xe9.png'), 'b.png']


def test_an_image_is_known_by_its_content(model, photos, tmp_path, capsys):
    (tmp_path / 'photo').write_bytes((photos / '0.png').read_bytes())
    out, _ = run(capsys, model, tmp_path / 'photo')
    other, _ = run(capsys, model, photos / '0.png')
    assert read_csv(out) == [{**read_csv(other)[0], 'file': str(tmp_path / 'photo')}]


@pytest.mark.parametrize('options, message', [
    (['nowhere.jpg'], 'no image file at nowhere.jpg'),
    (['nowhere'], 'no image file at nowhere'),
    (['{empty}'], 'no image in .*, only 1 other files'),
    (['{broken}'], 'none of the 1 images could be read'),
    (['{noise}'], 'neither an image that can be decoded nor a list'),
    (['{image}', '-o', 'no/where.csv'], 'cannot write no/where.csv: no folder no'),
    (['{image}', '--prior', 'nowhere.csv'], 'no prior at nowhere.csv'),
    (['{image}', '--threshold', '2'], 'threshold must be in'),
    (['{image}', '-k', '0'], 'must be at least 1'),
])
def test_mistakes(options, message, model, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'empty' / 'readme.md').write_text('')
    (tmp_path / 'broken.png').write_bytes(b'?')
    (tmp_path / 'noise').write_bytes(b'\xff\xfe\x00\x80')
    places = {'empty': tmp_path / 'empty', 'broken': tmp_path / 'broken.png', 'noise': tmp_path / 'noise',
              'image': draw(tmp_path / 'image.png')}
    with pytest.raises(UserError, match=message):
        predict.main([str(model), *(option.format(**places) for option in options)])


def test_views_of_files_for_a_model_of_images_in_memory(photos, tmp_path):
    folder = export(tmp_path / 'export', resident=True)
    with pytest.raises(UserError, match='--tta five_crop: .* was trained on images in memory.* with --loader worker'):
        predict.main([str(folder), str(photos), '--tta', 'five_crop'])


@pytest.mark.parametrize('name, message', [
    ('nowhere/export', 'nowhere/export: no such file or folder'),
    ('resnet81', "unknown model 'resnet81'"),
    ('local-dir:nowhere', 'nowhere is not an exported model'),
])
def test_no_such_model(name, message, photos):
    with pytest.raises(UserError, match=message):
        predict.main([name, str(photos)])


def test_a_run_and_its_export_are_one_model(model, photos, tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'export').symlink_to(model)
    out, _ = run(capsys, tmp_path / 'run', photos)
    assert out == run(capsys, f'local-dir:{model}', photos)[0]


# ------------------------------------------------------------------------------------------ formats

def test_csv_names_the_first_k_classes(model, photos, capsys):
    out, _ = run(capsys, model, photos, '-k', 5)  # of three classes

    rows = read_csv(out)
    columns = 'file class probability class_2 probability_2 class_3 probability_3 error'
    assert ' '.join(rows[0]) == columns
    for row in rows:
        assert sorted([row['class'], row['class_2'], row['class_3']]) == sorted(NAMES)
        shares = [float(row[name]) for name in ('probability', 'probability_2', 'probability_3')]
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=3e-6)


def test_json_lines(model, photos, tmp_path, capsys):
    (tmp_path / 'broken.png').write_bytes(b'')
    run(capsys, model, photos, tmp_path / 'broken.png', '-o', tmp_path / 'out.jsonl', '-k', 2)

    rows = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    rows_of_csv = read_csv(run(capsys, model, photos)[0])
    for row, other in zip(rows, rows_of_csv):
        assert row['file'] == other['file'] and row['class'] == other['class'] == row['top'][0]['class']
        assert f'{row["probability"]:.6f}' == other['probability'] and len(row['top']) == 2
    assert [*rows[-1]] == ['file', 'error']


def test_uncertain_answers(model, photos, capsys):
    shares = [float(row['probability']) for row in read_csv(run(capsys, model, photos)[0])]
    threshold = (sorted(shares)[2] + sorted(shares)[3]) / 2

    out, err = run(capsys, model, photos, '--threshold', threshold, '-k', 2)

    rows = read_csv(out)
    uncertain = [float(row['probability']) < threshold for row in rows]
    assert [row['class'] == '?' for row in rows] == uncertain
    assert all(row['class_2'] in NAMES for row in rows)
    assert f'{sum(uncertain)} below' in err


@pytest.mark.parametrize('width', [40, 60, 200])
@pytest.mark.parametrize('top_k', [1, 3])
def test_a_table_fits_the_terminal(width, top_k, tmp_path, monkeypatch, capsys):
    names = ['a class whose name is so long that no terminal has room for it', '猫' * 30, 'red\x1b[31m\nline']
    folder = export(tmp_path / 'export', names)
    long = draw(tmp_path / ('long' * 20) / 'photo.png', (20, 24))
    monkeypatch.setenv('COLUMNS', str(width))

    out, _ = run(capsys, folder, long, '--format', 'table', '-k', top_k)

    assert '\x1b' not in out and out.count('\n') == 1
    columns = sum(2 if letter == '猫' else 1 for letter in out.rstrip('\n'))
    assert columns <= max(width, 12 + top_k * 17)  # the least that a path and the classes take
    assert 'photo.png' in out and ('…' in out or width == 200)


# ------------------------------------------------------------------------------------------- priors

def logits_of(model: Path, photos: Path) -> torch.Tensor:
    """Return log probabilities under the prior that the model has learned."""
    predictions = timm_longtail.predict(f'local-dir:{model}', sorted(photos.glob('*.png')), top_k=3)
    logits = torch.zeros(len(predictions), 3, dtype=torch.float64)
    for row, prediction in zip(logits, predictions):
        row[list(prediction.classes)] = torch.tensor(prediction.probabilities, dtype=torch.float64).log()
    return logits


@pytest.mark.parametrize('prior', ['train', 'balanced', 'file'])
@pytest.mark.parametrize('method, options, learned', [
    ('ce', {}, COUNTS),
    ('balanced_softmax', {}, [1, 1, 1]),
    ('bcl', {'tau': 0.5}, [n ** 0.5 for n in COUNTS]),
    ('crt', {}, [1, 1, 1]),
    ('logistic', {'C': 3.0, 'tau': 0.75, 'temperature': 0.5}, [1, 1, 1]),  # of `compare`
    ('linear', {'C': 3.0, 'temperature': 0.5}, [n ** 2 for n in COUNTS]),  # fitted to the long tail as it is
    ('logit_adjust', {'tau': 0.5, 'prior': 'sqrt'}, [n ** 0.25 for n in COUNTS]),
    ('focal', {'gamma': 0.0}, COUNTS),
    ('class_balanced', {'beta': 0.5}, [n * (1 - 0.5) / (1 - 0.5 ** n) for n in COUNTS]),
])
def test_a_prior_shifts_by_the_ratio(method, options, learned, prior, model, photos, tmp_path, capsys):
    folder = tmp_path / 'export'
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    edit_provenance(folder, method=method, method_kwargs=options, stage_1={'method': 'ce'})
    with open(tmp_path / 'prior.csv', 'w', newline='') as file:
        csv.writer(file).writerows([['class', 'weight'], [NAMES[2], 5], [NAMES[0], 2], [NAMES[1], 3]])
    target = {'train': COUNTS, 'balanced': [1, 1, 1], 'file': [2, 3, 5]}[prior]

    asked = tmp_path / 'prior.csv' if prior == 'file' else prior
    out, _ = run(capsys, folder, *sorted(photos.glob('*.png')), '--prior', asked, '-k', 3, '--format', 'jsonl')

    # p'(y | x) is proportional to p(y | x) target(y) / learned(y)
    posterior = logits_of(model, photos).exp() * torch.tensor(target) / torch.tensor(learned)
    posterior /= posterior.sum(dim=1, keepdim=True)
    for line, row in zip(out.splitlines(), posterior, strict=True):
        found = {pair['class']: pair['probability'] for pair in json.loads(line)['top']}
        assert [found[name] for name in NAMES] == pytest.approx(row.tolist(), abs=1e-5)  # of float32


def test_the_prior_of_the_model_is_said(model, photos, capsys):
    _, err = run(capsys, model, photos)
    assert 'the model answers for the class distribution that it learned: classes of 71.4 % to 4.76 %' in err
    _, err = run(capsys, model, photos, '--prior', 'balanced')
    assert 'the model has learned classes of 71.4 % to 4.76 %; answers are corrected to balanced' in err


@pytest.mark.parametrize('method, options', [
    ('glmc', {}), ('focal', {}), ('class_balanced', {'gamma': 0.5}), ('ce', {'remix_tau': 0.5}),
])
def test_a_model_that_does_not_say_its_prior(method, options, model, photos, tmp_path, capsys):
    folder = export(tmp_path / 'export', method=method, method_kwargs=options)
    with pytest.raises(UserError, match='is not known; name it by --model-prior'):
        predict.main([str(folder), str(photos), '--prior', 'balanced'])

    out, _ = run(capsys, folder, photos, '--prior', 'balanced', '--model-prior', 'train')
    assert out == run(capsys, model, photos, '--prior', 'balanced')[0]


@pytest.mark.parametrize('name, text, message', [
    ('p.csv', 'ant,1\n', "unknown class 'ant'"),
    ('p.csv', 'cow,1\n', 'no weight of 2 classes, the first is'),
    ('p.csv', 'cow,1\ncow,2\n', "names 'cow' twice"),
    ('p.csv', 'class,weight\ncow,many\n', "the weight of 'cow' is 'many'"),
    ('p.csv', '1\n', 'expected a class and a weight a line'),
    ('p.json', '[1, 2]', 'it holds no object'),
    ('p.json', '{"class_names": 3, "class_counts": 3}', 'are not two lists of one length'),
    ('p.json', '{"class_names": ["cow"], "class_counts": [1, 2]}', 'are not two lists of one length'),
    ('p.json', '{"class_names": [[1]], "class_counts": [1]}', r'\[1\] is no name of a class'),
    ('p.json', json.dumps(dict.fromkeys(NAMES, 0)), 'one above 0'),
    ('p.json', json.dumps(dict.fromkeys(NAMES, -1)), 'at least 0'),
    ('p.json', json.dumps(dict.fromkeys(NAMES, True)), 'is True'),
])
def test_a_file_that_is_no_prior(name, text, message, model, photos, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        predict.main([str(model), str(photos), '--prior', str(tmp_path / name)])


def test_a_class_that_cannot_occur_is_never_named(model, photos, tmp_path, capsys):
    prior = {'class_names': NAMES, 'class_counts': [0, 1, 1]}  # as in `class_counts.json` of a run
    (tmp_path / 'prior.json').write_text(json.dumps(prior))
    out, _ = run(capsys, model, photos, '--prior', tmp_path / 'prior.json', '-k', 3)
    assert all(row['class_3'] == NAMES[0] and float(row['probability_3']) == 0 for row in read_csv(out))


# --------------------------------------------------------------------------------------- from Python

def test_images_of_any_kind(model, photos):
    path = photos / '0.png'
    pixels = np.asarray(Image.open(path))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    loaded = timm.create_model(f'local-dir:{model}', pretrained=True)

    predictions = timm_longtail.predict(loaded, [path, str(path), Image.open(path), pixels, tensor])

    assert len({prediction.name for prediction in predictions}) == 1
    probability = pytest.approx(predictions[0].probability, abs=1e-5)  # of batches of other sizes
    assert all(prediction.probability == probability for prediction in predictions)
    assert [prediction.image for prediction in predictions[1:]] == [str(path), 'image 3', 'image 4', 'image 5']
    for one in (path, Image.open(path), pixels, tensor, tensor[None]):
        assert timm_longtail.predict(loaded, one)[0].probability == probability
    assert loaded.training  # as it was


def test_class_names_of_stock_weights():
    model = timm.create_model('test_resnet', num_classes=1000)
    name = timm_longtail.predict(model, np.zeros((30, 30, 3), np.uint8))[0].name
    assert name in timm.data.ImageNetInfo('imagenet-1k').label_descriptions()
    model.reset_classifier(7)
    assert timm_longtail.predict(model, np.zeros((30, 30), np.uint8))[0].name in map(str, range(7))


@pytest.mark.parametrize('image, message', [
    (np.zeros((4, 4, 3), np.float32), r'an array is uint8 .*, got float32 \[4, 4, 3\]'),
    (torch.zeros(4, 4, 4, dtype=torch.uint8), r'a tensor is uint8 \[3, H, W\], got uint8 \[4, 4, 4\]'),
    ([3], 'an image is a path, a Pillow image, an array or a tensor, got int'),
    (Image.new('F', (4, 4)), 'its mode is F'),
    ('nowhere.jpg', 'nowhere.jpg'),
])
def test_what_is_no_image(image, message, model):
    with pytest.raises(UserError, match=message):
        timm_longtail.predict(f'local-dir:{model}', image)
    if not isinstance(image, list):
        found = timm_longtail.predict(f'local-dir:{model}', image, skip_bad_images=True)
        assert found[0].error and found[0].name == '' and found[0].classes == ()


@pytest.mark.parametrize('options, message', [
    ({'prior': [1, 1]}, 'prior is of 2 classes, the model of 3'),
    ({'model_prior': [1, 1, 1, 1], 'prior': [1, 1, 1]}, 'model_prior is of 4 classes'),
    ({'class_names': ['ant']}, 'class_names is of 1 classes'),
    ({'prior': [1, 1, 1], 'model_prior': [1, 0, 1]}, 'class 1 does not occur in the distribution that the model'),
])
def test_arguments_that_do_not_fit(options, message, model, photos):
    with pytest.raises(UserError, match=message):
        timm_longtail.predict(f'local-dir:{model}', photos / '0.png', **options)


@pytest.mark.parametrize('learned', [[1, 1, 1], [0, 1, 1]])
def test_a_class_of_weight_0_has_a_probability_of_0(learned, model, photos):
    prediction, = timm_longtail.predict(
        f'local-dir:{model}', photos / '0.png', top_k=3, prior=[0, 1, 2], model_prior=learned)
    assert prediction.classes[-1] == 0 and prediction.probabilities[-1] == 0
    assert sum(prediction.probabilities) == pytest.approx(1)


def test_outputs_that_are_not_finite(model, photos):
    loaded = timm.create_model(f'local-dir:{model}', pretrained=True)
    loaded.get_classifier().weight.data.fill_(float('nan'))
    with pytest.raises(UserError, match='not finite'):
        timm_longtail.predict(loaded, photos / '0.png')
