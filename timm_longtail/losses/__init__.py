"""One formula a file: pure functions, tensors in, scalar out, in float32 or wider, autocast off inside."""
from .balanced_sup_con import balanced_sup_con_loss
from .focal import focal_loss
from .ldam import ldam_loss
from .logit_adjustment import logit_adjusted_cross_entropy
from .sup_con import sup_con_loss

__all__ = ['balanced_sup_con_loss', 'focal_loss', 'ldam_loss', 'logit_adjusted_cross_entropy', 'sup_con_loss']
