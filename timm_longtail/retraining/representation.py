"""A representation that was trained before: the model, its data, and what it makes of them.

N images, C classes, D width of the features.
"""
import copy
from argparse import Namespace
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..data import LongTailDataset, create_sampler
from ..evaluation.evaluators import LongTailEvaluator
from ..training.accelerator import memory_format
from ..training.loaders import create_eval_loader
from .trained_model import Candidate

__all__ = ['Features', 'Representation']


@dataclass
class Features:
    """What a backbone makes of a data set in the `eval` view.

    Attributes:
        values: Float32 [N,D], on the CPU.
        targets: Class of each image, int64 [N].
        shot_counts: Training images of each class that define the groups [C].
    """
    values: torch.Tensor
    targets: torch.Tensor
    shot_counts: list[int]

    def evaluate(self, classifier: nn.Module) -> dict[str, Any]:
        """Return the figures of a classifier on these features, as `LongTailEvaluator.compute`."""
        return self._evaluate(classifier, LongTailEvaluator(self.shot_counts)).compute(reduce=False)

    def confusion(self, classifier: nn.Module) -> torch.Tensor:
        """Return how many features of each class (rows) a classifier takes for each class (columns), int64 [C,C]."""
        return self._evaluate(classifier, LongTailEvaluator(self.shot_counts, confusion=True)).confusion_matrix(False)

    @torch.no_grad()
    def _evaluate(self, classifier: nn.Module, evaluator: LongTailEvaluator) -> LongTailEvaluator:
        for rows, target in zip(self.values.split(4096), self.targets.split(4096), strict=True):
            evaluator.add(classifier(rows), target)
        return evaluator


@dataclass
class Representation:
    """A model that was trained before, with the data that its classifiers are made and measured on.

    Attributes:
        args: Options of `retrain.py`.
        accelerator: Where to compute.
        candidate: The model, its input, what it says about its training.
        train_set, test_set: Data; what `held_out` holds, no stage has seen.
        held_out: Data to choose by, or None.
        val_fraction: Share of each class in it.
        seen: Whether stage 1 was trained on these very images.
        bad_images: Names of images that could not be read, and why.
    """
    args: Namespace
    accelerator: Accelerator
    candidate: Candidate
    train_set: LongTailDataset
    test_set: LongTailDataset
    held_out: LongTailDataset | None = None
    val_fraction: float = 0.0
    seen: bool = False
    bad_images: dict[str, str] = field(default_factory=dict)

    @property
    def same_classes(self) -> bool:
        """Whether the trained classifier is one of the data set's classes, as far as their names are known."""
        names = self.candidate.trained.get('class_names') or self.train_set.class_names
        return self.candidate.has_classes and list(names) == list(self.train_set.class_names) and (
            self.candidate.model.num_classes == self.train_set.num_classes)

    @property
    def class_counts(self) -> list[int]:
        """Training features of each class [C]; images that could not be read have none."""
        return torch.bincount(self.train.targets, minlength=self.train_set.num_classes).tolist()

    def stage_1_sampler(self):
        """Return the sampler that stage 1 ended with, or None where it was not trained on these images."""
        trained, targets = self.candidate.trained, self.train_set.targets
        if not self.seen:
            return None
        epochs = trained.get('epochs') or 1
        sampler = create_sampler(trained.get('sampler') or 'instance', targets, epochs)
        sampler.set_epoch(epochs - 1)
        return sampler

    @property
    def head(self) -> nn.Module:
        """The classifier of stage 1, on the CPU in fp32."""
        return copy.deepcopy(self.candidate.model.get_classifier()).cpu().float()

    @cached_property
    def train(self) -> Features:
        return self._features(self.train_set)

    @cached_property
    def test(self) -> Features:
        return self._features(self.test_set)

    @cached_property
    def held(self) -> Features | None:
        return None if self.held_out is None else self._features(self.held_out)

    def loader(self, dataset: LongTailDataset):
        """Return the loader that shows each image once, as the model wants it."""
        return create_eval_loader(dataset, self.args, self.candidate.preprocessing, self.accelerator.device)

    @torch.no_grad()
    def _features(self, dataset: LongTailDataset) -> Features:
        device = self.accelerator.device
        model = self.candidate.model.float().eval().to(device, memory_format=memory_format(device))
        values, targets = [], []
        loader = self.loader(dataset)
        for (images, *_), target, _ in loader:
            values.append(model.forward_head(model.forward_features(images), pre_logits=True).cpu())
            targets.append(target.cpu())
        self.bad_images.update(loader.bad_images)
        return Features(torch.cat(values), torch.cat(targets), self.train_set.shot_counts)
