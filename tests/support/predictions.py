"""Logits as a model trained on a long tail would give them, and an evaluator that was given them."""
import pytest
import torch
from torch import nn

from timm_longtail.evaluation.evaluators import LongTailEvaluator

# both limits from both sides: 100 is not many, 20 is few by one rule and medium by the other
SHOT_COUNTS = [500, 101, 100, 99, 50, 21, 20, 20, 19, 5]
MANY, MEDIUM, FEW = [0, 1], [2, 3, 4, 5, 6, 7], [8, 9]
MEDIUM_INCLUSIVE, FEW_INCLUSIVE = [2, 3, 4, 5], [6, 7, 8, 9]


def predictions(
        num_images: int = 300,
        num_classes: int = 10,
        seed: int = 0,
        scale: float = 1.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits that lean to the class and, less, to the head; and the classes, few of the tail."""
    random = torch.Generator().manual_seed(seed)
    target = torch.randint(num_classes, (num_images,), generator=random)
    target = torch.minimum(target, torch.randint(num_classes, (num_images,), generator=random))

    noise = torch.randn(num_images, num_classes, generator=random)
    logits = scale * noise - 0.2 * torch.arange(num_classes)
    logits[torch.arange(num_images), target] += 2
    return logits, target


def filled(
        logits: torch.Tensor,
        target: torch.Tensor,
        shot_counts=SHOT_COUNTS,
        batch_size: int = 64,
        **kwargs,
) -> LongTailEvaluator:
    """Return an evaluator after all batches."""
    evaluator = LongTailEvaluator(shot_counts, **kwargs)
    evaluator.start(nn.Identity(), lambda: iter(()))
    for x, y in zip(logits.split(batch_size), target.split(batch_size)):
        evaluator.update(nn.Identity(), x, y)
    return evaluator


def evaluate(*args, **kwargs) -> dict:
    """Return the figures of an evaluator after all batches."""
    return filled(*args, **kwargs).compute()


def close(value: float):
    return pytest.approx(value, rel=1e-12)
