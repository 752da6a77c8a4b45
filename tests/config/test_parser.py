"""The parser of all commands, where argparse alone would let something through."""
import pytest

from timm_longtail.config.parser import Parser
from timm_longtail.config.train_options import train_parser
from timm_longtail.utils.errors import UserError

ONE_VALUE = [action.option_strings[-1] for action in train_parser()._actions if action.nargs is None]


@pytest.mark.parametrize('name', ONE_VALUE)
def test_two_dashes_are_no_value(name):
    with pytest.raises(UserError, match=f'{name}: expected one argument'):
        train_parser().parse_args([f'{name}=--'])


def test_what_follows_two_dashes_is_an_argument():
    parser = Parser('program')
    parser.add_argument('--name')
    parser.add_argument('paths', nargs='*')
    assert parser.parse_args(['--name', 'a', '--', '--b']).paths == ['--b']
