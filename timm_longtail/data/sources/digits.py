"""scikit-learn's digits: a small data set that needs no download."""
import numpy as np
import torch
from torch.nn import functional as F

from ...utils.errors import UserError
from .registry import Source, SourceOptions, hold_out_split, register_dataset


@register_dataset('digits_lt', imbalance_factor=20)
def _digits(split: str, options: SourceOptions) -> Source:
    """scikit-learn's 8x8 digits, up-sampled to 32x32 RGB; 20 % of each class are the test split."""
    from sklearn.datasets import load_digits

    if options.data_dir is not None:
        raise UserError(
            'digits_lt comes with scikit-learn; it takes no --data-dir (--dataset folder takes one)')

    digits = load_digits()
    rows = hold_out_split(digits.target, split)

    # levels 0 to 16
    grey = torch.from_numpy(digits.images[rows]).float() * (255 / 16)
    large = F.interpolate(grey[:, None], size=(32, 32), mode='bilinear', align_corners=False)
    return Source(
        targets=digits.target[rows].astype(np.int64),
        class_names=[str(digit) for digit in range(10)],
        images=large.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(),
        names=[f'digit_{row:04d}' for row in rows],
        mean=(0.3051,) * 3,
        std=(0.3234,) * 3,
        published=True,
    )
