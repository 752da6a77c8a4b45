"""How an entry point runs: log lines, errors as one line, exit status."""
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from .engine import Interrupted
from .errors import UserError

__all__ = ['run_main']


def run_main(main: Callable[[], None]):
    """Run an entry point: a `UserError` becomes one line and exit status 2, a signal 128 plus its number."""
    is_main = os.environ.get('RANK', '0') == '0'
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format='%(message)s', stream=sys.stdout)
    logging.getLogger('timm').setLevel(logging.WARNING)
    try:
        main()
    except UserError as e:
        if is_main:
            print(f'{Path(sys.argv[0]).name}: error: {e}', file=sys.stderr)
        sys.exit(2)
    except (Interrupted, KeyboardInterrupt) as e:
        signum = getattr(e, 'signum', signal.SIGINT)
        if is_main:
            saved = isinstance(e, Interrupted)
            print(f'{e}; continue with --resume auto' if saved else 'stopped', file=sys.stderr)
        sys.exit(128 + signum)
