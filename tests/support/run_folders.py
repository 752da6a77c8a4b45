"""Output folders as runs write them, of a model that never was: for what reads runs."""
import csv
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from timm_longtail.evaluation.evaluators import LongTailEvaluator

# names that a page must show as text: markup, quotes, line breaks, text from right to left
NASTY = [
    '<script>alert(1)</script>', '"quoted" & \'single\'', 'two\nlines', '\u202etfel ot thgir', 'كلب',
    '{{ 7 * 7 }}', '</title><img src=x onerror=alert(2)>', '&lt;already&gt;', 'a' * 300, '`back` ${ticks}',
]
COUNTS = [400, 200, 120, 90, 60, 40, 25, 12, 8, 5]


def write_run(
        folder: Path,
        names: list[str] | None = None,
        counts: list[int] | None = None,
        seed: int = 0,
        method: str = 'bcl',
        num_test: int = 12,
        predictions: bool = True,
) -> Path:
    """Write the output folder of a training; what is predicted is drawn by the seed, better for frequent classes.

    Args:
        folder: Folder to write.
        names: Name of each class [C]; by default those of `NASTY`.
        counts: Training images of each class [C].
        seed: Seed of the run.
        method: Method that it says it was trained with.
        num_test: Test images of each class.
        predictions: Whether to write `predictions.csv`.
    """
    names = NASTY if names is None else names
    counts = COUNTS if counts is None else counts
    num_classes = len(names)

    random = torch.Generator().manual_seed(seed)
    target = torch.arange(num_classes).repeat_interleave(num_test)
    logits = 2 * torch.randn(len(target), num_classes, generator=random) + torch.tensor(counts).log()
    logits[torch.arange(len(target)), target] += 3
    evaluator = LongTailEvaluator(counts)
    evaluator.add(logits, target)
    figures = evaluator.compute()

    folder.mkdir(parents=True)
    row = {
        'model': 'local-dir:/home/ada/runs/first/export',
        'method': method, 'method_kwargs': {}, 'dataset': 'folder', 'dataset_name': 'photos',
        'subset_hash': '0123456789ab', 'class_counts': counts, 'shot_counts': counts, 'seed': seed, 'epochs': 3,
        'global_batch_size': 64, 'command': f'timm-longtail train --data-dir /home/ada/photos --seed {seed}',
        'environment': {'torch': '2.9.0', 'timm': '1.0.31'}, 'tree_hash': 'f' * 64, 'dirty': False,
        'last': figures, 'best': {'epoch': 1, 'selected_by': 'test', 'all': figures['all']},
    }
    (folder / 'metrics.json').write_text(json.dumps(row))
    (folder / 'class_counts.json').write_text(json.dumps({'class_names': names}))
    options = {'model': 'resnet20_cifar', 'method': method, 'seed': seed, 'dataset': 'folder', 'lr': 0.1}
    (folder / 'args.yaml').write_text(yaml.safe_dump(options))

    with open(folder / 'summary.csv', 'w', newline='') as f:
        writer = csv.writer(f)
        writer.writerow(['epoch', 'train_loss', 'eval_loss', 'eval_all', 'eval_balanced', 'eval_few'])
        writer.writerows([[0, 2.0, 2.5, 20.0, 18.0, ''], [1, 1.5, '', '', '', ''], [2, 1.0, 1.8, 60.0, 50.0, 10.0]])

    if predictions:
        confidence, predicted = logits.softmax(dim=1).max(dim=1)
        with open(folder / 'predictions.csv', 'w', newline='', encoding='utf-8') as f:
            writer = csv.writer(f)
            writer.writerow(['image', 'target', 'predicted', 'confidence', 'target_name', 'predicted_name'])
            for position, (a, b, c) in enumerate(zip(target.tolist(), predicted.tolist(), confidence.tolist())):
                writer.writerow([f'{position}.jpg', a, b, f'{c:.6f}', names[a], names[b]])

    (folder / 'export').mkdir()
    (folder / 'export' / 'config.json').write_text(json.dumps({'pretrained_cfg': {'classifier': 'fc'}}))
    weight = np.log(np.array(counts, np.float32))[:, None] * [[0.6, 0.8]]
    tensors = {'fc.weight': torch.tensor(weight, dtype=torch.float32), 'fc.bias': torch.zeros(num_classes)}
    save_file(tensors, folder / 'export' / 'model.safetensors')
    return folder
