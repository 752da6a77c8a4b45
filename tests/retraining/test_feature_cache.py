"""Features on disk: what their digest knows, and files that cannot be read."""
from dataclasses import replace

import pytest
import timm
import torch

from timm_longtail.data import Preprocessing, create_dataset
from timm_longtail.retraining.feature_cache import FeatureCache, KeptFeatures, default_cache_folder, features_digest

PREPROCESSING = Preprocessing(16, (0.5,), (0.5,))


def create_model(num_classes: int = 3, **kwargs):
    torch.manual_seed(0)
    return timm.create_model('resnet10t', num_classes=num_classes, **kwargs)


@pytest.fixture(scope='module')
def digits():
    return create_dataset('digits_lt', 'train')


def test_the_digest_repeats_and_leaves_the_classifier_out(digits):
    model, other = create_model(), create_model()
    other.reset_classifier(5)

    digest = features_digest(model, PREPROCESSING, digits)
    assert digest == features_digest(other, PREPROCESSING, digits)

    # built for other classes, with the same backbone
    wider = create_model(num_classes=4)
    backbone = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith('fc.')}
    wider.load_state_dict(backbone, strict=False)
    assert digest == features_digest(wider, PREPROCESSING, digits)


def test_the_digest_knows_weights_input_images_and_device(digits):
    model, other = create_model(), create_model()
    with torch.no_grad():
        other.bn1.running_mean[0] += 1e-3

    digests = [
        features_digest(model, PREPROCESSING, digits),
        features_digest(other, PREPROCESSING, digits),
        features_digest(model, replace(PREPROCESSING, img_size=24), digits),
        features_digest(model, PREPROCESSING, digits.subset(range(50))),
        features_digest(model, PREPROCESSING, digits.subset(range(len(digits))[::-1])),
        features_digest(model, PREPROCESSING, digits, 'cuda'),
        features_digest(create_model(global_pool='max'), PREPROCESSING, digits),
    ]
    assert len(set(digests)) == len(digests)


def test_what_was_kept_comes_back(tmp_path):
    cache = FeatureCache(tmp_path / 'new' / 'folder')
    kept = KeptFeatures(
        torch.randn(4, 3), torch.tensor([0, 1, 1, 2]), torch.tensor([0, 1, 3, 4]), {'a.png': 'cut off'})
    assert cache.load('abc') is None

    cache.save('abc', kept)

    found = cache.load('abc')
    assert torch.equal(found.values, kept.values)
    assert torch.equal(found.targets, kept.targets)
    assert torch.equal(found.index, kept.index)
    assert found.bad_images == kept.bad_images
    assert [path.name for path in cache.folder.iterdir()] == ['abc.safetensors']


def test_users_of_one_cache_can_read_what_others_kept(tmp_path):
    (tmp_path / 'new').touch()
    nothing = torch.zeros(0, dtype=torch.int64)

    FeatureCache(tmp_path).save('abc', KeptFeatures(torch.zeros(0, 3), nothing, nothing, {}))

    assert (tmp_path / 'abc.safetensors').stat().st_mode == (tmp_path / 'new').stat().st_mode


@pytest.mark.parametrize('content', [b'', b'no features'])
def test_a_damaged_file_counts_as_none(tmp_path, content):
    (tmp_path / 'abc.safetensors').write_bytes(content)

    assert FeatureCache(tmp_path).load('abc') is None


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv('TIMM_LONGTAIL_CACHE')
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_cache_folder() == tmp_path / 'timm_longtail' / 'features'

    monkeypatch.setenv('TIMM_LONGTAIL_CACHE', str(tmp_path / 'kept'))
    assert default_cache_folder() == tmp_path / 'kept'
