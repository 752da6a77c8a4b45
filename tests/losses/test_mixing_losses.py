"""The losses of mixed images: closed forms, boundaries, what is left out.

What every loss is held to is in test_losses.py. Shapes: B images, E width.
"""
import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from timm_longtail import losses
from timm_longtail.losses import _common
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import LargestTensor

B, E = 6, 5


def embeddings(count: int = 4, num_rows: int = B, width: int = E, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(num_rows, width, generator=generator, dtype=torch.float64) for _ in range(count)]


def gradients(loss: Callable[..., torch.Tensor], tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    return torch.autograd.grad(loss(*leaves), leaves, allow_unused=True)


def nt_xent(clean: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """The first reading of L: both clean and mixed rows are anchors and terms."""
    return losses.nt_xent_loss(clean, mixed, 0.2)


def cross(clean: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """The other reading of L: clean rows are anchors, mixed rows are terms."""
    cosines = F.normalize(clean, dim=1) @ F.normalize(mixed, dim=1).T
    return F.cross_entropy(cosines / 0.2, torch.arange(len(clean)))


def anchor_loss(terms: torch.Tensor, anchor: int, positive: int, left_out: Sequence[int]) -> torch.Tensor:
    """Cross-entropy of one unit row against the others, without those that are left out."""
    logits = terms[anchor] @ terms.T / 0.5
    logits[[anchor, *left_out]] = -torch.inf
    return F.cross_entropy(logits, torch.tensor(positive))


# NT-Xent

@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_nt_xent_closed_forms(temperature):
    same = torch.ones(B, E, dtype=torch.float64)
    assert losses.nt_xent_loss(same, same, temperature).item() == pytest.approx(math.log(2 * B - 1))

    axes = torch.eye(B, dtype=torch.float64)  # each pair on an axis of its own
    expected = math.log(1 + (2 * B - 2) * math.exp(-1 / temperature))
    assert losses.nt_xent_loss(axes, axes, temperature).item() == pytest.approx(expected)
    assert losses.nt_xent_loss(axes, -axes, temperature).item() == pytest.approx(
        1 / temperature + math.log(2 * B - 2 + math.exp(-1 / temperature)))

    one = embeddings(2, num_rows=1)
    assert losses.nt_xent_loss(*one, temperature).item() == 0  # no negative


def test_nt_xent_is_a_matter_of_angles_and_of_pairs():
    z1, z2 = embeddings(2)
    lengths = torch.linspace(0.1, 9, B).double()[:, None]
    expected = losses.nt_xent_loss(z1, z2, 0.2)

    torch.testing.assert_close(losses.nt_xent_loss(lengths * z1, z2 / lengths, 0.2), expected)
    torch.testing.assert_close(losses.nt_xent_loss(z2, z1, 0.2), expected)
    assert abs(losses.nt_xent_loss(z1, z2.flip(0), 0.2) - expected) > 0.01  # row i belongs to row i


# the contrast of mixtures

def plain_clr(
        z1: torch.Tensor,
        z2: torch.Tensor,
        z_mixup: torch.Tensor,
        z_cutmix: torch.Tensor,
        lam: float,
        first: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        second: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Equations (2) and (3), given the losses L(z1, mixed) and L(z2, mixed)."""
    mixup = lam * first(z1, z_mixup) + (1 - lam) * second(z2, z_mixup)
    cutmix = lam * first(z1, z_cutmix) + (1 - lam) * second(z2, z_cutmix)
    return (mixup + cutmix) / 2


@pytest.mark.parametrize('lam', [0, 0.3, 0.5, 1])
def test_both_readings(lam):
    z = embeddings()
    whole = losses.mixing_ratio_contrastive_loss(*z, lam, 0.2)
    torch.testing.assert_close(whole, plain_clr(*z, lam, nt_xent, nt_xent))

    crossed = losses.mixing_ratio_contrastive_loss(*z, lam, 0.2, cross_only=True)
    torch.testing.assert_close(crossed, plain_clr(*z, lam, cross, cross))
    assert abs(whole - crossed) > 0.1


@pytest.mark.parametrize('cross_only', [False, True])
@pytest.mark.parametrize('lam, unused', [(1.0, 1), (0.0, 0)])
def test_the_whole_ratio_to_one_image(lam, unused, cross_only):
    loss = partial(
        losses.mixing_ratio_contrastive_loss, lam=lam, temperature=0.1, cross_only=cross_only)
    z = embeddings()

    found = gradients(loss, z)
    assert [bool(g.any()) for g in found] == [i != unused for i in range(4)]
    assert all(g.isfinite().all() for g in found)

    z[unused] = 5 * embeddings(1, seed=9)[0]
    torch.testing.assert_close(loss(*z), loss(*embeddings()))


def test_a_swap_of_the_streams_is_a_swap_of_their_shares():
    z1, z2, z_mixup, z_cutmix = embeddings()
    target1, target2 = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 0, 0, 1, 3, 3])
    torch.testing.assert_close(
        losses.mixing_ratio_contrastive_loss(z1, z2, z_mixup, z_cutmix, 0.2, 0.5, target1, target2),
        losses.mixing_ratio_contrastive_loss(z2, z1, z_cutmix, z_mixup, 0.8, 0.5, target2, target1))


@pytest.mark.parametrize('cross_only', [False, True])
def test_classes_that_no_images_share_leave_nothing_out(cross_only):
    z = embeddings()
    targets = torch.arange(B), torch.arange(B, 2 * B)
    torch.testing.assert_close(
        losses.mixing_ratio_contrastive_loss(*z, 0.3, 0.5, *targets, cross_only=cross_only),
        losses.mixing_ratio_contrastive_loss(*z, 0.3, 0.5, cross_only=cross_only))


@pytest.mark.parametrize('cross_only', [False, True])
def test_one_class_leaves_the_positives_alone(cross_only):
    ones = torch.ones(B, dtype=torch.int64)
    loss = partial(
        losses.mixing_ratio_contrastive_loss,
        lam=0.3,
        temperature=0.5,
        target1=ones,
        target2=ones,
        cross_only=cross_only,
    )
    assert loss(*embeddings()) == 0
    assert all(not g.any() for g in gradients(loss, embeddings()))


def loss_of_a_pair(clean: torch.Tensor, mixed: torch.Tensor, left_out: Sequence[Sequence[int]]) -> torch.Tensor:
    """L(clean, mixed) of two images each, given the terms that are left out of the sum of each of the 4 anchors."""
    terms = F.normalize(torch.cat([clean, mixed]), dim=1)
    rows = [anchor_loss(terms, anchor, (anchor + 2) % 4, left_out[anchor]) for anchor in range(4)]
    return torch.stack(rows).mean()


@pytest.mark.parametrize('other, left_out1, left_out2', [
    # no classes are shared
    (6, [[], [], [], []], [[], [], [], []]),
    # the second mixture is of class 0 too: neither that of the first image, nor its clean row, are negatives
    (0, [[3], [], [3], [0, 2]], [[], [2], [1, 3], [2]]),
    # the second images are of one class, so all of theirs is left out; the first clean rows share nothing
    (5, [[], [], [3], [2]], [[1, 3], [0, 2], [1, 3], [0, 2]]),
])
def test_a_mixture_has_the_classes_of_both_its_images(other, left_out1, left_out2):
    """Two images of a stream: 0 of class 0 with one of class 5, 1 of class 1 with one of class `other`."""
    z = embeddings(num_rows=2)
    value = losses.mixing_ratio_contrastive_loss(*z, 0.3, 0.5, torch.tensor([0, 1]), torch.tensor([5, other]))

    first = partial(loss_of_a_pair, left_out=left_out1)
    second = partial(loss_of_a_pair, left_out=left_out2)
    torch.testing.assert_close(value, plain_clr(*z, 0.3, first, second))


@pytest.mark.parametrize('change, message', [
    (dict(z2=torch.zeros(B, E + 1)), r'one shape, got \[\[6, 5\], \[6, 6\], \[6, 5\], \[6, 5\]\]'),
    (dict(z_mixup=torch.zeros(B - 1, E)), r'one shape, got \[\[6, 5\], \[6, 5\], \[5, 5\], \[6, 5\]\]'),
    (dict(temperature=0), 'temperature must be positive, got 0'),
    (dict(target1=torch.zeros(B).long()), r'expected two targets \[6\] or none, got \[\[6\]\]'),
    (dict(target1=torch.zeros(B).long(), target2=torch.zeros(B, 4).long()), r'two targets .* got \[\[6\], \[6, 4\]\]'),
])
def test_bad_mixtures(change, message):
    arguments = dict(zip(('z1', 'z2', 'z_mixup', 'z_cutmix'), embeddings()), lam=0.5, temperature=0.1)
    with pytest.raises(UserError, match=message):
        losses.mixing_ratio_contrastive_loss(**{**arguments, **change})


@pytest.mark.parametrize('z1, z2, temperature, message', [
    (torch.zeros(3, 4), torch.zeros(2, 4), 0.1, r'got \[\[3, 4\], \[2, 4\]\]'),
    (torch.zeros(3), torch.zeros(3), 0.1, r'got \[\[3\], \[3\]\]'),
    (torch.zeros(3, 4), torch.zeros(3, 4), -1, 'temperature must be positive'),
])
def test_bad_pairs(z1, z2, temperature, message):
    with pytest.raises(UserError, match=message):
        losses.nt_xent_loss(z1, z2, temperature)


def measured(
        z: Sequence[torch.Tensor],
        targets: Sequence[torch.Tensor | None],
        cross_only: bool,
) -> tuple[int, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the elements of the largest tensor on the way, the loss and its gradients."""
    leaves = [t.clone().requires_grad_() for t in z]
    with LargestTensor() as recorded:
        value = losses.mixing_ratio_contrastive_loss(*leaves, 0.3, 0.2, *targets, cross_only=cross_only)
        found = torch.autograd.grad(value, leaves)
    return recorded.size, value.detach(), found


@pytest.mark.parametrize('cross_only', [False, True])
@pytest.mark.parametrize('labels', [False, True])
def test_blocks_equal_the_whole_and_nothing_is_larger(labels, cross_only, monkeypatch):
    z = embeddings(num_rows=150, width=7)
    generator = torch.Generator().manual_seed(1)
    targets = [None, None]
    if labels:
        targets = [torch.randint(9, (150,), generator=generator) for _ in range(2)]

    whole_size, whole, expected = measured(z, targets, cross_only)
    monkeypatch.setattr(_common, 'BLOCK_SIZE', 5000)
    block_size, value, found = measured(z, targets, cross_only)

    torch.testing.assert_close(value, whole, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert whole_size == (150 if cross_only else 300) ** 2 and 4000 < block_size <= 5000


# consistency

def test_consistency_of_the_same_and_of_opposites():
    p1, p2 = embeddings(2)
    assert losses.mixture_consistency_loss(p1, p2, 3 * p2, 0.1 * p1).item() == pytest.approx(-2)
    assert losses.mixture_consistency_loss(p1, p2, -p2, -p1).item() == pytest.approx(2)
    orthogonal = torch.eye(4, dtype=torch.float64)
    assert losses.mixture_consistency_loss(orthogonal, orthogonal, *[orthogonal.roll(1, 0)] * 2).item() == 0


def test_consistency_stops_the_gradient_of_the_projections():
    p1, p2, z1, z2 = (t.requires_grad_() for t in embeddings())
    losses.mixture_consistency_loss(p1, p2, z1, z2).backward()
    assert p1.grad.any() and p2.grad.any() and z1.grad is z2.grad is None


def test_bad_predictions():
    with pytest.raises(UserError, match=r'four tensors \[B, E\] of one shape, got .*\[6, 5\], \[6, 4\]\]'):
        losses.mixture_consistency_loss(*embeddings(3), torch.zeros(B, 4))


# soft labels

def test_soft_cross_entropy_is_pytorchs():
    logits, target = embeddings(2, width=4)
    target = target.softmax(1)
    weight = torch.tensor([3.0, 0.5, 0.4, 0.1]).double()
    torch.testing.assert_close(losses.soft_cross_entropy(logits, target), F.cross_entropy(logits, target))

    # PyTorch too divides by the batch where the target is soft
    torch.testing.assert_close(
        losses.soft_cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight))


def test_weights_are_not_divided_out():
    logits = embeddings(1, width=4)[0]
    target = F.one_hot(torch.tensor([0, 0, 0, 2, 2, 3]), 4)
    weight = torch.tensor([0.2, 1.0, 0.8, 2.0])
    rows = F.cross_entropy(logits, target.argmax(1), reduction='none')

    value = losses.soft_cross_entropy(logits, target, weight)
    torch.testing.assert_close(value, (weight.double()[target.argmax(1)] * rows).mean())
    torch.testing.assert_close(losses.soft_cross_entropy(logits, target, 3 * weight), 3 * value)

    zeros = torch.zeros(B, 4)
    assert losses.soft_cross_entropy(zeros, target, weight).item() == pytest.approx(
        weight[target.argmax(1)].mean().item() * math.log(4))


@pytest.mark.parametrize('target, weight, message', [
    (torch.zeros(B), None, r'expected logits and target \[B, C\], got \[6, 5\] and \[6\]$'),
    (torch.zeros(B, E), torch.ones(4), r'expected 5 class weights, one a column of logits, got \[4\]$'),
])
def test_bad_soft_labels(target, weight, message):
    with pytest.raises(UserError, match=message):
        losses.soft_cross_entropy(torch.zeros(B, E), target, weight)
