"""The licence of exported weights."""
from .metadata import is_ours

__all__ = ['license_of']


def license_of(model: str, pretrained: bool, initial_checkpoint: str, asked: str | None) -> str | None:
    """Return the licence of weights for their card.

    Args:
        model: Name of the architecture.
        pretrained: Whether the weights started from those of the model.
        initial_checkpoint: File that the weights started from; '' for none.
        asked: Licence that was asked for, or None.

    Returns:
        The licence asked for; None, the model's own, of our weights and of pretrained ones; '',
        unknown, of others.
    """
    if asked:
        return asked

    is_known = pretrained or is_ours(model)
    if is_known and not initial_checkpoint:
        return None
    return ''
