"""Models registered with timm. Importing this package is what registers them."""
from .resnet_cifar import ResNetCifar
from .two_branch import TwoBranchResNetCifar, attach_branches, deployed_state_dict

__all__ = ['ResNetCifar', 'TwoBranchResNetCifar', 'attach_branches', 'deployed_state_dict']
