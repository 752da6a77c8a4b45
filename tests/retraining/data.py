"""A classifier that looks trained, features, and their classes: N images, C classes, D width."""
import torch
from torch import nn

N, C, D = 60, 5, 8
COUNTS = [30, 15, 8, 5, 2]

Data = tuple[nn.Linear, torch.Tensor, torch.Tensor]


def make_data() -> Data:
    """Return a classifier [C, D], features [N, D], and the class of each, [N]."""
    torch.manual_seed(0)
    head = nn.Linear(D, C)
    target = torch.repeat_interleave(torch.arange(C), torch.tensor(COUNTS))
    return head, torch.randn(N, D) + 0.3 * target[:, None], target
