"""Thumbnails for a report page: the most confident mistakes, and the rarest classes."""
import base64
import io

import numpy as np
from PIL import Image

from ...data import LongTailDataset
from ...utils.errors import UserError
from .run_report import Gallery, Picture, Predictions, RunReport

__all__ = ['add_gallery']

_NUM_MISTAKES = 24
_NUM_RARE_CLASSES = 6
_NUM_OF_A_CLASS = 4

# the longer side of a thumbnail, in pixels
_SIDE = 112


def add_gallery(report: RunReport, train_set: LongTailDataset | None, test_set: LongTailDataset):
    """Give a report its thumbnails; an image that cannot be read has none.

    Args:
        report: Gets `gallery`, or `no_gallery`.
        train_set: Images that the model was trained on; None where they are not known.
        test_set: Images that the predictions are of.
    """
    if not report.tells_classes:
        return
    if list(test_set.class_names) != report.class_names:
        report.no_gallery = f'{test_set.name} has other classes than the run: name its data by --dataset or --data-dir.'
        return

    gallery = Gallery()
    if report.predictions is not None:
        gallery.mistakes = _mistakes(report.predictions, test_set)
    if train_set is not None:
        gallery.rarest = _rarest(report, train_set)
    report.gallery = gallery


def _mistakes(predictions: Predictions, test_set: LongTailDataset) -> list[Picture]:
    """Return the wrong predictions of the highest confidence, the most confident first."""
    wrong = np.flatnonzero(predictions.target != predictions.predicted)
    wrong = wrong[np.argsort(-predictions.confidence[wrong], kind='stable')]

    # by name: images that could not be read are missing among the predictions
    position_of = {name: position for position, name in enumerate(test_set.source_names)}
    pictures = []
    for row in wrong:
        position = position_of.get(predictions.images[row])
        if position is None or test_set.targets[position] != predictions.target[row]:
            continue
        uri = _thumbnail(test_set, position)
        if uri is not None:
            confidence = float(predictions.confidence[row])
            pictures.append(Picture(uri, int(predictions.target[row]), int(predictions.predicted[row]), confidence))
        if len(pictures) == _NUM_MISTAKES:
            break
    return pictures


def _rarest(report: RunReport, train_set: LongTailDataset) -> list[Picture]:
    """Return training images of the classes with the fewest, the rarest class first."""
    counts = np.asarray(report.class_counts)
    by_count = [int(label) for label in np.argsort(counts, kind='stable') if counts[label] > 0]

    pictures = []
    for label in by_count[:_NUM_RARE_CLASSES]:
        for position in np.flatnonzero(train_set.targets == label)[:_NUM_OF_A_CLASS]:
            uri = _thumbnail(train_set, int(position))
            if uri is not None:
                pictures.append(Picture(uri, label))
    return pictures


def _thumbnail(dataset: LongTailDataset, position: int) -> str | None:
    """Return a small JPEG of an image as a `data:` URI; None where it cannot be read."""
    if dataset.images is not None:
        image = Image.fromarray(dataset.images[position].permute(1, 2, 0).numpy())
    else:
        try:
            image = dataset.decode(position)
        except UserError:
            return None
        image.thumbnail((_SIDE, _SIDE))

    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=82, subsampling=0)
    return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()
