"""What tests that start processes need is made ready while the others run."""
from .support import forks


def pytest_collection_finish(session):
    marks = {mark.name for item in session.items for mark in item.iter_markers()}
    if marks & {'script', 'ddp'} and not session.config.option.collectonly:
        forks.ours()
