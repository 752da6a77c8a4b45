"""One formula a file: pure functions, tensors in, scalar out, in float32 or wider, autocast off inside."""
from .balanced_sup_con import balanced_sup_con_loss
from .complement_entropy import complement_entropy_loss
from .focal import focal_loss
from .ldam import ldam_loss
from .logit_adjustment import logit_adjusted_cross_entropy
from .mixing_ratio import mixing_ratio_contrastive_loss
from .mixture_consistency import mixture_consistency_loss
from .nt_xent import nt_xent_loss
from .pnda import pnda_loss
from .proco import proco_loss
from .prototype_conformity import prototype_conformity_loss
from .rotation_separation import rotation_entropy, rotation_separation_loss
from .soft_cross_entropy import soft_cross_entropy
from .softmax_binary_cross_entropy import softmax_binary_cross_entropy
from .sup_con import sup_con_loss

__all__ = [
    'balanced_sup_con_loss',
    'complement_entropy_loss',
    'focal_loss',
    'ldam_loss',
    'logit_adjusted_cross_entropy',
    'mixing_ratio_contrastive_loss',
    'mixture_consistency_loss',
    'nt_xent_loss',
    'pnda_loss',
    'proco_loss',
    'prototype_conformity_loss',
    'rotation_entropy',
    'rotation_separation_loss',
    'soft_cross_entropy',
    'softmax_binary_cross_entropy',
    'sup_con_loss',
]
