"""The evaluator against scikit-learn and against loops, on logits as an imbalanced model would give them."""
import functools
import warnings

import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score
from torch import nn

from timm_longtail.data.longtail import head_tail_groups, shot_groups
from timm_longtail.evaluation import evaluators as evaluate_module
from timm_longtail.evaluation.evaluators import (
    GROUPS,
    KNNEvaluator,
    LongTailEvaluator,
    NotFinite,
    confusion_rate,
    format_table,
)
from timm_longtail.utils.errors import UserError

# both limits from both sides: 100 is not many, 20 is few by one rule and medium by the other
SHOT_COUNTS = [500, 101, 100, 99, 50, 21, 20, 20, 19, 5]
MANY, MEDIUM, FEW = [0, 1], [2, 3, 4, 5, 6, 7], [8, 9]
MEDIUM_INCLUSIVE, FEW_INCLUSIVE = [2, 3, 4, 5], [6, 7, 8, 9]


def predictions(num_images=300, num_classes=10, seed=0, scale=1.5):
    """Logits that lean to the class and, as a model trained on a long tail, to the head; uneven test classes."""
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (num_images,), generator=random)
    target = torch.minimum(target, torch.randint(num_classes, (num_images,), generator=random))
    logits = scale * torch.randn(num_images, num_classes, generator=random) - 0.2 * torch.arange(num_classes)
    logits[torch.arange(num_images), target] += 2
    return logits, target


def filled(logits, target, shot_counts=SHOT_COUNTS, batch_size=64, **kwargs):
    evaluator = LongTailEvaluator(shot_counts, **kwargs)
    evaluator.start(nn.Identity(), None)
    for x, y in zip(logits.split(batch_size), target.split(batch_size)):
        evaluator.update(nn.Identity(), x, y)
    return evaluator


def evaluate(*args, **kwargs):
    return filled(*args, **kwargs).compute()


def close(value):
    return pytest.approx(value, rel=1e-12)


def class_accuracies(logits, target):
    """Percent right of each class that has images, in loops."""
    right, total = {}, {}
    for row, label in zip(logits.tolist(), target.tolist()):
        total[label] = total.get(label, 0) + 1
        right[label] = right.get(label, 0) + (row.index(max(row)) == label)
    return {label: 100 * right[label] / total[label] for label in total}


def calibration_error(logits, target, num_bins=15):
    """Expected calibration error of Guo et al. in percent: sum over bins of share * |accuracy - confidence|."""
    probabilities = torch.softmax(logits.double(), dim=1)
    error = 0.0
    for b in range(num_bins):
        confidences, hits = [], []
        for p, label in zip(probabilities, target.tolist()):
            confidence = float(p.max())
            if b / num_bins <= confidence < (b + 1) / num_bins or (b == num_bins - 1 and confidence == 1):
                confidences.append(confidence)
                hits.append(int(p.argmax()) == label)
        if hits:
            gap = abs(sum(hits) / len(hits) - sum(confidences) / len(confidences))
            error += len(hits) / len(target) * gap
    return 100 * error


@pytest.mark.parametrize('seed', [0, 1])
def test_agrees_with_scikit_learn(seed):
    logits, target = predictions(seed=seed)
    predicted = logits.argmax(dim=1)
    metrics = evaluate(logits, target)
    assert 0 < metrics['all'] < 100
    assert metrics['all'] == close(100 * accuracy_score(target, predicted))
    assert metrics['balanced'] == close(100 * balanced_accuracy_score(target, predicted))
    assert metrics['macro_f1'] == close(100 * f1_score(target, predicted, average='macro'))
    assert metrics['loss'] == pytest.approx(float(nn.functional.cross_entropy(logits.double(), target)), rel=1e-8)


