"""The case that a test of all losses is run for."""
import pytest

from timm_longtail.losses import _common

from ..support.loss_cases import Case


@pytest.fixture
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The case of the parameter, with blocks of its size."""
    case: Case = request.param
    if case.block_size is not None:
        monkeypatch.setattr(_common, 'BLOCK_SIZE', case.block_size)
    return case
