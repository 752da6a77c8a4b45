"""Learning rates of every epoch: those of the papers by recipe, in proportion for another number of epochs."""
import logging
import math

import pytest
import torch
import yaml

from timm_longtail.config.optim_options import create_scheduler
from timm_longtail.config.recipe import RECIPES as FOLDER
from timm_longtail.config.train_options import parse_train_args

from ..support.recipes import RECIPES, learning_rates, recipe_options, split_name

CE = ['--no-recipe', '--model', 'resnet20_cifar', '--method', 'ce']
BCL = ['--model', 'bcl_resnet32', '--dataset', 'cifar100_lt']
DIGITS = ['--model', 'bcl_resnet20', '--dataset', 'digits_lt']

LARGE_BCL = ('bcl_resnet50.imagenet_lt', 'bcl_resnext50_32x4d.imagenet_lt', 'bcl_resnet50.inat2018')
HOUR = 'resnet32_cifar.balanced_softmax-hour.cifar100_lt_if100'
SELF_SUPERVISED = [path.stem for path in RECIPES if split_name(path)[1] in ('moco', 'pnda', 'rais')]


# published schedules, as factors of the peak in epoch e of `epochs`, counted from 0


def warmup(e: int) -> float | None:
    """A line over five epochs, to the peak in the fifth; None behind it."""
    return (e + 1) / 5 if e < 5 else None


def bcl_rate(e: int, epochs: int) -> float:
    """Works that build on BCL, CIFAR, and ProCo."""
    return warmup(e) or (1 if e < 160 else 0.1 if e < 180 else 0.01)


def ldam_rate(e: int, epochs: int) -> float:
    """LDAM's `adjust_learning_rate`, which counts epochs from 1."""
    epoch = e + 1
    if epoch <= 5:
        return epoch / 5
    if epoch > 180:
        return 0.0001
    return 0.01 if epoch > 160 else 1


def stage_2_rate(e: int, epochs: int) -> float:
    """Bag of Tricks, second stage of decoupling: a tenth from the 11th and the 21st epoch on."""
    return warmup(e) or (1 if e < 10 else 0.1 if e < 20 else 0.01)


def pc_comp_rate(e: int, epochs: int) -> float:
    """The study of combined losses, and its baseline."""
    return warmup(e) or (1 if e < 150 else 0.1 if e < 225 else 0.01)


def cosine_rate(e: float, epochs: int) -> float:
    """A cosine that reaches 0 after the last epoch."""
    return (1 + math.cos(math.pi * e / epochs)) / 2


def schedules() -> dict:
    """Return the schedule of each recipe that moves once an epoch: the published one, where there is one."""
    found = {}
    for path in RECIPES:
        model, method, _, _ = split_name(path)

        # our own
        if path.stem == HOUR:
            found[path.stem] = cosine_rate

        # the papers'
        elif model == 'bcl_resnet32' or method == 'proco':
            found[path.stem] = bcl_rate
        elif model == 'resnet20_cifar':
            found[path.stem] = pc_comp_rate
        elif model == 'resnet32_cifar' and method in ('crt', 'lws'):
            found[path.stem] = stage_2_rate
        elif model == 'resnet32_cifar' and method != 'moco':
            found[path.stem] = ldam_rate
        elif model == 'glmc_resnet32_w64' or path.stem in LARGE_BCL:
            found[path.stem] = cosine_rate
    return found


SCHEDULES = schedules()


@pytest.mark.parametrize('name', SCHEDULES)
def test_the_rate_of_every_epoch_is_the_papers(name):
    args = recipe_options(name)
    shape = SCHEDULES[name]

    rates = learning_rates(args)
    assert rates == [pytest.approx(args.lr * shape(e, args.epochs), rel=1e-9) for e in range(args.epochs)]


@pytest.mark.parametrize('name', LARGE_BCL)
def test_large_recipes_of_bcl_are_as_near_to_the_released_code_as_their_headers_say(name):
    args = recipe_options(name)
    released = [args.lr * cosine_rate(e + 1, args.epochs + 1) for e in range(args.epochs)]

    assert max(abs(rate - other) for rate, other in zip(learning_rates(args), released)) <= 0.011 * args.lr


@pytest.mark.parametrize('name', ['glmc_resnext50_32x4d.imagenet_lt', 'glmc_resnext50_32x4d.inat2018'])
def test_large_recipes_of_glmc_are_as_near_to_the_released_code_as_their_headers_say(name):
    args = recipe_options(name)
    rates = learning_rates(args)
    assert rates[:9] == [pytest.approx(args.lr * (e + 1) / 10) for e in range(9)]

    def released(e):  # set after the epoch before
        return e / 10 if e <= 11 else cosine_rate(e - 10, args.epochs - 9)
    assert max(abs(rates[e] - args.lr * released(e)) for e in range(1, args.epochs)) <= 0.13 * args.lr


