"""Long-tailed image recognition as a timm plugin. Importing it registers the models with timm, and the methods."""
from . import models
from .evaluation.predict import predict
from .methods import create_method, list_methods
from .models import attach_branches
from .utils.version import __version__

__all__ = ['__version__', 'attach_branches', 'create_method', 'list_methods', 'models', 'predict']
