"""From a trained model to a folder that timm loads, and to the Hub."""
from .deploy import deploy
from .folder import export_model
from .hub import push_model
from .loading import load_exported

__all__ = ['deploy', 'export_model', 'load_exported', 'push_model']
