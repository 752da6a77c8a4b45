"""Runs that train a part of a model: steps, averages, checkpoints, processes; where a classifier starts; ensembles."""
import importlib.util
import json
import shlex
from argparse import Namespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from timm_longtail.cli import train, validate
from timm_longtail.data import Preprocessing, create_view
from timm_longtail.evaluation.evaluators import LongTailEvaluator
from timm_longtail.export.deploy import deploy
from timm_longtail.models import FeatureClassifier
from timm_longtail.models.tuning import frozen_names
from timm_longtail.retraining.model_prior import learned_prior
from timm_longtail.retraining.trained_model import load_checkpoint
from timm_longtail.training.accelerator import create_accelerator
from timm_longtail.training.build import _checkpoint_gradients
from timm_longtail.training.checkpoint import read_checkpoint, read_part, write_checkpoint
from timm_longtail.training.initial_classifier import class_means, initialise_classifier, read_text_features
from timm_longtail.training.loop import evaluate, fit
from timm_longtail.training.output_folder import run_name
from timm_longtail.training.rows import data_tag
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import LAST

from ..methods.test_parity import loss_and_gradients
from ..support.data_sets import write_classes
from ..support.ddp import run_distributed
from ..support.runs import assert_same_state, digits, make_run, refused

SIZE = ['img_size=16', 'patch_size=8', 'depth=2', 'embed_dim=32', 'num_heads=2']
VIT = ['--img-size', '16', '--model', 'vit_tiny_patch16_224', '--model-kwargs', *SIZE]
ADAPTED = [*VIT, '--tune', 'adaptformer', '--head', 'cosine']
SAVED = ['--model-ema', '--model-ema-decay', '0.9', '--save-steps', '3']

has_peft = importlib.util.find_spec('peft') is not None
ADDED = ['adaptformer', pytest.param('lora', marks=pytest.mark.skipif(not has_peft, reason='needs peft'))]


@pytest.fixture(scope='module', params=ADDED)
def saved(request, tmp_path_factory):
    """The options of a run of two epochs of four steps, the run, its first weights, and its state in the second epoch.
    """
    options = [*VIT, '--tune', request.param, *SAVED]
    _, run = make_run('ce', *options)
    run.output_dir = tmp_path_factory.mktemp('run')
    first = {name: value.clone() for name, value in run.method.state_dict().items()}
    states, save = [], run.save

    def save_and_keep():
        save()
        states.append(read_checkpoint(run.output_dir / LAST))
    run.save = save_and_keep
    fit(run, 2)
    return options, run, first, next(state for state in states if (state['epoch'], state['step']) == (1, 3))


def test_a_run_changes_what_is_tuned_and_nothing_else(saved):
    _, run, first, _ = saved
    frozen = {f'model.{name}' for name in frozen_names(run.method.model)}

    changed = {name for name, value in run.method.state_dict().items() if not torch.equal(value, first[name])}

    assert frozen and changed == first.keys() - frozen
    optimized = {id(p) for group in run.optimizers[0].param_groups for p in group['params']}
    assert optimized == {id(p) for name, p in run.method.named_parameters() if name not in frozen}


def test_the_average_is_of_what_is_tuned(saved):
    _, run, _, _ = saved
    averaged, model = dict(run.ema.module.named_parameters()), dict(run.method.model.named_parameters())

    for name in model:
        is_shared = averaged[name].data_ptr() == model[name].data_ptr()
        assert is_shared == (name in frozen_names(run.method.model)), name
        assert is_shared or not torch.equal(averaged[name], model[name])


def test_a_checkpoint_holds_no_frozen_tensor(saved):
    _, run, _, state = saved
    frozen = frozen_names(run.method.model)

    for part in ('state_dict', 'state_dict_ema'):
        assert state[part].keys() == {name for name, _ in run.method.model.named_parameters()} - frozen
    assert not {name.removeprefix('model.') for name in state['method_state']} & frozen
    assert len(state['optimizer']['state']) == len(state['state_dict'])
    assert len(state['protocol']['backbone']) == 64
    with pytest.raises(UserError, match='holds the tuned part of a model only, .*: take the export of the run'):
        read_part(run.output_dir / LAST)


