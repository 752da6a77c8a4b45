"""What GLMC and its contrast compute, as loops over images, pixels and pairs, from the equations. Not vectorised."""
import math

import torch


def _mean(losses):
    return sum(losses) / len(losses)


def _cosine(a, b):
    return torch.dot(a, b) / (torch.sqrt(torch.dot(a, a)) * torch.sqrt(torch.dot(b, b)))


def _log_share(anchor, positive, terms, temperature):
    """-log of the positive's part in the sum over all terms, the positive among them."""
    total = sum(torch.exp(_cosine(anchor, term) / temperature) for term in terms)
    return -torch.log(torch.exp(_cosine(anchor, positive) / temperature) / total)


def soft_cross_entropy(logits, target, class_weight=None):
    """Mean over images of -sum_c w_c y_c log p_c."""
    losses = []
    for i in range(len(logits)):
        total = sum(torch.exp(f) for f in logits[i])
        weights = [1 if class_weight is None else class_weight[c] for c in range(logits.shape[1])]
        losses.append(-sum(w * target[i, c] * torch.log(torch.exp(logits[i, c]) / total)
                           for c, w in enumerate(weights)))
    return _mean(losses)


def mixture_consistency_loss(p1, p2, z1, z2):
    """Du et al., L_sim: the negative cosine of each prediction with the other projection, which is a constant."""
    return _mean([-_cosine(p1[i], z2[i].detach()) - _cosine(p2[i], z1[i].detach()) for i in range(len(p1))])


def nt_xent_loss(z1, z2, temperature):
    """Chen et al., equation (1): every one of the 2N rows is an anchor, all rows but itself are the terms."""
    rows = [*z1, *z2]
    losses = []
    for i in range(len(rows)):
        positive = rows[(i + len(z1)) % len(rows)]
        terms = [rows[k] for k in range(len(rows)) if k != i]
        losses.append(_log_share(rows[i], positive, terms, temperature))
    return _mean(losses)


def mixing_ratio_contrastive_loss(
        z1, z2, z_mixup, z_cutmix, lam, temperature, target1=None, target2=None, cross_only=False):
    """Equations (2) and (3): each mixture against either clean batch, by its share; the mean of both mixtures."""
    def contrast(clean, mixed, target):
        num_images = len(clean)
        rows = [*clean, *mixed]
        classes = [set()] * len(rows)
        if target is not None:
            classes = [{int(t)} for t in target]
            classes += [{int(a), int(b)} for a, b in zip(target1, target2)]
        losses = []
        for i in range(num_images if cross_only else 2 * num_images):
            positive = (i + num_images) % (2 * num_images)
            terms = [
                rows[k] for k in range(num_images if cross_only else 0, 2 * num_images)
                if k == positive or (k != i and not classes[i] & classes[k])
            ]
            losses.append(_log_share(rows[i], rows[positive], terms, temperature))
        return _mean(losses)

    def of_mixture(mixed):
        return lam * contrast(z1, mixed, target1) + (1 - lam) * contrast(z2, mixed, target2)
    return (of_mixture(z_mixup) + of_mixture(z_cutmix)) / 2


def mixup(first, second, lam):
    """lam of each pixel from the first image."""
    mixed = torch.zeros_like(first)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in first.shape)):
        mixed[tuple(place)] = lam * first[tuple(place)] + (1 - lam) * second[tuple(place)]
    return mixed


def cutmix(first, second, lam, centre, even=True):
    """Pixels of the box from the second images, all others from the first.

    The box is ceil(sqrt(1 - lam) S) wide and about the centre: half of that, rounded down, on either side of it. Not
    `even`, CutMix's own box, has the pixel that an odd width leaves behind the centre.
    """
    mixed = first.clone()
    sides = [math.ceil(math.sqrt(1 - lam) * size) for size in first.shape[-2:]]
    inside = 0
    for row in range(first.shape[-2]):
        for column in range(first.shape[-1]):
            in_box = True
            for place, middle, side in zip((row, column), centre, sides):
                last = middle + side // 2 - 1
                if side % 2 == 1 and not even:
                    last += 1
                in_box = in_box and middle - side // 2 <= place <= last
            if in_box:
                mixed[:, :, row, column] = second[:, :, row, column]
                inside += 1
    return mixed, inside / (first.shape[-2] * first.shape[-1])


def glmc_loss(
        logits, rebalanced_logits, projections, predictions, target1, target2, shares, class_counts,
        epoch, num_epochs, reweight_power, consistency_weight):
    """Du et al.: a L_bal + (1 - a) L_reb + gamma L_sim; pairs are (MixUp, CutMix), shares those of the first labels."""
    num_classes = len(class_counts)
    powers = [float(n) ** -reweight_power for n in class_counts]
    weights = [num_classes * power / sum(powers) for power in powers]
    balanced = rebalanced = 0
    for f, g, share in zip(logits, rebalanced_logits, shares):
        plain, weighted = torch.zeros_like(f), torch.zeros_like(f)
        for i in range(len(f)):
            for label, part in ((int(target1[i]), share), (int(target2[i]), 1 - share)):
                plain[i, label] += part
                weighted[i, label] += part * weights[label]
        balanced = balanced + soft_cross_entropy(f, plain)
        rebalanced = rebalanced + soft_cross_entropy(g, weighted)
    alpha = 1 - (epoch / num_epochs) ** 2
    consistency = mixture_consistency_loss(*predictions, *projections)
    return alpha * balanced + (1 - alpha) * rebalanced + consistency_weight * consistency
