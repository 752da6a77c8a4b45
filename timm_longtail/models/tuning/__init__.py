"""What is trained of a model: an option of its own beside the method. One tuning is one file."""
from . import adaptformer, lora, parts
from .registry import Tuning, create_tuning, list_tunings, parse_tuning, register_tuning
from .tuned import (
    check_added,
    deploy_tuned,
    frozen_digest,
    frozen_names,
    hold_frozen,
    load_trained_state_dict,
    share_frozen,
    trained_state_dict,
    tune_model,
    tuning_name,
    tuning_words,
)

__all__ = [
    'Tuning',
    'adaptformer',
    'check_added',
    'create_tuning',
    'deploy_tuned',
    'frozen_digest',
    'frozen_names',
    'hold_frozen',
    'list_tunings',
    'load_trained_state_dict',
    'lora',
    'parse_tuning',
    'parts',
    'register_tuning',
    'share_frozen',
    'trained_state_dict',
    'tune_model',
    'tuning_name',
    'tuning_words',
]