@pytest.mark.parametrize('scale', [0.3, 1.5, 400.0])  # from timid to confidences of exactly 1
def test_agrees_with_loops(scale):
    logits, target = predictions(scale=scale)
    metrics = evaluate(logits, target)
    accuracy = class_accuracies(logits, target)

    def mean(classes):
        return close(sum(accuracy[c] for c in classes) / len(classes))
    assert metrics['class_accuracy'] == [close(accuracy[c]) for c in range(10)]
    assert metrics['many'] == mean(MANY)
    assert metrics['medium'] == mean(MEDIUM)
    assert metrics['few'] == mean(FEW)
    assert metrics['medium_inclusive'] == mean(MEDIUM_INCLUSIVE)
    assert metrics['few_inclusive'] == mean(FEW_INCLUSIVE)
    assert metrics['balanced'] == mean(range(10))
    assert metrics['worst_class'] == close(min(accuracy.values()))
    assert metrics['ece'] == pytest.approx(calibration_error(logits, target), rel=1e-9)
    assert metrics['num_images'] == len(target)
    assert metrics['class_total'] == [int((target == c).sum()) for c in range(10)]
    assert sum(metrics['class_correct']) == int((logits.argmax(dim=1) == target).sum())


@pytest.mark.parametrize('count, group, inclusive', [
    (101, 'many', 'many'), (100, 'medium', 'medium'), (21, 'medium', 'medium'),
    (20, 'medium', 'few'), (19, 'few', 'few'),
])
def test_group_of_a_class_at_the_limits(count, group, inclusive):
    # one class, one image, right: its group is the one that is not empty
    metrics = evaluate(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), [count])
    assert {name for name in GROUPS if metrics[name] is not None} == {group}
    other = {name.removesuffix('_inclusive') for name in ('many', 'medium_inclusive', 'few_inclusive')
             if metrics[name] is not None}
    assert other == {inclusive}


def test_empty_group_is_none_and_not_zero():
    logits, target = predictions(num_classes=3)
    metrics = evaluate(logits, target, [300, 200, 50])
    assert metrics['few'] is None and metrics['few_inclusive'] is None
    assert metrics['many'] is not None and metrics['medium'] == metrics['medium_inclusive']
    assert '| run |' in format_table({'run': metrics})
    assert format_table({'run': metrics}).splitlines()[-1].split('|')[5].strip() == 'n/a'


def test_classes_absent_from_the_test_are_left_out():
    logits, target = predictions()
    kept = (target != 9) & (target != 4)
    logits, target = logits[kept], target[kept]
    predicted = logits.argmax(dim=1)
    assert {4, 9} & set(predicted.tolist())  # they are still predicted
    metrics = evaluate(logits, target)
    accuracy = class_accuracies(logits, target)
    seen = sorted(accuracy)
    assert metrics['class_accuracy'][4] is None and metrics['class_accuracy'][9] is None
    assert metrics['class_total'][4] == metrics['class_correct'][9] == 0
    assert metrics['few'] == close(accuracy[8])
    assert metrics['medium'] == close(sum(accuracy[c] for c in (2, 3, 5, 6, 7)) / 5)
    assert metrics['worst_class'] == close(min(accuracy.values()))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # scikit-learn remarks on the predicted classes that have no image
        assert metrics['balanced'] == close(100 * balanced_accuracy_score(target, predicted))
    assert metrics['macro_f1'] == close(100 * f1_score(target, predicted, labels=seen, average='macro'))


def test_a_group_whose_classes_have_no_test_image_is_none():
    logits, target = predictions()
    kept = target < 8
    metrics = evaluate(logits[kept], target[kept])
    assert metrics['few'] is None
    assert metrics['few_inclusive'] is not None


def test_a_class_that_is_never_right():
    target = torch.tensor([0, 0, 1])
    metrics = evaluate(nn.functional.one_hot(torch.tensor([0, 0, 0]), 2).float(), target, [200, 10])
    assert metrics['worst_class'] == 0.0 and metrics['few'] == 0.0 and metrics['many'] == 100.0
    assert metrics['macro_f1'] == close((100 * 2 * 2 / 5 + 0) / 2)


def test_no_image_gives_none_everywhere():
    metrics = LongTailEvaluator(SHOT_COUNTS).compute()
    for name in ('all', *GROUPS, 'balanced', 'worst_class', 'macro_f1', 'ece', 'loss'):
        assert metrics[name] is None
    assert metrics['num_images'] == 0


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
    with pytest.raises(NotFinite, match=f'its {name} holds NaN or infinity$'):
        evaluator.compute()


def test_all_processes_stop_where_the_outputs_of_one_are_not_finite(monkeypatch):
    def add_that_of_the_twin(value):
        return value.add_(2) if value.numel() == 1 and value.dtype == torch.int64 else value
    monkeypatch.setattr(evaluate_module, 'all_reduce_sum', add_that_of_the_twin)
    monkeypatch.setattr(evaluate_module, 'is_distributed', lambda: True)
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


