"""Recipes: each is named by what it trains, says what it is for, and its command trains by it."""
import re
import shlex
from pathlib import Path

import pytest
import timm
import torch
import yaml
from timm.optim import Muon

from timm_longtail.config.recipe import RECIPES as FOLDER
from timm_longtail.config.recipe import list_recipes, read_header
from timm_longtail.config.train_options import parse_train_args
from timm_longtail.data import default_imbalance_factor, list_datasets, long_tail_counts
from timm_longtail.export import export_model, load_exported
from timm_longtail.methods import create_method, list_methods
from timm_longtail.models.heads import set_head
from timm_longtail.training.optim import create_optimizers

from ..support.recipes import RECIPES, build_method, every_recipe, recipe_options, small_network, split_name

# all others are SGD
OPTIMIZERS = {'adam': torch.optim.Adam, 'nmuon': Muon}


def parse(path, argv):
    """Parse a command line about a recipe's data set."""
    dataset = split_name(path)[2]
    if dataset not in list_datasets():
        pytest.skip(f'the data set {dataset} is not there yet')
    return parse_train_args(argv)


def default_method(model):
    with torch.device('meta'):
        return getattr(timm.create_model(model), 'default_method', 'ce')


@every_recipe
def test_name_agrees_with_content(path):
    model, method, dataset, factor = split_name(path)
    args = parse(path, ['-c', str(path)])  # by itself the whole row of a paper

    assert (args.recipe, args.model, args.dataset) == (path, model, dataset)
    assert args.method == yaml.safe_load(path.read_text())['method'] == (method or default_method(model))
    assert args.imbalance_factor == factor
    assert timm.is_model(args.model) and args.method in list_methods()


@every_recipe
def test_header_has_a_title_a_command_the_result_and_the_source(path):
    header = read_header(path)

    assert header['title'] and header['command'] and header['Expected'] and header['Source']


