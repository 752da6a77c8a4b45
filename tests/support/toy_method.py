"""A method that uses every hook of the seam; its state betrays a hook that is not called, saved or resumed."""
import json

import torch
from torch import nn
from torch.nn import functional as F

from timm_longtail.data import UniformSampler
from timm_longtail.evaluation.evaluators import LongTailEvaluator
from timm_longtail.methods import Batch, Method
from timm_longtail.utils.distributed import all_gather_cat


class ToyEvaluator(LongTailEvaluator):
    """Adds the number of training images that it was shown, so that a missing `start` is seen."""

    headline = 'balanced'

    def start(self, model, train_batches):
        super().start(model, train_batches)
        self.num_train = sum(len(target) for _, target, _ in train_batches())

    def compute(self, reduce=True):
        return {**super().compute(reduce), 'num_train': self.num_train}


class Toy(Method):
    """Two streams, two phases, a moving average, a centre loss, noise from both generators."""

    phases = ('main', 'centres')
    forwards_per_image = 1  # of its two views it looks at one

    def __init__(self, model, class_counts, *, momentum: float = 0.9, drop_rate: float = 0.1):
        super().__init__(model, class_counts)
        self.views = ('crop_flip', 'flip')
        self.momentum = momentum
        self.drop_rate = drop_rate
        num_classes, width = len(self.class_counts), model.head_hidden_size
        self.centres = nn.Parameter(torch.zeros(num_classes, width))
        self.register_buffer('average', torch.zeros(num_classes))
        self.register_buffer('steps', torch.zeros(2, dtype=torch.int64))
        self.register_buffer('seen', torch.zeros((), dtype=torch.int64))

    @classmethod
    def num_outputs(cls, num_classes):
        return num_classes + 1

    def samplers(self, targets):
        return None, UniformSampler(len(targets))

    def param_groups(self, phase):
        if phase == 'centres':
            return [{'params': [self.centres], 'lr': 0.5, 'momentum': 0.0, 'weight_decay': 0.0}]
        return [{'params': list(self.model.parameters())}]

    def start_epoch(self, epoch, num_epochs, rng, batches):
        self.weight = 1 - (epoch / num_epochs) ** 2
        self.rng = rng
        if epoch == 0:
            (x, *_), target, index = next(iter(batches()))
            self.seen += len(index)
            assert len(batches.digests) > index.max()

    def forward(self, first: Batch, second: Batch, phase='main'):
        (x1, x2), target, _ = first
        (y1, _), other, _ = second
        lam = self.rng.beta(1.0, 1.0)  # drawn step by step: resuming needs the generator's state
        if phase == 'centres':
            features = self.features(x1).detach()
            loss = (features - self.centres[target]).square().sum(dim=1).mean()
            return {'loss': loss + 0 * sum(p.sum() for p in self.model.parameters()), 'output': None}
        features = self.features(torch.cat((lam * x1 + (1 - lam) * y1, x2)))
        features = F.dropout(features, self.drop_rate, self.training)  # torch's global generator
        output = self.logits(features[:len(target)])[:, :-1]
        loss = lam * F.cross_entropy(output, target) + (1 - lam) * F.cross_entropy(output, other)
        gathered = all_gather_cat(features[len(target):])
        spread = self.weight * gathered.var(dim=0).mean()
        # reaches the parameters of the other phase: a gradient that must not wait there for that phase's step
        pull = (features[:len(target)] - self.centres[target]).square().mean()
        return {'loss': loss + 0.01 * (spread + pull), 'output': output, 'spread': spread}

    def after_step(self, phase):
        self.steps[self.phases.index(phase)] += 1
        if phase == 'main':
            bias = self.model.get_classifier().weight[:-1].mean(dim=1)
            self.average.lerp_(bias, 1 - self.momentum)

    def create_evaluator(self, shot_counts):
        return ToyEvaluator([*shot_counts, 0])

    def finish(self, folder, model, batches):
        (folder / 'toy.json').write_text(json.dumps({'num_train': sum(len(t) for _, t, _ in batches())}))