def test_what_is_not_defined_is_no_number_in_the_table():
    row = format_table({'x': {'all': float('nan'), 'many': None, 'few': 0.0}}).splitlines()[-1]
    assert [cell.strip() for cell in row.strip('|').split('|')] == ['x', 'n/a', 'n/a', 'n/a', '0.00']


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
    monkeypatch.setattr(evaluate_module, 'all_reduce_sum', lambda value: value.mul_(2))  # a twin with the same images
    both, alone = evaluator.compute(), evaluator.compute(reduce=False)
    assert both['num_images'] == 2 * alone['num_images'] == 2 * len(target)
    assert both['class_correct'] == [2 * n for n in alone['class_correct']]
    assert both['class_accuracy'] == alone['class_accuracy'] and both['ece'] == close(alone['ece'])
    assert evaluator.compute() == both  # reducing did not touch what was added


def test_sums_are_wide():
    logits, target = predictions()
    evaluator = LongTailEvaluator(SHOT_COUNTS)
    evaluator.add(logits.bfloat16(), target)
    counts = {'total', 'correct', 'predicted', 'bin_correct'}
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


@pytest.mark.parametrize('shot_counts', [SHOT_COUNTS, torch.tensor(SHOT_COUNTS), torch.tensor(SHOT_COUNTS).numpy()])
def test_shot_counts_of_any_kind(shot_counts):
    logits, target = predictions()
    assert evaluate(logits, target, shot_counts) == evaluate(logits, target)


@pytest.mark.parametrize('columns', [('all', *GROUPS), ('all', 'few_inclusive', 'worst_class'), ('ece',)])
@pytest.mark.parametrize('names', [('a',), ('last epoch', 'best epoch (12, by hold-out)')])
def test_table_is_well_formed_markdown(columns, names):
    metrics = evaluate(*predictions())
    rows = {name: {**metrics, 'few_inclusive': None} for name in names}
    rows[names[0]].pop('many')
    header, rule, *body = format_table(rows, columns).splitlines()
    assert len(body) == len(names)
    bars = [i for i, character in enumerate(header) if character == '|']
    assert len(bars) == len(columns) + 2 and bars[0] == 0 and bars[-1] == len(header) - 1
    for line in (rule, *body):
        assert [i for i, character in enumerate(line) if character == '|'] == bars and len(line) == len(header)
    left, *right = rule.strip('|').split('|')
    assert set(left) == {':', '-'} and left[0] == ':'
    assert all(set(cell) == {'-', ':'} and cell[-1] == ':' and len(cell) >= 4 for cell in right)
    for name, line in zip(names, body):
        title, *cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert title == name
        values = [rows[name].get(column) for column in columns]
        assert cells == ['n/a' if value is None else f'{value:.2f}' for value in values]


def test_table_of_a_perfect_model():
    perfect = dict.fromkeys(('all', *GROUPS), 100.0)
    assert format_table({'x': perfect}) == '\n'.join([
        '|   |    All |   Many | Medium |    Few |',
        '|:--|-------:|-------:|-------:|-------:|',
        '| x | 100.00 | 100.00 | 100.00 | 100.00 |',
    ])


@pytest.mark.parametrize('batch_size', [1, 64, 300])
def test_confusion_agrees_with_scikit_learn(batch_size):
    logits, target = predictions()
    evaluator = filled(logits, target, batch_size=batch_size, confusion=True)
    confusion = evaluator.confusion_matrix()
    assert confusion.dtype == torch.int64
    assert confusion.tolist() == confusion_matrix(target, logits.argmax(dim=1), labels=range(10)).tolist()
    metrics = evaluator.compute()
    assert confusion.diag().tolist() == metrics['class_correct']
    assert confusion.sum(dim=1).tolist() == metrics['class_total']
    assert metrics == evaluate(logits, target)  # what is written of a run does not grow
    assert torch.equal(evaluator.confusion_matrix(), confusion)


