"""Decoupling Representation and Classifier for Long-Tailed Recognition

B. Kang, S. Xie, M. Rohrbach, Z. Yan, A. Gordo, J. Feng, Y. Kalantidis, ICLR 2020,
https://arxiv.org/abs/1910.09217

Classifier re-training (cRT), section 4.1.
"""
from ._frozen import FrozenBackbone
from ._registry import register_method


@register_method('crt')
class ClassifierRetraining(FrozenBackbone):
    """A fresh classifier on a frozen representation, with class-balanced sampling.

    The classifier is one of the same kind, linear or cosine. A method that starts from nothing must
    be given weights (`--initial-checkpoint`), or it trains on a random representation.

    Args:
        model: timm model with C outputs, trained; its classifier is replaced by a new one.
        class_counts: Training images of each class, [C].
        bn: See `FrozenBackbone`.
        view: View of each image.
    """

    sampler = 'class_balanced'
    fresh_classifier = True

    @classmethod
    def learned_prior(cls, sampled, class_counts, options):
        return sampled
