"""Recipes: YAML files of options, found by name, by path or by what is trained; and the schedule that they scale.

The recipes of the package lie in `config/recipes/`. A name says what a recipe trains, `<model>.<dataset>_if<IF>`, with
`.<method>` behind the model where the method is not that of the model, and `-<variant>` behind the method.
"""
import argparse
import re
from pathlib import Path
from typing import Any

from ..data import default_imbalance_factor
from ..utils.errors import UserError, unknown_name
from ..utils.files import read_text, read_yaml
from .parser import option_from_yaml

__all__ = [
    'RECIPES',
    'default_recipe',
    'find_recipe',
    'list_recipes',
    'read_header',
    'read_recipe',
    'recipe_name',
    'scale_schedule',
]

RECIPES = Path(__file__).parent / 'recipes'

# where the recipes of the package lie, as rows of results and commands name it: now, and in earlier versions
_FOLDERS = ('timm_longtail/config/recipes', 'recipes', '.')
_SUFFIX = '.yaml'

# the text of a field in a header starts in column 12, behind `# Expected: `; what starts further right keeps its lines
_OWN_LINE = ' ' * 12


def list_recipes() -> list[str]:
    """Return the names of the recipes of the package, sorted."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in RECIPES.glob(f'*{_SUFFIX}'))


def recipe_name(recipe: str | Path | None) -> str | None:
    """Return what tells recipes apart: the name of one of the package, wherever it lay; the path of any other.

    Args:
        recipe: Name, file name or path, as it was typed or as a row of results holds it; None for no recipe.
    """
    if recipe is None:
        return None

    path = Path(recipe)
    if path.parent.as_posix() in _FOLDERS or path.parent.resolve() == RECIPES:
        return path.name.removesuffix(_SUFFIX)
    return str(path)


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe.

    A file at the path that was given comes first, then the recipe of the package by that name.

    Args:
        recipe: Name of a recipe of the package, its file name, its path in this or an earlier version, or any path.

    Returns:
        The path; where nothing is there, the path that was given, which reading will refuse.

    Raises:
        UserError: A name that no recipe has; says the nearest ones.
    """
    path = Path(recipe)
    if path.is_file():
        return path

    packaged = RECIPES / f'{recipe_name(path)}{_SUFFIX}'
    if packaged.is_file():
        return packaged

    is_name = path.name == str(recipe) and path.suffix != _SUFFIX
    if is_name and not path.exists():
        raise unknown_name('recipe', str(recipe), list_recipes())
    return path


def default_recipe(
        model: str,
        dataset: str,
        imbalance_factor: float | None = None,
        method: str | None = None,
        folder: Path = RECIPES,
) -> Path | None:
    """Return the recipe of a model on a data set, or None where there is none, or it is one of another method.

    Args:
        model: Name of the model.
        dataset: Name of the data set.
        imbalance_factor: Largest over smallest class; None takes the default of the data set.
        method: Name of the method; None takes that of the recipe.
        folder: Where `<model>.<dataset>_if<IF>.yaml` is looked for.
    """
    factor = imbalance_factor or default_imbalance_factor(dataset)
    is_cut = factor not in (None, 1)
    tag = f'_if{factor:g}' if is_cut else ''

    path = folder / f'{model}.{dataset.replace("/", "_")}{tag}{_SUFFIX}'
    if not path.is_file():
        return None
    if method is not None and method != read_yaml(path, 'recipe').get('method'):
        return None
    return path


def read_recipe(path: Path, parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the options that a recipe gives, of the kinds that the parser gives them.

    Args:
        path: YAML file.
        parser: Parser of the training command, which knows kind and range of each option.

    Raises:
        UserError: No such file, an unknown option, a value that the option refuses.
    """
    actions = {action.dest: action for action in parser._actions if action.dest not in ('config', 'help')}
    recipe = {}
    for key, value in read_yaml(path, 'recipe').items():
        if key not in actions:
            raise UserError(f'{path}: {unknown_name("option", key, actions)}')
        try:
            recipe[key] = option_from_yaml(actions[key], value)
        except argparse.ArgumentTypeError as e:
            raise UserError(f'{path}: {key} {e}') from e
    return recipe


def read_header(path: Path) -> dict[str, str]:
    """Return the comment at the top of a recipe: its `title`, its `command`, and each field, such as `Expected`.

    The text of a field is one line. Lines that are indented in it, as commands and tables are, stay lines of their
    own and begin with two spaces.

    Args:
        path: YAML file that opens with a comment.
    """
    comments = []
    for line in read_text(path, 'recipe').splitlines():
        if not line.startswith('#'):
            break
        comments.append(line[1:])

    title = comments[0].strip() if comments else ''
    fields = {'title': [title]}
    field = 'command'
    for line in comments[1:]:
        text = line.strip()
        if not text:
            continue

        started = re.match(r' ([A-Z][a-z]+):\s+(.*)', line)
        if started:
            field = started[1]
            fields[field] = [started[2]]
        elif field not in fields:
            fields[field] = [text]
        elif line.startswith(_OWN_LINE):
            fields[field].append(f'  {text}')
        elif fields[field][-1].startswith('  '):  # goes on behind such lines
            fields[field].append(text)
        else:
            fields[field][-1] += f' {text}'
    return {name: '\n'.join(lines) for name, lines in fields.items()}


def scale_schedule(
        args: dict[str, Any],
        recipe: dict[str, Any],
        typed: dict[str, Any],
):
    """Keep a recipe's proportions where another number of epochs was typed.

    Args:
        args: All options; milestones and warm-up are changed in place.
        recipe: Options that the recipe gives, `epochs` among them.
        typed: Options that were typed, `epochs` among them; what else stands here is not scaled.
    """
    ratio = typed['epochs'] / recipe['epochs']
    if 'decay_milestones' in recipe and 'decay_milestones' not in typed:
        # a milestone is the first epoch at a lower rate, counted from 1
        args['decay_milestones'] = [round((m - 1) * ratio) + 1 for m in recipe['decay_milestones']]
    if 'warmup_epochs' in recipe and 'warmup_epochs' not in typed:
        args['warmup_epochs'] = round(recipe['warmup_epochs'] * ratio)
