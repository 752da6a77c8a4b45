"""Methods, one in each file. A file in this folder is imported, and so registered, without being listed."""
from importlib import import_module
from pkgutil import iter_modules

from ._method import Batch, Batches, ClassCounts, Method
from ._registry import (
    check_options,
    create_method,
    default_options,
    list_methods,
    method_class,
    register_method,
    tells_classes,
)

__all__ = [
    'Batch',
    'Batches',
    'ClassCounts',
    'Method',
    'check_options',
    'create_method',
    'default_options',
    'list_methods',
    'method_class',
    'register_method',
    'tells_classes',
]

for _module in iter_modules(__path__):
    if not _module.name.startswith('_'):
        import_module(f'{__name__}.{_module.name}')
