"""ProCo as a method: its estimates of the classes, and what it refuses."""
import pytest
import timm
import torch

from timm_longtail.losses import logit_adjusted_cross_entropy, proco_loss
from timm_longtail.methods import create_method
from timm_longtail.models import attach_branches
from timm_longtail.models.layers import unit_rows
from timm_longtail.utils.errors import UserError

COUNTS = [5, 3, 1]


def make_method(**options):
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=3, layers=(1, 1, 1), channels=(4, 4, 8))
    return create_method('proco', model, COUNTS, hidden_features=8, out_features=4, **options)


def make_batch(seed, target):
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(len(target), 3, 32, 32, generator=generator) for _ in range(3))
    return views, torch.tensor(target), torch.arange(len(target))


def test_the_estimate_is_of_the_last_epoch_and_the_present_one():
    """Batches a, b in the first epoch, c, d in the second: c sees a, b, c; and of the first epoch c of the third sees
    nothing."""
    method = make_method()
    rows, targets = [], []  # what the projector gave, in order
    method.model.branches['projector'].register_forward_hook(lambda *args: rows.append(unit_rows(args[-1].detach())))

    def mean(first):
        seen, target = torch.cat(rows[first:]), torch.cat(targets[first:])
        return torch.stack([seen[target == c].mean(0) if (target == c).any() else torch.zeros(4) for c in range(3)])

    for step, (epoch, target, first) in enumerate([
            (0, [0, 0, 1], 0), (0, [1, 0], 0), (1, [0, 2, 0], 0), (1, [1, 0], 0), (2, [0, 1], 2)]):
        if step in (0, 2, 4):
            method.start_epoch(epoch, 3, None, None)
        batch = make_batch(step, target)
        targets.append(batch[1].repeat(2))
        method(batch)
        used = method.sums[0] / method.counts[0].clamp(min=1)
        torch.testing.assert_close(used, mean(first))
    assert method.counts[1, :, 0].tolist() == [2, 2, 0]  # of the third epoch alone, two views an image
    assert not any(buffer.requires_grad for buffer in (method.sums, method.counts))


def test_both_losses_have_their_weights():
    method = make_method(ce_weight=2.0, contrastive_weight=3.0, temperature=0.2, tau=1.5).eval()
    method.start_epoch(0, 2, None, None)
    views, target, index = make_batch(0, [0, 1, 2, 0])
    result = method((views, target, index))
    output = method.logits(method.features(views[0]))
    embeddings = unit_rows(method.model.branches['projector'](method.features(torch.cat(views[1:]))))
    means = method.sums[0] / method.counts[0]
    expected = 2 * logit_adjusted_cross_entropy(output, target, COUNTS, tau=1.5)
    expected = expected + 3 * proco_loss(embeddings, target.repeat(2), means, COUNTS, 0.2)
    torch.testing.assert_close(result['loss'], expected)
    torch.testing.assert_close(result['output'], output)


def test_what_it_refuses():
    model = attach_branches(timm.create_model('resnet20_cifar', num_classes=3), 'bcl')
    with pytest.raises(UserError, match='proco trains one branch, projector; the model has projector, prototype'):
        create_method('proco', model, COUNTS)
