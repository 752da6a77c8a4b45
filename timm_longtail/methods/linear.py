"""Linear evaluation: a fresh classifier on a frozen representation, without re-balancing."""
from ._frozen import FrozenBackbone
from ._registry import register_method


@register_method('linear')
class LinearProbe(FrozenBackbone):
    """A fresh classifier on a frozen representation, with uniform sampling (or `--sampler`).

    Args:
        model: timm model with C outputs, trained; its classifier is replaced by a new one.
        class_counts: Training images of each class, [C].
        bn: See `FrozenBackbone`.
        view: View of each image.
    """

    fresh_classifier = True

    # features want a high rate, and no decay
    retrain_options = {'epochs': 30, 'lr': 0.5, 'weight_decay': 0.0}

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        return sampled
