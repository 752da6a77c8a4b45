"""Contrastive loss between clean and mixed images, weighted by the mixing ratio

Added to GLMC (Du et al., CVPR 2023, https://arxiv.org/abs/2305.08661) to raise the accuracy of tail
classes: `L_CLR`, equations (1) to (3) of an extended abstract in Japanese on contrast by the mixing
ratio.

Equation (1) prints 2N rows and columns where there are N clean and N mixed embeddings. It is read
here as the NT-Xent loss that it names, over the 2N rows of both; `cross_only` is the other reading.
Shapes: B batch, E width.
"""
import torch
import torch.nn.functional as F

from ..utils.errors import UserError
from ._common import full_precision
from .nt_xent import check_pairs, pair_loss


@full_precision
def mixing_ratio_contrastive_loss(
        z1: torch.Tensor,
        z2: torch.Tensor,
        z_mixup: torch.Tensor,
        z_cutmix: torch.Tensor,
        lam: float,
        temperature: float,
        target1: torch.Tensor | None = None,
        target2: torch.Tensor | None = None,
        cross_only: bool = False,
) -> torch.Tensor:
    """Pull a mixed image towards the two images that it was mixed from, each by its share, and push all others away.

        L_m = lam L(z1, z_m) + (1 - lam) L(z2, z_m)    for m = mixup and cutmix
        L_CLR = (L_mixup + L_cutmix) / 2

    L is `nt_xent_loss`. With targets, a row that shares a class with the anchor is no negative of
    it: a clean row has the class of its image, a mixed row those of both its images. The positive
    stays in any case.

    Args:
        z1: Embeddings [B, E] of the images that make up `lam` of the mixtures, of any length;
            normalised here.
        z2: Embeddings of the images that make up the rest.
        z_mixup: Embeddings of the images mixed by MixUp, row i of images i.
        z_cutmix: Embeddings of those mixed by CutMix.
        lam: Share of the first images, in [0, 1].
        temperature: Divisor of the similarities.
        target1: Classes of the first images, int64 [B]; with `target2`, see above. None leaves
            classes out of it.
        target2: Classes of the second images.
        cross_only: Whether anchors are the clean rows only, and their terms the B mixed ones.

    Returns:
        Scalar, in float32 or wider.

    Raises:
        UserError: Shapes that differ, one target without the other, a temperature that is not
            positive.
    """
    check_pairs(temperature, z1, z2, z_mixup, z_cutmix)
    targets = [target for target in (target1, target2) if target is not None]
    if len(targets) == 1 or any(target.shape != z1.shape[:1] for target in targets):
        shapes = [[*target.shape] for target in targets]
        raise UserError(f'expected two targets [{len(z1)}] or none, got {shapes}')

    z1, z2, z_mixup, z_cutmix = (F.normalize(z, dim=1) for z in (z1, z2, z_mixup, z_cutmix))

    # a mixed row has the classes of both its images, a clean row twice its own
    classes1 = classes2 = mixed_classes = None
    if target1 is not None and target2 is not None:
        classes1 = torch.stack([target1, target1], dim=1)  # [B, 2]
        classes2 = torch.stack([target2, target2], dim=1)
        mixed_classes = torch.stack([target1, target2], dim=1)

    total = z1.new_zeros(())
    for share, clean, clean_classes in ((lam, z1, classes1), (1 - lam, z2, classes2)):
        for mixed in (z_mixup, z_cutmix):
            contrast = _contrast(clean, mixed, temperature, clean_classes, mixed_classes, cross_only)
            total = total + share * contrast / 2
    return total


def _contrast(
        clean: torch.Tensor,
        mixed: torch.Tensor,
        temperature: float,
        clean_classes: torch.Tensor | None,
        mixed_classes: torch.Tensor | None,
        cross_only: bool,
) -> torch.Tensor:
    """L(clean, mixed) of unit rows [B, E]; their classes are [B, 2] or None."""
    index = torch.arange(len(clean), device=clean.device)
    if cross_only:
        return pair_loss(clean, mixed, index, temperature, False, clean_classes, mixed_classes)

    # both halves are anchors and terms; the positive of a row is its like in the other half
    rows = torch.cat([clean, mixed])
    others = torch.cat([index + len(clean), index])
    classes = None
    if clean_classes is not None and mixed_classes is not None:
        classes = torch.cat([clean_classes, mixed_classes])
    return pair_loss(rows, rows, others, temperature, True, classes, classes)
