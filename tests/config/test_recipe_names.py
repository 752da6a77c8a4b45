"""Recipes are found by name, by path, or by what is trained."""
from pathlib import Path

import pytest

from timm_longtail.config.recipe import RECIPES as FOLDER
from timm_longtail.config.recipe import default_recipe, find_recipe, list_recipes, read_recipe, recipe_name
from timm_longtail.config.train_options import parse_train_args, train_parser
from timm_longtail.utils.errors import UserError

from ..support.recipes import RECIPES

NAME = 'bcl_resnet32.cifar100_lt_if100'
BCL = ['--model', 'bcl_resnet32', '--dataset', 'cifar100_lt']


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


def test_default_recipe_is_taken_only_for_its_method_factor_and_model():
    path = FOLDER / f'{NAME}.yaml'
    lr = read_recipe(path, train_parser())['lr']
    for typed in ([], ['--method', 'bcl'], ['--imbalance-factor', '100'], ['--epochs', '3']):
        args = parse_train_args([*BCL, *typed])
        assert (args.recipe, args.method, args.lr) == (path, 'bcl', lr)

    for typed in (['--method', 'ce'], ['--imbalance-factor', '50'], ['--no-recipe'], ['--dataset', 'cifar10_lt'],
                  ['--model', 'bcl_resnet20']):
        args = parse_train_args([*BCL, *typed])
        assert (args.recipe, args.lr) == (None, train_parser().get_default('lr'))
        assert args.method == ('ce' if 'ce' in typed else 'bcl')

    # by -c it is taken for what it is given for
    args = parse_train_args([*BCL, '--method', 'ce', '-c', str(path)])
    assert (args.recipe, args.method, args.lr) == (path, 'ce', lr)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match='no recipe at nowhere.yaml'):
        parse_train_args([*BCL, '-c', 'nowhere.yaml'])
