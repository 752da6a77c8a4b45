"""Classifiers in closed form, from a trained classifier or from features; nothing is trained.

Kang et al., `Decoupling Representation and Classifier for Long-Tailed Recognition`, ICLR 2020,
https://arxiv.org/abs/1910.09217, section 4; Menon et al., ICLR 2021,
https://arxiv.org/abs/2007.07314, section 4.1.
"""
from .logit_adjust import fit_logit_adjust, logit_adjust
from .ncm import fit_nearest_means, nearest_class_mean
from .tau_norm import TAUS, fit_tau_norm, tau_normalize

__all__ = [
    'TAUS',
    'fit_logit_adjust',
    'fit_nearest_means',
    'fit_tau_norm',
    'logit_adjust',
    'nearest_class_mean',
    'tau_normalize',
]
