"""Losses of class scores, the weights of classes and the labels of mixed pairs, as loops written from the equations."""
import torch


def _weighted_mean(losses, target, weight):
    """Sum of w l over sum of w, w the weight of the row's class."""
    weights = [1.0 if weight is None else float(weight[y]) for y in target.tolist()]
    return sum(w * loss for w, loss in zip(weights, losses)) / sum(weights)


def _probabilities(scores):
    """Softmax of a list of scores, from its definition."""
    exponentials = [torch.exp(score) for score in scores]
    return [e / sum(exponentials) for e in exponentials]


def focal_loss(logits, target, gamma=2.0, weight=None, inner_weight=False):
    """Lin et al., equation (4): -(1 - p)^gamma log p. LDAM's code has the cross-entropy weighted before p = e^-CE."""
    losses = []
    for i, y in enumerate(target.tolist()):
        p = _probabilities(list(logits[i]))[y]
        if inner_weight:
            cross_entropy = -torch.log(p) * (1.0 if weight is None else float(weight[y]))
            losses.append((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy)
        else:
            losses.append(-(1 - p) ** gamma * torch.log(p))
    return sum(losses) / len(losses) if inner_weight else _weighted_mean(losses, target, weight)


def softmax_binary_cross_entropy(logits, target, weight=None):
    """Second stage of weight balancing as released: -t log p - (1 - t) log(1 - p) of every class, their mean."""
    num_classes = logits.shape[1]
    total = 0 * logits.sum()
    for i, y in enumerate(target.tolist()):
        for k, p in enumerate(_probabilities(list(logits[i]))):
            loss = -torch.log(p) if k == y else -torch.log(1 - p)
            total = total + loss * (1.0 if weight is None else float(weight[y]))
    return total / (len(logits) * num_classes)


def ldam_loss(logits, target, class_counts, max_margin=0.5, scale=30.0, weight=None):
    """Cao et al.: margins K / n^(1/4) with the K that makes the largest `max_margin`, taken off the target's score."""
    roots = [1 / float(count) ** 0.25 for count in class_counts]
    constant = max_margin / max(roots)
    losses = []
    for i, y in enumerate(target.tolist()):
        scores = [scale * (score - constant * roots[k] if k == y else score) for k, score in enumerate(logits[i])]
        losses.append(-torch.log(_probabilities(scores)[y]))
    return _weighted_mean(losses, target, weight)


def class_balanced_weights(class_counts, beta):
    """Cui et al.: the inverse of the effective number 1 + beta + beta^2 + … of n terms, with a sum of C."""
    weights = []
    for count in class_counts:
        effective_number = sum(beta ** i for i in range(int(count)))
        weights.append(1 / effective_number)
    return [len(weights) * weight / sum(weights) for weight in weights]


def remix_share(lam, count, other_count, kappa, tau):
    """Chou et al.: the share of its own label that the image of a class with `count` images keeps."""
    if count / other_count >= kappa and lam < tau:
        return 0.0
    if count / other_count <= 1 / kappa and 1 - lam < tau:
        return 1.0
    return lam
