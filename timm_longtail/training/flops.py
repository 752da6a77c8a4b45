"""How many floating-point operations a forward and a backward pass take."""
import math
from collections.abc import Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ['convolution_backward_flops', 'count_flops']


def convolution_backward_flops(
        grad_shape: Sequence[int],
        x_shape: Sequence[int],
        weight_shape: Sequence[int],
        *args,
        out_shape: Sequence | None = None,
        **kwargs,
) -> int:
    """Return the FLOPs of the gradients of a convolution: each has as many products as the forward pass.

    torch's own counter takes the gradient of grouped weights for that of whole ones.

    Args:
        grad_shape: Shape of the output, [B, C_out, H, W].
        x_shape: Shape of the input, [B, C_in, H, W].
        weight_shape: Shape of the weights, [C_out, C_in / groups, h, w]; [C_in, C_out / groups, h, w] of a transposed
            convolution.
        *args: Bias sizes, stride, padding, dilation, whether it is transposed, output padding, groups, and which of the
            gradients of input, weights and bias are wanted.
        out_shape: Shapes of the gradients.
        **kwargs: None.
    """
    *_, transposed, _, _, wanted = args
    # a transposed convolution multiplies each input, not each output, with a window of the weights
    windows = x_shape if transposed else grad_shape
    return sum(wanted[:2]) * 2 * math.prod(windows) * math.prod(weight_shape[1:])


def count_flops() -> FlopCounterMode:
    """Return a counter of FLOPs that knows grouped convolutions."""
    mapping = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    return FlopCounterMode(display=False, custom_mapping=mapping)
