"""Options: each number of every entry point, method, view and sampler has a range, on the command line and in YAML."""
import argparse
import importlib.util
import inspect
import io
import logging
import math
import os
import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
import yaml
from timm.optim import list_optimizers

from timm_longtail.__main__ import usage
from timm_longtail.cli import COMMANDS
from timm_longtail.cli.entry import run_main
from timm_longtail.config.parser import Parser, plain
from timm_longtail.config.recipe import read_recipe
from timm_longtail.config.train_options import parse_train_args, train_parser
from timm_longtail.data import calls, create_sampler, create_view, list_views
from timm_longtail.data.views.view import _REGISTRY as VIEWS
from timm_longtail.methods import check_options, default_options, list_methods, method_class
from timm_longtail.training.optim import create_optimizers
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.files import read_yaml
from timm_longtail.utils.ranges import LIMIT, Number

from ..support.runs import make_run

ROOT = Path(__file__).parents[2]
CE = ['--no-recipe', '--model', 'resnet20_cifar', '--method', 'ce']
NEVER = ['nan', 'inf', '-inf', '1e308', 'much', '']
NUMBERS = [*NEVER, '-1', '0', '1', '0.5', '1e30', '9' * 5000]


def recipe_runner():
    spec = importlib.util.spec_from_file_location('recipe_runner', ROOT / 'recipes' / 'run.py')
    module = importlib.util.module_from_spec(spec)
    with mock.patch.dict(sys.modules, {spec.name: module}), mock.patch.object(sys, 'path', list(sys.path)):
        spec.loader.exec_module(module)
    return module


PARSERS = {name: import_module(command.module).create_parser() for name, command in COMMANDS.items()}
PARSERS['recipes/run.py'] = recipe_runner().create_parser()
NUMERIC = [(program, action) for program, parser in PARSERS.items() for action in parser._actions
           if isinstance(action.type, Number)]
every_number = pytest.mark.parametrize(
    'program, action', NUMERIC, ids=[f'{program} {action.option_strings[-1]}' for program, action in NUMERIC])


def is_allowed(words: str, value: float) -> bool:
    """Whether the words of a help text, such as `above 0` or `in [0, 1)`, allow a number."""
    if words.startswith('at least '):
        return float(words.removeprefix('at least ')) <= value <= LIMIT
    if words.startswith('above '):
        return float(words.removeprefix('above ')) < value <= LIMIT
    low, high = map(float, words.removeprefix('in ')[1:-1].split(','))
    return low <= value <= high and (value != low or '[' in words) and (value != high or ']' in words)


# --- numbers ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('program', PARSERS)
def test_no_number_is_without_a_range(program):
    assert not [action.dest for action in PARSERS[program]._actions if action.type in (int, float)]


@every_number
@pytest.mark.parametrize('text', NUMBERS, ids=lambda text: text[:8] or 'empty')
def test_a_number_is_what_the_help_allows_or_refused_in_one_line(program, action, text):
    name, count = action.option_strings[-1], action.nargs if isinstance(action.nargs, int) else 1
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    allowed = is_allowed(action.type.words, value) and (action.type.kind is float or value.is_integer())
    assert not (allowed and text in NEVER)

    # positional and required options of the entry point are not the matter here
    parser = Parser(program)
    parser._add_action(action)
    words = [f'{name}={text}'] if count == 1 else [name, *[text] * count]
    if count > 1 and text == '-inf':
        return  # argparse takes it for an option

    if allowed:
        parsed = vars(parser.parse_args(words))[action.dest]
        assert parsed == value if action.nargs is None else parsed == [value] * count
        return
    with pytest.raises(UserError, match=f'^{name} must be (a whole number, |a number, )?(at least|above|in) ') as error:
        parser.parse_args(words)
    assert len(str(error.value)) < 200 and '\n' not in str(error.value)


