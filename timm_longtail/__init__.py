"""Long-tailed image recognition as a timm plugin. Importing the package registers its models with timm."""
from . import models as models  # registers the models
from .models import attach_branches
from .version import __version__

__all__ = ['__version__', 'attach_branches']
