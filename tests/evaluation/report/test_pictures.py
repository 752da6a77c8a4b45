"""Thumbnails: which images they are of, and that they are small JPEGs."""
import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from timm_longtail.data import LongTailDataset, create_dataset
from timm_longtail.evaluation.report.pictures import add_gallery
from timm_longtail.evaluation.report.reading import read_reports
from timm_longtail.evaluation.report.run_report import Predictions

from ...support.data_sets import write_classes
from ...support.run_folders import write_run

COUNTS = {'ant': 6, 'bee': 4, 'cow': 2}


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    write_classes(folder / 'train', COUNTS, size=(300, 200))
    write_classes(folder / 'test', dict.fromkeys(COUNTS, 3), size=(300, 200))
    return folder


@pytest.fixture()
def report(tmp_path):
    run = write_run(tmp_path / 'run', list(COUNTS), list(COUNTS.values()), num_test=3)
    return read_reports(run)[0]


def opened(uri: str) -> Image.Image:
    start = 'data:image/jpeg;base64,'
    assert uri.startswith(start)
    return Image.open(io.BytesIO(base64.b64decode(uri[len(start):])))


def test_the_most_confident_mistakes_come_first(report, photos):
    test_set = create_dataset('folder', 'test', photos)
    report.predictions = Predictions(
        images=list(test_set.source_names),
        target=np.array(test_set.targets),
        predicted=np.array([0, 1, 2, 0, 1, 1, 2, 2, 2]),
        confidence=np.array([0.9, 0.6, 0.7, 0.8, 0.5, 0.5, 0.5, 0.5, 0.5]),
    )

    add_gallery(report, create_dataset('folder', 'train', photos), test_set)

    mistakes = [(picture.label, picture.predicted, picture.confidence) for picture in report.gallery.mistakes]
    assert mistakes == [(1, 0, 0.8), (0, 2, 0.7), (0, 1, 0.6)]
    assert [picture.label for picture in report.gallery.rarest] == [2, 2, 1, 1, 1, 1, 0, 0, 0, 0]
    assert opened(report.gallery.mistakes[0].uri).size == (112, 75)


def in_memory(names: list[str]) -> LongTailDataset:
    """Return three images of 32x32 pixels, one of each class."""
    images = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
    constants = (0.5, 0.5, 0.5)
    return LongTailDataset(
        'small', 'train', images, np.arange(3), names, constants, constants, np.arange(3), ['a', 'b', 'c'])


def test_images_in_memory_keep_their_size(report):
    report.predictions = None

    add_gallery(report, in_memory(list(COUNTS)), in_memory(list(COUNTS)))

    assert [opened(picture.uri).size for picture in report.gallery.rarest] == [(32, 32)] * 3
    assert not report.gallery.mistakes


def test_data_of_other_classes_is_refused(report):
    add_gallery(report, None, in_memory(['ant', 'bee', 'elk']))

    assert report.gallery is None
    assert 'small has other classes than the run' in report.no_gallery