@every_recipe
def test_the_command_of_a_header_trains_by_the_recipe(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # from anywhere
    _, _, typed = read_header(path)['command'].partition(' train ')
    args = parse(path, shlex.split(typed))

    model, _, dataset, factor = split_name(path)
    assert (args.recipe, args.model, args.dataset) == (path, model, dataset)
    # a set that is not cut has no factor in the name
    assert (args.imbalance_factor or default_imbalance_factor(dataset)) in (factor, factor or 1)


@pytest.mark.parametrize('path', [path for path in RECIPES if not path.stem.startswith('vit_')], ids=lambda p: p.stem)
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
def test_the_optimizer_decays_all_weights_and_sgd_is_no_nesterov(path):
    content = yaml.safe_load(path.read_text())
    assert {'lr', 'momentum', 'weight_decay', 'opt', 'sched', 'epochs', 'global_batch_size'} <= content.keys()
    args = parse(path, ['-c', str(path)])
    method = build_method(args)
    optimizers, schedulers = create_optimizers(args, method, 10)
    assert len(optimizers) == len(schedulers) == len(method.phases)

    # what the method itself sets for parameters of its own, centroids for example
    own = {id(p) for phase in method.phases for group in method.param_groups(phase) if 'lr' in group
           for p in group['params']} - {id(p) for p in method.model.parameters()}

    decayed = set(own)
    for optimizer in optimizers:
        assert type(optimizer) is OPTIMIZERS.get(content['opt'], torch.optim.SGD)
        for group in optimizer.param_groups:
            if {id(p) for p in group['params']} <= own:
                continue
            if isinstance(optimizer, torch.optim.SGD):
                assert group['momentum'] == 0.9 and not group['nesterov'] and group['dampening'] == 0
            assert group['weight_decay'] == float(content['weight_decay']) > 0
            decayed |= {id(p) for p in group['params']}

    names = {name: id(p) for name, p in method.named_parameters() if p.requires_grad}
    assert decayed == set(names.values())
    assert method.needs_weights or any(name.endswith(('bn1.bias', 'norm.bias')) for name in names)  # norms too


@pytest.mark.parametrize('name, branch, widths', [
    ('bcl_resnet50.imagenet_lt', 'projector', [2048, 1024]),
    ('bcl_resnext50_32x4d.imagenet_lt', 'projector', [2048, 1024]),
    ('bcl_resnet50.inat2018', 'projector', [2048, 1024]),
    ('glmc_resnet32_w64.cifar100_lt_if100', 'predictor', [128]),
    ('glmc_resnext50_32x4d.imagenet_lt', 'predictor', [256]),
])
def test_heads_have_the_published_widths(name, branch, widths):
    method = build_method(recipe_options(name))
    weights = [p for p in method.model.branches[branch].parameters() if p.ndim == 2]

    assert [weight.shape[0] for weight in weights] == widths


@pytest.mark.parametrize('name, turns', [
    ('resnet50_cifar.moco.cifar100', (0,)),
    ('resnet50_cifar.pnda.cifar100', (0, 1, 2, 3)),
    ('resnet50_cifar.pnda-pda.cifar100', (0, 1, 2, 3)),
    ('resnet18.pnda-nda.tiny_imagenet', (0, 1, 2, 3)),
])
def test_rotations_of_self_supervised_recipes(name, turns):
    method = build_method(recipe_options(name))

    assert method.turns == turns
    if '.pnda' in name:
        assert method.rotations == name.split('.')[1].rpartition('-')[2]


def test_the_study_of_combined_losses():
    """A baseline and nine rows: options stated in the header with their figures, all of them different."""
    baseline = parse_train_args(['--model', 'resnet20_cifar', '--dataset', 'cifar100_lt'])
    path = FOLDER / 'resnet20_cifar.pc_comp.cifar100_lt_if100.yaml'
    args = parse_train_args(['-c', str(path)])
    assert baseline.recipe.name == 'resnet20_cifar.cifar100_lt_if100.yaml' and baseline.method == 'ce'
    differing = {k for k, v in vars(baseline).items() if v != vars(args)[k]}
    assert differing == {'recipe', 'config', 'method', 'method_kwargs'}
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


def test_the_two_methods_of_the_abstract_differ_in_the_contrast_alone():
    for factor in (100, 50):
        names = (f'glmc_resnet32_w64.{method}.cifar100_lt_if{factor}.yaml' for method in ('glmc', 'glmc_clr'))
        glmc, clr = (yaml.safe_load((FOLDER / name).read_text()) for name in names)
        assert clr.pop('method') == 'glmc_clr' and glmc.pop('method') == 'glmc'
        for option in ('contrastive_weight', 'temperature'):
            del clr['method_kwargs'][option]
        assert clr == glmc


def test_bcl_from_moco_differs_in_its_weights_alone():
    names = ('bcl_resnet32.cifar100_lt_if100', 'bcl_resnet32.bcl-moco.cifar100_lt_if100')
    plain, started = (yaml.safe_load((FOLDER / f'{name}.yaml').read_text()) for name in names)

    # the run that its weights come from is that of a recipe
    assert Path(started.pop('initial_checkpoint')).parent.name.removesuffix('.s0') in list_recipes()
    assert started == plain


@pytest.mark.parametrize('dataset, num_classes, thousands', [
    ('cifar100_lt_if100', 100, 101), ('places_lt', 365, 175), ('imagenet_lt', 1000, 618), ('inat2018', 8142, 4749)])
def test_lift_trains_adapters_and_a_cosine_classifier(dataset, num_classes, thousands):
    options = recipe_options(f'vit_base_patch16_clip_quickgelu_224.openai.balanced_softmax-lift.{dataset}')

    network = timm.create_model(options.model, num_classes=num_classes, device='meta', **options.model_kwargs)
    set_head(network, options.head)
    create_method(options.method, network, [2] * num_classes, tune=options.tune, **options.method_kwargs)

    trained = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    assert trained.pop('head.weight') == 768 * num_classes and network.head.scale == 25
    assert round(sum(trained.values()) / 1000) == thousands