@pytest.mark.parametrize('interval, inside, outside', [
    ('[0, 1)', [0, 0.5], [-1e-9, 1, 2]),
    ('(0, 1]', [1e-9, 1], [0, 1.0001]),
    ('[0, inf)', [0, 1e9], [-1, 1.1e9, math.inf, math.nan]),
    ('(-inf, inf)', [-1e9, 0, 1e9], [-math.inf, math.nan, 1e308, 10 ** 400]),
    ('[0, 4294967295]', [0, 2 ** 32 - 1], [-1, 2 ** 32]),
])
def test_intervals_are_those_of_mathematics(interval, inside, outside):
    number = Number(float, interval)
    assert [number(value) for value in inside] == inside
    for value in outside:
        with pytest.raises(argparse.ArgumentTypeError, match='^must be (at least|in) '):
            number(value)


@pytest.mark.parametrize('value', [200, 200.0, '200', '2e2', ' 200 '])
def test_a_whole_number_however_it_is_written(value):
    assert type(Number(int, '[1, inf)')(value)) is int and Number(int, '[1, inf)')(value) == 200


@pytest.mark.parametrize('value', [10.5, '10.5', True, None, [10], {}, 'ten', math.nan, math.inf])
def test_what_is_no_whole_number(value):
    with pytest.raises(argparse.ArgumentTypeError, match='must be a whole number, at least 1, got '):
        Number(int, '[1, inf)')(value)


# --- options of methods, views and samplers --------------------------------------------------------------------------

METHOD_NUMBERS = [
    (name, key) for name in list_methods() for key in default_options(method_class(name))
    if any(kind in str(inspect.signature(method_class(name)).parameters[key].annotation) for kind in ('int', 'float'))]


@pytest.mark.parametrize('name, key', METHOD_NUMBERS)
@pytest.mark.parametrize('value', [-1, math.nan, math.inf, -math.inf, 1e308, 10 ** 30, 'much', [1], True])
def test_a_number_of_a_method_is_refused_in_one_line(name, key, value):
    with pytest.raises(UserError, match=f'^option {key!r} of method {name!r} must be .*, got ') as error:
        check_options(name, {key: value})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name, option, words', [
    ('moco', {'queue_size': -5}, 'in [1, 1048576], got -5'),
    ('moco', {'momentum': 2}, 'in [0, 1), got 2'),
    ('ce', {'label_smoothing': 1}, 'in [0, 1), got 1'),
    ('ldam_drw', {'max_margin': 3}, 'in [0, 2], got 3'),
    ('max_norm', {'radius': 0}, 'above 0, got 0'),
    ('max_norm', {'beta': 1.0}, 'in (0, 1), got 1.0'),
    ('bcl', {'temperature': 0}, 'above 0, got 0'),
    ('glmc', {'reweight_power': 1000}, 'in [0, 5], got 1000'),
    ('bcl', {'views': [1, 2]}, '3 names, got [1, 2]'),
    ('glmc', {'views': 'sim'}, "2 names, got 'sim'"),
    ('crt', {'bn': 3}, 'a name, got 3'),
])
def test_a_range_is_that_of_the_options_meaning(name, option, words):
    with pytest.raises(UserError) as error:
        check_options(name, option)
    assert str(error.value).endswith(f'of method {name!r} must be {words}')


VIEW_NUMBERS = [
    (name, parameter.name) for name in list_views() for parameter in inspect.signature(VIEWS[name]).parameters.values()
    if parameter.name != 'size' and parameter.annotation is not str]


