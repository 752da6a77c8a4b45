"""Improved Baselines with Momentum Contrastive Learning (MoCo v2)

X. Chen et al., 2020, https://arxiv.org/abs/2003.04297; K. He et al., CVPR 2020, https://arxiv.org/abs/1911.05722. The
defaults are those of PNDA on CIFAR-100 (A. Miyai et al., WACV 2023, https://arxiv.org/abs/2210.12681).

Shapes: B batch of this process, W processes, T turns of a key, K keys queued, D width of features, E of embeddings.
"""
import copy

import numpy as np
import torch
from torch import nn

from ..evaluation.evaluators import KNNEvaluator
from ..losses import pnda_loss
from ..models import attach_branches
from ..models.layers import BatchNormGroups, projection_mlp, refuse_sync_batch_norm, unit_rows
from ..utils.distributed import all_gather_cat, rank, world_size
from ..utils.errors import UserError
from ._method import Batch, Method
from ._registry import register_method


@register_method('moco')
class MoCo(Method):
    """Contrast of a view with another of the same image, by a slowly moving encoder, against the keys of a queue.

    No label is used; a vote of the nearest training images stands in for accuracy.

    Args:
        model: timm model; it keeps no classifier. `projector` is added.
        class_counts: Training images of each class, [C]; for the evaluation only.
        queue_size: Keys K that a query is compared with.
        momentum: Share of itself that the key encoder keeps in a step.
        temperature: Temperature of the loss.
        hidden_features, out_features: Hidden width of the projector (None is D), and width E of the embeddings.
        bn_groups: Parts of the global batch that BatchNorm takes its statistics over, whatever the number of processes:
            4 are the four of the published runs. Keys are shuffled among them, so that statistics give nothing away.
        views: View of the query and of the key.
    """

    overfit_check = ('train_contrast', 0.15)  # few images fill the queue with themselves: no accuracy to ask for
    turns: tuple[int, ...] = (0,)  # quarter turns of each key, the first of them none

    def __init__(
            self,
            model: nn.Module,
            class_counts,
            *,
            queue_size: int = 4096,
            momentum: float = 0.999,
            temperature: float = 0.2,
            hidden_features: int | None = None,
            out_features: int = 128,
            bn_groups: int = 4,
            views: tuple[str, str] = ('sim', 'sim'),
    ):
        if isinstance(views, str) or len(views) != 2:
            raise UserError(f'two views are compared, the query\'s and the key\'s; got {views}')
        if bn_groups < 1 or bn_groups % world_size():
            raise UserError(f'bn_groups={bn_groups} cannot be dealt to {world_size()} processes')
        model.reset_classifier(0)
        width = model.head_hidden_size
        attach_branches(model, {'projector': projection_mlp(width, hidden_features or width, out_features)})
        super().__init__(model, class_counts)
        self.views, self.forwards_per_image = tuple(views), 1 + len(self.turns)
        self.momentum = momentum
        self.temperature = temperature
        self.bn_groups = bn_groups // world_size()  # of this process
        self.key_model = copy.deepcopy(model).requires_grad_(False)
        self._run_key_backbone, self._compiled = self._key_backbone, False
        self.register_buffer('queue', unit_rows(torch.randn(queue_size, out_features)))
        self.register_buffer('queue_start', torch.zeros((), dtype=torch.int64))

    @classmethod
    def num_outputs(cls, num_classes):
        return 0

    def create_evaluator(self, shot_counts):
        return KNNEvaluator(shot_counts)

    def check_run(self, num_epochs, batch_size):
        refuse_sync_batch_norm(self)
        self._check_groups(batch_size)
        self._check_queue(batch_size * world_size())

    def _check_groups(self, batch_size: int):
        if batch_size % self.bn_groups or batch_size < 2 * self.bn_groups:
            raise UserError(
                f'a batch of {batch_size} cannot be cut into {self.bn_groups} groups of two or more: bn_groups')

    def _check_queue(self, num_keys: int):
        if num_keys > len(self.queue):
            raise UserError(f'queue_size={len(self.queue)} is shorter than a global batch of {num_keys}')

    def start_epoch(self, epoch, num_epochs, rng, batches):
        self.rng = rng
        refuse_sync_batch_norm(self)

    def forward(self, batch: Batch, phase: str = 'main') -> dict:
        (x, x_key), _, index = batch
        self._check_groups(len(x))
        query = self._embed(self.model, self.features, x, self.bn_groups)  # [B, E]
        keys = self._keys(x_key)  # [T, WB, E]
        own = keys[:, rank() * len(x):(rank() + 1) * len(x)]
        queue = self.queue.clone()  # as it is before these keys enter it
        loss = pnda_loss(query, own[0], own[1:].transpose(0, 1), self.rotation_positive(index), queue, self.temperature)
        self._enqueue(keys[0])
        return {'loss': loss, 'output': None, **_seen(query.detach(), own[0], queue)}

    def rotation_positive(self, index: torch.Tensor) -> torch.Tensor:
        """Return whose turned keys are positives, bool [B], for images [B] of the data set."""
        return torch.zeros_like(index, dtype=torch.bool)

    def _embed(self, model: nn.Module, backbone, x: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Embed images, with statistics of each group; compiled code may not see them, and runs group by group."""
        parts = x.chunk(num_groups) if self._compiled else (x,)
        with BatchNormGroups(num_groups // len(parts)):
            features = torch.cat([backbone(part) for part in parts])
        with BatchNormGroups(num_groups):
            return unit_rows(model.branches['projector'](features))

    @torch.no_grad()
    def _keys(self, x: torch.Tensor) -> torch.Tensor:
        """Embed the images of all processes in every turn, [T, WB, E] in their order; chance groups them."""
        images = all_gather_cat(x)  # [WB, 3, H, W]
        orders = np.stack([self.rng.permutation(len(images)) for _ in self.turns])  # [T, WB], equal on all processes
        share = orders[:, rank() * len(x):(rank() + 1) * len(x)].copy()
        rows, back = (torch.from_numpy(a).to(x.device, non_blocking=True) for a in (share, orders.argsort(axis=1)))
        turned = torch.cat([images[r].rot90(turn, (2, 3)) for turn, r in zip(self.turns, rows)])  # [TB, 3, H, W]
        # one forward: each turn has statistics of its own
        keys = self._embed(self.key_model, self._run_key_backbone, turned, self.bn_groups * len(self.turns))
        keys = all_gather_cat(keys).unflatten(0, (-1, *rows.shape)).transpose(0, 1).flatten(1, 2)  # [T, WB, E]
        return keys.gather(1, back[:, :, None].expand_as(keys))

    def _enqueue(self, keys: torch.Tensor):
        """Put keys [WB, E] in the place of the oldest."""
        self._check_queue(len(keys))
        places = (self.queue_start + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.queue_start.add_(len(keys)).remainder_(len(self.queue))

    def after_step(self, phase: str):
        torch._foreach_lerp_([*self.key_model.parameters()], [*self.model.parameters()], 1 - self.momentum)

    def compile_features(self, **kwargs):
        super().compile_features(**kwargs)
        self._run_key_backbone, self._compiled = torch.compile(self._key_backbone, **kwargs), True

    def _key_backbone(self, x: torch.Tensor) -> torch.Tensor:
        return self.key_model.forward_head(self.key_model.forward_features(x), pre_logits=True)


def _seen(query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> dict[str, torch.Tensor]:
    """Share of the queries [B, E] whose own key is nearer than any queued; by how much it beats others of the batch."""
    with torch.autocast(query.device.type, enabled=False):
        similarity = query @ key.T  # [B, B]
        own, num_others = similarity.diagonal(), max(1, similarity.numel() - len(query))
        return {
            'key_accuracy': (own > (query @ queue.T).amax(1)).double().mean(),
            'contrast': own.mean() - (similarity.sum() - own.sum()) / num_others,
        }
