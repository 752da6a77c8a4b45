"""Names of data sets that are not there, or not served."""
import time

import pytest

from ..support.data_sets import refused, write_classes  # noqa: F401  other tests take `write_classes` from here

pytestmark = pytest.mark.usefixtures('private_cache')


@pytest.mark.parametrize('name, words', [
    ('hfids/user/set', 'hfids/ streams .*random access.*hfds/USER/SET'),
    ('wds/user/set', 'wds/ streams .*random access.*--dataset folder'),
    ('tfds/mnist', 'tfds/ .*is not read here.*hfds/USER/SET'),
    ('torch/cifar10', 'torch/ .*is not read here.*--dataset folder'),
    ('hfds/', 'behind the slash is missing'),
    ('hfds/a/b/c', 'a/b/c is neither a folder nor a Hub repository'),
    ('hfds//absent', '/absent is neither a folder'),
])
def test_names_that_are_not_served(name, words):
    refused(words, name)


def test_a_folder_is_named_once(tmp_path):
    refused('is a folder already: leave --data-dir', f'hfds/{tmp_path}', tmp_path)
    refused(
        'x is not a folder: --data-dir is a copy of the Hub repository user/set',
        'hfds/user/set',
        tmp_path / 'x',
    )
    (tmp_path / 'empty').mkdir()
    refused('cannot load the splits of .*empty', f'hfds/{tmp_path / "empty"}')


def test_a_hub_that_does_not_answer_is_given_up_soon(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, 'HF_ENDPOINT', 'http://127.0.0.1:9')
    start = time.monotonic()

    for name in ('hfds/nobody/nothing', 'tiny_imagenet'):
        refused('not in the cache, and the Hub cannot be reached.*--data-dir or', name)
    assert time.monotonic() - start < 10 and not datasets.config.HF_HUB_OFFLINE
