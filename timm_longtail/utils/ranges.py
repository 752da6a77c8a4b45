"""Kinds and ranges of options, for the command line, recipes and the options of methods.

    parser.add_argument('--crop-pct', type=Number(float, '(0, 1]'))

The same `Number` reads the text that was typed and the value that a YAML file holds, checks it,
and says in the help and in the error what is allowed.
"""
import argparse
import inspect
import math
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, get_args, get_origin

from .errors import UserError, one_line

__all__ = ['LIMIT', 'Number', 'check_option', 'shown']

LIMIT = 1e9
"""What stands for infinity: larger numbers only overflow."""


def shown(value: Any) -> str:
    """Return a value as an error message quotes it: one line, cut where it is long."""
    return one_line(repr(value), 60)


class Number:
    """A kind of number and the interval that it lies in, also as `type` of an argparse option.

    Args:
        kind: `int` or `float`.
        interval: In mathematical notation: `[0, 1)` holds 0 and not 1. An end at `inf` means
            `LIMIT`.
    """

    def __init__(self, kind: type[int] | type[float], interval: str):
        self.kind = kind
        self.interval = interval

        low, high = map(float, interval[1:-1].split(','))
        self.low = -LIMIT if math.isinf(low) else low
        self.high = LIMIT if math.isinf(high) else high
        self.is_bounded = not math.isinf(high)
        self.holds_low = interval[0] == '[' or math.isinf(low)
        self.holds_high = interval[-1] == ']' or math.isinf(high)

    @property
    def words(self) -> str:
        """What is allowed: `at least 1`, `above 0`, `in [0, 1)`."""
        if self.low == -LIMIT:
            return f'in [{-LIMIT:g}, {LIMIT:g}]'
        if self.is_bounded:
            return f'in {self.interval}'
        if self.holds_low:
            return f'at least {self.low:g}'
        return f'above {self.low:g}'

    def complaint(self, value: Any) -> str | None:
        """Return what is wrong with a value, or None; text is no number, 64.0 no whole one."""
        kind = 'a whole number' if self.kind is int else 'a number'
        is_kind = isinstance(value, (int, self.kind)) and not isinstance(value, bool)
        if not is_kind:
            return f'must be {kind}, {self.words}, got {shown(value)}'

        # a comparison with nan is false
        is_above = value >= self.low if self.holds_low else value > self.low
        is_below = value <= self.high if self.holds_high else value < self.high
        if is_above and is_below:
            return None

        words = self.words
        if value > LIMIT and not self.is_bounded:
            words = f'{words} and at most {LIMIT:g}'
        return f'must be {words}, got {shown(value)}'

    def check(self, what: str, value: Any):
        """Raise a `UserError` that begins with `what` unless a value fits."""
        complaint = self.complaint(value)
        if complaint:
            raise UserError(f'{what} {complaint}')

    def __call__(self, value: Any) -> int | float:
        """Return the number that was typed, or that YAML holds.

        `200`, `'200'`, `200.0` and `'2e2'` are all 200.

        Raises:
            argparse.ArgumentTypeError: Another kind of value, or one outside of the interval.
        """
        number = self._convert(value)
        complaint = self.complaint(number)
        if complaint:
            raise argparse.ArgumentTypeError(complaint)
        return number

    def _convert(self, value: Any) -> Any:
        """Return the number of this kind that a value stands for, else the value itself."""
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            return value

        if self.kind is int and not isinstance(value, float):
            try:
                return int(value)
            except ValueError:
                pass  # text such as 2e2, or none of a number

        try:
            number = float(value)
        except OverflowError:  # a whole number beyond all floats, which the interval refuses
            return value
        except ValueError:
            return value

        if self.kind is float:
            return number
        return int(number) if number.is_integer() else value


def check_option(
        what: str,
        name: str,
        value: Any,
        parameter: inspect.Parameter,
        intervals: Mapping[str, str],
):
    """Check a value for a parameter: its kind by the annotation, its range by the name.

    Args:
        what: How the message begins, such as `option 'tau' of method 'lws'`.
        name: Name of the parameter.
        value: Value to check.
        parameter: The parameter. Its annotation is the kind; without one it is the kind of its
            default.
        intervals: Range of a parameter by its name, or by the end of its name: `temperature` is
            also the range of `key_temperature`. A number without a range must be finite.

    Raises:
        UserError: The value is of another kind, or out of range.
    """
    annotation = parameter.annotation
    if annotation is parameter.empty:
        annotation = type(parameter.default)

    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)

    if value is None and NoneType in kinds:
        return
    if bool in kinds and not isinstance(value, bool):
        raise UserError(f'{what} must be True or False, got {shown(value)}')
    if str in kinds and not isinstance(value, str):
        raise UserError(f'{what} must be a name, got {shown(value)}')

    for kind in kinds:
        if kind in (int, float):
            Number(kind, _interval(name, intervals)).check(what, value)

    counts = [len(get_args(kind)) for kind in kinds if get_origin(kind) is tuple]
    if counts:
        _check_names(what, value, counts)


def _interval(name: str, intervals: Mapping[str, str]) -> str:
    """Return the interval of a name: its own, else that of the longest end of it."""
    words = name.split('_')
    for first in range(len(words)):
        end = '_'.join(words[first:])
        if end in intervals:
            return intervals[end]
    return '(-inf, inf)'


def _check_names(what: str, value: Any, counts: Sequence[int]):
    """Refuse what is not a list of names, as many as one of `counts`."""
    is_list = isinstance(value, (list, tuple)) and len(value) in counts
    if not is_list or not all(isinstance(name, str) for name in value):
        numbers = ' or '.join(str(count) for count in counts)
        raise UserError(f'{what} must be {numbers} names, got {shown(value)}')
