"""Recipes: each file says what it is for, gives the paper's numbers, and yields to what is typed."""
import math
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml

from timm_longtail.config.optim_options import create_scheduler
from timm_longtail.config.recipe import RECIPES as FOLDER
from timm_longtail.config.recipe import default_recipe, find_recipe, list_recipes, read_header, read_recipe, recipe_name
from timm_longtail.config.train_options import parse_train_args, train_parser
from timm_longtail.data import default_imbalance_factor, list_datasets, long_tail_counts
from timm_longtail.export import export_model, load_exported
from timm_longtail.methods import create_method, list_methods
from timm_longtail.models.resnet_cifar import ResNetCifar
from timm_longtail.training.optim import create_optimizers
from timm_longtail.utils.errors import UserError

RECIPES = sorted(FOLDER.glob('*.yaml'))
every_recipe = pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
BCL = ['--model', 'bcl_resnet32', '--dataset', 'cifar100_lt']
CE = ['--model', 'resnet32_cifar', '--dataset', 'cifar100_lt']
DIGITS = ['--model', 'bcl_resnet20', '--dataset', 'digits_lt']


def split_name(path):
    """Return model, method (or None), data set and factor (None for natural counts) of a recipe's file name.

    Behind the method a variant may stand: `ce-sqrt`.
    """
    names, factor = re.fullmatch(r'(.+?)(?:_if([0-9.]+))?', path.stem).groups()
    model, *method, dataset = names.split('.')
    assert len(method) <= 1, path.stem
    return model, (method[0].partition('-')[0] if method else None), dataset, (float(factor) if factor else None)


def parse(path, argv):
    """Parse a command line about a recipe's data set."""
    dataset = split_name(path)[2]
    if dataset not in list_datasets():
        pytest.skip(f'the data set {dataset} is not there yet')
    return parse_train_args(argv)


def build_method(args):
    """Return the recipe's method for four classes, on no device: what it holds matters, not its weights."""
    network = timm.create_model(args.model, num_classes=4, device='meta', **args.model_kwargs)
    return create_method(args.method, network, [4, 3, 2, 1], **args.method_kwargs)


def default_method(model):
    with torch.device('meta'):
        return getattr(timm.create_model(model), 'default_method', 'ce')


def typed_command(path):
    """Return the options of the training command that a recipe's header shows."""
    lines = path.read_text().splitlines()
    commands = [line for line in lines if line.startswith('#  ') and ' train ' in line and '--model' in line]
    assert len(commands) == 1
    return shlex.split(commands[0].partition(' train ')[2])


def write_recipe(folder, text, name='bcl_resnet32.cifar100_lt_if100.yaml'):
    path = folder / name
    path.write_text(text)
    return path


@every_recipe
def test_name_agrees_with_content(path):
    model, method, dataset, factor = split_name(path)
    args = parse(path, ['-c', str(path)])  # by itself the whole row of a paper
    assert (args.recipe, args.model, args.dataset) == (path, model, dataset)
    assert args.method == yaml.safe_load(path.read_text())['method'] == (method or default_method(model))
    assert args.imbalance_factor == factor
    assert timm.is_model(args.model) and args.method in list_methods()
    build_method(args)


def small_network(path):
    """Build a recipe's network with one block a stage, whatever data sets there are."""
    recipe = yaml.safe_load(path.read_text())
    stages = 3 if isinstance(timm.create_model(recipe['model'], device='meta'), ResNetCifar) else 4
    return timm.create_model(recipe['model'], num_classes=4, layers=(1,) * stages, **recipe.get('model_kwargs', {}))


