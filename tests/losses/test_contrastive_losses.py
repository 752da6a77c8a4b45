"""Supervised contrast, plain and balanced: closed forms, anchors without positives, bad arguments."""
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from timm_longtail import losses
from timm_longtail.utils.errors import UserError

from ..support.loss_cases import CASES, make_sample


def identical_rows(num_rows, width=3):
    return F.normalize(torch.ones(num_rows, width, dtype=torch.float64))


@pytest.mark.parametrize('temperature', [0.1, 1.0])
def test_identical_embeddings(temperature):
    target = torch.tensor([0, 0, 0, 1, 1, 2])
    value = losses.sup_con_loss(identical_rows(6), target, temperature, reduction='none')
    log_others = torch.tensor(5.).double().log()  # the last anchor has no positive
    torch.testing.assert_close(value, log_others * torch.tensor([1, 1, 1, 1, 1, 0]))
    value = losses.balanced_sup_con_loss(identical_rows(6), target, identical_rows(4), temperature, reduction='none')
    torch.testing.assert_close(value, torch.tensor(4.).double().log().expand(6))  # one term a class, however many rows


@pytest.mark.parametrize('counts', [(1, 1, 1), (3, 3, 3), (6, 2, 1), (4, 0, 2)])
def test_balanced_loss_of_collapsed_classes_is_a_softmax_over_prototypes(counts):
    prototypes = make_sample('wide').prototypes
    target = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    value = losses.balanced_sup_con_loss(prototypes[target], target, prototypes, 0.2, reduction='none')
    torch.testing.assert_close(
        value, F.cross_entropy(prototypes[target] @ prototypes.T / 0.2, target, reduction='none'))


def test_rows_equal_to_the_prototype_do_not_change_the_balanced_denominator():
    """With every row of the other classes at its prototype, any number of them leaves an anchor's loss as it is."""
    sample = make_sample('wide')

    def loss_of_the_anchor(counts):
        target = torch.repeat_interleave(torch.arange(1, 3), torch.tensor(counts))
        rows = torch.cat([sample.embeddings[:1], sample.prototypes[target]])
        target = torch.cat([torch.tensor([0]), target])
        balanced = losses.balanced_sup_con_loss(rows, target, sample.prototypes, 0.2, reduction='none')[0]
        plain = losses.sup_con_loss(torch.cat([rows, sample.prototypes[:1]]), F.pad(target, (0, 1)), 0.2, 'none')[0]
        return balanced, plain

    few, many = loss_of_the_anchor([1, 1]), loss_of_the_anchor([20, 1])
    torch.testing.assert_close(few[0], many[0])
    assert many[1] > few[1] + 0.1  # what head classes do to the plain loss


def test_an_anchor_without_positives_counts_in_the_mean():
    sample = make_sample('every class once')
    value, (gradient,) = CASES['sup_con_loss'].value_and_gradients(sample)
    assert value == 0 and not gradient.any()
    sample = make_sample('one anchor of its class')
    rows = CASES['sup_con_loss'](sample, reduction='none')
    assert rows[2] == 0 and (rows[[0, 1, 3, 4]] > 0).all()
    torch.testing.assert_close(CASES['sup_con_loss'](sample), rows.sum() / 5)


@pytest.mark.parametrize('name', ['sup_con_loss', 'balanced_sup_con_loss'])
@pytest.mark.parametrize('change, message', [
    (dict(target=torch.zeros(8).long()), r'expected embeddings \[B, D\] and target \[B\], got \[9, 5\] and \[8\]'),
    (dict(target=torch.zeros(9, 4)), r'expected embeddings .* got \[9, 5\] and \[9, 4\]'),
    (dict(embeddings=torch.zeros(9)), r'expected embeddings .* got \[9\] and \[9\]'),
])
def test_bad_shapes(name, change, message):
    with pytest.raises(UserError, match=message):
        CASES[name](replace(make_sample(), **change))


@pytest.mark.parametrize('shape', [(4, 3), (5,)])
def test_bad_prototypes(shape):
    with pytest.raises(UserError, match=r'expected prototypes \[C, 5\]'):
        CASES['balanced_sup_con_loss'](replace(make_sample(), prototypes=torch.zeros(shape)))


@pytest.mark.parametrize('temperature', [0, -0.1, float('nan')])
def test_bad_temperature(temperature):
    sample = make_sample()
    with pytest.raises(UserError, match='temperature must be positive'):
        losses.sup_con_loss(sample.embeddings, sample.target, temperature)
    with pytest.raises(UserError, match='temperature must be positive'):
        losses.balanced_sup_con_loss(sample.embeddings, sample.target, sample.prototypes, temperature)
