"""Models registered with timm. Importing this package is what registers them."""
from .feature_classifier import FeatureClassifier, replace_classifier
from .resnet_cifar import ResNetCifar
from .resnet_small import ResNetSmall
from .two_branch import TwoBranchResNetCifar, attach_branches, deployed_state_dict
from .two_branch_resnet import TwoBranchResNet

__all__ = [
    'FeatureClassifier',
    'ResNetCifar',
    'ResNetSmall',
    'TwoBranchResNet',
    'TwoBranchResNetCifar',
    'attach_branches',
    'deployed_state_dict',
    'replace_classifier',
]
