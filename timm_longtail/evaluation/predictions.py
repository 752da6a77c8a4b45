"""What a model predicts for each image, beside the figures over all of them."""
import csv
from collections.abc import Iterator
from pathlib import Path

import torch

from ..data import LongTailDataset
from ..utils.files import create_text
from .evaluators import KNNEvaluator, LongTailEvaluator

__all__ = ['NeighborRecorder', 'Recorder', 'recorder_like', 'write_predictions']


class Recorder(LongTailEvaluator):
    """The evaluator, keeping each image's prediction and confidence.

    Attributes:
        index: Number of each image in its data set, in the order of the loader.
        predictions: Class, predicted class and confidence of the images of each batch, float64 [B, 3].
    """

    def start(self, model, train_batches):
        super().start(model, train_batches)
        self.index: list[int] = []
        self.predictions: list[torch.Tensor] = []

    def follow(self, loader) -> Iterator:
        """Iterate over a loader and note which images its batches are of."""
        for views, target, index in loader:
            self.index += index.tolist()
            yield views, target, index

    def add(self, output, target):
        super().add(output, target)
        confidence, predicted = output.double().softmax(dim=1).max(dim=1)
        self.predictions.append(torch.stack([target.double(), predicted.double(), confidence], dim=1))


class NeighborRecorder(Recorder, KNNEvaluator):
    """The same for a model without classes, whose predictions are a vote of training images."""


def recorder_like(evaluator) -> Recorder | None:
    """Return a recorder that counts as an evaluator does; None for an evaluator of another kind.

    Args:
        evaluator: From `Method.create_evaluator`.
    """
    if type(evaluator) is LongTailEvaluator:
        return Recorder(evaluator.shot_counts)
    if type(evaluator) is KNNEvaluator:
        return NeighborRecorder(evaluator.shot_counts, evaluator.num_neighbors, evaluator.temperature)
    return None


def write_predictions(path: Path, dataset: LongTailDataset, recorder: Recorder):
    """Write one row an image: its name, class and predicted class by number and name, and the confidence.

    Args:
        path: CSV file.
        dataset: The images that were evaluated.
        recorder: Evaluator that has seen them.

    Raises:
        UserError: The disk refuses the file.
    """
    rows = torch.cat(recorder.predictions).tolist() if recorder.predictions else []

    with create_text(path) as f:
        writer = csv.writer(f)
        writer.writerow(['image', 'target', 'predicted', 'confidence', 'target_name', 'predicted_name'])
        for index, (target, predicted, confidence) in zip(recorder.index, rows, strict=True):
            target, predicted = int(target), int(predicted)
            writer.writerow([
                dataset.source_names[index],
                target,
                predicted,
                f'{confidence:.6f}',
                dataset.class_names[target],
                dataset.class_names[predicted],
            ])
