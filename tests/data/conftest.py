"""Fixtures of tests that open data sets."""
from pathlib import Path

import pytest

from ..support.data_sets import COUNTS, write_classes


@pytest.fixture
def private_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Keep the small data sets out of the user's cache; the real one is kept there like any other."""
    import datasets

    if 'real' not in request.node.name:
        monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Class folders of both splits."""
    write_classes(tmp_path / 'data' / 'train', COUNTS)
    return write_classes(tmp_path / 'data' / 'test', dict.fromkeys(COUNTS, 2)).parent
