"""Comparing values that a file holds: plain types and tensors, to the bit."""
from collections import OrderedDict
from typing import Any

import torch

PLAIN = (bool, dict, float, int, list, OrderedDict, str, torch.Tensor, tuple, type(None))


def assert_same(a: Any, b: Any, where: str = 'state'):
    """Fail unless two nested values have the same plain types and bits."""
    assert type(a) is type(b) and type(a) in PLAIN, (where, type(a), type(b))
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f'{where}[{key!r}]')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{where}[{i}]')
    else:
        assert a == b, where
