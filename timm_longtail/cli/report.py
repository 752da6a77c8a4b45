"""`timm-longtail report`: one HTML page that shows one run, or several side by side."""
import argparse
from collections.abc import Sequence
from pathlib import Path

from ..config.data_options import add_data_options, dataset_options
from ..config.parser import Parser
from ..data import create_splits
from ..evaluation.report.entries import entries_of
from ..evaluation.report.page import PAGE, write_page
from ..evaluation.report.pictures import add_gallery
from ..evaluation.report.reading import read_reports
from ..evaluation.report.run_report import RunReport
from ..utils.errors import UserError
from ..utils.files import require_place
from ..utils.private_paths import cut_folders

__all__ = ['create_parser', 'main']

# models that get thumbnails: each adds some 200 kB
_MOST_GALLERIES = 4


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = Parser(
        description='Write one page for the browser that shows a run, or several side by side: results by groups of '
                    'classes, confusion, training, calibration, images. It needs no network and can be sent to others.')
    parser.add_argument(
        'runs', nargs='+', metavar='RUN',
        help='output folders of train, retrain or compare, or folders of these; runs that differ in their seed alone '
             'are shown as mean and spread')
    parser.add_argument('-o', '--output', default=PAGE, help='HTML file to write')
    parser.add_argument('--no-images', action='store_true', help='show no images of the data set')
    add_data_options(parser)
    parser.set_defaults(dataset=None)
    return parser


def _add_galleries(reports: Sequence[RunReport], args: argparse.Namespace):
    """Read the data sets again for thumbnails; where they are not there, the page says so."""
    with_images: dict[str, RunReport] = {}
    for report in reports:
        if report.predictions is not None:
            with_images.setdefault(report.setting, report)

    read = {}
    for report in list(with_images.values())[:_MOST_GALLERIES]:
        options = _options(report, args)
        key = repr(sorted(vars(options).items()))
        try:
            if key not in read:
                read[key] = create_splits(options.dataset, **dataset_options(options))
            add_gallery(report, *read[key])
        except UserError as e:
            report.no_gallery = f'The images could not be read: {cut_folders(str(e))}'  # the page goes to others
        if report.no_gallery:
            print(f'no images of {report.name}: {report.no_gallery}; --dataset and --data-dir name the data')


def _options(report: RunReport, args: argparse.Namespace) -> argparse.Namespace:
    """Return how to read the data of a run: as it did, unless other data is named.

    Raises:
        UserError: The run does not say what it was trained on.
    """
    if args.dataset is not None:
        return args

    options = {**vars(args), **report.data}
    if args.data_dir is not None:
        options['data_dir'] = args.data_dir
    if options['dataset'] is None:
        raise UserError(f'{report.name} does not say what it was trained on')
    return argparse.Namespace(**options)


def main(argv: list[str] | None = None):
    """Read runs and write their page.

    Args:
        argv: Options; None takes the command line.

    Raises:
        UserError: A folder is no finished run, runs cannot be compared, or the disk refuses.
    """
    args = create_parser().parse_args(argv)
    path = Path(args.output)
    require_place(path.parent)
    if path.is_dir():
        raise UserError(f'--output {path} is a folder: name an HTML file, such as {path / PAGE}')

    reports = [report for run in args.runs for report in read_reports(run)]
    entries_of(reports)  # what cannot be compared is refused before data is read
    if not args.no_images:
        _add_galleries(reports, args)
    write_page(path, reports)
    models = f'{len(reports)} models' if len(reports) > 1 else reports[0].name
    print(f'report of {models}: {path}, {path.stat().st_size / 1e6:.2f} MB')
