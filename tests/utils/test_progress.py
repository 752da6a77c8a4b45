"""Bars on a terminal, for what takes long; nothing elsewhere."""
import io
import sys

import pytest

from timm_longtail.utils import progress as module
from timm_longtail.utils.progress import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize('stream, rank, seconds, shows', [
    (Terminal, '0', 0.0, True),
    (Terminal, '0', 2.0, False),  # it is over before
    (Terminal, '1', 0.0, False),  # another process of the run
    (io.StringIO, '0', 0.0, False),  # a file
])
def test_shows_on_a_terminal_only(stream, rank, seconds, shows, monkeypatch):
    stderr = stream()
    monkeypatch.setattr(sys, 'stderr', stderr)
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setattr(module, '_SECONDS', seconds)

    assert list(progress([1, 2, 3], 'reading', mininterval=0)) == [1, 2, 3]

    shown = stderr.getvalue()
    assert bool(shown.strip()) == shows
    if shows:
        assert 'reading' in shown and '3/3' in shown and '<' in shown  # time so far < time left


def test_items_without_a_length_have_a_total(monkeypatch):
    stderr = Terminal()
    monkeypatch.setattr(sys, 'stderr', stderr)
    monkeypatch.setattr(module, '_SECONDS', 0.0)
    assert list(progress(iter('ab'), total=2, mininterval=0)) == ['a', 'b']
    assert '2/2' in stderr.getvalue() and 'images/s' in stderr.getvalue().replace(' images', 'images')
