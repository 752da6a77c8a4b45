"""The sums of an evaluator: independent of batches and processes, and kept on the device."""
import pytest
import torch
from torch import nn

from timm_longtail.evaluation import evaluators
from timm_longtail.evaluation.evaluators import LongTailEvaluator

from ..support.predictions import SHOT_COUNTS, close, evaluate, predictions


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_batch_size_does_not_matter_to_the_bit(dtype):
    logits, target = predictions(num_images=1000)
    whole = evaluate(logits.to(dtype), target, batch_size=1000)
    for batch_size in (1, 7, 64, 999):
        assert evaluate(logits.to(dtype), target, batch_size=batch_size) == whole


def test_start_forgets_what_was_added():
    logits, target = predictions()
    evaluator = LongTailEvaluator(SHOT_COUNTS)
    evaluator.add(logits.flip(1), target)
    evaluator.start(nn.Identity(), None)
    evaluator.add(logits, target)
    assert evaluator.compute()['class_correct'] == evaluate(logits, target)['class_correct']


def test_compute_can_be_called_again_and_in_between():
    logits, target = predictions()
    evaluator = LongTailEvaluator(SHOT_COUNTS)
    evaluator.add(logits[:100], target[:100])
    assert evaluator.compute() == evaluator.compute() == evaluate(logits[:100], target[:100], batch_size=100)
    evaluator.add(logits[100:], target[100:])
    assert evaluator.compute()['class_correct'] == evaluate(logits, target)['class_correct']


def test_sums_of_all_processes(monkeypatch):
    logits, target = predictions()
    evaluator = LongTailEvaluator(SHOT_COUNTS)
    evaluator.add(logits, target)
    monkeypatch.setattr(evaluators, 'all_reduce_sum', lambda value: value.mul_(2))  # a twin with the same images
    both, alone = evaluator.compute(), evaluator.compute(reduce=False)

    assert both['num_images'] == 2 * alone['num_images'] == 2 * len(target)
    assert both['class_correct'] == [2 * n for n in alone['class_correct']]
    assert both['class_accuracy'] == alone['class_accuracy'] and both['ece'] == close(alone['ece'])
    assert evaluator.compute() == both  # reducing did not touch what was added


def test_sums_are_wide():
    logits, target = predictions()
    evaluator = LongTailEvaluator(SHOT_COUNTS)
    evaluator.add(logits.bfloat16(), target)
    counts = {'total', 'correct', 'predicted', 'top5', 'bin_total', 'bin_correct'}
    assert counts < evaluator._sums.keys()
    for name, value in evaluator._sums.items():
        assert value.dtype in ((torch.int64,) if name in counts else (torch.int64, torch.float64)), name


@pytest.mark.parametrize('confusion', [False, True])
def test_add_does_not_synchronise(confusion):
    # a meta tensor has no values: whatever would read one on the host raises
    evaluator = LongTailEvaluator(SHOT_COUNTS, confusion)
    for _ in range(2):
        evaluator.add(torch.randn(8, 10, device='meta'), torch.zeros(8, dtype=torch.int64, device='meta'))
    assert all(value.device.type == 'meta' for value in evaluator._sums.values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
def test_add_does_not_synchronise_on_cuda():
    logits, target = (x.cuda() for x in predictions())
    evaluator = LongTailEvaluator(SHOT_COUNTS, confusion=True)
    evaluator.add(logits, target)
    torch.cuda.set_sync_debug_mode('error')
    try:
        evaluator.add(logits, target)
    finally:
        torch.cuda.set_sync_debug_mode('default')

    once = evaluate(logits.cpu(), target.cpu())['class_correct']
    assert evaluator.compute()['class_correct'] == evaluator.confusion_matrix().diag().tolist() == [2 * n for n in once]
