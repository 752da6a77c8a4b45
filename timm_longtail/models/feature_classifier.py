"""A classifier alone, for features that were computed before; it looks like a timm model to whatever trains it.

Shapes: B batch, C classes, D width of the features.
"""
import copy

import torch
import torch.nn as nn

from .layers import CosineLinear

__all__ = ['FeatureClassifier', 'replace_classifier']


class FeatureClassifier(nn.Module):
    """Maps features [B, D] to logits [B, C]: the identity as backbone, then a classifier.

    Args:
        classifier: `nn.Linear` or `CosineLinear`; a copy is taken.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        self.fc = copy.deepcopy(classifier)
        self.num_features = self.head_hidden_size = classifier.in_features
        self.num_classes = classifier.out_features

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one of the same kind."""
        own = dict(device=self.fc.weight.device, dtype=self.fc.weight.dtype)
        if isinstance(self.fc, CosineLinear):
            self.fc = CosineLinear(self.num_features, num_classes, self.fc.scale, **own)
        else:
            self.fc = nn.Linear(self.num_features, num_classes, **own)
        self.num_classes = num_classes

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def replace_classifier(model: nn.Module, classifier: nn.Module) -> nn.Module:
    """Put a classifier in the place of a model's own, and let the model's record of its arguments say so.

    Args:
        model: timm model with one `nn.Linear` or `CosineLinear` as its classifier; changed in place.
        classifier: Its successor, on features of the same width. A `CosineLinear` needs a model that has
            `cosine_scale`: the architecture must be able to hold it.

    Returns:
        The same model.

    Raises:
        ValueError: The architecture cannot hold such a classifier.
    """
    if not isinstance(classifier, (nn.Linear, CosineLinear)):
        raise ValueError(f'{type(model).__name__} has no classifier of the kind {type(classifier).__name__}')
    own = model.get_classifier()
    place = next(name for name, module in model.named_modules() if module is own)
    if type(own) is not type(classifier) or isinstance(classifier, CosineLinear):
        if not hasattr(model, 'cosine_scale'):
            raise ValueError(f'{type(model).__name__} has no cosine classifier')
        model.cosine_scale = getattr(classifier, 'scale', None)
        model._model_args = {**getattr(model, '_model_args', {}), 'cosine_scale': model.cosine_scale}
    model.set_submodule(place, classifier.to(own.weight).train(model.training))
    model.num_classes = classifier.out_features
    if hasattr(model, '_model_args'):
        model._model_args = {**model._model_args, 'num_classes': model.num_classes}
    return model
