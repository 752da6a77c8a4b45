"""Contrast between two of three views, or between the only two."""
import pytest
import timm
import torch

from timm_longtail.methods import create_method
from timm_longtail.utils.errors import UserError

CONTRASTS = ['bcl', 'sup_con', 'proco']


def make_method(name, **options):
    """Return a method in evaluation mode: BatchNorm does not see how many views there are."""
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=3, layers=(1, 1, 1), channels=(4, 4, 8))
    method = create_method(name, model, [5, 3, 1], **options).eval()
    method.start_epoch(0, 1, None, None)
    return method


@pytest.mark.parametrize('name', CONTRASTS)
def test_the_first_of_two_views_serves_both_losses(name):
    target, index = torch.tensor([0, 1, 2, 0]), torch.arange(4)
    first, second = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    pair = make_method(name, views=('crop_flip', 'sim'))(((first, second), target, index))
    triple = make_method(name)(((first, first, second), target, index))
    for key in ('loss', 'output', 'ce_loss', 'contrastive_loss'):
        torch.testing.assert_close(pair[key], triple[key])


@pytest.mark.parametrize('views', [('sim',), ('sim',) * 4, 'sim'])
@pytest.mark.parametrize('name', CONTRASTS)
def test_refuses_other_numbers_of_views(name, views):
    with pytest.raises(UserError, match=f"'views' of method '{name}' must be 2 or 3 names, got"):
        make_method(name, views=views)
