"""Losses around class centroids and distributions as loops, written from the equations. Nothing here is vectorised."""
import math

import torch


def _over_batch(losses, mask):
    """The sum of the rows that count, divided by all rows."""
    kept = [loss if mask is None or mask[i] else 0 * loss for i, loss in enumerate(losses)]
    return sum(kept) / len(losses)


def complement_entropy_loss(logits, target, mask=None):
    """Chen et al.: sum over the wrong classes of p' log p', p' = p_j / (1 - p_y), balanced by 1 / (C - 1)."""
    num_classes = logits.shape[1]
    losses = []
    for i in range(len(logits)):
        wrong = [torch.exp(logits[i, j]) for j in range(num_classes) if j != target[i]]
        total = 0 * logits[i].sum()
        for exponential in wrong:
            p = exponential / sum(wrong)
            total = total + p * torch.log(p) / (num_classes - 1)
        losses.append(total)
    return _over_batch(losses, mask)


def _distance(a, b, squared):
    square = sum((a[d] - b[d]) ** 2 for d in range(len(a)))
    return square if squared else torch.sqrt(square)


def prototype_conformity_loss(
        features, target, centroids, mask=None, squared=False, centre_term=True, repel_centroids=None):
    """Mustafa et al.: alpha - mean over other classes of beta + gamma; centroids of their own may repel."""
    others = centroids if repel_centroids is None else repel_centroids
    losses = []
    for i in range(len(features)):
        own = centroids[int(target[i])]
        loss = _distance(features[i], own, squared)
        for j in range(len(centroids)):
            if j != target[i]:
                push = _distance(features[i], others[j], squared)
                if centre_term:
                    push = push + _distance(own, others[j], squared)
                loss = loss - push / (len(centroids) - 1)
        losses.append(loss)
    return _over_batch(losses, mask)


def _bessel(order, square):
    """I_v(x) / (x / 2)^v by its power series; every term is positive. Up to x = 60 or so."""
    return sum((square / 4) ** k * math.exp(-math.lgamma(k + 1) - math.lgamma(order + k + 1)) for k in range(120))


def proco_loss(embeddings, target, means, class_counts, temperature, max_concentration=1e5):
    """Du et al.: -log of pi_y M_y / sum_k pi_k M_k, M_k = C(kappa_k) / C(||kappa_k mu_k + z / t||)."""
    width = embeddings.shape[1]
    order = width / 2 - 1
    losses = []
    for i in range(len(embeddings)):
        terms = []
        for k in range(len(means)):
            length = torch.sqrt(sum(means[k, d] ** 2 for d in range(width)))
            kappa = torch.clamp(length * (width - length ** 2) / (1 - length ** 2), max=max_concentration)
            shifted = sum((kappa * means[k, d] / length + embeddings[i, d] / temperature) ** 2 for d in range(width))
            terms.append(class_counts[k] * _bessel(order, shifted) / _bessel(order, kappa ** 2))
        losses.append(-torch.log(terms[int(target[i])] / sum(terms)))
    return sum(losses) / len(losses)
