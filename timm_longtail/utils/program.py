"""What this process is called: in usage and errors, and in commands to type again."""
import sys
from pathlib import Path

__all__ = ['COMMAND', 'MODULE', 'program_name']

# the two ways to start a command of the package; `sys.argv[0]` begins with the one that was taken
COMMAND = 'timm-longtail'
MODULE = 'python -m timm_longtail'


def program_name() -> str:
    """Return the name for usage and errors: `timm-longtail train` however it was started, or the script, `train.py`."""
    name = Path(sys.argv[0]).name
    if name.startswith(MODULE):
        return COMMAND + name.removeprefix(MODULE)
    return name
