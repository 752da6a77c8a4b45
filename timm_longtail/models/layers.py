"""Layers that heads and branches are made of.

Shapes: B batch (any leading dimensions), D width, C classes.
"""
import torch
import torch.fx
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..utils.errors import UserError

__all__ = [
    'BatchNormGroups',
    'CosineLinear',
    'linear_classifier',
    'projection_mlp',
    'refuse_sync_batch_norm',
    'unit_rows',
]


@torch.fx.wrap  # a leaf for FX: the choice of dtype cannot be traced
def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """L2-normalise rows; half types are raised to float32, float64 stays.

    Args:
        x: Rows [..., D].
    """
    if x.dtype != torch.float64:
        x = x.float()
    return F.normalize(x, dim=-1)


class CosineLinear(nn.Module):
    """Classifier whose logits are scaled cosines, `scale * cos(x, w_c)`, without a bias.

    The norms of features and class weights drop out, so a class cannot raise its logits by the
    length of its weight, which grows with the number of its images. Introduced for long tails by
    LDAM (Cao et al., NeurIPS 2019, https://arxiv.org/abs/1906.07413) and used by BCL with scale
    30. The weight is [C, D], as in `nn.Linear`.

    Examples:
        ```python
        >>> head = CosineLinear(64, 100)
        >>> head(torch.randn(2, 64)).shape
        torch.Size([2, 100])
        ```
    """

    def __init__(
            self,
            in_features: int,
            out_features: int,
            scale: float = 30.0,
            device=None,
            dtype=None,
    ):
        """Args:
            in_features: Width D of the features.
            out_features: Number of classes C.
            scale: Bound of the logits, which lie in [-scale, scale].
            device: Device of the weight.
            dtype: Type of the weight.

        Raises:
            UserError: The scale is not positive, or so large that logits overflow.
        """
        if not 0 < scale <= 1e4:
            raise UserError(
                f'the scale of a cosine classifier must be in (0, 10000], got {scale}')

        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.scale = float(scale)
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    @torch.jit.ignore
    def reset_parameters(self) -> None:
        """Draw unit rows, as LDAM and BCL do.

        Their length leaves the logits alone but divides the gradient.
        """
        nn.init.uniform_(self.weight, -1.0, 1.0)
        with torch.no_grad():
            self.weight.copy_(unit_rows(self.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map features to logits of the same dtype; a zero feature gives zeros.

        Args:
            x: Features [..., D] of any length.

        Returns:
            Class logits [..., C].
        """
        logits = self.scale * F.linear(unit_rows(x), unit_rows(self.weight))
        return logits.type_as(x)

    def extra_repr(self) -> str:
        return f'in_features={self.in_features}, out_features={self.out_features}, scale={self.scale}'


class BatchNormGroups(TorchFunctionMode):
    """Context in which batch normalisation takes its statistics over equal parts of the batch.

    One forward is then what as many processes, or forwards one after the other, would give:
    running statistics are updated once a part. Everything else still runs on the whole batch.
    Whether compiled code sees the context is up to the version of torch: do not count on it.

    Args:
        num_groups: Number of parts, which follow one another in the batch.
    """

    def __init__(self, num_groups: int):
        super().__init__()
        self.num_groups = num_groups

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is not F.batch_norm or self.num_groups <= 1:
            return func(*args, **kwargs)

        x, *others = args
        parts = [func(part, *others, **kwargs) for part in x.chunk(self.num_groups)]
        return torch.cat(parts)


def refuse_sync_batch_norm(model: nn.Module):
    """Refuse a model whose statistics `BatchNormGroups` cannot change.

    Args:
        model: Model that is to be trained under `BatchNormGroups`.

    Raises:
        UserError: Layers take their statistics over all processes.
    """
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        raise UserError(
            '--sync-bn takes statistics over the whole batch, bn_groups over parts of it: '
            'one of the two')


def linear_classifier(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """Build an `nn.Linear` with given values.

    Args:
        weight: Weight [C, D], of which a copy is taken.
        bias: Bias [C], of which a copy is taken; None for zeros, since timm's heads have a bias.
    """
    if bias is None:
        bias = weight.new_zeros(len(weight))

    head = nn.Linear(weight.shape[1], weight.shape[0], device='meta')
    head.weight = nn.Parameter(weight.detach().clone())
    head.bias = nn.Parameter(bias.detach().clone())
    return head


def projection_mlp(
        in_features: int,
        hidden_features: int,
        out_features: int,
        device=None,
        dtype=None,
) -> nn.Sequential:
    """Build Linear - BatchNorm - ReLU - Linear, whose outputs are not normalised.

    BCL's projector of features and its MLP from classifier weights to prototypes (Zhu et al., CVPR
    2022, https://arxiv.org/abs/2207.09052, section 3.3).

    Args:
        in_features: Width of the input [B, in_features].
        hidden_features: Width between the two linear layers.
        out_features: Width of the embedding [B, out_features].
        device: Device of the parameters.
        dtype: Type of the parameters.
    """
    dd = {'device': device, 'dtype': dtype}
    return nn.Sequential(
        nn.Linear(in_features, hidden_features, **dd),
        nn.BatchNorm1d(hidden_features, **dd),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features, **dd),
    )