def test_a_tuned_run_resumes_to_the_same_bits(saved):
    options, whole, _, state = saved
    _, resumed = make_run('ce', *options)

    resumed.load_state_dict(state)
    fit(resumed, 2)

    assert_same_state(whole, resumed)
    for name, value in whole.ema.module.state_dict().items():
        assert torch.equal(value, resumed.ema.module.state_dict()[name]), name


@pytest.mark.parametrize('others, words', [
    (['--tune', 'bias'], 'tune (adaptformer|lora) there, bias here'),
    (['--head', 'cosine'], 'head None there, cosine here'),
])
def test_another_tuning_or_head_is_named(others, words, saved):
    options, _, _, state = saved
    _, resumed = make_run('ce', *options, *others)

    with pytest.raises(UserError, match=fr'^it is of another run: {words} \(--experiment names a folder '):
        resumed.load_state_dict(state, 'it')


def test_a_tuning_that_is_spelled_out_is_the_same(saved):
    options, _, _, state = saved
    tune = {'adaptformer': 'adaptformer(bottleneck=auto)', 'lora': 'lora(r=8)'}[options[options.index('--tune') + 1]]
    _, resumed = make_run('ce', *options, '--tune', tune)

    resumed.load_state_dict(state, 'it')

    assert (resumed.epoch, resumed.step) == (1, 3)


def test_a_checkpoint_is_evaluated_as_the_run_was(saved, tmp_path):
    _, run, _, _ = saved
    trained = load_checkpoint(run.output_dir)
    x = torch.randn(4, 3, 16, 16)

    with torch.no_grad():
        torch.testing.assert_close(trained.model(x), deploy(run.eval_model)(x), atol=0, rtol=0)
    assert frozen_names(trained.model) == frozenset()