@every_recipe
def test_no_block_starts_as_the_identity(path):
    """The published codes leave every BatchNorm at 1; timm's ResNets start the last of a block at 0."""
    network = small_network(path)
    scales = [module.weight for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(scales) > 4
    assert all((scale == 1).all() for scale in scales)


@pytest.mark.parametrize('name', [
    'bcl_resnet50.imagenet_lt', 'resnet18.moco.tiny_imagenet', 'resnet18_cifar.rais.cifar100',
])
def test_an_export_of_such_a_network_loads(name, tmp_path):
    network = small_network(FOLDER / f'{name}.yaml')
    loaded, _ = load_exported(export_model(network, tmp_path / 'export'))
    assert loaded.state_dict().keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@every_recipe
def test_the_command_of_a_header_trains_by_the_recipe(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    args = parse(path, typed_command(path))

    model, _, dataset, factor = split_name(path)
    assert (args.recipe, args.model, args.dataset) == (path, model, dataset)
    # a set that is not cut has no factor in the name
    assert (args.imbalance_factor or default_imbalance_factor(dataset)) in (factor, factor or 1)


@every_recipe
def test_header_has_a_title_the_result_and_the_source(path):
    header = read_header(path)

    assert header['title'] and header['Expected'] and header['Source']


# --- names -----------------------------------------------------------------------------------------------------------

NAME = 'bcl_resnet32.cifar100_lt_if100'


@pytest.mark.parametrize('typed', [
    NAME, f'{NAME}.yaml', f'recipes/{NAME}.yaml', f'timm_longtail/config/recipes/{NAME}.yaml',
    str(FOLDER / f'{NAME}.yaml'),
])
def test_a_recipe_is_found_by_name_and_by_every_path_it_has_had(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert find_recipe(typed) == FOLDER / f'{NAME}.yaml'
    assert recipe_name(typed) == NAME
    assert parse_train_args(['-c', typed]).recipe == FOLDER / f'{NAME}.yaml'


@pytest.mark.parametrize('typed', [NAME, f'{NAME}.yaml', f'recipes/{NAME}.yaml', 'mine.yaml', 'deep/mine.yaml'])
def test_a_file_of_the_users_own_comes_first(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(typed).parent.mkdir(exist_ok=True)
    Path(typed).write_text('epochs: 3')

    assert find_recipe(typed) == Path(typed)


def test_a_folder_of_a_recipes_name_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / NAME).mkdir()

    assert find_recipe(NAME) == FOLDER / f'{NAME}.yaml'


def test_a_name_that_no_recipe_has():
    with pytest.raises(UserError, match=rf"unknown recipe 'bcl_resnet23.cifar100_lt_if100'; did you mean {NAME}"):
        find_recipe('bcl_resnet23.cifar100_lt_if100')


def test_a_path_that_is_no_recipe_of_the_package_keeps_its_name():
    assert recipe_name('/elsewhere/recipes/x.yaml') == '/elsewhere/recipes/x.yaml'
    assert recipe_name(None) is None


def test_names_are_listed():
    assert list_recipes() == [path.name.removesuffix('.yaml') for path in RECIPES]


@pytest.mark.parametrize('method', [None, 'bcl', 'ce'])
def test_the_default_recipe_is_of_model_data_factor_and_method(method):
    path = default_recipe('bcl_resnet32', 'cifar100_lt', method=method)

    assert path == (None if method == 'ce' else FOLDER / f'{NAME}.yaml')
    assert default_recipe('bcl_resnet32', 'cifar100_lt', imbalance_factor=50) is None
    assert default_recipe('bcl_resnet20', 'digits_lt') == FOLDER / 'bcl_resnet20.digits_lt_if20.yaml'


def learning_rates(args, steps_per_epoch=3):
    """Return the rate of each epoch, as the loop sets it: once an epoch, then once a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler = create_scheduler(args, optimizer, steps_per_epoch)
    rates = []
    for epoch in range(args.epochs):
        scheduler.step(epoch)
        seen = set()
        for step in range(steps_per_epoch):
            scheduler.step_update(epoch * steps_per_epoch + step)
            seen.add(optimizer.param_groups[0]['lr'])
        assert len(seen) == 1  # steps leave the rate alone
        rates += seen
    return rates


def bcl_rate(e):
    """Works that build on BCL, CIFAR: epoch e from 0."""
    if e < 5:
        return 0.15 * (e + 1) / 5
    return 0.15 if e < 160 else 0.015 if e < 180 else 0.0015


def ldam_rate(e):
    """LDAM's `adjust_learning_rate`, which counts epochs from 1."""
    epoch = e + 1
    if epoch <= 5:
        return 0.1 * epoch / 5
    if epoch > 180:
        return 0.1 * 0.0001
    return 0.1 * 0.01 if epoch > 160 else 0.1


def stage_2_rate(e):
    """Bag of Tricks, second stage of decoupling: 30 epochs, a tenth from the 11th and the 21st on."""
    return 0.1 * (e + 1) / 5 if e < 5 else 0.1 if e < 10 else 0.01 if e < 20 else 0.001


BASELINES = {
    path.stem: (['-c', str(path)], stage_2_rate if split_name(path)[1] in ('crt', 'lws') else ldam_rate)
    for path in RECIPES if path.name.startswith('resnet32_cifar.') and split_name(path)[1] not in ('proco', 'moco')}


@pytest.mark.parametrize(
    'typed, formula', [(BCL, bcl_rate), (CE, ldam_rate), *BASELINES.values()], ids=['bcl', 'ldam', *BASELINES])
def test_learning_rate_of_every_epoch_is_the_papers(typed, formula):
    args = parse_train_args(typed)
    assert args.epochs == (30 if formula is stage_2_rate else 200)
    rates = learning_rates(args)
    assert rates == [pytest.approx(formula(e), rel=1e-9) for e in range(args.epochs)]
    # by hand, at every corner
    first, *_ = rates
    assert first == pytest.approx(args.lr / 5)
    drop, again = (10, 20) if formula is stage_2_rate else (160, 180)
    assert rates[4] == rates[drop - 1] == pytest.approx(args.lr)
    assert rates[drop - 1] > 5 * rates[drop] > 5 * rates[again]


def test_the_study_of_combined_losses():
    """A baseline and nine rows: one schedule, stated in the header with their figures, all of them different."""
    baseline = parse_train_args(['--model', 'resnet20_cifar', '--dataset', 'cifar100_lt'])
    path = FOLDER / 'resnet20_cifar.pc_comp.cifar100_lt_if100.yaml'
    args = parse_train_args(['-c', str(path)])
    assert baseline.recipe.name == 'resnet20_cifar.cifar100_lt_if100.yaml' and baseline.method == 'ce'
    differing = {k for k, v in vars(baseline).items() if v != vars(args)[k]}
    assert differing == {'recipe', 'config', 'method', 'method_kwargs'}
    rates = [0.1 * (e + 1) / 5 if e < 5 else 0.1 if e < 150 else 0.01 if e < 225 else 0.001 for e in range(300)]
    assert learning_rates(args) == [pytest.approx(rate, rel=1e-9) for rate in rates]
    assert build_method(args).warmup * args.epochs == pytest.approx(10)

    counts = long_tail_counts(500, 100, 100)
    lines = path.read_text().splitlines()
    rows = [re.fullmatch(r'#\s+(--method-kwargs .*?)  +([\d.]+) / ([\d.]+) / ([\d.]+)', line) for line in lines]
    groups = set()
    for row in filter(None, rows):
        typed, *figures = row.groups()
        options = parse_train_args(['-c', str(path), *typed.split()]).method_kwargs
        method = create_method('pc_comp', timm.create_model('resnet20_cifar', device='meta'), counts, **options)
        groups.add((int(method.pc_classes.sum()), int(method.complement_classes.sum())))
        everywhere, head, tail = map(float, figures)
        assert 0.35 * head + 0.65 * tail == pytest.approx(everywhere, abs=0.05)  # 35 and 65 classes
    assert groups == {
        (0, 0), (0, 100), (0, 35), (0, 65), (100, 0), (35, 0), (65, 0), (65, 35), (35, 65)}


def test_proco_is_the_released_codes():
    args = parse_train_args(['-c', str(FOLDER / 'resnet32_cifar.proco.cifar100_lt_if100.yaml')])
    assert (args.epochs, args.weight_decay, args.global_batch_size) == (200, 2e-4, 256)
    assert learning_rates(args) == [pytest.approx(2 * bcl_rate(e), rel=1e-9) for e in range(200)]
    method = build_method(args)
    assert (method.temperature, method.ce_weight, method.contrastive_weight) == (0.1, 1, 1)
    assert type(method.model.get_classifier()) is torch.nn.Linear


@pytest.mark.parametrize('name, epochs, lr, weight_decay', [
    ('bcl_resnet50.imagenet_lt', 90, 0.1, 5e-4), ('bcl_resnext50_32x4d.imagenet_lt', 90, 0.1, 5e-4),
    ('bcl_resnet50.inat2018', 100, 0.2, 1e-4),
])
def test_large_recipes_are_the_released_codes(name, epochs, lr, weight_decay):
    parser = train_parser()
    args = parser.parse_args([])
    vars(args).update(read_recipe(FOLDER / f'{name}.yaml', parser))  # whatever data sets there are
    assert (args.epochs, args.lr, args.weight_decay, args.global_batch_size) == (epochs, lr, weight_decay, 256)
    rates = learning_rates(args)
    assert rates == [pytest.approx(lr * (1 + math.cos(math.pi * e / epochs)) / 2, rel=1e-9) for e in range(epochs)]
    published = [lr * (1 + math.cos(math.pi * (e + 1) / (epochs + 1))) / 2 for e in range(epochs)]
    assert max(abs(rate - other) for rate, other in zip(rates, published)) <= 0.011 * lr  # as the header says
    method = build_method(args)
    assert (method.temperature, method.ce_weight, method.contrastive_weight, method.tau) == (0.07, 1.0, 0.35, 1.0)
    assert method.views == ('rand', 'sim(scale=0.08)', 'sim(scale=0.08)')
    assert [p.shape[0] for p in method.model.branches['projector'].parameters() if p.ndim == 2] == [2048, 1024]


# resampling k, reweighting q and weight gamma of GLMC's published commands; batches, which the abstract has at 128
GLMC = {
    'glmc_resnet32_w64.cifar100_lt_if100': (0.0, 1.2, 4, 64), 'glmc_resnet32_w64.cifar100_lt_if50': (0.2, 1.2, 6, 64),
    'glmc_resnet32_w64.cifar100_lt_if10': (0.2, 1.2, 4, 64), 'glmc_resnet32_w64.cifar10_lt_if100': (0.0, 1.2, 1, 64),
    'glmc_resnet32_w64.cifar10_lt_if50': (0.0, 1.2, 1, 64), 'glmc_resnet32_w64.cifar10_lt_if10': (0.2, 1.0, 2, 64),
    'glmc_resnet32_w64.glmc.cifar100_lt_if100': (0.0, 1.2, 4, 128),
    'glmc_resnet32_w64.glmc.cifar100_lt_if50': (0.2, 1.2, 6, 128),
    'glmc_resnet32_w64.glmc_clr.cifar100_lt_if100': (0.0, 1.2, 4, 128),
    'glmc_resnet32_w64.glmc_clr.cifar100_lt_if50': (0.2, 1.2, 6, 128),
    'glmc_resnext50_32x4d.imagenet_lt': (0.2, 1.0, 10, 120), 'glmc_resnext50_32x4d.inat2018': (0.2, 1.0, 10, 128),
}


def test_every_recipe_of_glmc_is_listed():
    assert {path.stem for path in RECIPES if path.stem.startswith('glmc')} == GLMC.keys()


@pytest.mark.parametrize('name', GLMC)
def test_recipes_of_glmc_are_the_published_commands(name):
    parser = train_parser()
    args = parser.parse_args([])
    vars(args).update(read_recipe(FOLDER / f'{name}.yaml', parser))
    k, q, gamma, batch_size = GLMC[name]
    network = small_network(FOLDER / f'{name}.yaml')
    method = create_method(args.method, network, [64, 8, 2, 1], **args.method_kwargs)
    assert (method.resample_power, method.consistency_weight, args.global_batch_size) == (k, gamma, batch_size)
    assert (method.class_weight[3] / method.class_weight[0]).item() == pytest.approx(64 ** q, rel=1e-5)
    assert (method.mix_alpha, method.area_correction, method.joint_forward) == (1.0, False, False)
    assert method.even_box
    rates = learning_rates(args)
    if args.dataset.startswith('cifar'):
        assert (args.epochs, args.lr, args.weight_decay, method.views) == (200, 0.01, 5e-3, ('crop_flip',) * 2)
        assert rates == [pytest.approx(0.01 * (1 + math.cos(math.pi * e / 200)) / 2) for e in range(200)]
        assert network.num_features == 256 and method.model.branches['predictor'].weight.shape == (128, 128)
        assert (args.std == [0.2023, 0.1994, 0.2010]) == (args.dataset == 'cifar100_lt')
        return
    epochs = {'imagenet_lt': 135, 'inat2018': 120}[args.dataset]
    assert (args.epochs, args.lr, method.views) == (epochs, 0.1, ('glmc', 'glmc'))
    assert args.weight_decay == {'imagenet_lt': 2e-4, 'inat2018': 1e-4}[args.dataset]
    assert method.model.branches['predictor'].weight.shape == (256, 256)
    assert rates[:9] == [pytest.approx(0.01 * (e + 1)) for e in range(9)]

    def released(e):  # set after the epoch before
        return 0.01 * e if e <= 11 else 0.1 * (1 + math.cos(math.pi * (e - 10) / (epochs - 9))) / 2
    assert max(abs(rates[e] - released(e)) for e in range(1, epochs)) <= 0.13 * 0.1  # as the header says


def test_the_two_methods_of_the_abstract_differ_in_the_contrast_alone():
    for factor in (100, 50):
        names = (f'glmc_resnet32_w64.{method}.cifar100_lt_if{factor}.yaml' for method in ('glmc', 'glmc_clr'))
        glmc, clr = (yaml.safe_load((FOLDER / name).read_text()) for name in names)
        contrast = {'contrastive_weight': 1.0, 'temperature': 0.5}
        assert clr == {**glmc, 'method': 'glmc_clr', 'method_kwargs': {**glmc['method_kwargs'], **contrast}}


def test_bcl_from_moco_differs_in_its_weights_alone():
    plain, started = (yaml.safe_load((FOLDER / f'bcl_resnet32.{name}cifar100_lt_if100.yaml').read_text())
                      for name in ('', 'bcl-moco.'))
    assert started.pop('initial_checkpoint') == 'output/resnet32_cifar.moco.cifar100_lt_if100.s0/export'
    assert started == plain


SELF_SUPERVISED = {  # epochs, rate, weight decay and batches of the released code
    'resnet50_cifar.moco.cifar100': (300, 0.125, 1e-4, 128), 'resnet50_cifar.pnda.cifar100': (300, 0.125, 1e-4, 128),
    'resnet50_cifar.pnda-pda.cifar100': (300, 0.125, 1e-4, 128), 'resnet18.moco.tiny_imagenet': (200, 0.125, 1e-4, 256),
    'resnet50_cifar.pnda-nda.cifar100': (300, 0.125, 1e-4, 128), 'resnet18.pnda.tiny_imagenet': (200, 0.125, 1e-4, 256),
    'resnet18.pnda-pda.tiny_imagenet': (200, 0.125, 1e-4, 256),
    'resnet18.pnda-nda.tiny_imagenet': (200, 0.125, 1e-4, 256),
    'resnet18_cifar.rais.cifar100': (210, 1e-3, 1e-6, 64), 'resnet18.rais.tiny_imagenet': (160, 0.1, 1e-6, 64),
}


@pytest.mark.parametrize('name', SELF_SUPERVISED)
def test_self_supervised_recipes_are_the_released_codes(name):
    parser = train_parser()
    args = parser.parse_args([])
    vars(args).update(read_recipe(FOLDER / f'{name}.yaml', parser))
    assert (args.epochs, args.lr, args.weight_decay, args.global_batch_size) == SELF_SUPERVISED[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler = create_scheduler(args, optimizer, 10)
    warmup = 0 if args.method == 'rais' else 5
    for update in range(0, 10 * args.epochs, 7):  # each step has its rate
        scheduler.step_update(update)
        epoch = update / 10
        cosine = (1 + math.cos(math.pi * epoch / args.epochs)) / 2
        rate = args.lr * (epoch / warmup if epoch < warmup else cosine)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(rate, rel=1e-9)
    outputs = {'rais': 4}.get(args.method, 0)
    network = timm.create_model(args.model, num_classes=outputs, device='meta')
    method = create_method(args.method, network, [4, 3, 2, 1], **args.method_kwargs)
    tiny = args.dataset == 'tiny_imagenet'
    if args.method == 'rais':
        assert (method.first_epochs, method.margin, method.views) == (10, 0.2, ('flip',))
        assert (method.separation_weight, method.most_accuracy) == ((0.1, 0.78) if tiny else (0.2, 0.9))
        return
    assert (len(method.queue), method.momentum, method.temperature, method.bn_groups) == (4096, 0.999, 0.2, 4)
    assert method.views == (('sim_blur',) * 2 if tiny else ('sim',) * 2)
    assert method.turns == ((0,) if args.method == 'moco' else (0, 1, 2, 3))
    if args.method == 'pnda':
        assert method.rotations == name.split('.')[1].rpartition('-')[2]


def cosine_rate(e, recipe, epochs, warmup):
    """Warm-up on a line from `warmup_lr`, then the cosine that reaches 0 after the last epoch."""
    if e < warmup:
        return recipe['warmup_lr'] + (recipe['lr'] - recipe['warmup_lr']) * e / warmup
    return recipe['lr'] * (1 + math.cos(math.pi * e / epochs)) / 2


def test_the_rate_of_the_digits_goes_to_zero_along_a_cosine():
    recipe = yaml.safe_load((FOLDER / 'bcl_resnet20.digits_lt_if20.yaml').read_text())
    assert recipe['sched'] == 'cosine'
    for factor in (1, 2):  # twice the epochs, twice the warm-up
        epochs, warmup = factor * recipe['epochs'], factor * recipe['warmup_epochs']
        args = parse_train_args([*DIGITS, '--epochs', str(epochs)])
        assert learning_rates(args) == [
            pytest.approx(cosine_rate(e, recipe, epochs, warmup), rel=1e-9) for e in range(epochs)]
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
        create_scheduler(args, optimizer, 1).step(epochs)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(0, abs=1e-12)


def test_without_a_recipe_the_rate_is_a_cosine():
    args = parse_train_args([*BCL, '--no-recipe', '--lr', '0.2', '--epochs', '40'])
    assert learning_rates(args) == [pytest.approx(0.1 * (1 + math.cos(math.pi * e / 40))) for e in range(40)]


@pytest.mark.parametrize('epochs, milestones, warmup', [
    (200, [161, 181], 4), (400, [321, 361], 8), (100, [81, 91], 2), (15, [13, 15], 0), (2, [3, 3], 0), (1, [2, 2], 0),
])
def test_epochs_scale_milestones_and_warmup(epochs, milestones, warmup):
    args = parse_train_args([*BCL, '--epochs', str(epochs)])
    assert (args.decay_milestones, args.warmup_epochs) == (milestones, warmup)
    assert len(learning_rates(args)) == epochs


def test_a_short_run_keeps_the_proportions():
    assert learning_rates(parse_train_args([*BCL, '--epochs', '15'])) == [
        pytest.approx(rate) for rate in (*[0.15] * 12, *[0.015] * 2, 0.0015)]
    assert learning_rates(parse_train_args([*BCL, '--epochs', '2'])) == [pytest.approx(0.15)] * 2
    typed = [*BCL, '--epochs', '100', '--decay-milestones', '50', '60', '--warmup-epochs', '1']
    args = parse_train_args(typed)
    assert (args.decay_milestones, args.warmup_epochs) == ([50, 60], 1)


def test_what_is_typed_wins():
    recipe = parse_train_args(BCL)
    assert (recipe.lr, recipe.weight_decay, recipe.global_batch_size, recipe.sched) == (0.15, 5e-4, 256, 'multistep')
    typed = parse_train_args([*BCL, '--lr', '0.3', '--weight-decay', '0', '--sched', 'cosine'])
    assert (typed.lr, typed.weight_decay, typed.sched) == (0.3, 0.0, 'cosine')
    assert (typed.warmup_lr, typed.global_batch_size) == (0.03, 256)  # the rest is the recipe's
    # the parser's own default counts when it is typed
    assert parse_train_args([*BCL, '--lr', '0.1']).lr == 0.1
    assert parse_train_args([*DIGITS, '--method-kwargs', 'temperature=0.2']).method_kwargs['temperature'] == 0.2


def test_batch_sizes():
    args = parse_train_args([*BCL, '--batch-size', '64'])
    assert (args.batch_size, args.global_batch_size) == (64, None)
    args = parse_train_args([*BCL, '--global-batch-size', '64'])
    assert (args.batch_size, args.global_batch_size) == (None, 64)
    args = parse_train_args([*BCL, '--no-recipe'])
    assert (args.batch_size, args.global_batch_size) == (128, None)
    with pytest.raises(UserError, match='--batch-size .* or --global-batch-size, not both'):
        parse_train_args([*BCL, '--batch-size', '64', '--global-batch-size', '64'])


@pytest.mark.parametrize('option', [
    '--batch-size', '--global-batch-size', '--grad-accum-steps', '--epochs', '--log-interval', '--val-interval',
])
@pytest.mark.parametrize('value', ['0', '-1'])
def test_numbers_below_one_are_refused(option, value):
    with pytest.raises(UserError, match=rf'^{option} must be (at least 1|in \[1, 1000000\]), got {value}$'):
        parse_train_args([*BCL, option, value])


def test_default_recipe_is_taken_only_for_its_method_factor_and_model():
    path = FOLDER / 'bcl_resnet32.cifar100_lt_if100.yaml'
    for typed in ([], ['--method', 'bcl'], ['--imbalance-factor', '100'], ['--epochs', '3']):
        args = parse_train_args([*BCL, *typed])
        assert (args.recipe, args.method, args.lr) == (path, 'bcl', 0.15)
    for typed in (['--method', 'ce'], ['--imbalance-factor', '50'], ['--no-recipe'], ['--dataset', 'cifar10_lt'],
                  ['--model', 'bcl_resnet20']):
        args = parse_train_args([*BCL, *typed])
        assert (args.recipe, args.lr) == (None, 0.1)
        assert args.method == ('ce' if 'ce' in typed else 'bcl')
    # by -c it is taken for what it is given for
    args = parse_train_args([*BCL, '--method', 'ce', '-c', str(path)])
    assert (args.recipe, args.method, args.lr) == (path, 'ce', 0.15)


@pytest.mark.parametrize('text, message', [
    ('method: bcl\nwieght_decay: 0.1\n', "unknown option 'wieght_decay'; did you mean weight_decay"),
    ('method: bcl\nconfig: other.yaml\n', "unknown option 'config'"),
    ('method: bclx\n', "unknown method 'bclx'; did you mean bcl"),
    ('method: bcl\nlr: fast\n', 'lr.*fast'),
    ('- method\n- bcl\n', 'bcl_resnet32.cifar100_lt_if100.yaml'),
    ('method: [bcl\n', 'bcl_resnet32.cifar100_lt_if100.yaml'),
    ('epochs: 0\n', r'yaml: epochs must be in \[1, 1000000\], got 0$'),
])
@pytest.mark.parametrize('given', [True, False])
def test_a_recipe_that_cannot_be_is_one_line(text, message, given, tmp_path):
    path = write_recipe(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        parse_train_args([*BCL, '-c', str(path)] if given else BCL, recipe_folder=tmp_path)
    assert '\n' not in str(error.value)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match='no recipe at nowhere.yaml'):
        parse_train_args([*BCL, '-c', 'nowhere.yaml'])


def test_numbers_that_yaml_reads_as_text(tmp_path):
    args = parse_train_args(BCL, recipe_folder=write_recipe(tmp_path, 'method: bcl\nweight_decay: 5e-4\n').parent)
    assert args.weight_decay == 5e-4 and args.recipe.parent == tmp_path


@every_recipe
def test_optimizer_is_the_papers(path):
    args = parse(path, ['-c', str(path)])
    content = yaml.safe_load(path.read_text())
    assert {'lr', 'momentum', 'weight_decay', 'opt', 'sched', 'epochs', 'global_batch_size'} <= content.keys()
    method = build_method(args)
    optimizers, schedulers = create_optimizers(args, method, 10)
    assert len(optimizers) == len(schedulers) == len(method.phases)
    # what the method itself sets for parameters of its own, centroids for example
    own = {id(p) for phase in method.phases for group in method.param_groups(phase) if 'lr' in group
           for p in group['params']} - {id(p) for p in method.model.parameters()}
    decayed = set(own)
    for optimizer in optimizers:
        is_sgd = content['opt'] != 'adam'
        assert type(optimizer) is (torch.optim.SGD if is_sgd else torch.optim.Adam)
        for group in optimizer.param_groups:
            if {id(p) for p in group['params']} <= own:
                continue
            if is_sgd:
                assert group['momentum'] == 0.9 and not group['nesterov'] and group['dampening'] == 0
            assert group['weight_decay'] == float(content['weight_decay']) > 0
            decayed |= {id(p) for p in group['params']}
    names = {name: id(p) for name, p in method.named_parameters() if p.requires_grad}
    assert decayed == set(names.values())
    assert method.needs_weights or any(name.endswith('bn1.bias') for name in names)  # biases and BatchNorm too


def test_steps_are_plain_sgd_with_momentum_and_decay():
    args = parse_train_args(['--model', 'resnet20_cifar', '--no-recipe', '--weight-decay', '0.01', '--lr', '0.1'])
    method = create_method('ce', timm.create_model('resnet20_cifar', num_classes=4), [4, 3, 2, 1])
    (optimizer,), _ = create_optimizers(args, method, 10)
    names = ('model.bn1.weight', 'model.fc.bias', 'model.conv1.weight')
    parameters = [dict(method.named_parameters())[name] for name in names]
    expected = [p.detach().clone().double() for p in parameters]
    velocity = [torch.zeros_like(p) for p in expected]
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        for i, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=random)
            velocity[i] = 0.9 * velocity[i] + p.grad.double() + 0.01 * expected[i]
            expected[i] = expected[i] - 0.1 * velocity[i]
        optimizer.step()
    for p, value in zip(parameters, expected):
        torch.testing.assert_close(p.detach().double(), value, rtol=1e-5, atol=1e-6)
