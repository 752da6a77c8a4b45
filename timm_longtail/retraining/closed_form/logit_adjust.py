"""Post-hoc logit adjustment.

Menon et al., ICLR 2021, https://arxiv.org/abs/2007.07314, section 4.1.

Shapes: C classes, D width of the features.
"""
from collections.abc import Sequence

import torch
from torch import nn

from ...models.layers import linear_classifier
from ..classifier import Classifier
from ..representation import Representation

__all__ = ['fit_logit_adjust', 'logit_adjust']


@torch.no_grad()
def logit_adjust(
        linear: nn.Linear,
        class_counts: Sequence[float] | torch.Tensor,
        tau: float = 1.0,
) -> nn.Linear:
    """Subtract the log of the class prior from the logits: b_c - tau log pi_c (equation 9).

    Where the logits are the log-posteriors of the training distribution, tau = 1 gives those of
    balanced classes.

    Args:
        linear: Classifier trained without an adjustment, weight [C, D]; stays as it is.
        class_counts: Training images of each class [C], all positive; pi is their share.
        tau: Strength.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64, device=linear.weight.device)
    log_prior = (counts / counts.sum()).log()  # [C]

    bias = torch.zeros_like(counts)
    if linear.bias is not None:
        bias = linear.bias.double()
    return linear_classifier(linear.weight, bias - tau * log_prior).to(linear.weight)


def fit_logit_adjust(representation: Representation) -> list[Classifier]:
    """Take off the prior that stage 1 was trained under: that of its sampler, in its last epoch.

    Args:
        representation: Model, whose classifier is adjusted, and data.
    """
    sampler = representation.stage_1_sampler()
    if sampler is None:
        prior, name = representation.train_set.class_counts, 'data'
        note = 'stage 1 may have had another prior than that of this data'
        if representation.linear is not None:
            note = 'adjusts a linear classifier that was fitted to this data'
    else:
        provenance = representation.trained_model.provenance
        prior, name = sampler.class_probabilities, provenance.get('sampler') or 'instance'
        note = ''
        if name != 'instance':
            note = f'the prior is that of the sampler of stage 1, {name}'
        method = provenance.get('method')
        if method != 'ce':
            note = f'where the loss of stage 1 ({method}) adjusts for the prior, this does so twice'

    adjusted = logit_adjust(representation.head, prior)
    return [Classifier('logit_adjust', adjusted, options={'tau': 1.0, 'prior': name}, note=note)]
