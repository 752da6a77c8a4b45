"""Improved Baselines with Momentum Contrastive Learning (MoCo v2)

X. Chen et al., 2020, https://arxiv.org/abs/2003.04297; K. He et al., CVPR 2020,
https://arxiv.org/abs/1911.05722. The defaults are those of PNDA on CIFAR-100 (A. Miyai et al., WACV
2023, https://arxiv.org/abs/2210.12681).

Shapes: B batch of this process, W processes, T turns of a key, K keys queued, D width of features,
    E of embeddings.
"""
import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..evaluation.evaluators import KNNEvaluator
from ..losses import pnda_loss
from ..models import attach_branches
from ..models.layers import BatchNormGroups, projection_mlp, refuse_sync_batch_norm, unit_rows
from ..models.tuning import share_frozen
from ..utils.distributed import all_gather_cat, rank, world_size
from ..utils.errors import UserError
from ._method import Batch, Batches, ClassCounts, Method
from ._registry import register_method


@register_method('moco')
class MoCo(Method):
    """Contrast of a view with another of the same image, by a slowly moving encoder, against the keys of a queue.

    No label is used; a vote of the nearest training images stands in for accuracy.

    Args:
        model: timm model; it keeps no classifier. `projector` is added.
        class_counts: Training images of each class, [C]; for the evaluation only.
        queue_size: Number K of keys that a query is compared with.
        momentum: Share of itself that the key encoder keeps in a step.
        temperature: Temperature of the loss.
        hidden_features: Hidden width of the projector; None is D.
        out_features: Width E of the embeddings.
        bn_groups: Number of parts of the global batch that BatchNorm takes its statistics over, for
            any number of processes; 4 is that of the published runs. Keys are shuffled among them,
            so that statistics do not tell which key is a query's own.
        views: View of the query and of the key.
    """

    # few images fill the queue with themselves: their accuracy says nothing
    overfit_check = ('train_contrast', 0.15)

    turns: tuple[int, ...] = (0,)
    """Quarter turns of each key, the first of them none."""

    queue: torch.Tensor
    queue_start: torch.Tensor

    def __init__(
            self,
            model: nn.Module,
            class_counts: ClassCounts,
            *,
            queue_size: int = 4096,
            momentum: float = 0.999,
            temperature: float = 0.2,
            hidden_features: int | None = None,
            out_features: int = 128,
            bn_groups: int = 4,
            views: tuple[str, str] = ('sim', 'sim'),
    ):
        super().__init__(model, class_counts)
        if isinstance(views, str) or len(views) != 2:
            raise UserError(f'two views are compared, the query\'s and the key\'s; got {views}')
        if bn_groups < 1 or bn_groups % world_size():
            raise UserError(
                f'bn_groups={bn_groups} cannot be divided among {world_size()} processes')

        self.views = tuple(views)
        self.forwards_per_image = 1 + len(self.turns)
        self.momentum = momentum
        self.temperature = temperature
        self.bn_groups = bn_groups // world_size()  # of this process

        # the query encoder, which is deployed, and the key encoder
        self.model.reset_classifier(0)
        width = self.model.head_hidden_size
        projector = projection_mlp(width, hidden_features or width, out_features)
        attach_branches(model, {'projector': projector})
        self.key_model = copy.deepcopy(self.model).requires_grad_(False)
        share_frozen(self.key_model, self.model)
        self._run_key_backbone = self._key_backbone
        self._compiled = False

        self.register_buffer('queue', unit_rows(torch.randn(queue_size, out_features)))
        self.register_buffer('queue_start', torch.zeros((), dtype=torch.int64))

    def train(self, mode: bool = True) -> 'MoCo':
        super().train(mode)

        # what is frozen in the query encoder is in eval mode, and so it is in the key encoder
        for key_module, module in zip(self.key_model.modules(), self.model.modules(), strict=True):
            key_module.training = module.training
        return self

    @classmethod
    def num_outputs(cls, num_classes: int) -> int:
        return 0

    def create_evaluator(self, shot_counts: Sequence[int]) -> KNNEvaluator:
        return KNNEvaluator(shot_counts)

    def check_run(self, num_epochs: int, batch_size: int):
        refuse_sync_batch_norm(self)
        self._check_groups(batch_size)
        self._check_queue(batch_size * world_size())

    def _check_groups(self, batch_size: int):
        if batch_size % self.bn_groups or batch_size < 2 * self.bn_groups:
            raise UserError(
                f'a batch of {batch_size} cannot be cut into {self.bn_groups} groups of two or more: '
                f'bn_groups')

    def _check_queue(self, num_keys: int):
        if num_keys > len(self.queue):
            raise UserError(
                f'queue_size={len(self.queue)} is shorter than a global batch of {num_keys}')

    def start_epoch(self, epoch: int, num_epochs: int, rng: np.random.Generator, batches: Batches):
        self.rng = rng
        refuse_sync_batch_norm(self)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x, x_key), _, index = batch
        self._check_groups(len(x))
        query = self._embed(self.model, self.features, x, self.bn_groups)  # [B, E]
        keys = self._keys(x_key)  # [T, WB, E]

        # the keys of this process, each in T turns
        first = rank() * len(x)
        own = keys[:, first:first + len(x)]  # [T, B, E]
        key = own[0]  # [B, E]
        turned = own[1:].transpose(0, 1)  # [B, T - 1, E]

        queue = self.queue.clone()  # as it is before these keys enter it
        loss = pnda_loss(query, key, turned, self.rotation_positive(index), queue, self.temperature)
        self._enqueue(keys[0])
        return {'loss': loss, 'output': None, **_seen(query.detach(), key, queue)}

    def rotation_positive(self, index: torch.Tensor) -> torch.Tensor:
        """Return whose turned keys are positives, bool [B], for images [B] of the data set."""
        return torch.zeros_like(index, dtype=torch.bool)

    def _embed(
            self,
            model: Any,
            backbone: Callable[[torch.Tensor], torch.Tensor],
            x: torch.Tensor,
            num_groups: int,
    ) -> torch.Tensor:
        """Embed images; BatchNorm takes its statistics over each group of them.

        Args:
            model: Model whose projector is used.
            backbone: Its function from images to features.
            x: Images [B, 3, H, W].
            num_groups: Equal parts of the batch, in their order.
        """
        # compiled code may not see the groups of the context, and is run group by group
        parts = x.chunk(num_groups) if self._compiled else (x,)
        with BatchNormGroups(num_groups // len(parts)):
            features = torch.cat([backbone(part) for part in parts])

        with BatchNormGroups(num_groups):
            return unit_rows(model.branches['projector'](features))

    @torch.no_grad()
    def _keys(self, x: torch.Tensor) -> torch.Tensor:
        """Embed the images of all processes in every turn, [T, WB, E] in their order.

        They are embedded in random groups, so that BatchNorm's statistics do not tell which key is
        a query's own.
        """
        images = all_gather_cat(x)  # [WB, 3, H, W]

        # an order for each turn, equal on all processes, of which each embeds its share
        orders = np.stack([self.rng.permutation(len(images)) for _ in self.turns])  # [T, WB]
        first = rank() * len(x)
        share = orders[:, first:first + len(x)].copy()
        rows = torch.from_numpy(share).to(x.device, non_blocking=True)  # [T, B]
        places = torch.from_numpy(orders.argsort(axis=1)).to(x.device, non_blocking=True)  # [T, WB]

        # one forward, in which each turn has statistics of its own
        turned = [images[row].rot90(turn, (2, 3)) for turn, row in zip(self.turns, rows)]
        num_groups = self.bn_groups * len(self.turns)
        keys = self._embed(self.key_model, self._run_key_backbone, torch.cat(turned), num_groups)  # [TB, E]

        # from the order of the processes to that of the images
        keys = all_gather_cat(keys).unflatten(0, (-1, *rows.shape))  # [W, T, B, E]
        keys = keys.transpose(0, 1).flatten(1, 2)  # [T, WB, E]
        return keys.gather(1, places[:, :, None].expand_as(keys))

    def _enqueue(self, keys: torch.Tensor):
        """Put keys [WB, E] in the place of the oldest."""
        self._check_queue(len(keys))
        places = (self.queue_start + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.queue_start.add_(len(keys)).remainder_(len(self.queue))

    def after_step(self, phase: str):
        # parameters only: BatchNorm of the key encoder has statistics of its own
        keys, queries = [], []
        for key, query in zip(self.key_model.parameters(), self.model.parameters(), strict=True):
            if key is not query:  # what is frozen is shared
                keys.append(key)
                queries.append(query)
        torch._foreach_lerp_(keys, queries, 1 - self.momentum)

    def compile_features(self, **kwargs):
        super().compile_features(**kwargs)
        self._run_key_backbone = torch.compile(self._key_backbone, **kwargs)
        self._compiled = True

    def _key_backbone(self, x: torch.Tensor) -> torch.Tensor:
        maps = self.key_model.forward_features(x)
        return self.key_model.forward_head(maps, pre_logits=True)


def _seen(query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what is logged of queries [B, E], their keys [B, E] and the queue [K, E].

    `key_accuracy` is the share of queries whose own key is nearer than any in the queue; `contrast`
    is the mean similarity to the own key, less that to the other keys of the batch.
    """
    with torch.autocast(query.device.type, enabled=False):
        similarity = query @ key.T  # [B, B]
        own = similarity.diagonal()
        nearest_queued = (query @ queue.T).amax(1)

        num_others = max(1, similarity.numel() - len(query))
        mean_other = (similarity.sum() - own.sum()) / num_others
        return {
            'key_accuracy': (own > nearest_queued).double().mean(),
            'contrast': own.mean() - mean_other,
        }