@pytest.mark.parametrize('name', SELF_SUPERVISED)
def test_self_supervised_recipes_move_the_rate_each_step(name):
    args = recipe_options(name)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
    scheduler = create_scheduler(args, optimizer, 10)

    warmup_epochs = 0 if args.method == 'rais' else 5
    for update in range(0, 10 * args.epochs, 7):
        scheduler.step_update(update)
        epoch = update / 10
        factor = epoch / warmup_epochs if epoch < warmup_epochs else cosine_rate(epoch, args.epochs)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(args.lr * factor, rel=1e-9)


def test_the_rate_of_the_digits_goes_to_zero_along_a_cosine():
    recipe = yaml.safe_load((FOLDER / 'bcl_resnet20.digits_lt_if20.yaml').read_text())
    first, peak = recipe['warmup_lr'], recipe['lr']

    for factor in (1, 2):  # twice the epochs, twice the warm-up
        epochs, warm = factor * recipe['epochs'], factor * recipe['warmup_epochs']
        args = parse_train_args([*DIGITS, '--epochs', str(epochs)])
        expected = [first + (peak - first) * e / warm for e in range(warm)]
        expected += [peak * cosine_rate(e, epochs) for e in range(warm, epochs)]
        assert learning_rates(args) == [pytest.approx(rate, rel=1e-9) for rate in expected]

        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.lr)
        create_scheduler(args, optimizer, 1).step(epochs)
        assert optimizer.param_groups[0]['lr'] == pytest.approx(0, abs=1e-12)


def test_without_a_recipe_the_rate_is_a_cosine():
    args = parse_train_args([*BCL, '--no-recipe', '--lr', '0.2', '--epochs', '40'])
    assert learning_rates(args) == [pytest.approx(0.2 * cosine_rate(e, 40)) for e in range(40)]


@pytest.mark.parametrize('epochs, milestones, warmup', [
    (200, [161, 181], 4), (400, [321, 361], 8), (100, [81, 91], 2), (15, [13, 15], 0), (2, [3, 3], 0), (1, [2, 2], 0),
])
def test_epochs_scale_milestones_and_warmup(epochs, milestones, warmup):
    args = parse_train_args([*BCL, '--epochs', str(epochs)])
    assert (args.decay_milestones, args.warmup_epochs) == (milestones, warmup)
    assert len(learning_rates(args)) == epochs


def test_a_short_run_keeps_the_proportions():
    short, shortest = (parse_train_args([*BCL, '--epochs', epochs]) for epochs in ('15', '2'))

    factors = [rate / short.lr for rate in learning_rates(short)]
    assert factors == pytest.approx([*[1] * 12, *[0.1] * 2, 0.01])
    assert learning_rates(shortest) == pytest.approx([shortest.lr] * 2)


def test_milestones_and_warmup_that_are_typed_are_not_scaled():
    typed = [*BCL, '--epochs', '100', '--decay-milestones', '50', '60', '--warmup-epochs', '1']
    args = parse_train_args(typed)

    assert (args.decay_milestones, args.warmup_epochs) == ([50, 60], 1)


@pytest.mark.parametrize('options, words', [
    (['--warmup-epochs', '5', '--epochs', '4'], ['--warmup-epochs 5: the run has 4, and ends before it reaches --lr']),
    (['--warmup-epochs', '4', '--epochs', '4'], ['--warmup-epochs 4: the run has 4, and ends before it reaches --lr']),
    (['--warmup-epochs', '3', '--epochs', '4'], []),
    (['--sched', 'multistep', '--decay-milestones', '3', '9', '--epochs', '4'],
     ['--decay-milestones [9]: the run has 4 epochs, and ends before']),
    (['--sched', 'multistep', '--decay-milestones', '3', '4', '--epochs', '4'], []),
    (['--decay-milestones', '9', '--epochs', '4'], []),  # of no meaning for a cosine
])
def test_what_the_end_of_the_run_cuts_off_is_said(options, words, caplog):
    with caplog.at_level(logging.WARNING):
        parse_train_args([*CE, *options])
    assert [record.getMessage() for record in caplog.records] == words


def test_a_recipe_that_is_cut_short_in_proportion_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        parse_train_args(['--model', 'resnet32_cifar', '--dataset', 'cifar100_lt', '--epochs', '2'])
    assert not caplog.records
