"""`timm-longtail push`: check, show and upload an exported model to the Hub."""
import argparse
from pathlib import Path

from ..config.parser import Parser
from ..evaluation.tables import format_table
from ..export.checks import FILES
from ..export.hub import check_export, push_model
from ..export.hub_client import ANSWER_SECONDS
from ..export.metadata import is_ours, model_name, shown_metrics
from ..utils.ranges import Number

__all__ = ['create_parser', 'main']


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(description='Upload an exported model to the Hub.')
    parser.add_argument('folder', help='folder that a training run exported, or one of hub/')
    parser.add_argument(
        '--repo-id', required=True, metavar='USER/NAME', help='model repository; created if need be')
    parser.add_argument('--private', action='store_true', help='create it private')
    parser.add_argument('--revision', help='branch, created if need be; without it main')
    parser.add_argument('--message', help='first line of the commit')
    parser.add_argument(
        '--replace', action='store_true', help='delete other files that the repository holds')
    parser.add_argument(
        '--timeout', type=Number(float, '(0, 86400]'), default=ANSWER_SECONDS, metavar='SECONDS',
        help='time that the Hub may take to answer; an upload has more, by its size')
    return parser


def main(argv: list[str] | None = None):
    """Check, show and upload a folder.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: The folder is no export, or the Hub refuses it.
    """
    args = create_parser().parse_args(argv)

    # what is sent, and where to
    folder = Path(args.folder)
    config = check_export(folder)
    sizes = ', '.join(f'{name} {(folder / name).stat().st_size / 1e3:.1f} kB' for name in FILES)
    print(f'{model_name(config)}: {sizes}')
    if shown_metrics(config):
        print(format_table({'last epoch': config['timm_longtail']['metrics']}))

    repository = f'{args.repo_id}@{args.revision}' if args.revision else args.repo_id
    print(f'to {repository}', flush=True)

    url = push_model(
        folder,
        args.repo_id,
        private=args.private,
        revision=args.revision,
        commit_message=args.message,
        replace=args.replace,
        timeout=args.timeout,
    )

    print(url)
    before = ', after `import timm_longtail`,' if is_ours(config['architecture']) else ''
    print(f'load it with{before}')
    print(f'timm.create_model(\'hf-hub:{repository}\', pretrained=True)')
