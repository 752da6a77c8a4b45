"""Models registered with timm. Importing this package is what registers them."""
from . import cosine_classifier
from .adapters import add_adapters
from .feature_classifier import FeatureClassifier, replace_classifier, set_classifier
from .resnet_cifar import ResNetCifar
from .resnet_small import ResNetSmall
from .tuning import list_tunings, tune_model
from .two_branch import TwoBranchResNetCifar, attach_branches, deployed_state_dict
from .two_branch_resnet import TwoBranchResNet

__all__ = [
    'FeatureClassifier',
    'ResNetCifar',
    'ResNetSmall',
    'TwoBranchResNet',
    'TwoBranchResNetCifar',
    'add_adapters',
    'attach_branches',
    'cosine_classifier',
    'deployed_state_dict',
    'list_tunings',
    'replace_classifier',
    'set_classifier',
    'tune_model',
]
