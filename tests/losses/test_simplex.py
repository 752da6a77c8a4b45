"""The theorem of the paper on balanced contrastive learning: its minimum is a regular simplex."""
import pytest
import torch
import torch.nn.functional as F

from timm_longtail import losses

CLASS_COUNTS = torch.tensor([40, 20, 10, 6, 4])


def distance_from_simplex(balanced, temperature, class_average=True, width=8):
    """Minimise over free unit features and prototypes.

    Returns:
        The largest |cosine + 1 / (C - 1)| between class means.
    """
    num_classes = len(CLASS_COUNTS)
    target = torch.repeat_interleave(torch.arange(num_classes), CLASS_COUNTS)
    share = 1 / (num_classes * CLASS_COUNTS.double())[target] if class_average else 1 / CLASS_COUNTS.sum()
    generator = torch.Generator().manual_seed(0)
    features, prototypes = (
        torch.randn(size, width, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (len(target), num_classes)
    )
    optimizer = torch.optim.LBFGS(
        [features, prototypes], max_iter=300, tolerance_grad=1e-9, tolerance_change=1e-12, history_size=20,
        line_search_fn='strong_wolfe')

    def closure():
        optimizer.zero_grad()
        z, c = F.normalize(features), F.normalize(prototypes)
        if balanced:
            rows = losses.balanced_sup_con_loss(z, target, c, temperature, reduction='none')
        else:
            rows = losses.sup_con_loss(z, target, temperature, reduction='none')
        loss = (share * rows).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    z = F.normalize(features.detach())
    means = torch.stack([z[target == k].mean(0) for k in range(num_classes)])
    assert (means.norm(dim=1) > 0.99).all()  # converged: each class in one point
    means = F.normalize(means)
    cosines = (means @ means.T)[~torch.eye(num_classes, dtype=torch.bool)]
    return (cosines + 1 / (num_classes - 1)).abs().max().item()


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_balanced_loss_reaches_the_simplex(temperature):
    assert distance_from_simplex(True, temperature) < 0.02


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_plain_contrast_misses_the_simplex(temperature):
    assert distance_from_simplex(False, temperature) > 0.05


@pytest.mark.parametrize('temperature', [0.1, 0.3])
def test_mean_over_anchors_misses_the_simplex(temperature):
    assert distance_from_simplex(True, temperature, class_average=False) > 0.05
