"""Names of models, data sets and methods that a user typed."""
import os

import timm

from ..data import find_dataset
from ..methods import method_class
from ..utils.errors import UserError, unknown_name

__all__ = ['check_names']

_ELSEWHERE = ('hf-hub:', 'hf_hub:', 'local-dir:')


def check_names(model: str, dataset: str, method: str | None = None):
    """Check that a model, a data set and a method exist.

    Args:
        model: Name that timm knows, or one with a prefix for the Hub or a folder, which is looked up later.
        dataset: Name of a data set, or `packed:FILE`, which is looked up later.
        method: Name of a method; None where it is not chosen yet.

    Raises:
        UserError: One does not exist; says the nearest names.
    """
    if not model.startswith(_ELSEWHERE) and not timm.is_model(model):
        if os.path.isdir(model):
            raise UserError(f'--model {model} is a folder: write local-dir:{model}')
        raise unknown_name('model', model, timm.list_models())

    if not dataset.startswith('packed:'):
        find_dataset(dataset)
    if method is not None:
        method_class(method)