def test_confusion_of_all_processes(monkeypatch):
    evaluator = filled(*predictions(), confusion=True)
    reduced = []
    monkeypatch.setattr(evaluate_module, 'all_reduce_sum', lambda value: reduced.append(value.numel()) or value.mul_(2))
    assert torch.equal(evaluator.confusion_matrix(), 2 * evaluator.confusion_matrix(reduce=False))
    assert torch.equal(evaluator.confusion_matrix(), 2 * evaluator.confusion_matrix(reduce=False))
    assert reduced == [100, 100]
    evaluator.compute()
    assert reduced.count(100) == 2  # the figures do not send the confusion


def test_confusion_is_forgotten_at_the_start_and_is_zero_without_images():
    evaluator = filled(*predictions(), confusion=True)
    evaluator.start(nn.Identity(), None)
    assert evaluator.confusion_matrix().tolist() == [[0] * 10] * 10
    evaluator.add(torch.eye(10)[[3]], torch.tensor([8]))
    assert evaluator.confusion_matrix().nonzero().tolist() == [[8, 3]]


def test_confusion_is_counted_on_request_only():
    evaluator = filled(*predictions())
    assert 'confusion' not in evaluator._sums
    with pytest.raises(UserError, match='confusion=True'):
        evaluator.confusion_matrix()


def test_confusion_rate_in_loops():
    confusion = filled(*predictions(), confusion=True).confusion_matrix().tolist()
    assert confusion_rate(confusion, SHOT_COUNTS) > 10
    for source, rows in (('many', MANY), ('medium', MEDIUM), ('few', FEW)):
        total = 0
        for target, columns in (('many', MANY), ('medium', MEDIUM), ('few', FEW)):
            taken = sum(confusion[i][j] for i in rows for j in columns)
            images = sum(confusion[i][j] for i in rows for j in range(10))
            rate = confusion_rate(confusion, SHOT_COUNTS, source, target)
            assert rate == close(100 * taken / images)
            total += rate
        assert total == close(100)


def test_few_to_many_is_the_confusion_rate():
    evaluator = filled(*predictions(), confusion=True, batch_size=7)
    metrics, confusion = evaluator.compute(), evaluator.confusion_matrix()
    assert metrics['few_to_many'] == close(confusion_rate(confusion, SHOT_COUNTS))
    inclusive = functools.partial(shot_groups, few_inclusive=True)
    assert metrics['few_to_many_inclusive'] == close(confusion_rate(confusion, SHOT_COUNTS, groups=inclusive))
    assert metrics['few_to_many_inclusive'] != metrics['few_to_many']


@pytest.mark.parametrize('counts', [[50, 50], [500, 500]])
def test_few_to_many_without_one_of_the_groups(counts):
    metrics = evaluate(torch.eye(2), torch.tensor([0, 1]), counts)
    assert metrics['few_to_many'] is metrics['few_to_many_inclusive'] is None


def test_confusion_rate_in_closed_form():
    counts = [10, 500, 50]  # Few, Many, Medium: not in order
    confusion = [[5, 3, 2], [1, 98, 1], [0, 4, 6]]
    assert confusion_rate(confusion, counts) == close(30)
    assert confusion_rate(torch.tensor(confusion), torch.tensor(counts)) == close(30)
    assert confusion_rate(confusion, counts, 'many', 'few') == close(1)
    assert confusion_rate(confusion, counts, 'few', 'few') == close(50)
    # Tail holds two classes of 10 images
    assert confusion_rate(confusion, counts, 'tail', 'head', head_tail_groups) == close(100 * (3 + 4) / 20)


def test_confusion_rate_that_does_not_exist_is_none():
    assert confusion_rate([[0, 0], [3, 4]], [10, 500]) is None  # no image of a Few class
    assert confusion_rate([[1, 2], [3, 4]], [50, 500]) is None  # no Few class
    assert confusion_rate([[1, 2], [3, 4]], [50, 10]) is None  # no Many class: 0 would praise the model


@pytest.mark.parametrize('confusion, names, words', [
    ([[1, 2], [3, 4]], ('tail', 'many'), "unknown group 'tail'"),
    ([[1, 2], [3, 4]], ('few', 'head'), "unknown group 'head'"),
    ([[1, 2, 3], [3, 4, 5]], ('few', 'many'), r'square, got \[2, 3\]'),
])
def test_confusion_rate_refuses(confusion, names, words):
    with pytest.raises(UserError, match=words):
        confusion_rate(confusion, [500, 10], *names)
