"""Ranges: each number of every entry point, method, view and sampler has one, which the help states."""
import argparse
import importlib.util
import inspect
import math
import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest

from timm_longtail.__main__ import usage
from timm_longtail.cli import COMMANDS
from timm_longtail.config.parser import Parser
from timm_longtail.data import create_sampler, create_view, list_views
from timm_longtail.data.views.view import _REGISTRY as VIEWS
from timm_longtail.methods import check_options, default_options, list_methods, method_class
from timm_longtail.utils import calls
from timm_longtail.utils.errors import UserError
from timm_longtail.utils.ranges import LIMIT, Number

ROOT = Path(__file__).parents[2]
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
    ('bcl', {'views': [1, 2]}, '2 or 3 names, got [1, 2]'),
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


@pytest.mark.parametrize('program', PARSERS)
def test_help_is_for_every_locale_and_names_each_range(program):
    text = PARSERS[program].format_help()
    assert text.isascii() and usage().isascii()
    one_line = ' '.join(text.split())
    for action in PARSERS[program]._actions:
        if isinstance(action.type, Number):
            assert f'; {action.type.words}' in one_line


@pytest.mark.parametrize('option, shown', [
    ({'default': 3}, 'what it is (default: 3)'),
    ({'default': 0}, 'what it is (default: 0)'),
    ({'default': ['a', 'b'], 'nargs': '+'}, 'what it is (default: a b)'),
    ({'default': '50 %'}, 'what it is (default: 50 %)'),
    ({'default': 3, 'type': Number(int, '[1, inf)')}, 'what it is; at least 1 (default: 3)'),
    ({}, 'what it is'),
    ({'default': ''}, 'what it is'),
    ({'default': [], 'nargs': '*'}, 'what it is'),
    ({'default': False, 'action': 'store_true'}, 'what it is'),
])
def test_the_help_shows_a_default_that_there_is(option, shown):
    parser = Parser('program')
    parser.add_argument('--option', help='what it is', **option)

    assert parser.format_help().endswith(f' {shown}\n')


@pytest.mark.parametrize('program', PARSERS)
def test_the_help_says_a_default_once(program):
    parser = PARSERS[program]
    formatter = parser._get_formatter()
    for action in parser._actions:
        assert formatter._expand_help(action).count('default') <= 1 or action.dest == 'config', action.dest
        assert 'None' not in formatter._expand_help(action)
