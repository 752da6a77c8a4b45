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
        'action', nargs='?', default='list', metavar='list | show NAME | NAME', help='list all recipes, or show one')
    parser.add_argument('name', nargs='?', help='name of the recipe to show')
    return parser


def _print_list():
    """Print each name, what the recipe trains, its command, and the figures that it expects."""
    width = min(shutil.get_terminal_size().columns, 120)
    for name in list_recipes():
        header = read_header(RECIPES / f'{name}.yaml')
        print(name)
        _print_indented(header['title'], width)
        _print_indented(f'  {header["command"]}', width)
        _print_indented(f'expected: {header["Expected"]}', width)

    print('\ntrain by one: timm-longtail train -c NAME; print it: timm-longtail recipes show NAME')


def _print_indented(text: str, width: int):
    """Print text at a width; lines that are indented, as commands are, stay whole so that they can be copied."""
    for line in text.splitlines():
        if line.startswith('  '):
            print('    ' + line.lstrip())
        else:
            print(textwrap.fill(line, width, initial_indent='    ', subsequent_indent='    '))


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

    name = args.name
    if args.action != 'show':  # a name alone
        if name is not None:
            raise UserError(f'recipes takes one name, got {args.action} and {name}')
        name = args.action
    if name is None:
        raise UserError('recipes show needs the name of a recipe; recipes list has them all')
    print(read_text(find_recipe(name), 'recipe').rstrip())
