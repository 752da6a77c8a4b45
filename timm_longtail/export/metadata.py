"""What the Hub shows of an export without opening its card: its name, its task, its figures."""
import re
from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData

from ..methods import tells_classes
from ..models.factory import default_method
from .markdown import front_matter

__all__ = [
    'METRIC_NAMES',
    'has_classes',
    'is_ours',
    'metadata_block',
    'model_name',
    'shown_metrics',
]

_PACKAGE = 'timm_longtail'

# what the name of a repository of the Hub may not hold
_NOT_IN_REPO_ID = re.compile(r'[^A-Za-z0-9._-]+')

METRIC_NAMES = {
    'all': 'Top-1 (all)',
    'many': 'Many-shot',
    'medium': 'Medium-shot',
    'few': 'Few-shot',
}
"""Names of the figures in `model-index`, by their keys in `metrics`."""


def model_name(config: dict[str, Any]) -> str:
    """Return what an export is called, as recipes are: `bcl_resnet32.cifar100_lt_if100`.

    The method stands in the name where it is not the one that the architecture has by default:
    `resnet32_cifar.crt.cifar100_lt_if100`. A run by a recipe adds what tells it from the others of that
    recipe, `--experiment` or the variant: `resnet32_cifar.balanced_softmax-hour.cifar100_lt_if100`.

    Args:
        config: Content of its `config.json`.
    """
    architecture, provenance = config['architecture'], config['timm_longtail']
    parts = [architecture]

    # without a recipe there is nothing to tell apart: `compare` calls experiments by their method
    method = provenance.get('method')
    experiment = provenance.get('experiment') if provenance.get('recipe') else None
    if method and experiment:
        experiment = _NOT_IN_REPO_ID.sub('-', experiment)
        parts.append(f'{method}-{experiment}')
    elif method and method != default_method(architecture):
        parts.append(method)

    if provenance.get('tag'):
        parts.append(provenance['tag'])
    return '.'.join(parts)


def is_ours(architecture: str) -> bool:
    """Return whether an architecture is registered by this package and not by timm.

    Args:
        architecture: Name of a timm model.
    """
    if not timm.is_model(architecture):
        return False
    # not `__package__`, which is that of this file, wherever it lies
    return timm.model_entrypoint(architecture).__module__.startswith(f'{_PACKAGE}.')


def has_classes(config: dict[str, Any]) -> bool:
    """Return whether the outputs of an export are the classes of its data, as far as is known."""
    return tells_classes(config['timm_longtail'].get('method'), config['num_classes'])


def shown_metrics(config: dict[str, Any]) -> dict[str, float]:
    """Return the figures of `model-index`, by the names that it gives them; none for an empty group.

    Args:
        config: Content of a `config.json`.
    """
    metrics = config['timm_longtail'].get('metrics') or {}
    if not has_classes(config):
        return {}

    shown = {}
    for key, label in METRIC_NAMES.items():
        if metrics.get(key) is not None:
            shown[label] = round(metrics[key], 4)
    return shown


def metadata_block(config: dict[str, Any]) -> str:
    """Return the YAML block at the head of the card.

    Args:
        config: Content of a `config.json`.
    """
    provenance = config['timm_longtail']
    task = 'image-classification' if has_classes(config) else 'image-feature-extraction'

    # lists without an entry are left out, not empty
    datasets = [provenance['hub_id']] if provenance.get('hub_id') else None
    results = []
    for label, value in shown_metrics(config).items():
        results.append(_eval_result(provenance, label, value))
    data = ModelCardData(
        model_name=model_name(config),
        tags=[task, 'timm', 'long-tailed'],
        library_name='timm',
        pipeline_tag=task,
        license=config['pretrained_cfg'].get('license') or None,
        datasets=datasets,
        metrics=['accuracy'] if results else None,
        eval_results=results or None,
    )
    return front_matter(data.to_dict())


def _eval_result(provenance: dict[str, Any], label: str, value: float) -> EvalResult:
    dataset = provenance.get('dataset', 'unknown')
    return EvalResult(
        task_type='image-classification',
        task_name='Image classification',
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split='test',
        metric_type='accuracy',
        metric_name=label,
        metric_value=value,
    )