@pytest.mark.parametrize('name, key', VIEW_NUMBERS)
@pytest.mark.parametrize('value', ['-1', '1e999', '-1e999', '1e308', '"much"', 'True', '[1]'])
def test_a_number_of_a_view_is_refused_in_one_line(name, key, value):
    assert key in calls._INTERVALS
    with pytest.raises(UserError, match=f'{key} must be .*, got ') as error:
        create_view(f'{name}({key}={value})', 32)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('text', [
    'power(q=1e3)', 'power(q=1e999)', 'power(q="1")', 'power(q=1, q=2)', 'power(q=__import__("os"))', 'power(**{})',
    'power(q=1', 'power q', 'power.q', '__class__', '', 'f(' * 3000, '(' * 300, 'power(q=' + '-' * 50_000 + '1)',
    'power\0', '[' * 100_000,
], ids=lambda text: text[:20])
def test_a_sampler_that_cannot_be_is_one_short_line(text):
    with pytest.raises(UserError) as error:
        create_sampler(text, [0, 1], 10)
    assert '\n' not in str(error.value) and len(str(error.value)) < 300


# --- train.py --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('options, words', [
    (['--clip-grad', '-1'], '--clip-grad must be at least 0, got -1.0'),
    (['--momentum', '1'], '--momentum must be in [0, 1), got 1.0'),
    (['--model-ema-decay', '1.1'], '--model-ema-decay must be in [0, 1], got 1.1'),
    (['--weight-decay', '-0.1'], '--weight-decay must be at least 0, got -0.1'),
    (['--min-lr', 'nan'], '--min-lr must be at least 0, got nan'),
    (['--lr', '1e308'], '--lr must be at least 0 and at most 1e+09, got 1e+308'),
    (['--sched', 'step', '--decay-epochs', '0'], '--decay-epochs must be above 0'),
    (['--sched', 'step', '--decay-epochs', '1', '--decay-rate', '100'], '--sched step has no rate in epoch 200'),
    (['--sched', 'cosin'], '--sched cosin'),
    (['--sched', 'wsd', '--epochs', '10'], '--sched wsd: wsd schedule requires'),
    (['--decay-milestones', '20', '10'], '--decay-milestones must increase, got [20, 10]'),
    (['--decay-milestones', '10', '10'], '--decay-milestones must increase'),
    (['--opt', 'adahessian'], '--opt adahessian takes gradients of gradients'),
    (['--opt', 'lookahead_adahessian'], '--opt lookahead_adahessian takes gradients of gradients'),
    (['--opt', 'lbfgs'], "unknown optimizer 'lbfgs'"),
    (['--opt', 'look_sgd'], "unknown optimizer 'look_sgd'; did you mean sgd"),
    (['--opt', 'sgd', '--momentum', '0'], '--opt sgd: Nesterov momentum requires'),
    (['--method-kwargs', 'view'], "--method-kwargs must be pairs of K=V, got 'view'"),
    (['--method-kwargs', '=flip'], "--method-kwargs must be pairs of K=V, got '=flip'"),
    (['--method-kwargs', 'a b=1'], "--method-kwargs must be pairs of K=V, got 'a b=1'"),
    (['--method-kwargs', 'view=flip', 'view=sim'], '--method-kwargs must name each option once, got view twice'),
    (['--method-kwargs', 'view=[1'], "--method-kwargs must hold Python literals, got 'view=[1'"),
    (['--method-kwargs', 'view={[]: 1}'], '--method-kwargs must hold Python literals'),
    (['--method-kwargs', 'view=' + '(' * 10_000], '--method-kwargs must hold Python literals'),
    (['--method-kwargs', 'mixup_alpha=' + '-' * 50_000 + '1'], "option 'mixup_alpha' of method 'ce' must be a number"),
    (['--method-kwargs', 'model=1'], "method 'ce' has no option 'model'"),
    (['--method-kwargs', 'name=1'], "method 'ce' has no option 'name'"),
    (['--method-kwargs', '__class__=1'], "method 'ce' has no option '__class__'"),
    (['--model-kwargs', 'num_classes=3'], '--model-kwargs num_classes: the data set'),
    (['--sampler', 'power(q=1e3)'], "sampler 'power(q=1e3)': q must be in [-10, 10], got 1000.0"),
    (['--sampler', 'balanced'], "unknown sampler 'balanced'"),
    (['--batch-size', '8', '--global-batch-size', '8'], 'not both'),
    (['--mixed-precision', 'x' * 5000], 'invalid choice'),
], ids=lambda value: ' '.join(value)[:40] if isinstance(value, list) else '')
def test_what_options_alone_decide_is_refused_when_they_are_parsed(options, words):
    with pytest.raises(UserError) as error:
        parse_train_args([*CE, *options])
    assert words in str(error.value) and '\n' not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize('options', ['name=1', 'model_name=1', '__class__=1', 'layers=3', 'layers=abc', 'self=1'])
