"""The table of results in README.md and the page of commands in results/: `python -m tools.readme [--write]`.

Without `--write` it checks that both are up to date, and exits with 1 if one is not.
"""
import argparse
import re
import sys

from .result_tables import RESULTS, ROOT, commands, readme_table

README = ROOT / 'README.md'


def fill(text: str) -> str:
    """Return the text of the README with its table of results generated again."""
    block = f'<!-- published -->\n{readme_table()}\n<!-- /published -->'
    filled, count = re.subn(r'<!-- published -->.*?<!-- /published -->', lambda _: block, text, flags=re.DOTALL)
    if count != 1:
        raise ValueError('README.md must have one <!-- published --> … <!-- /published -->')
    return filled


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', action='store_true', help='update both files')
    args = parser.parse_args()

    generated = {
        README: fill(README.read_text(encoding='utf-8')),
        RESULTS / 'README.md': commands(),
    }
    stale = [path for path, text in generated.items() if path.read_text(encoding='utf-8') != text]

    if args.write:
        for path in stale:
            path.write_text(generated[path], encoding='utf-8')
    elif stale:
        names = ', '.join(str(path.relative_to(ROOT)) for path in stale)
        sys.exit(f'out of date: {names}; run `python -m tools.readme --write`')


if __name__ == '__main__':
    main()
