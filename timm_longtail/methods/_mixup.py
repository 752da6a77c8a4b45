"""Mixing the images of a batch in pairs

mixup: H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, ICLR 2018, https://arxiv.org/abs/1710.09412
Remix: H.-P. Chou, S.-C. Chang, J.-Y. Pan, W. Wei, D.-C. Juan, ECCV 2020 workshops,
    https://arxiv.org/abs/2007.03943

Shapes: B batch of this process.
"""
import torch

__all__ = ['remix_share', 'swap_neighbours']


def swap_neighbours(x: torch.Tensor) -> torch.Tensor:
    """Return the rows of [B, ...] in the order 1 0 3 2 5 4 …; the last of an odd number stays.

    The order of an epoch is random, and so are these pairs. With an even batch they are the same
    for any number of processes that share the global batch, which a flip or a permutation of the
    local batch is not.
    """
    partner = torch.arange(len(x), device=x.device) ^ 1
    return x[partner.clamp(max=len(x) - 1)]


def remix_share(
        lam: float,
        counts: torch.Tensor,
        other_counts: torch.Tensor,
        kappa: float,
        tau: float,
) -> torch.Tensor:
    """Return the share of its label that an image keeps when it is mixed in by lam.

        0     if n_i / n_j >= kappa and lam < tau
        1     if n_i / n_j <= 1 / kappa and 1 - lam < tau
        lam   else

    So the rarer class takes the whole label of an uneven pair, unless its image hardly shows. With
    tau 0 it is mixup.

    Args:
        lam: Share of the image.
        counts: Training images n_i of its class, [B].
        other_counts: Training images n_j of the other image's class, [B].
        kappa: Factor between the classes from which a pair is uneven, at least 1.
        tau: Share below which an image of the more frequent class loses its label.

    Returns:
        Shares [B]; the other image's share is the rest.
    """
    share = torch.full_like(counts, lam)

    # the image is of the much rarer class, or of the much more frequent one
    if 1 - lam < tau:
        share = share.masked_fill(other_counts >= kappa * counts, 1)
    if lam < tau:
        share = share.masked_fill(counts >= kappa * other_counts, 0)
    return share
