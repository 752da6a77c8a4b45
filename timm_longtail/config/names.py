"""Names of models and data sets that a user typed."""
import os

import timm

from ..data import find_dataset
from ..utils.errors import UserError, unknown_name

__all__ = ['check_dataset', 'check_model']

_ELSEWHERE = ('hf-hub:', 'hf_hub:', 'local-dir:')


def check_model(name: str):
    """Check that a model exists.

    Args:
        name: Name that timm knows, or one with a prefix for the Hub or a folder, which is looked up later.

    Raises:
        UserError: It does not exist; says the nearest names.
    """
    if name.startswith(_ELSEWHERE) or timm.is_model(name):
        return
    if os.path.isdir(name):
        raise UserError(f'--model {name} is a folder: write local-dir:{name}')
    raise unknown_name('model', name, timm.list_models())


def check_dataset(name: str):
    """Check that a data set exists.

    Args:
        name: Name of a data set, or `packed:FILE`, which is looked up later.

    Raises:
        UserError: It does not exist; says the nearest names.
    """
    if not name.startswith('packed:'):
        find_dataset(name)
