"""Outputs and weights that are NaN or infinite are named, on all processes."""
import pytest
import torch
from torch import nn

from timm_longtail.evaluation import evaluators
from timm_longtail.evaluation.evaluators import KNNEvaluator, LongTailEvaluator
from timm_longtail.utils.finite import NotFinite

from ..support.predictions import SHOT_COUNTS, evaluate, filled, predictions


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('batch_size', [1, 64, 300])
@pytest.mark.parametrize('images', [[0], [64, 65, 299]])
def test_outputs_that_are_not_finite_are_named(value, batch_size, images):
    logits, target = predictions()
    logits[images, 3] = value
    with pytest.raises(NotFinite, match=rf'on {len(images)} of 300 images, the first is image {images[0] + 1} of the'):
        evaluate(logits, target, batch_size=batch_size)


@pytest.mark.parametrize('name', ['1.weight', '0.running_var', '0.running_mean'])
def test_the_weight_or_buffer_that_is_not_finite_is_named(name):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 10)).eval()
    model.state_dict()[name].view(-1)[1] = torch.nan
    evaluator = LongTailEvaluator(SHOT_COUNTS)
    evaluator.start(model, None)
    evaluator.update(model, torch.ones(2, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(NotFinite, match=f'its {name} holds NaN or infinity in 1 of '):
        evaluator.compute()


def test_all_processes_stop_where_the_outputs_of_one_are_not_finite(monkeypatch):
    def add_that_of_the_twin(value):
        return value.add_(2) if value.numel() == 1 and value.dtype == torch.int64 else value
    monkeypatch.setattr(evaluators, 'all_reduce_sum', add_that_of_the_twin)
    monkeypatch.setattr(evaluators, 'is_distributed', lambda: True)
    with pytest.raises(NotFinite, match='NaN or infinity, on 2 of 300 images$'):
        evaluate(*predictions())


def test_a_class_without_votes_is_finite():
    evaluator = KNNEvaluator([2, 2], num_neighbors=1)
    evaluator.add(torch.tensor([[0., -torch.inf]]), torch.tensor([0]))
    assert LongTailEvaluator.compute(evaluator)['all'] == 100.0
    evaluator.add(torch.tensor([[torch.nan, torch.nan]]), torch.tensor([0]))
    with pytest.raises(NotFinite, match='on 1 of 2 images, the first is image 2'):
        LongTailEvaluator.compute(evaluator)


def test_finite_again_after_a_new_start():
    logits, target = predictions()
    evaluator = filled(torch.full_like(logits, torch.nan), target)
    evaluator.start(nn.Identity(), None)
    evaluator.add(logits, target)
    assert evaluator.compute() == evaluate(logits, target, batch_size=300)
