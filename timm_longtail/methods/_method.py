"""The seam between a method and all that is shared: data, loop, evaluation, checkpoints, export.

Shapes: B batch of this process, C classes, D width of the features, H x W image.
"""
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import nn

from ..data import Batch
from ..evaluation.evaluators import LongTailEvaluator
from ..models.tuning import hold_frozen

__all__ = ['Batch', 'Batches', 'ClassCounts', 'Method']

# training images of each class, [C]
ClassCounts: TypeAlias = Sequence[float] | np.ndarray | torch.Tensor


AnyMethod = TypeVar('AnyMethod', bound='Method')


class Batches(Protocol):
    """The whole training set in the `eval` view, as often as it is called."""

    digests: np.ndarray
    """sha256 of the uint8 HWC pixels of each image, by index: uint8 [N, 32]."""

    def __call__(self) -> Iterator[Batch]: ...


class Method(nn.Module):
    """What one method adds to training. A method is one file; nothing outside that file names it.

    `self.model` is the deployable timm model. Every other sub-module and buffer (heads beyond the
    model's branches, centroids, a queue, a key encoder) is train-only state: it is saved and
    resumed, never exported. State that decides a number must live in parameters and buffers, or be
    set by `start_epoch` from the epoch and the given generator: this is what makes an interrupted
    run resume exactly, in the middle of an epoch too.

    Args:
        model: timm model; a method may add its branches to it (`attach_branches`).
        class_counts: Training images of each class, [C]: list, array or tensor.
    """

    model: Any  # a timm model; timm has no class that declares what its models share
    class_counts: torch.Tensor

    views: tuple[str, ...] = ('crop_flip',)
    """Views of each image, in the order `forward` receives them; may be set per instance."""

    phases: tuple[str, ...] = ('main',)
    """Steps on each batch, by name: each has its own forward, backward and optimizer.

    May be set per instance.
    """

    sampler: str = 'instance'
    """Sampler of the streams for which `samplers` gives None, unless `--sampler` names another."""

    linear_classifier: bool = False
    """Whether the model must have an `nn.Linear` as its classifier, and no cosine classifier."""

    needs_weights: bool = False
    """Whether training from random weights makes no sense: a run that starts so is warned."""

    tune: str = 'all'
    """What is trained of the model unless `--tune` names another part: see `models.tuning`.

    The model is tuned before the method is built. What the method adds is always trained.
    """

    idle_phases: tuple[str, ...] = ()
    """Phases, never the first, that this epoch leaves out: no forward, no step, no weight decay.

    Set by `start_epoch`, on all processes.
    """

    contrastive_views: int = 0
    """Number of views that a loss compares across the batch; 0 if it looks at one image at a time."""

    forwards_per_image: float | None = None
    """Images that a phase sends through a network for each image of a batch; None is one a view.

    May be set per instance; rows of results name the sum.
    """

    overfit_check: tuple[str, float] = ('train_accuracy', 0.9)
    """What the registry test asks of 64 images: a logged part and the value that it must reach."""

    def __init__(self, model: nn.Module, class_counts: ClassCounts):
        super().__init__()
        self.model = model

        # not persistent: it belongs to the data, which a resumed run reads again
        counts = torch.as_tensor(class_counts).to(torch.float32)
        self.register_buffer('class_counts', counts, persistent=False)

        self._run_backbone = self._backbone

    def train(self: AnyMethod, mode: bool = True) -> AnyMethod:
        """Set the mode of trained modules; what is frozen in the model stays in eval mode.

        Dropout between the features and the classifier belongs to the classifier, and is on.
        """
        super().train(mode)
        if mode:
            hold_frozen(self.model)
        return self

    @classmethod
    def num_outputs(cls, num_classes: int) -> int:
        """Return the width of the classifier that the model is built with."""
        return num_classes

    @classmethod
    def result_sentence(cls, metrics: Mapping[str, Any]) -> str | None:
        """Return what the card of an export says of figures that are not of classes.

        None, the default, is a method whose figures are of classes.

        Args:
            metrics: Figures of the method's evaluator, by name.
        """
        return None

    @classmethod
    def learned_prior(
            cls,
            sampled: torch.Tensor,
            class_counts: torch.Tensor,
            options: Mapping[str, Any],
    ) -> torch.Tensor | None:
        """Return the class prior that the model's probabilities follow, up to a factor, float64 [C].

        Equal weights are those of a loss that takes the prior off. None, the default, is a method
        whose outputs follow no prior that is known.

        Args:
            sampled: Share of each class in the samples of the last epoch, float64 [C].
            class_counts: Training images of each class, float64 [C].
            options: The method's hyper-parameters, all of them.
        """
        return None

    def samplers(self, targets: np.ndarray) -> tuple:
        """Return one sampler for each data stream; None is that of `--sampler`, or uniform shuffling.

        Args:
            targets: Class of each training image, int64 [N].
        """
        return (None,)

    def param_groups(self, phase: str) -> list[dict[str, Any]]:
        """Return the optimizer's groups of one phase.

        A group may set `lr`, `momentum`, `weight_decay`, and `constant_lr`, a rate that no schedule
        changes. The default is one group, biases and normalisation included: the papers decay every
        weight.

        Args:
            phase: One of `phases`.
        """
        return [{'params': [p for p in self.parameters() if p.requires_grad]}]

    def check_run(self, num_epochs: int, batch_size: int):
        """Refuse a run that the method's options do not fit. Called before anything is written.

        Args:
            num_epochs: Length of the run.
            batch_size: Images of each stream that this process is given at once.

        Raises:
            UserError: Names the option, its value and what was expected.
        """

    def start_epoch(
            self,
            epoch: int,
            num_epochs: int,
            rng: np.random.Generator,
            batches: Batches,
    ):
        """Set schedules. Called before each epoch, and once more when a run resumes inside one.

        Args:
            epoch: Number of the epoch, from 0.
            num_epochs: Length of the run.
            rng: Generator of this epoch, equal on all processes. `forward` may draw from it one
                number after the other; its state is saved.
            batches: All training images, for methods that look at them between epochs.
        """

    def forward(self, *batches: Any, **kwargs: Any) -> dict[str, torch.Tensor | None]:
        """Return the loss of one phase on one batch of each stream.

        A method names its streams, as in `forward(self, first, second, phase='main')`.

        Args:
            *batches: One `Batch` from each stream.
            **kwargs: The `phase`, one of `phases`.

        Returns:
            `loss` (scalar), `output` (class logits [B, C] of the first stream's images, or None)
            and any scalar parts to log. A phase that leaves a trainable parameter out adds
            `0 * parameter.sum()` to its loss.
        """
        raise NotImplementedError

    def after_step(self, phase: str):
        """Update what no gradient updates, such as a momentum encoder.

        Called after each step, without gradients.
        """

    def create_evaluator(self, shot_counts: Sequence[int]) -> LongTailEvaluator:
        """Return the evaluator of this method's model.

        Args:
            shot_counts: Training images of each class that define Many / Medium / Few, [C].
        """
        return LongTailEvaluator(shot_counts)

    def finish(self, folder: Path, model: nn.Module, batches: Batches) -> dict[str, Any] | None:
        """Write the method's own files beside the model, after the last epoch, on the main process.

        Args:
            folder: Output folder of the run.
            model: Model that is exported: `self.model`, or the moving average of its weights.
            batches: All training images.

        Returns:
            Findings for the row of results: numbers and strings by name.
        """
        return None

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Run the backbone: images [B, 3, H, W] to pooled features [B, D].

        Cached features [B, D] are returned unchanged. This is the one place that runs it, so that
        it can be compiled or skipped for every method alike.
        """
        if x.ndim == 2:
            return x
        return self._run_backbone(x)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Run the model's classifier: features [B, D] to logits [B, C], in float32 or wider.

        Under mixed precision, too: logits of a cosine classifier reach its scale, where numbers of
        bfloat16 lie an eighth apart.
        """
        wide = features if features.dtype == torch.float64 else features.float()
        with torch.autocast(features.device.type, enabled=False):
            return self.model.get_classifier()(wide)

    def compile_features(self, **kwargs):
        """Compile `features`.

        The compiled function stays outside the module tree: state-dict keys do not change.

        Args:
            **kwargs: Options of `torch.compile`.
        """
        self._run_backbone = torch.compile(self._backbone, **kwargs)

    def _backbone(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.model.forward_features(x)
        return self.model.forward_head(maps, pre_logits=True)
