"""From a trained model to a folder that timm loads, and to the Hub."""
from .folder import deploy, export_model, load_exported
from .hub import push_model

__all__ = ['deploy', 'export_model', 'load_exported', 'push_model']
