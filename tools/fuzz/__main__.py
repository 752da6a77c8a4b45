"""Deal out the cases in the time there is, and print what became of them.

    python -m tools.fuzz --seconds 600 --seed 0
    python -m tools.fuzz --commands 0 --kills 0 --flips 0 --files 1000
    python -m tools.fuzz --only commands:137 files:12
"""
import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .commands import Commands
from .files import Files, Flips
from .kills import Kills
from .trial import CHANGED, HANG, ONE_LINE, RAN, ROOT, TRACEBACK, WRONG_END, Verdict, Workshop, listing

KINDS = {kind.name: kind for kind in (Commands, Files, Flips, Kills)}
# the complete exercise
COUNTS = {'commands': 1000, 'files': 600, 'flips': 100, 'kills': 30}
_CACHES = ('.git', '.venv', '__pycache__', '.pytest_cache', '.ruff_cache')
COLUMNS = (ONE_LINE, RAN, TRACEBACK, HANG, CHANGED, WRONG_END)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser('python -m tools.fuzz', description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, help='time for it; default: until all cases are done')
    parser.add_argument('--seed', type=int, default=0, help='seed of all cases')
    for name, count in COUNTS.items():
        parser.add_argument(f'--{name}', type=int, default=count, metavar='N', help=f'cases; default {count}')
    parser.add_argument('--only', nargs='+', metavar='KIND:N', help='run these cases alone, and print all they say')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='cases at once; default: one a core')
    parser.add_argument('--limit', type=float, default=40, help='seconds after which a program hangs')
    return parser.parse_args(argv)


def deal(counts: dict[str, int]) -> list[tuple[str, int]]:
    """Return the cases of all kinds, mixed evenly: wherever time ends, each kind has had its share."""
    cases = [((number + 0.5) / count, kind, number) for kind, count in counts.items() for number in range(count)]
    return [(kind, number) for _, kind, number in sorted(cases)]


def exercise(
        workshop: Workshop,
        cases: list[tuple[str, int]],
        end: float | None = None,
        jobs: int = 2,
) -> Iterator[tuple[str, int, Verdict]]:
    """Run cases, several at once, as long as there is time.

    Args:
        workshop: Where trials are made.
        cases: Kind and number of each.
        end: Time of `time.monotonic` after which none is begun; None has no end.
        jobs: Cases at once.

    Yields:
        Kind, number and verdict of each case that was run.
    """
    kinds = {name: KINDS[name](workshop) for name in {kind for kind, _ in cases}}

    def run(case: tuple[str, int]) -> Verdict | None:
        kind, number = case
        if end is not None and time.monotonic() > end:
            return None
        return kinds[kind](number)

    shown = set()
    with ThreadPoolExecutor(jobs) as pool:
        for (kind, number), verdict in zip(cases, pool.map(run, cases)):
            if verdict is None:
                continue
            # the first of its kind is worth the time to make it short
            if kind == 'commands' and verdict.is_fault and (verdict.outcome, verdict.what) not in shown:
                shown.add((verdict.outcome, verdict.what))
                verdict = kinds[kind].shrink(number, verdict)
            yield kind, number, verdict


def format_table(found: list[tuple[str, int, Verdict]]) -> str:
    """Return the table: a row for each kind, a column for each way to end."""
    lines = ['| kind     | tried | ' + ' | '.join(COLUMNS) + ' |', '|:---------|------:|' + ''.join(
        '-' * (len(name) + 1) + ':|' for name in COLUMNS)]
    for kind in KINDS:
        outcomes = Counter(verdict.outcome for name, _, verdict in found if name == kind)
        cells = ' | '.join(str(outcomes[name]).rjust(len(name)) for name in COLUMNS)
        lines.append(f'| {kind:8} | {sum(outcomes.values()):5} | {cells} |')
    return '\n'.join(lines)


def format_faults(found: list[tuple[str, int, Verdict]], seed: int) -> str:
    """Return each fault once, with how often it was met and the first case that shows it."""
    groups: dict[tuple[str, str, str], list[tuple[int, Verdict]]] = {}
    for kind, number, verdict in found:
        if verdict.is_fault:
            groups.setdefault((kind, verdict.outcome, verdict.what), []).append((number, verdict))
    lines = []
    for (kind, outcome, what), cases in sorted(groups.items(), key=lambda group: (group[0][:2], -len(group[1]))):
        number, verdict = cases[0]
        lines += [
            f'{kind}, {outcome}, {len(cases)} x: {what}{f" ({verdict.words})" if verdict.words else ""}',
            f'    {verdict.how}',
            f'    python -m tools.fuzz --seed {seed} --only {kind}:{number}',
        ]
    return '\n'.join(lines)


def main():
    args = parse_args()
    end = None if args.seconds is None else time.monotonic() + args.seconds
    cases = deal({name: getattr(args, name) for name in KINDS})
    if args.only:
        cases = [(name.partition(':')[0], int(name.partition(':')[2])) for name in args.only]

    found, known = [], set()
    with tempfile.TemporaryDirectory(prefix='fuzz-') as folder:
        workshop = Workshop(Path(folder, 'work'), args.seed, args.limit)
        outside = listing(ROOT, workshop.place, but=_CACHES)
        try:
            for kind, number, verdict in exercise(workshop, cases, end, args.jobs):
                found.append((kind, number, verdict))
                if verdict.is_fault and (kind, verdict.outcome, verdict.what) not in known:
                    known.add((kind, verdict.outcome, verdict.what))
                    print(f'{kind}:{number}: {verdict.outcome}: {verdict.what}', file=sys.stderr, flush=True)
                if args.only:
                    print(f'{kind}:{number}: {verdict.outcome}\n{verdict.how}\n{verdict.detail}')
        finally:
            workshop.close()
        now = listing(ROOT, workshop.place, but=_CACHES)

    print(format_table(found), flush=True)
    faults = format_faults(found, args.seed)
    changed = sorted(path for path in outside.keys() | now.keys() if outside.get(path) != now.get(path))
    if changed:
        faults += f'\nchanged outside the folders of the cases: {", ".join(changed[:10])}'
    if faults:
        print(faults, file=sys.stderr)
    sys.exit(bool(faults))


if __name__ == '__main__':
    main()