def test_a_checkpoint_knows_the_prior_of_its_model(tmp_path):
    _, run = make_run('balanced_softmax', *VIT, '--method-kwargs', 'tau=0.5')
    write_checkpoint(run.state_dict(), tmp_path / LAST)

    prior = learned_prior(load_checkpoint(tmp_path / LAST))

    expected = run.method.class_counts.double().sqrt()
    torch.testing.assert_close(prior.exp(), expected / expected.sum())


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Two files of weights for the small transformer."""
    folder = tmp_path_factory.mktemp('weights')
    model = timm.create_model('vit_tiny_patch16_224', num_classes=10, img_size=16, patch_size=8, depth=2,
                              embed_dim=32, num_heads=2)
    paths = []
    for name in ('first', 'second'):
        paths.append(folder / f'{name}.safetensors')
        save_file(model.state_dict(), paths[-1])
        model.cls_token.data += 1
    return paths


def test_other_frozen_weights_are_refused(weights, tmp_path):
    start = tmp_path / 'start.safetensors'
    start.write_bytes(weights[0].read_bytes())
    options = [*ADAPTED, '--initial-checkpoint', str(start)]
    _, run = make_run('ce', *options)
    write_checkpoint(run.state_dict(), tmp_path / LAST)

    start.write_bytes(weights[1].read_bytes())

    _, resumed = make_run('ce', *options)
    with pytest.raises(UserError, match='is of another run: backbone [0-9a-f]{64} there, [0-9a-f]{64} here'):
        resumed.load_state_dict(read_checkpoint(tmp_path / LAST), 'it')
    with pytest.raises(UserError, match='trained on other frozen weights than .*start.safetensors has now'):
        load_checkpoint(tmp_path / LAST)

    start.unlink()
    words = 'no frozen weights: those are of .*start.safetensors, .* cannot be read .* The export of the run has all'
    with pytest.raises(UserError, match=words):
        load_checkpoint(tmp_path / LAST)


@pytest.mark.parametrize('model, name', [
    ('resnet50', 'resnet50'),
    ('local-dir:output/vit.ce.photos.s0/export', 'vit.ce.photos.s0'),
    ('local-dir:export', 'export'),
    ('local-dir:weights/vit/', 'vit'),
    ('hf-hub:user/vit', 'vit'),
])
def test_a_run_is_called_after_the_run_that_it_starts_from(model, name):
    args = Namespace(model=model, method='ce', seed=3)
    assert run_name(args, digits(64)) == f'{name}.ce.{data_tag(digits(64))}.s3'


@pytest.mark.ddp
def test_two_processes_tune_as_one():
    """BCL on adapters: what is tuned, the classifier and the branches have gradients, and nothing else."""
    loss, gradients = loss_and_gradients(0, 'bcl', 1, *ADAPTED)

    for other_loss, other_gradients in run_distributed(loss_and_gradients, 'bcl', 2, *ADAPTED):
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-10)
        for name, gradient in gradients.items():
            is_tuned = name.startswith(('model.branches.', 'model.head.')) or '.adapter.' in name
            assert (gradient is not None) == (other_gradients[name] is not None) == is_tuned, name
            if is_tuned:
                torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-8, atol=1e-10)


@pytest.mark.ddp
def test_two_processes_share_what_is_frozen():
    """MoCo on the last block: its two encoders have the frozen parameters in common."""
    name, tuned = 'moco queue_size=40', [*VIT, '--tune', 'last_block']
    loss, gradients = loss_and_gradients(0, name, 1, *tuned)

    for other_loss, other_gradients in run_distributed(loss_and_gradients, name, 2, *tuned):
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-10)
        assert other_gradients.keys() == gradients.keys()
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(other_gradients[parameter], gradient, rtol=1e-8, atol=1e-10)


# ------------------------------------------------------------------------------------------- gradient checkpoints

def test_gradient_checkpoints_change_no_gradient():
    loss, gradients = loss_and_gradients(0, 'ce', 1, *ADAPTED)
    other_loss, other_gradients = loss_and_gradients(0, 'ce', 1, *ADAPTED, '--grad-checkpointing')

    assert loss == other_loss
    for name, gradient in gradients.items():
        assert (gradient is None) == (other_gradients[name] is None), name
        assert gradient is None or torch.equal(gradient, other_gradients[name])


@pytest.mark.parametrize('build', [
    lambda: timm.create_model('vgg11', device='meta'), lambda: FeatureClassifier(torch.nn.Linear(2, 2))])
def test_a_model_without_gradient_checkpoints_is_one_line(build):
    with pytest.raises(UserError, match='--grad-checkpointing: (VGG|FeatureClassifier) does not offer it'):
        _checkpoint_gradients(build())


@pytest.mark.parametrize('name', ['FSDP', 'DEEPSPEED'])
def test_sharded_weights_are_refused(name, monkeypatch):
    monkeypatch.setenv(f'ACCELERATE_USE_{name}', 'true')

    with pytest.raises(UserError, match=f'with {name} is not supported: methods read whole weights'):
        create_accelerator()


# ---------------------------------------------------------------------------------------- where a classifier starts

def features_of(run) -> torch.Tensor:
    """Return the features of all training images, one by one."""
    run.method.eval()
    with torch.no_grad():
        return torch.cat([run.method.features(x) for (x, *_), _, _ in run.train_batches()])


def test_a_classifier_starts_at_the_class_means():
    _, run = make_run('balanced_softmax', *ADAPTED, '--model-ema')
    features, targets = features_of(run), digits().targets

    for start, images in (('class_means', None), ('class_means(images=2)', 2)):
        run.options = run.options.replace(init_classifier=start)
        initialise_classifier(run, digits())

        for model in (run.method.model, run.ema.module):
            for label, row in enumerate(model.get_classifier().weight):
                mean = features[targets == label][:images].mean(dim=0)
                torch.testing.assert_close(row, mean / mean.norm(), rtol=1e-5, atol=1e-6)


def test_a_class_without_features_keeps_its_weight():
    _, run = make_run('balanced_softmax', *ADAPTED)
    before = run.method.model.get_classifier().weight.detach().clone()
    dataset = digits().subset(np.flatnonzero(digits().targets != 3))

    means = class_means(run, dataset)

    is_kept = (means == before).all(dim=1)
    assert is_kept.nonzero().flatten().tolist() == [3]


NAMES = ['ant', 'bee', 'cow']


def write_texts(path, names=('zebra', 'cow', 'ant', 'bee'), width=5, **tensors):
    """Write text features of which row i is filled with i + 1, but for its own number; returns the path."""
    features = torch.ones(len(names), width)
    features[:, 0] = torch.arange(len(names)) + 1.
    tensors = {'features': features, **tensors}
    save_file({name: value for name, value in tensors.items() if value is not None}, path,
              metadata={'class_names': json.dumps(names)})
    return path


def test_texts_are_found_by_the_names_of_the_classes(tmp_path):
    path = write_texts(tmp_path / 'texts.safetensors')

    weight = read_text_features(path, NAMES, width=5)

    expected = torch.ones(3, 5)
    expected[:, 0] = torch.tensor([3., 4., 2.])  # ant, bee, cow
    torch.testing.assert_close(weight, F.normalize(expected, dim=1))


def test_texts_are_projected_to_the_features_of_the_model(tmp_path):
    projection = torch.randn(7, 5)  # from the images' features to the space of the texts
    path = write_texts(tmp_path / 'texts.safetensors', projection=projection)

    weight = read_text_features(path, ['cow'], width=7)

    text = torch.tensor([2., 1, 1, 1, 1])
    torch.testing.assert_close(weight[0], F.normalize(text @ projection.T, dim=0))


@pytest.mark.parametrize('names, width, tensors, words', [
    (['ant', 'bee'], 5, {}, 'lacks 1 of the 3 classes: cow; it has ant, bee$'),
    (['Ant', 'Bee', 'Cow', 'Dog'], 5, {}, 'lacks 3 of the 3 classes: ant, bee, cow; it has Ant, Bee, Cow, …$'),
    ([], 5, {}, 'lacks 3 of the 3 classes: ant, bee, cow; it has no names$'),
    (['ant', 'bee', 'bee', 'cow'], 5, {}, "class_names has 'bee' twice"),
    ('abc', 5, {}, 'class_names is not a list of 3 names'),
    (NAMES, 4, {}, r'texts are 5 wide, the features of the model 4; the file can hold a projection \[4, 5\]'),
    (NAMES, 4, {'projection': torch.ones(4, 6)}, r'projection is \[4, 6\], expected \[4, 5\]'),
    (NAMES, 4, {'projection': torch.ones(6, 5)}, r'projection is \[6, 5\], expected \[4, 5\]'),
    (NAMES, 4, {'projection': torch.ones(5)}, r'projection is \[5\], expected \[4, 5\]'),
    (NAMES, 5, {'features': torch.zeros(3, 5)}, 'features of a class are zero, NaN or infinite'),
    (NAMES, 5, {'features': None, 'texts': torch.ones(3, 5)}, r'has no features \[N, E\] of texts: it holds texts'),
])
def test_a_file_of_texts_that_does_not_fit_is_one_line(names, width, tensors, words, tmp_path):
    path = write_texts(tmp_path / 'texts.safetensors', names, **tensors)

    with pytest.raises(UserError, match=words) as refusal:
        read_text_features(path, NAMES, width)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize('method, options, words', [
    ('ce', [*VIT, '--init-classifier', 'class_means'], 'needs a cosine classifier.*add --head cosine; .* has a Linear'),
    ('ce', [*ADAPTED, '--init-classifier', 'text:nowhere.safetensors'], 'nowhere.safetensors'),
])
def test_a_start_that_does_not_fit_is_refused(method, options, words):
    _, run = make_run(method, *options)

    with pytest.raises(UserError, match=words):
        initialise_classifier(run, digits())


@pytest.mark.parametrize('options, words', [
    (['--init-classifier', 'means'], "unknown initial classifier 'means'"),
    (['--init-classifier', 'class_means(images=0)'], 'images must be at least 1'),
    (['--tune', 'adapter'], "unknown tuning 'adapter'"),
    (['--head', 'euclidean'], "unknown head 'euclidean'"),
])
def test_options_are_refused_before_data_are_read(options, words, capsys, monkeypatch):
    assert words in refused(capsys, monkeypatch, '--dataset', 'digits_lt', *options)


# ---------------------------------------------------------------------------------------------------- ensembles

def test_five_crops_are_the_corners_and_the_centre():
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)

    views = Preprocessing(img_size=56, mean=(0.,) * 3, std=(1.,) * 3).test_views('five_crop')
    crops = [create_view(view, 56).place(image, np.empty(0)) for view in views]

    resized = TF.resize(image, 62)  # 31/28 of 56
    for crop, other in zip(crops, TF.five_crop(resized, 56), strict=True):
        assert np.array_equal(crop, np.asarray(other))


def test_an_ensemble_is_the_mean_of_the_logits():
    model = torch.nn.Flatten()
    views = [torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    target = torch.arange(4) % 3

    of_views = evaluate(model, [(tuple(views), target, None)], LongTailEvaluator([30, 20, 10]))
    of_mean = evaluate(model, [((sum(views) / 5,), target, None)], LongTailEvaluator([30, 20, 10]))

    assert of_views['loss'] == pytest.approx(of_mean['loss'], rel=1e-5)
    assert of_views['class_correct'] == of_mean['class_correct']


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp('photos')
    write_classes(root / 'train', {'ant': 6, 'bee': 3}, size=(20, 26))
    write_classes(root / 'test', {'ant': 3, 'bee': 3}, size=(20, 26))
    return root


def test_an_ensemble_is_said_in_the_row_and_measured_by_validate(photos, tmp_path, capsys):
    """A whole run on files: tuned, started at class means, evaluated by five crops; its export has the same counts."""
    train.main([
        *ADAPTED, '--dataset', 'folder', '--data-dir', str(photos), '--method', 'balanced_softmax', '--no-recipe',
        '--epochs', '1', '--batch-size', '4', '--workers', '0', '--init-classifier', 'class_means',
        '--tta', 'five_crop', '--output', str(tmp_path), '--experiment', 'run'])
    row = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    printed = capsys.readouterr().out

    assert (row['tta'], row['tune'], row['head']) == ('five_crop', 'adaptformer', 'cosine')
    assert row['init_classifier'] == 'class_means'
    assert 'are trained (adaptformer(bottleneck=1))' in printed
    assert 'warning: --tune adaptformer keeps most of the weights as they are, and these are random' in printed

    # at the start, above the figures, in the report and in the export
    assert 'on the test set (--tta five_crop)' in printed
    assert 'test set, weights as exported (--tta five_crop):' in printed
    assert 'five_crop: figures are those of the mean' in (tmp_path / 'run' / 'report.html').read_text()
    exported = json.loads((tmp_path / 'run' / 'export' / 'config.json').read_text())['timm_longtail']
    assert (exported['tta'], exported['init_classifier']) == ('five_crop', 'class_means')

    # the command that is printed measures the same
    command = printed.partition('to evaluate that model again:\n')[2].splitlines()[0]
    options = shlex.split(command.partition(' validate')[2].removeprefix('.py'))
    validate.main([*options, '--workers', '0'])
    measured = capsys.readouterr().out
    assert f'{sum(row["last"]["class_correct"])} of 6 images correct' in measured
    assert 'five_crop' in measured


def test_an_ensemble_of_images_in_memory_is_refused():
    with pytest.raises(UserError, match='--tta five_crop is for image files, .* in memory: add --loader worker'):
        make_run('ce', *VIT, '--tta', 'five_crop')


def test_an_ensemble_of_a_method_without_classes_is_refused():
    with pytest.raises(UserError, match='--tta averages the logits of classes, and moco has others'):
        make_run('moco', '--tta', 'five_crop')
