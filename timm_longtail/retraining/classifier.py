"""A classifier that was retrained: a row of the table, and a layer that the model can hold."""
import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..evaluation.evaluators import LongTailEvaluator
from ..export.deploy import deploy
from ..models import replace_classifier
from ..training.accelerator import memory_format
from ..training.loop import evaluate
from .representation import Representation

__all__ = ['JOINT', 'Classifier']

JOINT = 'joint'
"""Row of the classifier of stage 1, which was trained jointly with its representation."""


@dataclass
class Classifier:
    """A classifier that was retrained on a representation.

    Attributes:
        name: Row of the table.
        module: Classifier, from features [B, D] to class logits [B, C].
        model: Whole model, where more than its classifier changed; None where the representation
            stayed as it is.
        options: What the classifier was made with.
        note: What a reader of the table should know, or ''.
        curve: Balanced accuracy, Many, Medium and Few by tau; {} where nothing was chosen along a
            curve.
        curve_on: Images that the curve was measured on, `hold-out` or `test set`.
        seconds: Time that it took, without that of the features.
    """
    name: str
    module: nn.Module
    model: nn.Module | None = None
    options: dict[str, Any] = field(default_factory=dict)
    note: str = ''
    curve: dict[float, dict[str, Any]] = field(default_factory=dict)
    curve_on: str = ''
    seconds: float = 0.0

    def measure(
            self,
            representation: Representation,
            held_out: bool = False,
    ) -> tuple[dict[str, Any], torch.Tensor]:
        """Return the figures of the classifier and its confusion, int64 [C, C].

        Args:
            representation: Model and data.
            held_out: Measure on the hold-out and not on the test set.
        """
        if self.model is None:
            features = representation.held if held_out else representation.test
            return features.evaluate(self.module), features.confusion(self.module)

        # the features are no longer those that were cached
        device = representation.accelerator.device
        model = copy.deepcopy(self.model).to(device, memory_format=memory_format(device))
        dataset = representation.held_out if held_out else representation.test_set
        evaluator = LongTailEvaluator(representation.train_set.shot_counts, confusion=True)
        evaluate(model, representation.loader(dataset), evaluator, reduce=False)
        return evaluator.full_figures(), evaluator.confusion_matrix(reduce=False)

    def deployed(self, representation: Representation) -> nn.Module:
        """Return the model with this classifier, as it is exported.

        Args:
            representation: Model whose classifier is replaced.

        Raises:
            ValueError: The architecture cannot hold such a classifier.
        """
        if self.model is not None:
            return deploy(self.model)
        model = deploy(representation.trained_model.model)
        return replace_classifier(model, copy.deepcopy(self.module))
