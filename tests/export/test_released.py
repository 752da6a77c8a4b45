"""Every folder of hub/ as it would be pushed: whole, and with the figures that it states."""
import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from torch import nn

from timm_longtail.data import create_dataset, create_loader
from timm_longtail.evaluation.evaluators import LongTailEvaluator
from timm_longtail.export.card import model_card
from timm_longtail.export.folder import export_model
from timm_longtail.export.hub import check_export
from timm_longtail.export.loading import load_exported
from timm_longtail.export.metadata import METRIC_NAMES, model_name
from timm_longtail.training.loop import evaluate

from ..support.exports import FILES, MEAN, NAMES, PROVENANCE, RELEASED, STD, build, load, read_config


def measure(model: nn.Module, content: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of an exported model on the test set that its config names."""
    provenance = content['timm_longtail']
    test_set = create_dataset(provenance['dataset'], 'test')
    cfg = content['pretrained_cfg']
    loader = create_loader(
        test_set, ('eval',), batch_size=256, training=False, mean=cfg['mean'], std=cfg['std'])
    return evaluate(model, loader, LongTailEvaluator(provenance['shot_counts']))


def allowed(device_type: str, num_images: int) -> float:
    """Return how many images may be told otherwise: CPUs round by their instructions, which turns a near tie or two."""
    return (0.0002 if device_type == 'cpu' else 0.001) * num_images


def assert_reproduces(folder: Path):
    """Fail unless a folder is whole, and its model has the counts that its config and its card state."""
    assert sorted(path.name for path in folder.iterdir()) == FILES
    model, content = load_exported(folder)
    stated = content['timm_longtail']['metrics']
    metrics = measure(model, content)
    differing = sum(abs(a - b) for a, b in zip(metrics['class_correct'], stated['class_correct'], strict=True))
    assert differing <= allowed(content['timm_longtail']['device_type'], stated['num_images'])
    assert metrics['class_total'] == stated['class_total']
    shown = {result.metric_name: result.metric_value
             for result in ModelCard.load(folder / 'README.md').data.eval_results}
    assert shown['Top-1 (all)'] == round(stated['all'], 4)
    assert stated['all'] == pytest.approx(100 * sum(stated['class_correct']) / stated['num_images'], rel=1e-9)


def test_something_is_released():
    assert RELEASED


@pytest.mark.parametrize('folder', RELEASED, ids=lambda folder: folder.name)
def test_hub_folders(folder):
    content = read_config(folder)
    provenance = content['timm_longtail']
    assert folder.name == model_name(content)
    if provenance['dataset'] != 'digits_lt' and not os.environ.get('TIMM_LONGTAIL_DATA'):
        pytest.skip(f'{provenance["dataset"]} is not here: set TIMM_LONGTAIL_DATA')
    assert_reproduces(folder)


def test_hub_folders_may_differ_by_rounding_alone():
    assert 0 < allowed('cpu', 10_000) <= 2 < allowed('cuda', 10_000) <= 10
    assert allowed('cpu', 355) < 1  # the digits


def test_the_test_of_hub_folders_can_fail(tmp_path):
    model = build(layers=(1, 1, 1), channels=(8, 16, 32))
    provenance = {**PROVENANCE, 'shot_counts': [10] * 10, 'device_type': 'cpu'}
    arguments = dict(mean=MEAN, std=STD, input_size=(3, 32, 32), class_names=NAMES)
    content = read_config(export_model(model, tmp_path / 'export', provenance, **arguments))
    provenance['metrics'] = measure(load(tmp_path / 'export'), content)
    assert_reproduces(export_model(model, tmp_path / 'export', provenance, **arguments))

    for device_type, wrong in (('cpu', 1), ('cuda', 1 + provenance['metrics']['num_images'] // 1000)):
        metrics = {**provenance['metrics'], 'class_correct': list(provenance['metrics']['class_correct'])}
        metrics['class_correct'][0] += wrong
        altered = {**provenance, 'metrics': metrics, 'device_type': device_type}
        export_model(model, tmp_path / 'export', altered, **arguments)
        with pytest.raises(AssertionError, match='differing|assert [0-9]+ <='):
            assert_reproduces(tmp_path / 'export')
    (tmp_path / 'export' / 'events.out').write_text('')
    with pytest.raises(AssertionError):
        assert_reproduces(tmp_path / 'export')


@pytest.mark.parametrize('folder', RELEASED, ids=lambda folder: folder.name)
def test_released_cards_are_what_the_code_writes(folder):
    config = check_export(folder)
    assert (folder / 'README.md').read_text() == model_card(config), f'python -m timm_longtail.export {folder}'
    metrics = config['timm_longtail']['metrics']
    results = ModelCard.load(folder / 'README.md').data.eval_results
    stated = {result.metric_name: result.metric_value for result in results}
    assert stated == {label: round(metrics[key], 4) for key, label in METRIC_NAMES.items()}
