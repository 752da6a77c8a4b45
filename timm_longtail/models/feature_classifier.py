"""A classifier alone, for features that were computed before, as a timm model.

Shapes: B batch, C classes, D width of the features.
"""
import copy
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

from ..utils.errors import UserError
from .layers import CosineLinear
from .on_backbone import describe_on_backbone

__all__ = ['FeatureClassifier', 'replace_classifier', 'set_classifier']


class FeatureClassifier(nn.Module):
    """Maps features [B, D] to logits [B, C]: the identity as backbone, then a classifier.

    Args:
        classifier: Classifier of D features into C classes, of which a copy is taken.
    """

    if TYPE_CHECKING:
        fc: nn.Linear | CosineLinear

    def __init__(self, classifier: nn.Linear | CosineLinear):
        super().__init__()
        self.fc = copy.deepcopy(classifier)
        self.num_features = self.head_hidden_size = classifier.in_features
        self.num_classes = classifier.out_features

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of the same kind.

        Args:
            num_classes: Number of classes C.
            global_pool: Ignored, there is nothing to pool.
        """
        device, dtype = self.fc.weight.device, self.fc.weight.dtype
        width = self.num_features
        if isinstance(self.fc, CosineLinear):
            self.fc = CosineLinear(width, num_classes, self.fc.scale, device=device, dtype=dtype)
        else:
            self.fc = nn.Linear(width, num_classes, device=device, dtype=dtype)
        self.num_classes = num_classes

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        if pre_logits:
            return x
        return self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def replace_classifier(model: nn.Module, classifier: nn.Module) -> nn.Module:
    """Put a classifier in the place of a model's own, also in the record of its arguments.

    Args:
        model: timm model with one `nn.Linear` or `CosineLinear` as its classifier; changed in
            place.
        classifier: New classifier, on features of the same width. A `CosineLinear` needs a model
            that has `cosine_scale`: the architecture must be able to hold it.

    Returns:
        The same model.

    Raises:
        ValueError: The architecture cannot hold such a classifier.
    """
    if not isinstance(classifier, (nn.Linear, CosineLinear)):
        kind = type(classifier).__name__
        raise ValueError(f'{type(model).__name__} has no classifier of the kind {kind}')

    timm_model: Any = model  # timm has no class that declares what its models share
    own = timm_model.get_classifier()
    recorded: dict[str, Any] = {}

    # another kind of classifier, or another scale, is another argument of the architecture
    if type(own) is not type(classifier) or isinstance(classifier, CosineLinear):
        if not hasattr(model, 'cosine_scale'):
            raise ValueError(f'{type(model).__name__} has no cosine classifier')
        timm_model.cosine_scale = getattr(classifier, 'scale', None)
        recorded['cosine_scale'] = timm_model.cosine_scale

    place = next(name for name, module in model.named_modules() if module is own)
    model.set_submodule(place, classifier.to(own.weight).train(model.training))
    timm_model.num_classes = classifier.out_features

    # `_model_args` is what exports and checkpoints build the architecture by
    if recorded or hasattr(model, '_model_args'):
        recorded['num_classes'] = timm_model.num_classes
        timm_model._model_args = {**getattr(model, '_model_args', {}), **recorded}
    return model


def set_classifier(model: nn.Module, cosine_scale: float | None) -> nn.Module:
    """Give a model a fresh classifier of another kind; one of this kind stays as it is.

    A model of timm that has no cosine classifier of its own becomes the architecture
    `cosine_classifier` of this package.

    Args:
        model: timm model with one `nn.Linear` or `CosineLinear` as its classifier; changed in
            place.
        cosine_scale: Scale of a `CosineLinear`; None is an `nn.Linear`.

    Returns:
        The same model.

    Raises:
        UserError: A model with a classifier of another kind.
    """
    timm_model: Any = model  # timm has no class that declares what its models share
    own = timm_model.get_classifier()
    if not isinstance(own, (nn.Linear, CosineLinear)):
        raise UserError(
            f'{type(model).__name__} has a classifier of the kind {type(own).__name__}: '
            'only an nn.Linear can be replaced')
    if getattr(own, 'scale', None) == cosine_scale:
        return model

    if not hasattr(model, 'cosine_scale'):
        describe_on_backbone(model, 'cosine_classifier')
        timm_model.cosine_scale = None

    dd: dict[str, Any] = {'device': own.weight.device, 'dtype': own.weight.dtype}
    classifier: nn.Module
    if cosine_scale is None:
        classifier = nn.Linear(own.in_features, own.out_features, **dd)
    else:
        classifier = CosineLinear(own.in_features, own.out_features, cosine_scale, **dd)
    return replace_classifier(model, classifier)
