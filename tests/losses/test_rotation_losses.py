"""PNDA and RAIS: closed forms, the two ends of PNDA, edges. What every loss is held to is in test_losses.py."""
import math

import pytest
import torch
import torch.nn.functional as F

from timm_longtail.losses import pnda_loss, rotation_entropy, rotation_separation_loss
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import make_sample
from ..support.reference import rotation


def pnda_arguments():
    sample = make_sample('wide')
    return [sample.embeddings, sample.first, sample.rotated, sample.mask, sample.prototypes]


def test_without_rotations_it_is_mocos():
    query, key, rotated, flags, queue = pnda_arguments()
    logits = torch.cat(((query * key).sum(1, keepdim=True), query @ queue.T), dim=1) / 0.2
    expected = F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.int64))
    for flag in (flags, ~flags):  # an image without rotations has none to flag
        torch.testing.assert_close(pnda_loss(query, key, rotated[:, :0], flag, queue, 0.2), expected)


def test_negative_rotations_are_keys_of_the_queue():
    query, key, rotated, flags, queue = pnda_arguments()
    none = torch.zeros_like(flags)
    for i in range(len(query)):
        row = slice(i, i + 1)
        longer = pnda_loss(query[row], key[row], rotated[row, :0], none[row], torch.cat((queue, rotated[i])), 0.2)
        torch.testing.assert_close(pnda_loss(query[row], key[row], rotated[row], none[row], queue, 0.2), longer)


@pytest.mark.parametrize('flag', [True, False])
def test_equal_similarities(flag):
    rows = F.normalize(torch.ones(5, 8, dtype=torch.float64))
    value = pnda_loss(rows, rows, rows[:, None].expand(5, 3, 8), torch.full((5,), flag), rows, 0.2)
    assert float(value) == pytest.approx(math.log(1 + 3 + 5))


def test_gradients_attract_or_repel_the_rotations():
    query, key, rotated, flags, queue = pnda_arguments()
    assert flags.any() and not flags.all()
    rotated = (0.01 * rotated).requires_grad_()  # similar to nothing
    pnda_loss(query, 0 * key, rotated, flags, queue, 0.2).backward()
    along = (rotated.grad * query[:, None]).sum(2)  # [B, R]; a step goes the other way
    assert (along[flags] < 0).all() and (along[~flags] > 0).all()


@pytest.mark.parametrize('change, message', [
    ({'rotated': (6, 16)}, 'got .*\\[6, 16\\]'), ({'rotated': (5, 3, 16)}, 'expected query'),
    ({'flags': torch.zeros(6)}, 'flags of type bool'), ({'temperature': 0}, 'temperature must be positive'),
    ({'queue': (4, 15)}, 'expected query'),
])
def test_what_does_not_fit(change, message):
    query, key, rotated, flags, queue = pnda_arguments()
    given = dict(zip(('query', 'key', 'rotated', 'flags', 'queue'), (query, key, rotated, flags, queue)))
    given['temperature'] = 0.2
    given.update({k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in change.items()})
    with pytest.raises(UserError, match=message):
        pnda_loss(*given.values())


def test_entropy():
    logits = make_sample().logits
    expected = torch.stack([rotation.rotation_entropy(row) for row in logits])
    torch.testing.assert_close(rotation_entropy(logits), expected)
    corners = torch.tensor([[0., 0., 0., 0.], [1e4, 0., 0., 0.], [3., 3., -1e4, -1e4]], requires_grad=True)
    entropy = rotation_entropy(corners)
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), 0., math.log(2)]))
    entropy.sum().backward()
    assert corners.grad.isfinite().all()
    assert rotation_entropy(logits.bfloat16()).dtype == torch.float32


def row_of_entropy(entropy):
    """Logits [1, 4] of one larger score, by bisection."""
    low, high = 0.0, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        logits = torch.tensor([[middle, 0., 0., 0.]], dtype=torch.float64)
        low, high = (middle, high) if rotation_entropy(logits) > entropy else (low, middle)
    return logits


@pytest.mark.parametrize('distance, told, separated', [
    (-0.5, True, True), (-0.21, True, True), (-0.19, False, False), (0.0, False, False), (0.19, False, False),
    (0.21, False, True), (0.5, False, True),
])
def test_what_counts_at_which_entropy(distance, told, separated):
    logits, target = row_of_entropy(math.log(4) / 2 + distance), torch.tensor([2])
    cross_entropy = float(F.cross_entropy(logits, target))
    expected = told * cross_entropy - 0.3 * separated * abs(distance)
    assert float(rotation_separation_loss(logits, target, 0.3)) == pytest.approx(expected, abs=1e-9)


def test_entropies_move_away_from_the_middle():
    for distance in (-0.5, 0.5):
        logits = row_of_entropy(math.log(4) / 2 + distance).requires_grad_()
        # the cross-entropy of the right rotation would move it too: compare with that alone
        rotation_separation_loss(logits, torch.tensor([0]), 1.0).backward()
        alone, = torch.autograd.grad(
            rotation_separation_loss(leaf := logits.detach().requires_grad_(), torch.tensor([0]), 0.0), leaf,
            allow_unused=True)
        step = logits.detach() - 0.01 * (logits.grad - (0 if alone is None else alone))
        assert (rotation_entropy(step) - rotation_entropy(logits.detach())) * distance > 0


def test_a_negative_margin_is_refused():
    with pytest.raises(UserError, match='margin must not be negative'):
        rotation_separation_loss(torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), 1.0, -0.1)
