"""`timm-longtail recipes`: the recipes of the package with their expected figures; one of them as it is written."""
import argparse
import shutil
import textwrap

from ..config.parser import Parser
from ..config.recipe import RECIPES, find_recipe, list_recipes, read_header
from ..utils.errors import UserError
from ..utils.files import read_text

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(description='List the recipes with the figures that they expect, or print one of them.')
    parser.add_argument(
        'action', nargs='?', choices=('list', 'show'), default='list', help='list all, or show one')
    parser.add_argument('name', nargs='?', help='name of the recipe to show')
    return parser


def _print_list():
    """Print each name, what the recipe trains and the figures that it expects."""
    width = min(shutil.get_terminal_size().columns, 120)
    for name in list_recipes():
        header = read_header(RECIPES / f'{name}.yaml')
        print(name)
        for line in (header['title'], f'expected: {header["Expected"]}'):
            print(textwrap.fill(line, width, initial_indent='    ', subsequent_indent='    '))

    print('\ntrain by one: timm-longtail train -c NAME; print it: timm-longtail recipes show NAME')


def main(argv: list[str] | None = None):
    """List the recipes, or print one.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: No such recipe.
    """
    args = create_parser().parse_args(argv)
    if args.action == 'list':
        if args.name is not None:
            raise UserError(f'recipes list takes no name; recipes show {args.name} prints one')
        _print_list()
        return

    if args.name is None:
        raise UserError('recipes show needs the name of a recipe; recipes list has them all')
    print(read_text(find_recipe(args.name), 'recipe').rstrip())
