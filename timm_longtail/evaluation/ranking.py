"""How well the scores of classes rank images: areas under curves, one class against the others.

Shapes: N images, C classes.
"""
import torch

from ..utils.progress import progress

__all__ = ['ranking_figures']

# what stands for the logarithm of 0
_LOWEST = -1e30


def ranking_figures(log_probs: torch.Tensor, targets: torch.Tensor) -> dict[str, float | None]:
    """Return means over classes, in percent, of two areas: under the ROC curve, and the average precision.

    A class counts once, whatever its number of images. One without images, or with all of them, has
    no area.

    Args:
        log_probs: Log probabilities, float32 [N, C].
        targets: Class of each image, int64 [N].

    Returns:
        `macro_auroc` and `macro_ap`; None where no class has an area.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    labels = targets.numpy()
    counts = torch.bincount(targets, minlength=log_probs.shape[1])
    measured = [label for label, count in enumerate(counts.tolist()) if 0 < count < len(labels)]

    aurocs, precisions = [], []
    for label in progress(measured, 'ranking', unit='class'):
        is_label = labels == label
        scores = log_probs[:, label].clamp(min=_LOWEST).numpy()  # a class at a time: all may be a gigabyte
        aurocs.append(roc_auc_score(is_label, scores))
        precisions.append(average_precision_score(is_label, scores))

    if not measured:
        return {'macro_auroc': None, 'macro_ap': None}
    return {
        'macro_auroc': 100 * float(sum(aurocs)) / len(measured),
        'macro_ap': 100 * float(sum(precisions)) / len(measured),
    }
