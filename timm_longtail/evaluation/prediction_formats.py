"""Predictions as CSV, as JSON lines, and as a table for a terminal: one row an image, written at once.

Shapes: k classes that are named for an image.
"""
import csv
import json
import unicodedata
from collections.abc import Sequence
from typing import Any, Protocol, TextIO

from .predict import Prediction

__all__ = ['FORMATS', 'UNCERTAIN', 'PredictionWriter', 'answer', 'create_writer']

UNCERTAIN = '?'
"""What stands in the place of a class below the threshold."""

FORMATS = ('csv', 'jsonl', 'table')
"""Names of the formats."""

# columns of a terminal
_GAP = 2
_PROBABILITY = len('100.0 %')
_MOST_OF_CLASS = 32
_LEAST_OF_CLASS = 6
_LEAST_OF_FILE = 12


class PredictionWriter(Protocol):
    """Writes the rows of one format."""

    def write(self, prediction: Prediction): ...


def answer(prediction: Prediction, threshold: float) -> str:
    """Return the class of an image, or `?` where its probability is below the threshold.

    Args:
        prediction: Prediction of an image that could be read.
        threshold: Smallest probability of an answer.
    """
    return prediction.name if prediction.probability >= threshold else UNCERTAIN


def create_writer(
        name: str,
        file: TextIO,
        top_k: int,
        threshold: float = 0.0,
        images: Sequence[str] = (),
        class_names: Sequence[str] = (),
        width: int = 80,
) -> PredictionWriter:
    """Return a writer of rows; that of CSV writes its head at once.

    Args:
        name: One of `FORMATS`.
        file: Text file, open for writing, line ends as given.
        top_k: k.
        threshold: Probability below which the answer is `?`.
        images: Path of each image that will come, for the columns of a table.
        class_names: Name of each class, for the same.
        width: Columns of the terminal.
    """
    if name == 'csv':
        return _CsvWriter(file, top_k, threshold)
    if name == 'jsonl':
        return _JsonLinesWriter(file, top_k, threshold)
    return _TableWriter(file, top_k, threshold, images, class_names, width)


class _CsvWriter:
    def __init__(self, file: TextIO, top_k: int, threshold: float):
        self._writer = csv.writer(file)
        self._top_k = top_k
        self._threshold = threshold

        head = ['file', 'class', 'probability']
        for rank in range(2, top_k + 1):
            head += [f'class_{rank}', f'probability_{rank}']
        self._writer.writerow([*head, 'error'])

    def write(self, prediction: Prediction):
        if prediction.error:
            empty = [''] * (2 * self._top_k)
            self._writer.writerow([prediction.image, *empty, prediction.error])
            return

        names = [answer(prediction, self._threshold), *prediction.names[1:]]
        cells = [prediction.image]
        for name, probability in zip(names, prediction.probabilities, strict=True):
            cells += [name, f'{probability:.6f}']
        self._writer.writerow([*cells, ''])


class _JsonLinesWriter:
    def __init__(self, file: TextIO, top_k: int, threshold: float):
        self._file = file
        self._top_k = top_k
        self._threshold = threshold

    def write(self, prediction: Prediction):
        row: dict[str, Any] = {'file': prediction.image}
        if prediction.error:
            row['error'] = prediction.error
        else:
            row['class'] = answer(prediction, self._threshold)
            row['probability'] = prediction.probability
            if self._top_k > 1:
                pairs = zip(prediction.names, prediction.probabilities, strict=True)
                row['top'] = [{'class': name, 'probability': value} for name, value in pairs]
        self._file.write(json.dumps(row) + '\n')


class _TableWriter:
    """Rows no wider than the terminal: of a path that is too long the end is kept, of a class its beginning."""

    def __init__(
            self,
            file: TextIO,
            top_k: int,
            threshold: float,
            images: Sequence[str],
            class_names: Sequence[str],
            width: int,
    ):
        self._file = file
        self._threshold = threshold
        self._width = width

        # classes have what they need up to a limit, paths the rest, and classes give way last
        around = 2 * _GAP + _PROBABILITY
        of_class = max((_columns(_printable(name)) for name in class_names), default=_LEAST_OF_CLASS)
        of_class = min(of_class, _MOST_OF_CLASS)
        of_file = max((_columns(_printable(image)) for image in images), default=_LEAST_OF_FILE)
        room = width - top_k * (of_class + around)
        self._of_file = min(of_file, max(room, _LEAST_OF_FILE))
        room = (width - self._of_file) // top_k - around
        self._of_class = max(min(of_class, room), _LEAST_OF_CLASS)

    def write(self, prediction: Prediction):
        image = _padded(_cut_start(_printable(prediction.image), self._of_file), self._of_file)
        if prediction.error:
            line = f'{image}{" " * _GAP}{_printable(prediction.error)}'
            self._file.write(_cut_end(line, self._width) + '\n')
            return

        names = [answer(prediction, self._threshold), *prediction.names[1:]]
        line = image
        for name, probability in zip(names, prediction.probabilities, strict=True):
            cell = _padded(_cut_end(_printable(name), self._of_class), self._of_class)
            share = f'{100 * probability:.1f} %'.rjust(_PROBABILITY)
            line += f'{" " * _GAP}{cell}{" " * _GAP}{share}'
        self._file.write(line + '\n')


def _printable(text: str) -> str:
    """Return a text as one line without control characters, which would move the cursor or turn the line around."""
    letters = (letter if letter.isprintable() else ' ' for letter in text)
    return ' '.join(''.join(letters).split())


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text fills: wide letters two, combining marks none."""
    return sum(_columns_of(letter) for letter in text)


def _columns_of(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in 'WF' else 1


def _cut_end(text: str, width: int) -> str:
    """Return the beginning of a text that fills at most so many columns."""
    if _columns(text) <= width:
        return text

    kept, used = '', 1  # of the ellipsis
    for letter in text:
        used += _columns_of(letter)
        if used > width:
            break
        kept += letter
    return f'{kept}…'


def _cut_start(text: str, width: int) -> str:
    """Return the end of a text that fills at most so many columns."""
    if _columns(text) <= width:
        return text
    return _cut_end(text[::-1], width)[::-1]


def _padded(text: str, width: int) -> str:
    return text + ' ' * (width - _columns(text))