def test_options_of_a_model_that_it_refuses(options):
    with pytest.raises(UserError, match='^--model resnet20_cifar with ') as error:
        parse_train_args([*CE[:3], '--model-kwargs', options])
    assert '\n' not in str(error.value)


def test_clipping_at_zero_is_no_clipping(tmp_path):
    assert parse_train_args([*CE, '--clip-grad', '0']).clip_grad is None
    assert parse_train_args([*CE, '--clip-grad', '0.5']).clip_grad == 0.5
    path = write(tmp_path, 'model: resnet20_cifar\nclip_grad: 0\n')
    assert parse_train_args(['-c', str(path)]).clip_grad is None


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


@pytest.mark.parametrize('opt', ['lookahead_adamw', 'lookahead_momentum', 'adafactor', 'lamb', 'lion', 'nadam'])
def test_optimizers_of_another_kind_take_a_step(opt):
    """What is accepted runs in the loop: through Accelerate, with the state that a checkpoint holds."""
    _, run = make_run('ce', '--opt', opt)
    (optimizer,) = run.optimizers
    before = torch.cat([p.detach().flatten() for p in run.method.parameters()])
    views, target, index = next(iter(run.loaders[0]))
    run.accelerator.backward(run.task((views, target, index))['loss'])
    optimizer.step()
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in run.method.parameters()]))
    assert optimizer.state_dict()['param_groups']


def test_every_optimizer_of_timm_is_refused_in_one_line_or_built():
    method = mock.Mock(phases=('main',))
    for opt in list_optimizers():
        method.param_groups.return_value = [{'params': [torch.zeros(2, 2, requires_grad=True)]}]
        try:
            args = parse_train_args([*CE, '--opt', opt])
        except UserError as e:
            assert str(e).startswith(f'--opt {opt}') and '\n' not in str(e)
        else:
            assert len(create_optimizers(args, method, 10)[0]) == 1


# --- recipes ---------------------------------------------------------------------------------------------------------

