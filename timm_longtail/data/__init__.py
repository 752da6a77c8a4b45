"""Long-tailed data sets, views and loaders."""
from .create import create_dataset, create_splits, default_imbalance_factor, list_datasets
from .dataset import LongTailDataset
from .loaders.create import create_loader
from .loaders.loader import Batch
from .loaders.resident import DeviceLoader
from .loaders.sharding import ShardedBatches
from .loaders.workers import WorkerLoader
from .longtail import (
    head_tail_groups,
    hold_out_indices,
    image_digests,
    long_tail_counts,
    long_tail_indices,
    shot_groups,
    subset_hash,
)
from .packed import packed_data, read_packed, write_packed
from .preprocessing import Preprocessing
from .samplers import (
    ClassSampler,
    EpochSampler,
    InstanceSampler,
    PowerSampler,
    ProgressiveSampler,
    UniformSampler,
    class_probabilities,
    create_sampler,
    list_samplers,
)

# every file that registers data sets; one that is not imported here has no names
from .sources import benchmarks, digits, folder, hub, lists  # noqa: F401
from .sources.registry import find_dataset, register_dataset

# the file that registers views
from .views import presets  # noqa: F401
from .views.view import View, create_view, list_views, register_view

__all__ = [
    'Batch',
    'ClassSampler',
    'DeviceLoader',
    'EpochSampler',
    'InstanceSampler',
    'LongTailDataset',
    'PowerSampler',
    'Preprocessing',
    'ProgressiveSampler',
    'ShardedBatches',
    'UniformSampler',
    'View',
    'WorkerLoader',
    'class_probabilities',
    'create_dataset',
    'create_loader',
    'create_sampler',
    'create_splits',
    'create_view',
    'default_imbalance_factor',
    'find_dataset',
    'head_tail_groups',
    'hold_out_indices',
    'image_digests',
    'list_datasets',
    'list_samplers',
    'list_views',
    'long_tail_counts',
    'long_tail_indices',
    'packed_data',
    'read_packed',
    'register_dataset',
    'register_view',
    'shot_groups',
    'subset_hash',
    'write_packed',
]
