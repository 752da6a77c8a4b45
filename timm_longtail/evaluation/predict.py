"""Predictions for images without labels.

Shapes: B batch, C classes, S side of the model's input, k classes that are named for an image.
"""
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from ..data import LongTailDataset, create_loader
from ..data.create import is_small
from ..data.given import GivenImages
from ..data.images import EncodedImages, decode_images
from ..data.preprocessing import Preprocessing, read_preprocessing
from ..models.factory import create_timm_model
from ..utils.errors import UserError
from ..utils.finite import NotFinite
from .priors import log_prior, log_ratio

__all__ = ['Prediction', 'Predictor', 'class_names_of', 'predict']

# small images that are decoded at once: 96 x 96 pixels of these are 113 MB
_BLOCK = 4096

# in the tags of timm's weights that have classes of ImageNet
_IMAGENET_TAGS = ('in1k', 'in12k', 'in21k', 'in22k')


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        image: Path of the image, or `image N`.
        classes: Number of each of the k classes, the most probable first; () for an image that
            cannot be read.
        names: Their names.
        probabilities: Their probabilities, out of all C classes.
        error: Why the image cannot be read, or ''.
    """
    image: str
    classes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ''

    @property
    def name(self) -> str:
        """Name of the most probable class; '' for an image that cannot be read."""
        return self.names[0] if self.names else ''

    @property
    def probability(self) -> float:
        """Probability of the most probable class; 0 for an image that cannot be read."""
        return self.probabilities[0] if self.probabilities else 0.0


class Predictor:
    """Goes through images and yields a `Prediction` for each, in their order.

    An image becomes what `validate` makes of it: it goes through the `eval` view of the model, in
    worker processes. For a model that was trained on images in memory, small squares that are all
    of one size are decoded in memory and looked at whole.

    Args:
        model: Model in eval mode, on the device where it runs.
        preprocessing: How the model wants an image.
        class_names: Name of each class [C].
        top_k: Classes to name for an image.
        log_shift: What is added to the logits [C], such as the log of a ratio of priors; None for
            nothing.
        batch_size: B, images at once.
        num_workers: Processes that decode; 0 decodes in this one.
        in_memory: Whether the model was trained on images in memory.
        tta: Ensemble of views whose logits are averaged, see `Preprocessing.test_views`; None is
            one view.
    """

    def __init__(
            self,
            model: nn.Module,
            preprocessing: Preprocessing,
            class_names: Sequence[str],
            top_k: int = 1,
            log_shift: torch.Tensor | None = None,
            batch_size: int = 64,
            num_workers: int = 0,
            in_memory: bool = False,
            tta: str | None = None,
    ):
        self.model = model
        self.preprocessing = preprocessing
        self.class_names = list(class_names)
        self.top_k = min(top_k, len(self.class_names))
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.in_memory = in_memory
        self.views = preprocessing.test_views(tta)

        self.device = next(model.parameters()).device
        self.log_shift = None if log_shift is None else log_shift.double().to(self.device)

    def __call__(self, images: EncodedImages) -> Iterator[Prediction]:
        """Yield one prediction an image; one with an `error` where it cannot be read.

        Args:
            images: The images.

        Raises:
            NotFinite: The model's outputs are not finite.
        """
        if not (self.in_memory and is_small(images)):
            yield from self._predict(images, _as_files(images), np.arange(len(images)))
            return

        for start in range(0, len(images), _BLOCK):
            block = images.take(np.arange(start, min(start + _BLOCK, len(images))))
            try:
                pixels, kept = decode_images(block, skip_bad=True)
            except UserError:  # no image, or one whose size is not that of its header
                yield from self._predict(block, _as_files(block), np.arange(len(block)))
                continue
            yield from self._predict(block, _in_memory(pixels), kept)

    def _predict(self, images: EncodedImages, dataset: LongTailDataset, kept: np.ndarray) -> Iterator[Prediction]:
        """Yield one prediction an image.

        Args:
            images: The images.
            dataset: Those of them that a loader reads.
            kept: Position in `images` of each image of the data set.
        """
        preprocessing = self.preprocessing
        loader = create_loader(
            dataset,
            self.views,
            batch_size=self.batch_size,
            training=False,
            device=self.device,
            img_size=preprocessing.img_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            num_workers=self.num_workers,
            skip_bad_images=True,
        )

        # the loader leaves out what it cannot read: each gap is filled before the image behind it
        done = 0
        for views, _, index in loader:
            for position, (classes, probabilities) in zip(kept[index.cpu().numpy()], self._rows(views), strict=True):
                yield from _unreadable(images, done, position)
                names = tuple(self.class_names[label] for label in classes)
                yield Prediction(images.describe(position), tuple(classes), names, tuple(probabilities))
                done = position + 1
        yield from _unreadable(images, done, len(images))

    @torch.no_grad()
    def _rows(self, views: Sequence[torch.Tensor]) -> list[tuple[list[int], list[float]]]:
        """Return classes and probabilities of each image of a batch, the most probable first.

        Args:
            views: Views of the images, [B, 3, S, S] each.
        """
        logits = torch.stack([self.model(view).double() for view in views]).mean(dim=0)  # [B, C]
        if not logits.isfinite().all():
            raise NotFinite('the outputs of the model are not finite, NaN or infinity')
        if self.log_shift is not None:
            logits = logits + self.log_shift

        # stable: of classes that are equally probable the first one, as in evaluation
        probabilities, classes = logits.softmax(dim=1).sort(dim=1, descending=True, stable=True)
        top = slice(self.top_k)
        return list(zip(classes[:, top].tolist(), probabilities[:, top].tolist(), strict=True))


def _unreadable(images: EncodedImages, start: int, end: int) -> Iterator[Prediction]:
    """Yield the images from `start` to `end`, which a loader has left out, with what is wrong with them."""
    for position in range(start, end):
        try:
            images.image(position)
            error = 'it could not be read at first, and can now'
        except UserError as e:
            error = str(e)
        yield Prediction(images.describe(position), error=error)


def _as_files(images: EncodedImages) -> LongTailDataset:
    return _without_labels(len(images), encoded=images)


def _in_memory(pixels: torch.Tensor) -> LongTailDataset:
    return _without_labels(len(pixels), images=pixels)


def _without_labels(
        num_images: int,
        images: torch.Tensor | None = None,
        encoded: EncodedImages | None = None,
) -> LongTailDataset:
    """Return images as a data set of one class, which is what a loader takes."""
    rows = np.arange(num_images)
    return LongTailDataset(
        name='images',
        split='test',
        images=images,
        encoded=encoded,
        targets=np.zeros(num_images, np.int64),
        class_names=['?'],
        mean=(0.0, 0.0, 0.0),  # the model has its own
        std=(1.0, 1.0, 1.0),
        indices=rows,
        source_names=[],
    )


def class_names_of(model: Any) -> list[str]:
    """Return the names of a model's classes [C]: its own, those of ImageNet, or numbers.

    Args:
        model: timm model.
    """
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    names = cfg.get('label_names')
    if names and len(names) == model.num_classes:
        return [str(name) for name in names]

    # timm knows the classes of its pretrained weights, and by their tag what they were trained on
    subset = None
    is_imagenet = any(name in str(cfg.get('tag')) for name in _IMAGENET_TAGS)
    if is_imagenet and cfg.get('num_classes') == model.num_classes:
        subset = infer_imagenet_subset(cfg)
    if subset is None:
        return [str(label) for label in range(model.num_classes)]
    info = ImageNetInfo(subset)
    return [info.index_to_description(label) for label in range(model.num_classes)]


def predict(
        model: nn.Module | str,
        images: Any,
        *,
        top_k: int = 1,
        prior: Sequence[float] | None = None,
        model_prior: Sequence[float] | None = None,
        class_names: Sequence[str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        skip_bad_images: bool = False,
) -> list[Prediction]:
    """Return what a model says of some images.

        model = timm.create_model('local-dir:output/RUN/export', pretrained=True)
        for prediction in timm_longtail.predict(model, ['a.jpg', 'b.jpg']):
            print(prediction.image, prediction.name, prediction.probability)

    Args:
        model: timm model, or the name of one: `local-dir:FOLDER`, `hf-hub:USER/NAME`, or a model
            with pretrained weights.
        images: An image, or several: paths; Pillow images; arrays, uint8 [H, W, 3] or [H, W];
            tensors, uint8 [3, H, W].
        top_k: Classes to name for an image.
        prior: How frequent each class is among these images [C], in any unit, for answers under
            that distribution: its ratio to `model_prior` shifts the logits. None answers as the
            model was trained to.
        model_prior: The distribution that the model's outputs follow [C]; None is a balanced one,
            that of `balanced_softmax` and `bcl`. For `ce` it is the training images of each class.
        class_names: Name of each class [C]; None takes those that the model states.
        batch_size: Images at once.
        num_workers: Processes that decode files.
        skip_bad_images: Return a prediction with an `error` for an image that cannot be read;
            False raises.

    Raises:
        UserError: An image that cannot be read or is of another kind; a prior or names for another
            number of classes; a prior with a class that `model_prior` does not have.
    """
    if isinstance(model, str):
        model = create_timm_model(model, pretrained=True)
    timm_model: Any = model

    names = class_names_of(timm_model) if class_names is None else list(class_names)
    for what, values in (('class_names', names), ('prior', prior), ('model_prior', model_prior)):
        if values is not None and len(values) != timm_model.num_classes:
            raise UserError(f'{what} is of {len(values)} classes, the model of {timm_model.num_classes}')

    shift = None
    if prior is not None:
        learned = [1.0] * timm_model.num_classes if model_prior is None else model_prior
        shift = log_ratio(log_prior(prior), log_prior(learned))

    preprocessing = read_preprocessing(timm_model.pretrained_cfg, type(model).__name__)
    predictor = Predictor(model, preprocessing, names, top_k, shift, batch_size, num_workers)

    was_training = model.training
    model.eval()
    try:
        predictions = []
        for prediction in predictor(GivenImages(_several(images))):
            if prediction.error and not skip_bad_images:
                raise UserError(prediction.error)
            predictions.append(prediction)
        return predictions
    finally:
        model.train(was_training)


def _several(images: Any) -> list[Any]:
    """Return one image as a list of one, and several as a list."""
    is_array = isinstance(images, (np.ndarray, torch.Tensor))
    if isinstance(images, (str, os.PathLike)) or hasattr(images, 'convert') or (is_array and images.ndim <= 3):
        return [images]
    return list(images)
