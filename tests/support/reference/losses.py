"""The losses as loops over anchors, classes and terms, written from the equations. Nothing here is vectorised."""
import math

import torch

from .margins import focal_loss, ldam_loss, softmax_binary_cross_entropy

__all__ = [
    'balanced_sup_con_loss', 'focal_loss', 'ldam_loss', 'logit_adjusted_cross_entropy',
    'softmax_binary_cross_entropy', 'sup_con_loss',
]


def _mean(losses):
    return sum(losses) / len(losses)


def logit_adjusted_cross_entropy(logits, target, class_counts, tau=1.0):
    """Menon et al., equation (10): -log of e^(f_y + tau log pi_y) / sum_k e^(f_k + tau log pi_k)."""
    total = sum(float(count) for count in class_counts)
    losses = []
    for i in range(len(logits)):
        adjusted = [logits[i, k] + tau * math.log(float(count) / total) for k, count in enumerate(class_counts)]
        log_probs = [f - torch.log(sum(torch.exp(g) for g in adjusted)) for f in adjusted]
        if target.ndim == 1:
            losses.append(-log_probs[int(target[i])])
        else:
            losses.append(-sum(target[i, k] * log_probs[k] for k in range(len(log_probs))))
    return _mean(losses)


def sup_con_loss(embeddings, target, temperature):
    """Khosla et al., equation (2), with anchors that have no positive at 0."""
    num_rows = len(embeddings)
    losses = []
    for i in range(num_rows):
        positives = [p for p in range(num_rows) if p != i and target[p] == target[i]]
        if not positives:
            losses.append(embeddings[i].sum() * 0)
            continue
        denominator = 0
        for a in range(num_rows):
            if a != i:
                denominator = denominator + torch.exp(torch.dot(embeddings[i], embeddings[a]) / temperature)
        terms = [
            torch.log(torch.exp(torch.dot(embeddings[i], embeddings[p]) / temperature) / denominator)
            for p in positives
        ]
        losses.append(-sum(terms) / len(positives))
    return _mean(losses)


def balanced_sup_con_loss(embeddings, target, prototypes, temperature):
    """Zhu et al.: class-averaging over the rows of a class, completed by its prototype (class-complement)."""
    losses = []
    for i in range(len(embeddings)):
        positives, denominator = [], 0
        for k in range(len(prototypes)):
            members = [embeddings[j] for j in range(len(embeddings)) if j != i and target[j] == k] + [prototypes[k]]
            if target[i] == k:
                positives = members
            exponentials = [torch.exp(torch.dot(embeddings[i], member) / temperature) for member in members]
            denominator = denominator + sum(exponentials) / len(exponentials)
        terms = [torch.log(torch.exp(torch.dot(embeddings[i], p) / temperature) / denominator) for p in positives]
        losses.append(-sum(terms) / len(positives))
    return _mean(losses)
