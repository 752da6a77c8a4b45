"""What a report page shows of one model, whatever run it comes from.

`reading` fills these from the files of a run, `page` draws them. Shapes: C classes, N test images.
"""
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ['Gallery', 'Picture', 'Predictions', 'RunReport']


@dataclass
class Predictions:
    """What a model predicted for each test image.

    Attributes:
        images: Name of each image, as the data set has it [N].
        target: Class of each image, int64 [N].
        predicted: Class that was predicted, int64 [N].
        confidence: Probability of the predicted class, float64 [N].
        uncalibrated: The same before a temperature was fitted, float64 [N]; None where none was.
    """
    images: list[str]
    target: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    uncalibrated: np.ndarray | None = None


@dataclass
class Picture:
    """A thumbnail and what is known of its image.

    Attributes:
        uri: JPEG as a `data:` URI.
        label: Class of the image.
        predicted: Class that was predicted; None for a training image.
        confidence: Probability of that class; None for a training image.
    """
    uri: str
    label: int
    predicted: int | None = None
    confidence: float | None = None


@dataclass
class Gallery:
    """Thumbnails of a report.

    Attributes:
        mistakes: Test images with a wrong prediction, the most confident first.
        rarest: Training images of the rarest classes, class after class.
    """
    mistakes: list[Picture] = field(default_factory=list)
    rarest: list[Picture] = field(default_factory=list)


@dataclass
class RunReport:
    """One model: what it was trained on, and how it does on the test set.

    Attributes:
        name: What the model is called on the page.
        setting: Equal for runs that differ in their seed alone, which are shown as mean and spread.
        seed: Seed of the training; None where it is not known.
        facts: What was trained on what, as title and text.
        command: Command that made it, without folders of a machine; '' where it is not known.
        data: Options by which the data set can be read again, as `add_data_options` names them.
        figures: Accuracies and others by name, as `LongTailEvaluator.compute` has them.
        class_names: Name of each class [C]; empty for a model that tells no classes, as the lists
            below.
        class_counts: Images of each class that were trained on [C].
        shot_counts: Images of each class that define Many / Medium / Few [C].
        class_correct: Test images of each class that were classified correctly [C].
        class_total: Test images of each class [C].
        history: Figures of each epoch; empty where nothing was trained by epochs.
        predictions: Prediction for each test image; None where they were not saved.
        weight_norms: Length of the classifier's weight of each class [C]; None where it means
            nothing or is not known.
        no_norms: Why there are none, where that is known.
        note: A sentence that stands above the table, such as a recommendation.
        saves_predictions: Command that saves predictions where there are none; '' for a classifier
            whose predictions are never saved.
        gallery: Thumbnails; None without.
        no_gallery: Why there are none.
    """
    name: str
    setting: str
    seed: int | None
    facts: dict[str, str]
    command: str
    data: dict[str, Any]
    figures: dict[str, float | None]
    class_names: list[str]
    class_counts: list[int]
    shot_counts: list[int]
    class_correct: list[int]
    class_total: list[int]
    saves_predictions: str
    history: list[dict[str, float]] = field(default_factory=list)
    predictions: Predictions | None = None
    weight_norms: Sequence[float] | None = None
    no_norms: str = ''
    note: str = ''
    gallery: Gallery | None = None
    no_gallery: str = ''

    @property
    def tells_classes(self) -> bool:
        """Whether the accuracies are of classes, and known class by class."""
        return bool(self.class_total)