def write(folder: Path, text: str | bytes) -> Path:
    path = folder / 'recipe.yaml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize('line, expected', [
    ('model_ema: true', True), ('model_ema: no', False), ('model_ema: "no"', False), ('model_ema: off', False),
    ('channels_last: false', False),
    ('mixed_precision: no', 'no'), ('mixed_precision: bf16', 'bf16'), ('mixed_precision:', None),
    ('lr: 5e-4', 5e-4), ('lr: "5e-4"', 5e-4), ('lr: 1', 1.0), ('lr: 0', 0.0), ('lr: .5', 0.5),
    ('epochs: 10', 10), ('epochs: 10.0', 10), ('epochs: 1e1', 10), ('epochs: "10"', 10),
    ('seed: 010', 10), ('batch_size:', None), ('batch_size: ~', None),
    ('decay_milestones: [3, 4]', [3, 4]), ('decay_milestones: 3', [3]), ('tracker: wandb', ['wandb']),
    ('mean: [0.5, 0, 1]', [0.5, 0.0, 1.0]),
    ('method_kwargs: {tau: 5e-1, views: [a, b]}', {'tau': 0.5, 'views': ['a', 'b']}), ('method_kwargs:', {}),
    ('experiment: 2024-01-01', '2024-01-01'), ('experiment: 1:30', '1:30'), ('experiment: on', 'on'),
])
def test_a_value_of_a_recipe_is_what_it_is_on_the_command_line(line, expected, tmp_path):
    name = line.partition(':')[0]
    value = read_recipe(write(tmp_path, line), train_parser())[name]
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize('text, words', [
    ('lr:', 'lr must be a number, at least 0, got None'),
    ('lr: [0.1]', 'lr must be a number, at least 0, got [0.1]'),
    ('lr: true', 'lr must be a number, at least 0, got True'),
    ('lr: .nan', 'lr must be at least 0, got nan'),
    ('lr: .inf', 'lr must be at least 0 and at most 1e+09, got inf'),
    ('lr: {a: 1}', "lr must be a number, at least 0, got {'a': 1}"),
    ('epochs: 10.5', 'epochs must be a whole number, in [1, 1000000], got 10.5'),
    ('epochs: 0', 'epochs must be in [1, 1000000], got 0'),
    ('epochs: ' + '9' * 4000, 'epochs must be in [1, 1000000], got 999'),
    ('epochs: ' + '9' * 5000, 'is damaged or not a recipe: Exceeds the limit'),
    ('model_ema: maybe', "model_ema must be true or false, got 'maybe'"),
    ('model_ema: 1', 'model_ema must be true or false, got 1'),
    ('model_ema:', 'model_ema must be true or false, got None'),
    ('mixed_precision: bf8', "mixed_precision must be one of no, bf16, fp16, got 'bf8'"),
    ('mixed_precision: [no]', "mixed_precision must be one of no, bf16, fp16, got ['no']"),
    ('tracker: [wandb, 3]', 'tracker must be one of tensorboard, wandb, trackio, got 3'),
    ('experiment: 3', 'experiment must be text, got 3: put it in quotes'),
    ('experiment: [a]', "experiment must be text, got ['a']"),
    ('decay_milestones: []', 'decay_milestones must be one value or more'),
    ('decay_milestones: [3, x]', "decay_milestones must be a whole number, at least 1, got 'x'"),
    ('decay_milestones: [[3]]', 'decay_milestones must be a whole number, at least 1, got [3]'),
    ('mean: [0.5]', 'mean must be 3 values, got [0.5]'),
    ('model_kwargs: 3', 'model_kwargs must be options and their values, got 3'),
    ('model_kwargs: [a]', "model_kwargs must be options and their values, got ['a']"),
    ('model_kwargs: {"a b": 1}', "model_kwargs must be options and their values, got the name 'a b'"),
    ('lr: 0.1\nlr: 0.2', "is damaged or not a recipe: 'lr' is there twice"),
    ('method_kwargs: {tau: 1, tau: 2}', "is damaged or not a recipe: 'tau' is there twice"),
    ('1: 2', 'is damaged or not a recipe: the key 1 is not text'),
    ('[a]: 2', "is damaged or not a recipe: the key ['a'] is not text"),
    ('<<: {lr: 1}', "unknown option '<<'"),
    ('config: other.yaml', "unknown option 'config'"),
    ('x' * 1000 + ': 1', 'unknown option'),
    ('lr: !!python/object/apply:os.getcwd []', 'is damaged or not a recipe: could not determine a constructor'),
    ('lr: [0.1', 'is damaged or not a recipe: while parsing'),
    ('lr: 0.1\n--- \nlr: 0.2', 'is damaged or not a recipe: expected a single document'),
    ('a: &a [*a]', 'is damaged or not a recipe'),
    ('[' * 5000, 'is damaged or not a recipe: it is nested more than 30 levels deep'),
    ('lr: \0', 'is damaged or not a recipe: unacceptable character'),
    ('- lr', 'is not a recipe: it holds no `name: value` lines'),
    (b'lr: 0.1  # \xe9', 'is not a recipe: it is not UTF-8'),
], ids=lambda text: str(text)[:30])
def test_a_recipe_that_cannot_be_is_one_short_line(text, words, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_recipe(path, train_parser())
    line = str(error.value)
    assert line.startswith(str(path)) and words in line
    assert '\n' not in line and len(line) < len(str(path)) + 400


def test_aliases_stand_for_a_small_document_only(tmp_path):
    small = 'base: &base [a, b]\nviews: *base\n'
    assert read_yaml(write(tmp_path, small))['views'] == ['a', 'b']
    lines = ['a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]' for i in range(1, 12)]  # 10^12 values
    with pytest.raises(UserError, match='it holds more than 10000 values'):
        read_yaml(write(tmp_path, '\n'.join(lines)))


def test_a_file_without_content_is_an_empty_mapping(tmp_path):
    assert read_yaml(write(tmp_path, '# a comment\n')) == {}


@pytest.mark.parametrize('kind, words', [
    ('missing', 'no recipe at'), ('folder', 'is a folder, not a recipe'), ('pipe', 'is not a regular file')])
def test_a_recipe_that_is_no_file_does_not_hang(kind, words, tmp_path):
    path = tmp_path / 'recipe.yaml'
    if kind == 'folder':
        path.mkdir()
    if kind == 'pipe':
        os.mkfifo(path)
    with pytest.raises(UserError, match=words):
        parse_train_args(['-c', str(path)])


def test_both_batch_sizes_in_a_recipe(tmp_path):
    path = write(tmp_path, 'model: resnet20_cifar\nbatch_size: 8\nglobal_batch_size: 8\n')
    with pytest.raises(UserError, match='not both'):
        parse_train_args(['-c', str(path)])


def test_what_a_run_writes_of_its_options_is_read_back(tmp_path):
    """`args.yaml` is written by PyYAML's own rules."""
    args = plain(parse_train_args([*CE, '--mixed-precision', 'no', '--weight-decay', '5e-4', '--experiment', 'on']))
    assert read_yaml(write(tmp_path, yaml.safe_dump(args))) == args


# --- help and the recipe runner --------------------------------------------------------------------------------------

@pytest.mark.parametrize('program', PARSERS)
def test_help_is_for_every_locale_and_names_each_range(program):
    text = PARSERS[program].format_help()
    assert text.isascii() and usage().isascii()
    one_line = ' '.join(text.split())
    for action in PARSERS[program]._actions:
        if isinstance(action.type, Number):
            assert f'; {action.type.words}' in one_line


def test_a_name_that_the_locale_cannot_print_does_not_end_the_run(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, encoding='ascii', write_through=True))
    run_main(lambda: print('café'))
    assert raw.getvalue() == rb'caf\xe9' + b'\n'


@pytest.mark.parametrize('line, words', [
    ('"resnet20', 'queue.txt, line 2: No closing quotation'),
    ('resnet20_cifar.cifar100_lt_if100 --seeds -1', 'queue.txt, line 2: --seeds must be in [0, 4294967295], got -1'),
    ('resnet20_cifar.cifar100_lt_if100 --seeds x', "queue.txt, line 2: --seeds must be a whole number"),
    ('nowhere', "queue.txt, line 2: unknown recipe 'nowhere'"),
    (b'\xe9', 'queue.txt is not a queue: it is not UTF-8'),
])
def test_a_line_of_the_queue_that_cannot_be_is_named(line, words, tmp_path):
    path = tmp_path / 'queue.txt'
    path.write_bytes(b'# runs\n' + (line if isinstance(line, bytes) else line.encode()))
    with pytest.raises(UserError) as error:
        list(recipe_runner().read_queue(path))
    assert words in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('scale', [0, -1, math.nan, math.inf])
def test_the_scale_of_a_cosine_classifier_is_positive(scale):
    with pytest.raises(UserError, match='cosine classifier must be in'):
        timm.create_model('resnet20_cifar', cosine_scale=scale)
