"""How dense the code is, to compare with code bases that read well: `python -m tools.density [PATH ...]`.

Measured over all `.py` files of the paths (default: the package and the scripts):

- blank lines, as a share of the lines of function bodies;
- bodies of 15 lines or more without one blank line or comment, as a share of such bodies;
- conditional expressions and comprehensions per 1000 lines;
- lines of more than 100 columns.

Docstrings are not counted as part of a body.
"""
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ('timm_longtail', 'train.py', 'validate.py', 'retrain.py', 'benchmark.py', 'recipes', 'benchmarks', 'tools')
LONG = 15
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> list[str]:
    """Return the lines of a function's body, without its docstring."""
    body = function.body
    if ast.get_docstring(function) is not None:
        body = body[1:]
    if not body:
        return []
    return lines[body[0].lineno - 1:function.end_lineno]


def is_blank(line: str) -> bool:
    return not line.strip()


def is_comment(line: str) -> bool:
    return line.strip().startswith('#')


def measure(paths: list[Path]) -> dict[str, float]:
    """Return the figures of the module docstring, in percent or per 1000 lines."""
    num_lines = num_wide = in_bodies = blank_in_bodies = 0
    long_bodies = dense_bodies = conditionals = comprehensions = 0

    for path in paths:
        text = path.read_text(encoding='utf-8')
        lines = text.splitlines()
        num_lines += len(lines)
        num_wide += sum(len(line) > 100 for line in lines)

        for node in ast.walk(ast.parse(text)):
            conditionals += isinstance(node, ast.IfExp)
            comprehensions += isinstance(node, COMPREHENSIONS)
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue

            body = body_lines(node, lines)
            in_bodies += len(body)
            blank_in_bodies += sum(map(is_blank, body))
            if len(body) >= LONG:
                long_bodies += 1
                dense_bodies += not any(is_blank(line) or is_comment(line) for line in body)

    return {
        'files': len(paths),
        'lines': num_lines,
        'blank lines in bodies, %': 100 * blank_in_bodies / in_bodies,
        f'bodies of {LONG} lines or more without blank line or comment, %': 100 * dense_bodies / long_bodies,
        'conditional expressions per 1000 lines': 1000 * conditionals / num_lines,
        'comprehensions per 1000 lines': 1000 * comprehensions / num_lines,
        'lines over 100 columns, %': 100 * num_wide / num_lines,
    }


def main():
    names = sys.argv[1:] or [ROOT / name for name in DEFAULT]
    paths = []
    for path in map(Path, names):
        paths += sorted(path.rglob('*.py')) if path.is_dir() else [path]

    for name, value in measure(paths).items():
        print(f'{name:68} {value:8.1f}')


if __name__ == '__main__':
    main()
