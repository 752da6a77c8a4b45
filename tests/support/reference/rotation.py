"""PNDA and RAIS as loops, written from the equations of Miyai et al., WACV 2023. Nothing here is vectorised."""
import math

import torch


def _similarity(a, b, temperature):
    return torch.exp(sum(a[d] * b[d] for d in range(len(a))) / temperature)


def pnda_loss(query, key, rotated_keys, rotation_positive, queue, temperature):
    """Equation (5): a sum over the positives of one image, over one denominator of positives and negatives."""
    losses = []
    for i in range(len(query)):
        positives, negatives = [key[i]], [queue[k] for k in range(len(queue))]
        for r in range(rotated_keys.shape[1]):
            (positives if rotation_positive[i] else negatives).append(rotated_keys[i, r])
        denominator = sum(_similarity(query[i], p, temperature) for p in positives)
        denominator = denominator + sum(_similarity(query[i], n, temperature) for n in negatives)
        total = sum(torch.log(_similarity(query[i], p, temperature) / denominator) for p in positives)
        losses.append(-total / len(positives))
    return sum(losses) / len(losses)


def _softmax(row):
    exponentials = [torch.exp(row[s]) for s in range(len(row))]
    return [e / sum(exponentials) for e in exponentials]


def rotation_entropy(row):
    return -sum(p * torch.log(p) for p in _softmax(row))


def rotation_separation_loss(logits, target, weight, margin=0.2):
    """Equations (2) to (4), their sums over images and rotations divided by the rows."""
    rho = math.log(logits.shape[1]) / 2
    separation = told = 0 * logits.sum()
    for i in range(len(logits)):
        entropy = rotation_entropy(logits[i])
        if abs(entropy - rho) > margin:  # equation (2)
            separation = separation - abs(entropy - rho)
        if entropy - rho < -margin:  # equation (3)
            told = told - torch.log(_softmax(logits[i])[int(target[i])])
    return (told + weight * separation) / len(logits)  # equation (4)
