"""Bring exported folders up to date: `python -m timm_longtail.export hub/NAME …`.

It writes the checksums into their `config.json`, where they are missing or the file was edited, and
their cards.
"""
import sys

from ..utils.errors import UserError
from .card import write_card
from .checksums import seal


def main(folders: list[str]):
    """Write checksums and cards of exported folders."""
    for folder in folders:
        seal(folder)
        print(write_card(folder))


if __name__ == '__main__':
    try:
        main(sys.argv[1:])
    except UserError as e:
        sys.exit(f'python -m timm_longtail.export: error: {e}')
