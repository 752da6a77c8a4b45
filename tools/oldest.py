"""Print the oldest versions that setup.cfg admits, as requirements: `python -m tools.oldest [EXTRA ...]`.

`torch>=2.9` becomes `torch==2.9.*`; a package without a bound is left as it is.
"""
import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def oldest(requirement: str) -> str:
    """Return a requirement at its lower bound."""
    return re.sub(r'>=\s*([\w.]+).*', r'==\1.*', requirement)


def requirements(extras: list[str]) -> list[str]:
    """Return the requirements of the package and of some of its extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')

    text = config['options']['install_requires']
    for extra in extras:
        text += config['options.extras_require'][extra]

    lines = [line.partition('#')[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def main():
    for requirement in requirements(sys.argv[1:]):
        print(oldest(requirement))


if __name__ == '__main__':
    main()
