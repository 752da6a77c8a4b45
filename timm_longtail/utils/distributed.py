"""What the processes of one run exchange. Everything here does nothing in one process.

Gathered losses are exact under DistributedDataParallel: each process computes the loss of the
whole batch, the backward of `all_gather_cat` sums the W gradients that reach a row, and DDP's mean
over W processes undoes the factor. Shared parameters that are not gathered (prototypes) get W
equal gradients, whose mean is exact as well.
"""
import torch
import torch.distributed as dist

__all__ = [
    'all_gather_cat',
    'all_reduce_sum',
    'is_distributed',
    'rank',
    'weighted_mean',
    'world_size',
]


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    if not _has_process_group():
        return 1
    return dist.get_world_size()


def rank() -> int:
    """Number of this process, 0 without a process group."""
    if not _has_process_group():
        return 0
    return dist.get_rank()


def _has_process_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_distributed() -> bool:
    """Whether there is more than one process."""
    return world_size() > 1


def _gather_with_grad(tensor: torch.Tensor) -> torch.Tensor:
    # the functional collectives are private and were renamed; the public function is deprecated
    # since torch 2.13
    import torch.distributed._functional_collectives as collectives

    for name in ('all_gather_single_autograd', 'all_gather_tensor_autograd'):
        if hasattr(collectives, name):
            return getattr(collectives, name)(tensor, gather_dim=0, group=dist.group.WORLD)

    from torch.distributed.nn.functional import all_gather
    return torch.cat(all_gather(tensor))


def all_gather_cat(tensor: torch.Tensor) -> torch.Tensor:
    """Concatenate the tensors of all processes along the first dimension, in rank order.

    The gradient of a row is the sum of what all processes send back to it. Every process must take
    part, in forward and in backward.

    Args:
        tensor: Rows [B, ...], with the same shape and dtype in every process; any dtype, without
            gradients if integer.

    Returns:
        [W B, ...] for W processes; the tensor itself in one process.
    """
    if not is_distributed():
        return tensor

    tensor = tensor.contiguous()
    if tensor.requires_grad and torch.is_grad_enabled():
        return _gather_with_grad(tensor)

    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Replace a tensor, in place and without gradients, by its sum over all processes; returns it.

    Args:
        tensor: Any shape, with the same shape and dtype in every process.
    """
    if is_distributed():
        dist.all_reduce(tensor)
    return tensor


def weighted_mean(values: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted mean sum(w v) / sum(w) over the rows of all processes, as DDP completes it.

    The mean of W quotients is not the quotient of the means. So the denominator is that of all
    processes, and each process returns W times its share of the whole: the mean over the
    processes, of the values as of the gradients, is that of one process with all rows. No gradient
    goes through the denominator.

    Args:
        values: Loss of each row [B].
        weights: Weight of each row [B], with a positive sum over all processes; constants.

    Returns:
        Scalar; in one process the weighted mean itself.
    """
    total = all_reduce_sum(weights.detach().sum())
    return world_size() * (weights * values).sum() / total
