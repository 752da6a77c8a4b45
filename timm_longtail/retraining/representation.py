"""A representation that was trained before: the model, its data, and their features.

Features are computed once, in the `eval` view, and cached; every classifier is fitted and measured
on them.

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

from ..data import EpochSampler, LongTailDataset, create_sampler
from ..evaluation.evaluators import LongTailEvaluator
from ..training.accelerator import memory_format
from ..training.loaders import create_eval_loader
from ..utils.errors import UserError
from ..utils.progress import progress
from .feature_cache import FeatureCache, KeptFeatures, features_digest
from .trained_model import TrainedModel

__all__ = ['CHUNK', 'Features', 'Representation']

CHUNK = 4096
"""Features that a classifier is applied to at once."""


@dataclass
class Features:
    """What a backbone makes of a data set in the `eval` view.

    Attributes:
        values: Features of the images, float32 [N, D], on the CPU.
        targets: Class of each image, int64 [N].
        index: Position of each image in the data set, int64 [N]; images that could not be read have none.
        shot_counts: Training images of each class that define the groups [C].
    """
    values: torch.Tensor
    targets: torch.Tensor
    index: torch.Tensor
    shot_counts: list[int]

    def evaluate(self, classifier: nn.Module) -> dict[str, Any]:
        """Return the figures of a classifier on these features, as `LongTailEvaluator.full_figures`.

        Args:
            classifier: Module from features [B, D] to class logits [B, C].
        """
        evaluator = LongTailEvaluator(self.shot_counts)
        self.show(classifier, evaluator)
        return evaluator.full_figures()

    def confusion(self, classifier: nn.Module) -> torch.Tensor:
        """Return how many features of a class (rows) are predicted as each class, int64 [C, C].

        Args:
            classifier: Module from features [B, D] to class logits [B, C].
        """
        evaluator = LongTailEvaluator(self.shot_counts, confusion=True)
        self.show(classifier, evaluator)
        return evaluator.confusion_matrix(reduce=False)

    @torch.no_grad()
    def logits(self, classifier: nn.Module) -> torch.Tensor:
        """Return the logits of a classifier on these features, float32 [N, C].

        Args:
            classifier: Module from features [B, D] to class logits [B, C].
        """
        return torch.cat([classifier(values) for values in self.values.split(CHUNK)])

    @torch.no_grad()
    def show(self, classifier: nn.Module, evaluator: LongTailEvaluator):
        """Show an evaluator the outputs of a classifier.

        Args:
            classifier: Module from features [B, D] to class logits [B, C].
            evaluator: Gets them.
        """
        chunks = zip(self.values.split(CHUNK), self.targets.split(CHUNK), strict=True)
        for values, targets in chunks:
            evaluator.add(classifier(values), targets)


@dataclass
class Representation:
    """A model that was trained before, and the data to fit and to measure classifiers on.

    Attributes:
        args: Options of `retrain.py`.
        accelerator: Where to compute.
        trained_model: Model of stage 1, its input, and what it states of its training.
        train_set: Images that classifiers are fitted on.
        test_set: Images that classifiers are measured on.
        held_out: Images to choose by, which no stage trains on, or None.
        val_fraction: Share of each class in `held_out`.
        seen: Whether stage 1 was trained on these very images.
        bad_images: Names of images that could not be read, and why.
        cache: Where features are kept on disk, or None.
        linear: Classifier of the data's classes that others start from, where the model has none.
    """
    args: Namespace
    accelerator: Accelerator
    trained_model: TrainedModel
    train_set: LongTailDataset
    test_set: LongTailDataset
    held_out: LongTailDataset | None = None
    val_fraction: float = 0.0
    seen: bool = False
    bad_images: dict[str, str] = field(default_factory=dict)
    cache: FeatureCache | None = None
    linear: nn.Linear | None = None

    @property
    def same_classes(self) -> bool:
        """Whether the trained classifier is of the classes of the data, as far as is known."""
        trained_model, train_set = self.trained_model, self.train_set
        if not trained_model.has_classes:
            return False
        if trained_model.model.num_classes != train_set.num_classes:
            return False
        names = trained_model.provenance.get('class_names') or train_set.class_names
        return list(names) == list(train_set.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Training features of each class [C]; images that could not be read have none."""
        return torch.bincount(self.train.targets, minlength=self.train_set.num_classes).tolist()

    @property
    def head(self) -> nn.Module:
        """A copy of the classifier of stage 1, or of `linear` in its place, on the CPU in fp32."""
        head = self.linear or self.trained_model.model.get_classifier()
        return copy.deepcopy(head).cpu().float()

    def stage_1_sampler(self) -> EpochSampler | None:
        """Return the sampler that stage 1 ended with; None if it was not trained on these images."""
        if not self.seen:
            return None

        provenance = self.trained_model.provenance
        epochs = provenance.get('epochs') or 1
        name = provenance.get('sampler') or 'instance'
        sampler = create_sampler(name, self.train_set.targets, epochs)
        sampler.set_epoch(epochs - 1)
        return sampler

    @cached_property
    def train(self) -> Features:
        """Features of the training images, computed at the first use."""
        return self._features(self.train_set)

    @cached_property
    def test(self) -> Features:
        """Features of the test images, computed at the first use."""
        return self._features(self.test_set)

    @cached_property
    def held(self) -> Features | None:
        """Features of the images to choose by, computed at the first use, or None."""
        return None if self.held_out is None else self._features(self.held_out)

    def loader(self, dataset: LongTailDataset):
        """Return the loader that shows each image once, as the model wants it.

        Args:
            dataset: Images.
        """
        preprocessing = self.trained_model.preprocessing
        return create_eval_loader(dataset, self.args, preprocessing, self.accelerator.device)

    @torch.no_grad()
    def _features(self, dataset: LongTailDataset) -> Features:
        device = self.accelerator.device
        model = self.trained_model.model.float().eval()
        model = model.to(device, memory_format=memory_format(device))

        # the same weights on the same images give the same features
        digest = ''
        if self.cache is not None:
            preprocessing = self.trained_model.preprocessing
            digest = features_digest(model, preprocessing, dataset, device.type)
            kept = self.cache.load(digest)
            if kept is not None:
                return self._noted(kept)

        values, targets, positions = [], [], []
        loader = self.loader(dataset)
        for (images, *_), target, index in progress(loader, 'features', unit='batch'):
            features = model.forward_head(model.forward_features(images), pre_logits=True)  # [B, D]
            values.append(features.cpu())
            targets.append(target.cpu())
            positions.append(index.cpu())

        if not sum(map(len, targets)):
            some = next(iter(loader.bad_images.values()), 'it is empty')
            raise UserError(f'none of the {len(dataset)} images of {dataset.name} could be read: {some}')

        made = KeptFeatures(torch.cat(values), torch.cat(targets), torch.cat(positions), loader.bad_images)
        if self.cache is not None:
            self.cache.save(digest, made)
        return self._noted(made)

    def _noted(self, made: KeptFeatures) -> Features:
        """Return features, with a note of the images that have none."""
        self.bad_images.update(made.bad_images)
        return Features(made.values, made.targets, made.index, self.train_set.shot_counts)
