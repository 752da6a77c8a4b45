"""Models by their names, and what they say of themselves."""
import pytest
import timm
import torch

from timm_longtail.models import factory
from timm_longtail.models.factory import create_timm_model, default_method, pretrained_config
from timm_longtail.utils.errors import UserError


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Names of the models that are built from here on, with nothing described before."""
    names = []
    create = timm.create_model

    def create_and_note(name, **kwargs):
        names.append(name)
        return create(name, **kwargs)

    monkeypatch.setattr(factory, '_described', {})
    monkeypatch.setattr(timm, 'create_model', create_and_note)
    return names


@pytest.mark.parametrize('name, method', [
    ('resnet20_cifar', 'ce'), ('resnet18', 'ce'), ('bcl_resnet20', 'bcl'), ('glmc_resnet20', 'glmc'),
])
def test_a_model_names_its_default_method(name, method):
    assert default_method(name) == method


def test_an_argument_of_the_model_may_name_the_method():
    assert default_method('bcl_resnet20', kind='glmc') == 'glmc'


def test_the_pretrained_config_is_that_of_the_built_model():
    assert pretrained_config('resnet18', num_classes=7) == timm.create_model('resnet18', num_classes=7).pretrained_cfg


def test_a_model_is_built_once_for_all_questions(builds):
    default_method('resnet20_cifar', channels=[8, 8, 8])
    pretrained_config('resnet20_cifar', channels=[8, 8, 8])
    assert builds == ['resnet20_cifar']

    default_method('resnet20_cifar')  # with other arguments it is another model
    assert builds == ['resnet20_cifar'] * 2


def test_a_model_of_a_folder_is_built_each_time(builds):
    """What lies in the folder may change."""
    for _ in range(2):
        with pytest.raises(UserError, match='local-dir:nowhere'):
            default_method('local-dir:nowhere')
    assert len(builds) == 2


def test_a_changed_config_stays_with_its_caller():
    config = pretrained_config('resnet20_cifar')
    config['input_size'] = None
    assert pretrained_config('resnet20_cifar')['input_size'] == (3, 32, 32)


def test_a_description_takes_no_random_numbers(builds):
    state = torch.get_rng_state()
    default_method('vit_tiny_patch16_224')
    assert torch.equal(torch.get_rng_state(), state) and builds


@pytest.mark.parametrize('name, kwargs, words', [
    ('resnet20_cifar', {'no_such': 1}, r"^--model resnet20_cifar with \{'no_such': 1\}: .*no_such"),
    ('resnet20_cifra', {}, '^--model resnet20_cifra: .*resnet20_cifra'),
])
def test_what_timm_refuses_is_a_user_error_of_one_line(name, kwargs, words):
    with pytest.raises(UserError, match=words) as caught:
        create_timm_model(name, **kwargs)
    assert '\n' not in str(caught.value)
