"""The seam between a method and everything that is shared: data, device, loop, evaluation, checkpoints, export.

Shapes: B batch of this process, C classes, D width of the features, H x W image.
"""
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..evaluation.evaluators import LongTailEvaluator

__all__ = ['Batch', 'Method']

Batch = tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor]  # views [B, 3, H, W] each, target [B], index [B]

class Method(nn.Module):
    """What one method adds to training. A method is one file; nothing outside that file names it.

    `self.model` is the deployable timm model. Every other sub-module and buffer (heads beyond the model's branches,
    centroids, a queue, a key encoder) is train-only state: it is saved and resumed, never exported. State that decides
    a number must live in parameters and buffers, or be set by `start_epoch` from the epoch and the given generator:
    this is what makes an interrupted run resume exactly, in the middle of an epoch too.

    Args:
        model: timm model; a method may add its branches to it (`attach_branches`).
        class_counts: Training images of each class, [C]: list, array or tensor.
    """

    views: tuple[str, ...] = ('crop_flip',)
    """Views of each image, in the order `forward` receives them; may be set per instance."""

    phases: tuple[str, ...] = ('main',)
    """One forward, backward and step a batch each, with an optimizer of its own each; may be set per instance."""

    sampler: str = 'instance'
    """Sampler of the streams for which `samplers` gives None, unless `--sampler` names another."""

    linear_classifier: bool = False
    """Whether the model must have an `nn.Linear` as its classifier, and no cosine classifier."""

    needs_weights: bool = False
    """Whether training from random weights makes no sense: a run that starts so is warned."""

    idle_phases: tuple[str, ...] = ()
    """Phases, not the first, this epoch leaves out: no forward, no step. Set by `start_epoch`, on all processes."""

    contrastive_views: int = 0
    """How many of the views a loss compares across the batch; 0 where the loss looks at one image at a time."""

    forwards_per_image: float | None = None
    """Images that a phase sends through a network per image that it is given; None for one a view. May be set per
    instance; rows of results name the sum."""

    overfit_check: tuple[str, float] = ('train_accuracy', 0.9)
    """What the registry test asks of 64 images: a logged part and the value that it must reach."""

    def __init__(self, model: nn.Module, class_counts):
        super().__init__()
        self.model = model
        # not persistent: it belongs to the data, which a resumed run reads again
        self.register_buffer('class_counts', torch.as_tensor(class_counts).to(torch.float32), persistent=False)
        self._run_backbone = self._backbone

    @classmethod
    def num_outputs(cls, num_classes: int) -> int:
        """Return the width of the classifier that the model is built with."""
        return num_classes

    def samplers(self, targets: np.ndarray) -> tuple:
        """Return one sampler a data stream; None is what `--sampler` says, by default the uniform shuffle.

        Args:
            targets: Class of each training image, int64 [N].
        """
        return (None,)

    def param_groups(self, phase: str) -> list[dict[str, Any]]:
        """Return the optimizer's groups of one phase; a group may set `lr`, `momentum` and `weight_decay`.

        The default is one group, biases and normalisation included: the papers decay every weight.
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
            batches: Callable[[], Iterator[Batch]],
    ):
        """Set schedules. Called before each epoch, and once more when a run resumes inside one.

        Args:
            epoch: Epoch, from 0.
            num_epochs: Length of the run.
            rng: Generator of this epoch, equal on all processes. `forward` may keep it and draw one number after the
                other; its state is saved.
            batches: Iterates over the whole training set in the `eval` view; `batches.digests` are the sha256 of the
                images' uint8 HWC pixels, by index.
        """

    def forward(self, *batches: Batch, phase: str = 'main') -> dict[str, torch.Tensor | None]:
        """Return `loss` (scalar), `output` (class logits [B, C] of the first stream's images, or None) and any scalar
        parts to log. A phase that leaves a trainable parameter out adds `0 * parameter.sum()` to its loss.
        """
        raise NotImplementedError

    def after_step(self, phase: str):
        """Update what no gradient updates (momentum encoder, projections); runs without gradients after each step."""

    def create_evaluator(self, shot_counts) -> LongTailEvaluator:
        """Return the evaluator of this method's model.

        Args:
            shot_counts: Training images of each class that define Many / Medium / Few, [C].
        """
        return LongTailEvaluator(shot_counts)

    def finish(self, folder: Path, model: nn.Module, batches: Callable[[], Iterator[Batch]]) -> dict | None:
        """Write what the method leaves beside the model, after the last epoch, on the main process.

        Args:
            folder: Output folder of the run.
            model: What is exported: `self.model`, or the moving average of its weights.
            batches: As `start_epoch`.

        Returns:
            What it found out, for the row of results: numbers and strings by name.
        """

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Run the backbone: images [B, 3, H, W] to pooled features [B, D]. Cached features [B, D] come back unchanged.

        The one place that runs it, so that it can be compiled or skipped for every method alike.
        """
        return x if x.ndim == 2 else self._run_backbone(x)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Run the model's classifier: features [B, D] to class logits [B, C], in float32 or wider."""
        output = self.model.get_classifier()(features)
        return output if output.dtype == torch.float64 else output.float()

    def compile_features(self, **kwargs):
        """Compile `features`. The compiled function stays outside the module tree: state-dict keys do not change."""
        self._run_backbone = torch.compile(self._backbone, **kwargs)

    def _backbone(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.forward_head(self.model.forward_features(x), pre_logits=True)
