"""What tests that start processes need is made ready while the others run.

Features of images are kept in a folder of the tests.
"""
import gc
import os
import shutil
import signal
import tempfile
import threading

from .support import forks

CACHE = 'TIMM_LONGTAIL_CACHE'


def pytest_configure(config):
    # under nohup, too: what is tested here answers the signal, and its processes inherit what this one does
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.feature_cache = os.environ[CACHE] = tempfile.mkdtemp(prefix='features-')


def pytest_unconfigure(config):
    shutil.rmtree(config.feature_cache, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """Begin with the files that start processes: a long one at the end would leave the other cores idle."""
    long = {item.path for item in items for mark in item.iter_markers() if mark.name in ('script', 'ddp')}
    items.sort(key=lambda item: item.path not in long)


def pytest_collection_finish(session):
    gc.freeze()  # a run collects garbage at its end, and need not look through all modules and tests for it

    marks = {mark.name for item in session.items for mark in item.iter_markers()}
    if marks & {'script', 'ddp'} and not session.config.option.collectonly:
        forks.ours()
